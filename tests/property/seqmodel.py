# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""fs/seq_file.c of Linux 7.3 over a plain Python list, kept as literal as can be.

``seq_read_iter`` and ``traverse`` with ``start`` and ``next`` of ima_fs.c: the cursor is
a record index, ``show`` puts a whole record into the buffer or overflows, and a buffer
that is exactly full counts as overflown (``seq_has_overflowed``: count == size).
"""

from __future__ import annotations

from collections.abc import Callable

PAGE_SIZE = 4096


class SeqModel:
    """One open file; ``records`` gives the records of the list as they are now."""

    def __init__(self, records: Callable[[], list[bytes]]) -> None:
        self.records = records
        self.buf = b""
        self.size = PAGE_SIZE
        self.start_of_rest = 0  # m->from
        self.count = 0
        self.index = 0
        self.read_pos = 0

    def show(self, record: bytes) -> bool:
        """Appends to the buffer; False: overflow."""
        if self.count + len(record) >= self.size:
            return False
        self.buf = self.buf[: self.count] + record
        self.count += len(record)
        return True

    def grow(self) -> None:
        """A new, empty buffer of twice the size."""
        self.size *= 2
        self.buf = b""
        self.count = 0

    def traverse(self, offset: int) -> bool:
        """False: the buffer grew, do it again (-EAGAIN)."""
        position = 0
        self.index = 0
        self.count = self.start_of_rest = 0
        if not offset:
            return True
        records = self.records()
        while self.index < len(records):
            if not self.show(records[self.index]):
                self.grow()
                return False
            self.index += 1
            if position + self.count > offset:
                self.start_of_rest = offset - position
                self.count -= self.start_of_rest
                break
            position += self.count
            self.count = 0
            if position == offset:
                break
        return True

    def read(self, ki_pos: int, wanted: int) -> bytes:
        """One read() of ``wanted`` bytes at ``ki_pos``."""
        if not wanted:
            return b""
        if ki_pos == 0:
            self.index = 0
            self.count = 0
        if ki_pos != self.read_pos:
            while not self.traverse(ki_pos):
                pass
            self.read_pos = ki_pos
        copied = b""
        if self.count:
            rest = self.buf[self.start_of_rest : self.start_of_rest + self.count]
            copied = rest[:wanted]
            self.count -= len(copied)
            self.start_of_rest += len(copied)
            if self.count:
                return self.done(copied)
        wanted -= len(copied)
        self.start_of_rest = 0
        records = self.records()
        if self.index >= len(records):  # start() found nothing: end of file
            self.count = 0
            return self.done(copied)
        while not self.show(records[self.index]):
            self.grow()
        while True:
            self.index += 1  # next()
            if self.index >= len(records):
                break
            if self.count >= wanted:
                break
            if not self.show(records[self.index]):
                break
        out = self.buf[: min(wanted, self.count)]
        self.count -= len(out)
        self.start_of_rest = len(out)
        return self.done(copied + out)

    def done(self, copied: bytes) -> bytes:
        """The position moves by what was copied."""
        self.read_pos += len(copied)
        return copied
