# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The one interface of every TPM, and the device without a TPM."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from math import inf
from typing import Protocol

from imafs.errors import TpmError
from imafs.formats.algorithms import Bank

PcrValues = dict[str, dict[int, bytes]]
"""Bank name -> PCR number -> value."""


class ExtendError(TpmError):
    """An extend failed after ``done`` entries which certainly arrived.

    ``uncertain`` says whether the entry after those may have been extended as well (the
    answer never came); where the TPM itself refused the entry, it was not.
    """

    def __init__(self, reason: str, *, done: int, uncertain: bool) -> None:
        self.done = done
        self.uncertain = uncertain
        super().__init__(reason)


class ExtendRefused(ExtendError):
    """The TPM answered the entry behind ``done`` with an error, which another try would not
    change: the entry is in no PCR, and a kernel logs that and goes on."""

    def __init__(self, reason: str, *, done: int) -> None:
        super().__init__(reason, done=done, uncertain=False)


class ResetUnsupported(TpmError):
    """Only a swtpm that imafs started can be rebooted by imafs."""

    errno = errno.EOPNOTSUPP


class HangUnsupported(TpmError):
    """Only a swtpm that imafs started can be stopped by imafs."""

    errno = errno.EOPNOTSUPP


class Device(Protocol):
    """A TPM, or none.

    Every method blocks and is called from one worker thread at a time, never from the
    event loop: a stopped swtpm blocks for ever (measured). A caller who gives up
    abandons the thread and calls :meth:`reconnect` from another one; no lock that
    the abandoned thread may hold is taken there.
    """

    @property
    def kind(self) -> str:
        """``swtpm``, ``tcti`` or ``none``."""

    @property
    def tcti(self) -> str | None:
        """TCTI string by which other clients reach the same TPM; None without one."""

    @property
    def banks(self) -> tuple[Bank, ...]:
        """Allocated PCR banks in the TPM's own order."""

    @property
    def entry_size(self) -> int:
        """Bytes of one packed entry: PCR (u32 little endian) and every bank's digest."""

    def extend(self, packed: bytes | memoryview, *, longest: float = inf) -> int:
        """Extend the packed entries in order; how many of them it were.

        Fewer than all where ``longest`` seconds are over; one at least. Raises
        :class:`ExtendError`, :class:`ExtendRefused` among them; ValueError when ``packed`` is
        no whole number of entries.
        """

    def read_pcrs(self, pcrs: Sequence[int]) -> PcrValues:
        """The PCRs' values in all banks, from between two extends; raises TpmError."""

    def reset(self) -> None:
        """PCRs as after a reboot; :class:`ResetUnsupported` where imafs may not do that."""

    def hang(self) -> None:
        """From now on no client is answered, whose ever it is; :class:`HangUnsupported`.

        This and :meth:`go_on` come at once, from any thread.
        """

    def go_on(self) -> None:
        """Ends :meth:`hang`: commands that wait are carried out."""

    def reconnect(self) -> None:
        """A new connection after an error or an abandoned call; raises TpmError.

        At most one command of the abandoned call may still be carried out, so compare
        the PCR with the replayed list before going on.
        """

    def close(self) -> None:
        """Let go of everything; more calls of close are no error."""

    def environment(self) -> dict[str, str]:
        """Environment for tpm2-tools, agents and IBM's TSS to use the same TPM."""


class NoTpm:
    """IMA's TPM-bypass: no banks; extends go nowhere."""

    kind = "none"
    tcti: str | None = None
    banks: tuple[Bank, ...] = ()
    entry_size = 4

    def extend(self, packed: bytes | memoryview, *, longest: float = inf) -> int:
        """Nothing."""
        return len(packed) // self.entry_size

    def read_pcrs(self, pcrs: Sequence[int]) -> PcrValues:
        """No banks."""
        return {}

    def reset(self) -> None:
        """Nothing."""

    def hang(self) -> None:
        """Refused."""
        raise HangUnsupported("without a TPM none can hang")

    def go_on(self) -> None:
        """Nothing."""

    def reconnect(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def environment(self) -> dict[str, str]:
        """Empty."""
        return {}
