# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A FUSE file system whose server takes every read and answers none, as a dead NFS does.

Run as a program it serves the directory that it is given.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import trio

from imafs.host import mounts
from tests.support import ROOT, run, wait_for

#: A regular file that opens and never gives a byte.
FILE = "file"
_INODE = 2


class _Hanging(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        await trio.lowlevel.checkpoint()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(
            stat.S_IFREG | 0o644 if inode == _INODE else stat.S_IFDIR | 0o755
        )
        entry.st_size = 100
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if os.fsdecode(name) != FILE:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(pyfuse3.InodeT(_INODE))

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        await trio.lowlevel.checkpoint()
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        await trio.sleep_forever()
        raise AssertionError


@contextmanager
def hanging(directory: Path) -> Iterator[Path]:
    """Its file, while it is mounted on ``directory``; who waits gets an error at the end."""
    directory.mkdir()
    command = [sys.executable, "-P", __file__, str(directory)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_for(lambda: mounts.top(str(directory)) is not None, 60, "it is mounted")
        yield directory / FILE
    finally:
        process.kill()
        process.wait()
        run(["umount", "--lazy", directory], check=False)


def _main(directory: str) -> None:
    pyfuse3.init(_Hanging(), directory, {"fsname=hanging"})
    trio.run(pyfuse3.main)


if __name__ == "__main__":
    _main(sys.argv[1])
