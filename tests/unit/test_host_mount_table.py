# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The table of mounts: escapes, optional fields, and what is no such table."""

from __future__ import annotations

from pathlib import Path

import pytest

from imafs.errors import FormatError
from imafs.host.mount_table import Row, rows

TABLE = rb"""21 1 8:1 / / rw - ext4 /dev/sda1 rw
32 21 8:2 /in/sub /mnt/bind rw,noatime shared:1 master:2 - ext4 /dev/sdb1 rw,errors=remount-ro
34 21 0:40 / /with\040space\134 rw - tmpfs  rw
35 21 0:50 / /a\040-\040b rw - fuse.thing with\043hash rw,user_id=0,name=a b
"""


def test_rows() -> None:
    assert list(rows(TABLE)) == [
        Row(21, b"8:1", b"/", b"/", "ext4", b"/dev/sda1", b"rw"),
        Row(32, b"8:2", b"/in/sub", b"/mnt/bind", "ext4", b"/dev/sdb1", b"rw,errors=remount-ro"),
        Row(34, b"0:40", b"/", b"/with space\\", "tmpfs", b"", b"rw"),
        Row(35, b"0:50", b"/", b"/a - b", "fuse.thing", b"with#hash", b"rw,user_id=0,name=a b"),
    ]


def test_a_carriage_return_is_part_of_a_name() -> None:
    """Linux 7.3 escapes blank, tab, newline and backslash only."""
    (row,) = rows(b"34 21 0:40 / /one\r/two\x0b rw - tmpfs none rw\n")
    assert row.point == b"/one\r/two\x0b"


def test_no_mounts() -> None:
    assert list(rows(b"")) == []


def test_the_own_table() -> None:
    table = Path("/proc/self/mountinfo").read_bytes()
    assert len(list(rows(table))) == table.count(b"\n")
    assert any(row.kind == "proc" for row in rows(table))


@pytest.mark.parametrize(
    "line",
    [
        b"x 1 8:1 / / rw - ext4 /dev/sda1 rw",
        b"21 1 8:1 / / rw ext4 /dev/sda1 rw",
        b"\n",
        b"21 - a b c",
    ],
)
def test_no_such_table(line: bytes) -> None:
    with pytest.raises(FormatError, match="mountinfo: record 1: is no line of a table of mounts"):
        list(rows(TABLE.splitlines()[0] + b"\n" + line + b"\n"))
