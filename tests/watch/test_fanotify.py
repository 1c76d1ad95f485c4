# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Reads of a group that fail."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from imafs.sources.watch import fanotify
from imafs.sources.watch.fanotify import Event, Reader

EVENT = struct.pack("=IBBHQii", 24, 3, 0, 24, fanotify.OPEN_PERM, 7, 42)


def test_one_read_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it is read; it is told."""
    come, go = os.pipe2(os.O_NONBLOCK)
    told: list[OSError] = []
    reader = Reader(come, told.append)
    full = OSError(errno.ENFILE, "Too many open files in system")
    with monkeypatch.context() as patch:

        def read(descriptor: int, size: int) -> bytes:
            raise full

        patch.setattr(os, "read", read)
        assert reader.read() == []
    assert (told, reader.failing) == ([full], True)
    os.write(go, EVENT * 2)
    assert reader.read() == [Event(fanotify.OPEN_PERM, 7, 42)] * 2
    assert reader.read() == []
    assert not reader.failing
    os.close(come)
    os.close(go)


def test_all_reads_fail(tmp_path: Path) -> None:
    """A group that is always readable and never read would keep a processor busy for ever."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    told: list[OSError] = []
    reader = Reader(descriptor, told.append)

    def all_of_them() -> None:
        for _ in range(1000):
            assert reader.read() == []

    with pytest.raises(IsADirectoryError):
        all_of_them()
    assert 10 < len(told) < 100
    os.close(descriptor)
