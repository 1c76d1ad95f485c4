# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A kernel and its TPM on paper, in the place of :class:`imafs.keeper.source.Source`.

What emulators cannot do to their TPM happens here: extends by others, extends that fail,
hibernation, and snapshots that are restored. Records are real ones, and the PCRs are exact.
"""

from __future__ import annotations

import copy
import errno
from dataclasses import replace
from typing import Any

from imafs.keeper.facts import Clock, Mode, PcrValues
from imafs.keeper.records import listed, replayed
from imafs.keeper.source import Look
from imafs.keeper.store import BankFile
from tests.keeper import made

SIZES = {"sha1": 20, "sha256": 32}
MODES = dict.fromkeys(SIZES, Mode.REAL)


class PaperKernel:
    """Linux 7.2 with staging, for one collector."""

    def __init__(self, *, clock: bool = True, tpm: bool = True) -> None:
        self._tells_clock, self._tpm = clock and tpm, tpm
        self._boots = 0
        self.counted = 0  # violations
        self._clock = Clock(0, 0, 0, 0)
        self.truth: list[bytes] = []
        self.power_on()

    # --- what happens -------------------------------------------------------------------------

    def power_on(self) -> None:
        self._clock = replace(self._clock, reset=self._clock.reset + 1, restart=0)
        self.truth = []
        self._staged: list[bytes] = []
        self._current: list[bytes] = []
        self._pcrs: PcrValues = {bank: {10: bytes(size)} for bank, size in SIZES.items()}
        self._begin()

    def _begin(self) -> None:
        self._boots += 1
        self._suspended = False
        self.boot = f"boot-{self._boots}"
        self.add("boot_aggregate")

    def kexec(self, carried: int | None = None) -> None:
        """The list comes along, or the first so many of its records."""
        self._current, self._staged = [*self._staged, *self._current][:carried], []
        self._begin()

    def suspend(self) -> None:
        """A kexec has begun: nothing is measured any more, and no request is taken."""
        self._suspended = True

    def add(self, name: str, *, fails: bool = False) -> None:
        self.take(made.record(name), fails=fails)

    def take(self, record: bytes, *, fails: bool = False) -> None:
        self.tick(1000)
        self.truth.append(record)
        self._current.append(record)
        if not fails:
            self._pcrs = replayed(self._pcrs, listed(record), MODES, 0, 1)

    def extend(self) -> None:
        """Somebody else extends PCR 10."""
        self.tick()
        self._pcrs = replayed(self._pcrs, listed(made.record("/somebody")), MODES, 0, 1)

    def trim(self) -> None:
        """Somebody else deletes what there is."""
        self.tick()
        self._staged, self._current = [], []

    def trim_current(self) -> None:
        """Somebody else deletes by number, behind what is staged."""
        self.tick()
        self._current = []

    def hibernate(self) -> None:
        self._pcrs = {bank: {10: bytes(size)} for bank, size in SIZES.items()}
        self._clock = replace(self._clock, restart=self._clock.restart + 1)

    def snapshot(self) -> dict[str, Any]:
        """A minute passes behind it."""
        found = copy.deepcopy({k: v for k, v in vars(self).items() if k != "_boots"})
        self.tick(60_000)
        return found

    def restore(self, snapshot: dict[str, Any]) -> None:
        vars(self).update(copy.deepcopy(snapshot))

    def tick(self, milliseconds: int = 1) -> None:
        self._clock = replace(self._clock, clock=self._clock.clock + milliseconds)

    # --- Source -------------------------------------------------------------------------------

    directory = "/paper"
    staging = True

    def boot_id(self) -> str:
        return self.boot

    def flushes(self) -> bool:
        return False

    def view_measured(self) -> str:
        return "unknown"

    def look(self) -> Look:
        return Look(tuple(BankFile(bank, size) for bank, size in SIZES.items()), staging=True)

    def modes(self, banks: object, known: object = None) -> dict[str, Mode]:
        return dict(MODES)

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """There is nothing to let go of."""

    def count(self) -> int:
        return len(self._current)

    def violations(self) -> int:
        return self.counted

    def staged(self) -> bytes:
        return b"".join(self._staged)

    def current(self, most: int | None = None, begin: int = 0) -> bytes:
        return b"".join(self._current)[begin:]

    def stage(self) -> int:
        if self._staged:
            return errno.EEXIST
        if not self._current:
            return errno.ENOENT
        if self._suspended:
            return errno.EACCES
        self._staged, self._current = self._current, []
        return 0

    def delete(self) -> int:
        if not self._staged:
            return errno.ENOENT
        if self._suspended:
            return errno.ESTALE
        self._staged = []
        return 0

    def pcrs(self, banks: object, numbers: object) -> PcrValues | None:
        return self._pcrs if self._tpm else None

    def clock(self) -> Clock | None:
        self.tick()
        return self._clock if self._tells_clock else None
