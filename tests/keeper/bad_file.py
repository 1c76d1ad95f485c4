# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A file on a disk with a bad sector: ``python -m tests.keeper.bad_file DIR DATA BEGIN END``.

Serves DATA as DIR/file by FUSE; what lies from byte BEGIN to END is EIO. Mounted over a file of a
store (bind) it is that file.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

_FILE = pyfuse3.InodeT(pyfuse3.ROOT_INODE + 1)


class BadFile(pyfuse3.Operations):
    """One directory with one file."""

    def __init__(self, data: bytes, begin: int, end: int) -> None:
        super().__init__()
        self._data, self._begin, self._end = data, begin, end

    def _attributes(self, inode: pyfuse3.InodeT) -> pyfuse3.EntryAttributes:
        attr = pyfuse3.EntryAttributes()
        attr.st_ino = inode
        is_file = inode == _FILE
        attr.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o640 if is_file else stat.S_IFDIR | 0o755)
        attr.st_size = len(self._data) if is_file else 0
        return attr

    async def lookup(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(_FILE)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1), direct_io=False, keep_cache=False)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        if off < self._end and off + size > self._begin:
            raise pyfuse3.FUSEError(errno.EIO)
        return self._data[off : off + size]


async def _serve() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def until_signal() -> None:
                async for _ in signals:
                    pyfuse3.terminate()

            nursery.start_soon(until_signal)
            print("ready", flush=True)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()


def main(directory: str, data: str, begin: str, end: str) -> None:
    """Serves until SIGTERM."""
    options = {
        *pyfuse3.default_options,
        "fsname=bad",
        *(["allow_other"] if not os.getuid() else []),
    }
    pyfuse3.init(BadFile(Path(data).read_bytes(), int(begin), int(end)), directory, options)
    try:
        trio.run(_serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
