# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The replay of a log of writes, with a log made by hand as the kernel's document describes it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.keeper.writelog import DISCARD, FLUSH, FUA, MAGIC, MARK, Replay, entries

SECTOR = 512


def _logged(*rows: tuple[int, int, bytes], sector: int = SECTOR) -> bytes:
    """A log of flags, sector and data."""
    out = struct.pack("<QQQI", MAGIC, 1, len(rows), sector).ljust(sector, b"\0")
    for flags, at, data in rows:
        if flags & MARK:
            out += (struct.pack("<QQQQ", 0, 0, flags, len(data)) + data).ljust(sector, b"\0")
            continue
        row = struct.pack("<QQQQ", at, len(data) // sector, flags, 0)
        out += row.ljust(sector, b"\0") + (b"" if flags & DISCARD else data)
    return out


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("begin", [0, 8192])
def test_the_disk_at_every_place(sector: int, begin: int, tmp_path: Path) -> None:
    one, two = b"1" * sector, b"2" * 2 * sector
    log = tmp_path / "log"
    rows = ((0, 1, one), (FLUSH, 0, b""), (MARK, 0, b"here"), (FUA, 0, two), (DISCARD, 1, one))
    log.write_bytes(bytes(begin) + _logged(*rows, sector=sector))
    found = list(entries(log, begin))
    assert [entry.durable for entry in found] == [False, True, True, True, False]
    assert [entry.mark for entry in found] == [None, None, "here", None, None]
    replay = Replay(log, tmp_path / "disk", 4 * sector)
    seen = []
    for entry in found:
        replay.do(entry)
        seen.append(replay.path.read_bytes())
    replay.close()
    none = bytes(sector)
    first = none + one + none + none
    assert seen == [first, first, first, two + none + none, b"2" * sector + none * 3]


def test_what_is_no_log_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(bytes(4096))
    with pytest.raises(AssertionError, match="0x0"):
        list(entries(log))
