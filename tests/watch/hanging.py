# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A file system of one file in user space, some of whose answers never come.

``python hanging.py DIRECTORY (getattr|open)``; says so when it is mounted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import pyfuse3
import trio

FILE = pyfuse3.InodeT(2)


class Hanging(pyfuse3.Operations):
    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        if self._what == "getattr":
            await trio.sleep_forever()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        kind = stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
        entry.st_mode = pyfuse3.ModeT(kind)
        entry.st_uid, entry.st_gid, entry.st_size = os.getuid(), os.getgid(), 4
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        await trio.sleep_forever()
        raise AssertionError


def main() -> None:
    directory, what = sys.argv[1:]
    pyfuse3.init(Hanging(what), directory, {"fsname=hanging"})
    print(flush=True)
    trio.run(pyfuse3.main)


main()
