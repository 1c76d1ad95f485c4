# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""FUSE handlers: a few lines each, every one inside the same error boundary.

Those that refuse whatever they are asked are in :mod:`imafs.fuse.refusals`. Requests come by
way of :mod:`imafs.fuse.relay`, which asks the three methods of its ``Answers`` here first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

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

from imafs.emulator.emulator import Emulator
from imafs.emulator.running import Boot
from imafs.emulator.sysfs import Extra, ExtraHandle
from imafs.fuse.boundary import at_once, boundary
from imafs.fuse.caller import has_sys_admin
from imafs.fuse.handles import (
    Handle,
    ListHandle,
    PolicyHandle,
    RequestHandle,
    TextHandle,
)
from imafs.fuse.refusals import Refusals
from imafs.fuse.relay import Request
from imafs.fuse.tree import Inodes, Node, Tree
from imafs.interface.opens import Holder, Opening, Role
from imafs.interface.profiles import Kind
from imafs.lists.seqfile import Bytes

#: The size that the kernel keeps of a file whose size is hidden: any splice finds something
#: to ask for, and 32-bit programs can open a file of less than 2 GiB.
HIDDEN = 0x7FFFF000


class Opened(NamedTuple):
    """An open file: the kernel under which it was opened, the names of the file, its node."""

    handle: Handle
    boot: Boot
    names: list[str]
    node: Node


