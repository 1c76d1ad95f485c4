# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Any TPM that tpm2-tss reaches by a TCTI string, through raw command bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from imafs.errors import TpmError
from imafs.formats.algorithms import HashAlgorithm
from imafs.tpm.device import ResetUnsupported
from imafs.tpm.environment import client_environment
from imafs.tpm.link import Link
from imafs.tpm.real import LinkedDevice, ensure_started, identify, read_banks


class TctiLink:
    """One TCTI context.

    After an I/O error a context is dead. It is finalised by :meth:`drop`, or, while a call
    of another thread is inside it, by that thread when the call returns: never
    under its feet.
    """

    def __init__(self, spec: str) -> None:
        # tpm2-tss logs to stderr what the exception says again; imafs says one line.
        os.environ.setdefault("TSS2_LOG", "all+none")
        # Imported here: 0.3 s that the usual device, our own swtpm, need not pay.
        from tpm2_pytss import (  # type: ignore[import-untyped, unused-ignore]
            TCTILdr,
            TSS2_Exception,
        )

        self._failure: type[Exception] = TSS2_Exception
        self._name = spec
        self._state = threading.Lock()  # never held across a call into the context
        self._busy = False
        self._dropped = False
        self._broken = False
        name, _, conf = spec.partition(":")
        try:
            self._context: Any = TCTILdr(name, conf or None)
        except TSS2_Exception as error:
            raise TpmError(f"cannot open the TPM {spec}: {error}") from error

    def transact(self, command: bytes | bytearray) -> bytes:
        """See :class:`imafs.tpm.link.Link`."""
        with self._state:
            if self._dropped:
                raise TpmError("the connection to the TPM was given up")
            if self._broken:
                raise TpmError(f"the connection to the TPM {self._name} is broken")
            self._busy = True
        try:
            self._context.transmit(bytes(command))
            response = self._context.receive()
        except self._failure as error:
            self._broken = True
            raise TpmError(f"the TPM {self._name}: {error}") from error
        finally:
            with self._state:
                self._busy = False
                if self._dropped:
                    self._context.close()
        return bytes(response)

    def hold(self) -> AbstractContextManager[None]:
        """Nothing to hold: connecting is the TCTI's business."""
        return nullcontext()

    def drop(self) -> None:
        """See :class:`imafs.tpm.link.Link`."""
        with self._state:
            if not self._dropped and not self._busy:
                self._context.close()
            self._dropped = True


class TctiDevice(LinkedDevice):
    """A TPM that somebody else started and owns.

    Refuses a TPM that is not a software one unless ``allow_hardware``: IMA's PCR of a real
    machine can only be put right by a reboot. ``banks``, when given, must be
    those which are allocated.
    """

    kind = "tcti"

    def __init__(
        self, spec: str, *, banks: Sequence[HashAlgorithm] | None, allow_hardware: bool
    ) -> None:
        super().__init__(spec)
        link = self._replace_link()
        try:
            ensure_started(link)
            identity = identify(link)
            if not identity.is_software and not allow_hardware:
                raise TpmError(
                    f"the TPM {spec} is not a software TPM (manufacturer "
                    f"{identity.manufacturer!r}, vendor {identity.vendor!r}); "
                    "--allow-hardware-tpm extends its PCRs all the same"
                )
            found = read_banks(link)
            if banks is not None and {b.name for b in found} != {b.name for b in banks}:
                raise TpmError(
                    f"the TPM {spec} has the banks {','.join(b.name for b in found)}, not "
                    f"{','.join(b.name for b in banks)}: only a swtpm of our own is allocated anew"
                )
            self._set_banks(found)
        except TpmError:
            self._drop_link()
            raise

    def _make_link(self) -> Link:
        return TctiLink(self._tcti)

    def reset(self) -> None:
        """Always :class:`ResetUnsupported`."""
        raise ResetUnsupported(
            f"the TPM {self._tcti} was not started by imafs, so imafs cannot reboot it"
        )

    def close(self) -> None:
        """Finalise the context."""
        self._drop_link()

    def environment(self) -> dict[str, str]:
        """See :class:`imafs.tpm.device.Device`."""
        return client_environment(self._tcti)
