# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Open files: what a read, a write and a release of each kind do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from imafs.engine.emulator import Emulator
from imafs.errors import Refused
from imafs.kernel.access import Holder
from imafs.kernel.profiles import Entry
from imafs.kernel.requests import parse
from imafs.kernel.seqfile import Bytes, Position, SeqFile


class Handle:
    """An open file without methods of its own: reads and writes are EINVAL."""

    def read(self, offset: int, size: int) -> Bytes:
        """Up to ``size`` bytes for FUSE's ``offset``."""
        raise Refused(errno.EINVAL, "the file has no read method")

    def write(self, offset: int, data: bytes) -> int:
        """Number of bytes accepted."""
        raise Refused(errno.EINVAL, "the file has no write method")

    def release(self) -> None:
        """The last reference is gone."""


class ListHandle(Handle):
    """A measurement list, current or staged, in one view."""

    __slots__ = ("_append", "_emulator", "_entry", "_holder", "_position", "_seq")

    def __init__(self, emulator: Emulator, entry: Entry, flags: int, holder: Holder | None) -> None:
        files, view = entry.files, entry.view
        assert files is not None
        assert view is not None
        staged = files.staged
        self._emulator = emulator
        self._entry = entry
        self._holder = holder
        self._append = bool(flags & os.O_APPEND)
        self._position = Position()
        self._seq = SeqFile(
            lambda: emulator.queue.list(staged), view, large=emulator.config.large_reads
        )

    def read(self, offset: int, size: int) -> Bytes:
        position = self._position
        real = position.at_read(offset)
        out = self._seq.read(real, size)
        position.after_read(offset, real, len(out))
        return out

    def write(self, offset: int, data: bytes) -> int:
        files = self._entry.files
        assert files is not None
        if files.grammar is None:
            return super().write(offset, data)
        real = self._position.at_write(offset, append=self._append)
        flush = self._emulator.queue.flush_htable
        self._emulator.request(parse(files.grammar, data, real, flush_htable=flush))
        self._position.after_write(offset, real, len(data))
        return len(data)

    def release(self) -> None:
        if self._holder is not None:
            self._emulator.accounting.release(self._holder)


class TextHandle(Handle):
    """A small text that is made at each read (``simple_read_from_buffer``)."""

    __slots__ = ("_text",)

    def __init__(self, text: Callable[[], bytes]) -> None:
        self._text = text

    def read(self, offset: int, size: int) -> Bytes:
        return self._text()[offset : offset + size]
