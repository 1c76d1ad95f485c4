# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A file on a disk with a bad sector: ``python -m tests.keeper.bad_file DIR DATA BEGIN END``.

Serves DATA as DIR/file by FUSE; what lies from byte BEGIN to END is EIO. Mounted over a file of a
store (bind) it is that file.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pyfuse3

from scripts.benchlib import bare


class BadFile(bare.Bare):
    """One that is read through the page cache, and is bad there."""

    direct_io = False

    def __init__(self, data: bytes, begin: int, end: int) -> None:
        super().__init__(data)
        self._begin, self._end = begin, end

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        if off < self._end and off + size > self._begin:
            raise pyfuse3.FUSEError(errno.EIO)
        return await super().read(fh, off, size)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        raise pyfuse3.FUSEError(errno.EROFS)


def main(directory: str, data: str, begin: str, end: str) -> None:
    """Serves until SIGTERM."""
    bare.serve(BadFile(Path(data).read_bytes(), int(begin), int(end)), directory, "bad")


if __name__ == "__main__":
    main(*sys.argv[1:])
