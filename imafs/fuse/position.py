# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The position of an open file, which FUSE believes in otherwise than a kernel does."""

from __future__ import annotations


class Position:
    """The kernel's file position behind FUSE's, which moves with every write.

    The IMA files never move it on a write, so ``exec 3<>f; echo A >&3; cat <&3`` must
    read from 0 although FUSE asks at 2. A read at exactly the position that FUSE
    believes in is sequential: it happens at that position minus the bytes written.
    Any other position is absolute (lseek, pread), and so are the reads that follow it.
    """

    __slots__ = ("_believed", "_chain", "_skew", "now")

    def __init__(self) -> None:
        self.now = 0
        self._believed = 0
        self._skew = 0
        self._chain = -1

    def _real(self, offset: int) -> int:
        # After lseek(0), reads of one byte pass through the believed position by
        # accident: a chain that began absolute stays absolute.
        if offset != self._chain and offset == self._believed:
            return offset - self._skew
        return offset

    def at_read(self, offset: int) -> int:
        """Where a read that FUSE sends for ``offset`` happens."""
        return self._real(offset) if self._skew else offset

    def after_read(self, offset: int, real: int, size: int) -> None:
        """``size`` bytes were read at ``real`` for FUSE's ``offset``."""
        self.now = real + size
        if offset != real or (offset == self._believed and offset != self._chain):
            self._believed = offset + size
            self._chain = -1
        else:
            self._chain = offset + size

    def at_write(self, offset: int, *, append: bool) -> int:
        """The position (``*ppos``) that a write sent for ``offset`` sees.

        With O_APPEND FUSE sends the file's size, where the position never was.
        """
        return self.now if append else self._real(offset)

    def after_write(self, offset: int, real: int, size: int) -> None:
        """``size`` bytes were accepted: FUSE moves on, the kernel does not."""
        self.now = real
        self._believed = offset + size
        self._skew = offset + size - real
        self._chain = -1
