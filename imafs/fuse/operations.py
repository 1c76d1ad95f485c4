# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""FUSE handlers: a few lines each, every one inside the same error boundary.

Those that refuse whatever they are asked are in :mod:`imafs.fuse.refusals`. Requests come by
way of :mod:`imafs.fuse.relay`, which asks the three methods of its ``Answers`` here first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from imafs.fuse.boundary import at_once, boundary
from imafs.fuse.directory import Directory, Entry, Handle, WaitFirst
from imafs.fuse.position import Position
from imafs.fuse.refusals import Refusals
from imafs.fuse.relay import Request
from imafs.fuse.tree import Inodes, Node, Tree
from imafs.lists.seqfile import Bytes

#: The size that the kernel keeps of a file whose size is hidden: any splice finds something
#: to ask for, and 32-bit programs can open a file of less than 2 GiB.
HIDDEN = 0x7FFFF000


class OpenFile:
    """A handle at the position that a kernel would have, and what its open knew.

    ``generation`` is the directory's at the open, ``names`` those of the file.
    """

    __slots__ = ("_append", "_position", "generation", "handle", "names", "node")

    def __init__(
        self, handle: Handle, flags: int, generation: object, names: list[str], node: Node
    ) -> None:
        self.handle = handle
        self.generation = generation
        self.names = names
        self.node = node
        self._append = bool(flags & os.O_APPEND)
        self._position = Position()

    async def prepare(self, offset: int) -> None:
        """See :meth:`Handle.prepare`."""
        await self.handle.prepare(self._position.at_read(offset))

    def waits(self, offset: int) -> bool:
        """See :meth:`Handle.waits`."""
        return self.handle.waits(self._position.at_read(offset))

    def read(self, offset: int, size: int, fill: bool) -> Bytes:
        """A read that FUSE sends for ``offset``."""
        real = self._position.at_read(offset)
        out = self.handle.read(real, size, fill=fill)
        self._position.after_read(offset, real, len(out))
        return out

    async def write(self, offset: int, data: bytes, writer: int) -> int:
        """A write that FUSE sends for ``offset``; of an O_APPEND file, the file's size."""
        real = self._position.at_write(offset, append=self._append)
        taken = await self.handle.store(real, data, writer)
        self._position.after_write(offset, real, taken)
        return taken