class ImaOperations(Refusals):
    """The IMA directory of one emulator."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        emulator: Emulator,
        layout: str,
        extras: Sequence[Extra] = (),
        asked: Callable[[], Request] = Request,
    ) -> None:
        super().__init__()
        self._emulator = emulator
        self._asked = asked
        self._layout = layout
        self._inodes = Inodes()
        self._boot = emulator.boot
        self._extras = extras
        self._planted = Tree(emulator.entries, layout, self._inodes, extras)
        self._handles: dict[int, Opened] = {}
        self._next = 1
        self._hiding = not emulator.config.true_sizes

    def tell_sizes(self) -> None:
        """Shows true sizes and fills reads from now on."""
        self._hiding = False

    def plant(self, extra: Extra) -> Node:
        """A file more, until it is uprooted."""
        return self._tree.add(extra)

    def uproot(self, node: Node) -> None:
        """The file of :meth:`plant` goes."""
        self._tree.remove(node)

    # What the relay asks

    def read_now(self, fh: int, offset: int, size: int) -> Bytes | int | None:
        """A read that needs neither waiting nor anybody's attention."""
        opened = self._handles.get(fh)
        if opened is None or opened.handle.waits or self._emulator.trouble.active:
            return None
        if opened.boot is not self._emulator.boot:
            return errno.ENODEV
        return at_once(opened.handle.read, offset, size)

    def tells_size(self, fh: int) -> bool:
        """seq_lseek knows no end."""
        opened = self._handles.get(fh)
        return not self._hiding or opened is None or not opened.node.is_seq

    def hides_size(self, inode: int) -> bool:
        """A kernel says 0 of whatever is no file of sysfs."""
        node = self._tree.nodes.get(inode)
        return node is not None and self._hides(node)

    def _hides(self, node: Node) -> bool:
        return self._hiding and stat.S_ISREG(node.mode) and not node.is_sized

    def _fills(self) -> bool:
        return self._emulator.config.large_reads or not self._hiding

    # Looking

    @property
    def _tree(self) -> Tree:
        """The directory of the kernel that runs: another one may have other names."""
        if self._boot is not self._emulator.boot:
            self._boot = self._emulator.boot
            entries = self._emulator.entries
            self._planted = Tree(entries, self._layout, self._inodes, self._extras)
        return self._planted

    def _attributes(self, node: Node, *, shown: bool = False) -> EntryAttributes:
        """``shown``: the answer is for stat and lseek; the size in any other is kept."""
        # Timeouts 0: sizes and counts change under the kernel's feet.
        attr = EntryAttributes()
        attr.st_ino = InodeT(node.inode)
        attr.generation = 0
        attr.entry_timeout = 0
        attr.attr_timeout = 0
        attr.st_mode = ModeT(self._mode(node))
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

    def _mode(self, node: Node) -> int:
        # CONFIG_IMA_READ_POLICY without _WRITE_POLICY: nobody's to write after the first load.
        sealed = _is_policy(node) and self._emulator.policy_file.sealed
        return node.mode & ~stat.S_IWUSR if sealed else node.mode

    def _there(self, node: Node) -> bool:
        """The policy file is removed where it could be of no use any more."""
        return not _is_policy(node) or self._emulator.policy_file.present

    def _size(self, node: Node) -> int:
        if self._hides(node):
            return node.truncated
        entry = node.entry
        if entry is None:
            return 0 if node.extra is None else node.extra.size
        if entry.kind is Kind.LIST and entry.files is not None and entry.view is not None:
            return self._emulator.queue.list(entry.files.staged).size(entry.view)
        if entry.request is not None:
            return 0 if entry.request.shows is None else len(self._emulator.shown(entry.request))
        return 0 if entry.kind is Kind.LINK else len(self._text(entry.kind))

    def _text(self, kind: Kind) -> bytes:
        queue = self._emulator.queue
        if kind is Kind.COUNT:
            return b"%d\n" % queue.count
        if kind is Kind.VIOLATIONS:
            return b"%d\n" % queue.violations
        return self._emulator.policy_file.text()

    @boundary
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if len(name) > 255:
            raise FUSEError(errno.ENAMETOOLONG)
        node = self._tree.lookup(parent_inode, os.fsdecode(name))
        if node is None or not self._there(node):
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
        names += [(child.name, child) for child in node.listed if self._there(child)]
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
        # No await here, unless a scenario asks for it: the counts must change in the order
        # in which requests arrive.
        trouble = self._emulator.trouble
        if not trouble.active:
            return self._opened_file(inode, flags, ctx.pid)

        async def act() -> FileInfo:
            return self._opened_file(inode, flags, ctx.pid)

        names = self._tree.names(self._tree.node(inode))
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        return await trouble.around("open", names, act, writing=writing)

    def _opened_file(self, inode: InodeT, flags: int, tid: int) -> FileInfo:
        node = self._tree.node(inode)
        handle = self._open(node, flags, tid)
        if flags & os.O_DIRECT:
            handle.release()
            raise FUSEError(errno.EINVAL)
        number = self._next
        self._next += 1
        self._handles[number] = Opened(handle, self._emulator.boot, self._tree.names(node), node)
        return FileInfo(fh=FileHandleT(number), direct_io=True, keep_cache=False)

    def _open(self, node: Node, flags: int, tid: int) -> Handle:
        if node.extra is not None and node.extra.read is not None:
            return ExtraHandle(node.extra.read)
        entry = node.entry
        assert entry is not None
        # As OPEN_FMODE: of the access mode 3, which may neither read nor write, no writer comes.
        write = bool(flags + 1 & 2)
        if entry.kind is Kind.POLICY:
            return self._open_policy(flags, tid)
        if entry.request is not None:
            holder = self._admit(entry.request.opening, tid, write=write)
            return RequestHandle(self._emulator, entry.request, flags, holder)
        if entry.kind is not Kind.LIST:
            kind = entry.kind
            return TextHandle(lambda: self._text(kind))
        assert entry.files is not None
        holder = self._admit(entry.files.opening, tid, write=write)
        return ListHandle(self._emulator, entry, flags, holder, self._fills)

    def _admit(self, opening: Opening, tid: int, *, write: bool) -> Holder | None:
        """Capability first, then the counter (ima_fs.c:244-336)."""
        if opening.needs_admin(write=write) and not has_sys_admin(tid):
            raise FUSEError(errno.EPERM)
        role = opening.role(write=write)
        if role is None:
            return None
        return self._emulator.accounting.open(tid, write=role is Role.WRITER)

    def _open_policy(self, flags: int, tid: int) -> Handle:
        # The kernel's test of the flags, not of the access mode (ima_open_policy).
        if flags & os.O_WRONLY:
            return PolicyHandle(self._emulator, flags)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EACCES)
        self._emulator.policy_file.open_read(admin=has_sys_admin(tid))
        return TextHandle(lambda: self._text(Kind.POLICY))

    def _handle(self, fh: int) -> Handle:
        """The handle, unless its kernel is gone: no file of a new one shows through it."""
        opened = self._handles[fh]
        if opened.boot is not self._emulator.boot:
            raise FUSEError(errno.ENODEV)
        return opened.handle

    @boundary
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._handle(fh)
        await handle.prepare(off)
        trouble = self._emulator.trouble
        if not trouble.active:
            return handle.read(off, size)  # type: ignore[return-value]

        async def act() -> bytes:
            # A copy: what is due after the read may give another read of the handle a turn.
            return bytes(self._handle(fh).read(off, size))

        return await trouble.around("read", self._handles[fh].names, act)

    @boundary
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        writer = self._asked().pid  # before anything waits
        trouble = self._emulator.trouble
        handle = self._handle(fh)
        if not trouble.active:
            return await handle.store(off, buf, writer)
        names = self._handles[fh].names

        async def act() -> int:
            # Looked up anew: what was due before the write may have ended the kernel.
            return await self._handle(fh).store(off, buf, writer)

        with handle.failing():
            return await trouble.around("write", names, act, request=handle.asked(buf))

    @boundary
    async def release(self, fh: FileHandleT) -> None:
        opened = self._handles.pop(fh)
        if opened.boot is self._emulator.boot:
            opened.handle.release()
        if self._emulator.trouble.active:
            await self._emulator.trouble.closed(opened.names)

    @boundary
    async def flush(self, fh: FileHandleT) -> None:
        # One per close() of any duplicate: not the end of the open file.
        if (opened := self._handles.get(fh)) is not None:
            opened.handle.flush(self._asked().pid)


def _is_policy(node: Node) -> bool:
    return node.entry is not None and node.entry.kind is Kind.POLICY
