# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The log that the device-mapper target log-writes makes of all writes to a disk, and the disk as
it was at any place of it (Documentation/admin-guide/device-mapper/log-writes.rst).

Writes stand in it in the order in which they were durable: behind a flush those that it flushed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x6A736677736872
VERSION = 1
_HEAD = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One write: where on the disk it went, where in the log it is, in bytes; or a mark."""

    flags: int
    at: int
    size: int
    logged_at: int
    mark: str | None = None

    @property
    def durable(self) -> bool:
        """Whether the disk had said of it, or of all before it, that a power cut keeps it."""
        return bool(self.flags & (FLUSH | FUA)) or self.mark is not None


def entries(log: Path, begin: int = 0) -> Iterator[Entry]:
    """The log's entries in order; it begins ``begin`` bytes into the file."""
    with log.open("rb") as file:
        file.seek(begin)
        magic, version, count, sector = _HEAD.unpack(file.read(_HEAD.size))
        assert (magic, version) == (MAGIC, VERSION), (hex(magic), version)
        at = begin + sector
        for _ in range(count):
            file.seek(at)
            head = file.read(sector)
            place, sectors, flags, inline = _ENTRY.unpack_from(head)
            at += sector
            mark = None
            if flags & MARK:
                mark = head[_ENTRY.size : _ENTRY.size + inline].rstrip(b"\0").decode()
            yield Entry(flags, place * sector, sectors * sector, at, mark)
            if not flags & DISCARD:
                at += sectors * sector


class Replay:
    """A disk that begins as zeros, and to which writes are done one by one."""

    def __init__(self, log: Path, disk: Path, size: int) -> None:
        self.path = disk
        self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self._disk = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(self._disk, size)

    def do(self, entry: Entry) -> None:
        """One more."""
        if entry.flags & DISCARD:
            data = bytes(entry.size)
        else:
            data = os.pread(self._log, entry.size, entry.logged_at)
            assert len(data) == entry.size, "the log ends within a write"
        if data:
            os.pwrite(self._disk, data, entry.at)

    def close(self) -> None:
        """The disk's file stays."""
        os.close(self._log)
        os.close(self._disk)
