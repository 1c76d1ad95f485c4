# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What securityfs refuses (observed), whatever it is asked for."""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence

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
    RequestContext,
    XAttrNameT,
)

from imafs.fuse.boundary import boundary


class Refusals(pyfuse3.Operations):
    """Its entries are made by the kernel, never by a user; no file of it can be synced, and
    none has extended attributes."""

    @boundary
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        raise FUSEError(errno.EINVAL)

    @boundary
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        raise FUSEError(errno.EACCES)

    @boundary
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        # Regular files by ->create, which securityfs lacks (EACCES), others by ->mknod.
        raise FUSEError(errno.EACCES if stat.S_ISREG(mode) else errno.EPERM)

    @boundary
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return []

    @boundary
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    @boundary
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    @boundary
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    @boundary
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        raise FUSEError(errno.EPERM)

    @boundary
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        raise FUSEError(errno.EPERM)

    @boundary
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        raise FUSEError(errno.EPERM)
