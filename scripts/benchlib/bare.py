# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The yardstick: the least that a pyfuse3 filesystem of one file can do.

``python -m scripts.benchlib.bare DIR DATA [LENGTHS]`` serves DATA as DIR/file out of one
bytes object. LENGTHS (packed u32): what reads one after the other give, so that a reader
needs as many requests as it does with the emulator, which stops at a page as seq_file does.
Writes are taken and forgotten.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
)

_FILE = InodeT(pyfuse3.ROOT_INODE + 1)


class Bare(pyfuse3.Operations):
    """One directory with one file; caching as in the emulator (none)."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    direct_io = True

    def __init__(self, data: bytes, lengths: Sequence[int] = ()) -> None:
        super().__init__()
        self._data = data
        starts = accumulate(lengths, initial=0)
        self._ends = {start: start + length for start, length in zip(starts, lengths, strict=False)}

    def _attributes(self, inode: InodeT) -> EntryAttributes:
        attr = EntryAttributes()
        attr.st_ino = inode
        attr.entry_timeout = 0
        attr.attr_timeout = 0
        is_file = inode == _FILE
        attr.st_mode = ModeT(stat.S_IFREG | 0o660 if is_file else stat.S_IFDIR | 0o755)
        attr.st_nlink = 1
        attr.st_size = len(self._data) if is_file else 0
        return attr

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if name != b"file":
            raise FUSEError(errno.ENOENT)
        return self._attributes(_FILE)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(inode)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(1), direct_io=self.direct_io, keep_cache=False)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._data[off : min(self._ends.get(off, off + size), off + size)]

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        return None

    async def release(self, fh: FileHandleT) -> None:
        return None


async def _serve() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def until_signal() -> None:
                async for _ in signals:
                    pyfuse3.terminate()

            nursery.start_soon(until_signal)
            # The mount is there: requests wait in the kernel until main() takes them.
            print("ready", flush=True)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()


def serve(operations: Bare, directory: str, name: str) -> None:
    """Until SIGTERM; ``name`` is that of the file system in the table of mounts."""
    options = {*pyfuse3.default_options, f"fsname={name}"}
    if os.geteuid() == 0:
        options.add("allow_other")
    pyfuse3.init(operations, directory, options)
    try:
        trio.run(_serve)
    finally:
        pyfuse3.close(unmount=True)


def main(directory: str, data: str, lengths: str | None = None) -> None:
    """Serves until SIGTERM."""
    parts = array("I")
    if lengths is not None:
        parts.frombytes(Path(lengths).read_bytes())
    serve(Bare(Path(data).read_bytes(), parts), directory, "imafs-bench")


if __name__ == "__main__":
    main(*sys.argv[1:])
