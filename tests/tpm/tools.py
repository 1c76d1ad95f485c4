# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Packed entries, what they must come to, and calls that hang."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from imafs.errors import TpmError
from imafs.formats.algorithms import Bank
from imafs.tpm.swtpm import SwtpmDevice


def digest(bank: Bank, number: int) -> bytes:
    return hashlib.new(bank.name, b"record %d" % number).digest()


def packed(banks: Sequence[Bank], numbers: Iterable[int], pcr: int = 10) -> bytes:
    """Entries whose digests depend on the number."""
    head = pcr.to_bytes(4, "little")
    return b"".join(head + b"".join(digest(b, n) for b in banks) for n in numbers)


def replayed(banks: Sequence[Bank], numbers: Iterable[int]) -> dict[str, bytes]:
    """Bank name -> the PCR's value after those entries, from zero."""
    values = {bank.name: bytes(bank.digest_size) for bank in banks}
    for number in numbers:
        for bank in banks:
            joined = values[bank.name] + digest(bank, number)
            values[bank.name] = hashlib.new(bank.name, joined).digest()
    return values


def pcr10(device: SwtpmDevice) -> dict[str, bytes]:
    return {name: values[10] for name, values in device.read_pcrs([10]).items()}


def state_of(pid: int) -> str:
    """The letter of /proc/PID/stat; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Call(threading.Thread):
    """A blocking call in a thread, which may be abandoned; keeps its error."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.error: TpmError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except TpmError as error:
            self.error = error

    def ended(self) -> bool:
        return not self.is_alive()
