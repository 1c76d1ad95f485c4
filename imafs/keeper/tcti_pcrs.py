# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values and the clock of a TPM that a TCTI string names. It is read only. Blocking."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress

from imafs.errors import TpmError
from imafs.keeper.facts import Clock, PcrValues
from imafs.tpm.device import Device
from imafs.tpm.open import open_device
from imafs.tpm.real import transact
from imafs.tpm.tcti import TctiLink

#: TPM2_ReadClock has no parameters: tag, size, command code.
_READ_CLOCK = struct.pack(">HII", 0x8001, 10, 0x181)
#: TPMS_TIME_INFO, behind the response's header.
_TIME_INFO = struct.Struct(">QQIIB")
_HEADER = 10


class TctiPcrs:
    """See :class:`imafs.keeper.source.Pcrs`."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._device: Device | None = None
        self._link: TctiLink | None = None

    def read(self, banks: Iterable[str], pcrs: Iterable[int]) -> PcrValues | None:
        """See :class:`imafs.keeper.source.Pcrs`."""
        wanted = set(banks)
        try:
            if self._device is None:
                self._device = open_device(self._spec, allow_hardware=True)
            values = self._device.read_pcrs(sorted(pcrs))
        except TpmError:
            self.close()
            raise
        return {bank: own for bank, own in values.items() if bank in wanted}

    def clock(self) -> Clock | None:
        """See :class:`imafs.keeper.source.Pcrs`. None where the TPM has no such command."""
        try:
            if self._link is None:
                self._link = TctiLink(self._spec)
            response = transact(self._link, _READ_CLOCK)
        except TpmError:
            self.close()
            return None
        if len(response) < _HEADER + _TIME_INFO.size:
            return None
        time, clock, reset, restart, safe = _TIME_INFO.unpack_from(response, _HEADER)
        return Clock(time, clock, reset, restart, bool(safe))

    def close(self) -> None:
        """The next call connects anew."""
        device, self._device = self._device, None
        link, self._link = self._link, None
        if device is not None:
            with suppress(TpmError):
                device.close()
        if link is not None:
            link.drop()