class DirectoryOperations(Refusals):
    """The handlers of one mount of a :class:`Directory`."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        directory: Directory[Any],
        asked: Callable[[], Request] = Request,
        *,
        true_sizes: bool = False,
        large_reads: bool = False,
    ) -> None:
        super().__init__()
        self._directory = directory
        self._asked = asked
        self._inodes = Inodes()
        self._generation = directory.generation
        self._planted = Tree(directory, self._inodes)
        self._files: dict[int, OpenFile] = {}
        self._next = 1
        self._hiding = not true_sizes
        self._fills = true_sizes or large_reads

    def tell_sizes(self) -> None:
        """Shows true sizes and fills reads from now on."""
        self._hiding = False
        self._fills = True

    def plant(self, owner: Directory[Any], entry: Entry) -> Node:
        """A file of another directory, until it is uprooted."""
        return self._tree.add(owner, entry)

    def uproot(self, node: Node) -> None:
        """The file of :meth:`plant` goes."""
        self._tree.remove(node)

    # What the relay asks

    def read_now(self, fh: int, offset: int, size: int) -> Bytes | int | None:
        """A read that needs neither waiting nor anybody's attention."""
        file = self._files.get(fh)
        directory = self._directory
        if file is None or directory.gate is not None or file.waits(offset):
            return None
        if file.generation is not directory.generation:
            return errno.ENODEV
        try:
            return at_once(file.read, offset, size, self._fills)
        except WaitFirst:
            return None

    def tells_size(self, fh: int) -> bool:
        """seq_lseek knows no end."""
        file = self._files.get(fh)
        if not self._hiding or file is None:
            return True
        entry = file.node.entry
        return entry is None or not entry.seq

    def hides_size(self, inode: int) -> bool:
        """A kernel says 0 of whatever is no file of sysfs."""
        node = self._tree.nodes.get(inode)
        return node is not None and self._hides(node)

    def _hides(self, node: Node) -> bool:
        entry = node.entry
        return self._hiding and node.is_file and entry is not None and not entry.sized

    # Looking

    @property
    def _tree(self) -> Tree:
        """The tree of this generation: another one may have other names."""
        if self._generation is not self._directory.generation:
            self._generation = self._directory.generation
            self._planted = Tree(self._directory, self._inodes)
        return self._planted

    def _attributes(self, node: Node, *, shown: bool = False) -> EntryAttributes:
        """``shown``: the answer is for stat and lseek; the size in any other is kept."""
        # Timeouts 0: sizes and counts change under the kernel's feet.
        attr = EntryAttributes()
        attr.st_ino = InodeT(node.inode)
        attr.generation = 0
        attr.entry_timeout = 0
        attr.attr_timeout = 0
        attr.st_mode = ModeT(_mode(node))
        attr.st_nlink = node.nlink
        attr.st_uid = node.uid
        attr.st_gid = node.gid
        attr.st_rdev = 0
        attr.st_size = self._size(node) if shown or not self._hides(node) else HIDDEN
        attr.st_blksize = 4096
        attr.st_blocks = 0
        attr.st_atime_ns = node.atime_ns
        attr.st_mtime_ns = node.mtime_ns
        attr.st_ctime_ns = node.ctime_ns
        return attr

    def _size(self, node: Node) -> int:
        if self._hides(node):
            return node.truncated
        return node.owner.size(node.entry) if node.owner is not None and node.is_file else 0

    @boundary
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if len(name) > 255:
            raise FUSEError(errno.ENAMETOOLONG)
        node = self._tree.lookup(parent_inode, os.fsdecode(name))
        if node is None or not node.is_present:
            raise FUSEError(errno.ENOENT)
        return self._attributes(node)

    @boundary
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._tree.node(inode), shown=True)

    @boundary
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._tree.node(inode)
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_size:
            node.truncated = attr.st_size
        if fields.update_atime:
            node.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        if fields.update_ctime:
            node.ctime_ns = attr.st_ctime_ns
        return self._attributes(node)

    @boundary
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        target = self._tree.node(inode).target
        if target is None:
            raise FUSEError(errno.EINVAL)
        return FileNameT(os.fsencode(target))

    @boundary
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    @boundary
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        node = self._tree.node(fh)
        names = [(".", node), ("..", self._tree.node(node.parent))]
        names += [(child.name, child) for child in node.listed if child.is_present]
        for number, (name, child) in enumerate(names[start_id:], start_id + 1):
            attr = self._attributes(child)
            if not pyfuse3.readdir_reply(token, FileNameT(os.fsencode(name)), attr, number):
                return

    @boundary
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        data = StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = 255
        return data

    # Open files

    @boundary
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        # No await here, unless the gate asks for it: the counts must change in the order
        # in which requests arrive.
        gate = self._directory.gate
        if gate is None:
            return self._opened(inode, flags, ctx.pid)

        async def act() -> FileInfo:
            return self._opened(inode, flags, ctx.pid)

        names = self._tree.names(self._tree.node(inode))
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        return await gate.around("open", names, act, writing=writing)

    def _opened(self, inode: InodeT, flags: int, tid: int) -> FileInfo:
        tree = self._tree
        node = tree.node(inode)
        assert node.owner is not None
        handle = node.owner.open(node.entry, flags, tid)
        if flags & os.O_DIRECT:
            handle.release()
            raise FUSEError(errno.EINVAL)
        number = self._next
        self._next += 1
        self._files[number] = OpenFile(handle, flags, self._generation, tree.names(node), node)
        return FileInfo(fh=FileHandleT(number), direct_io=True, keep_cache=False)

    def _file(self, fh: int) -> OpenFile:
        """The open file, unless its generation is gone: no file of a new one shows through it."""
        file = self._files[fh]
        if file.generation is not self._directory.generation:
            raise FUSEError(errno.ENODEV)
        return file

    @boundary
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        file = self._file(fh)
        await file.prepare(off)
        gate = self._directory.gate
        if gate is None:
            return await self._content(fh, off, size)  # type: ignore[return-value]

        async def act() -> bytes:
            # A copy: what is due after the read may give another read of the file a turn.
            return bytes(await self._content(fh, off, size))

        return await gate.around("read", file.names, act)

    async def _content(self, fh: int, off: int, size: int) -> Bytes:
        """What a read gives, with all that it has to wait for; else without a turn for others."""
        kept = []
        while True:
            try:
                return self._file(fh).read(off, size, self._fills)
            except WaitFirst as first:
                kept.append(await first.fetch())

    @boundary
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        writer = self._asked().pid  # before anything waits
        gate = self._directory.gate
        file = self._file(fh)
        if gate is None:
            return await file.write(off, buf, writer)

        async def act() -> int:
            # Looked up anew: what was due before the write may have ended the generation.
            return await self._file(fh).write(off, buf, writer)

        with file.handle.failing():
            return await gate.around("write", file.names, act, request=file.handle.asked(buf))

    @boundary
    async def release(self, fh: FileHandleT) -> None:
        file = self._files.pop(fh)
        if file.generation is self._directory.generation:
            file.handle.release()
        if (gate := self._directory.gate) is not None:
            await gate.closed(file.names)

    @boundary
    async def flush(self, fh: FileHandleT) -> None:
        # One per close() of any duplicate: not the end of the open file.
        if (file := self._files.get(fh)) is not None:
            file.handle.flush(self._asked().pid)


def _mode(node: Node) -> int:
    return node.mode if node.owner is None else node.owner.mode(node.entry, node.mode)
