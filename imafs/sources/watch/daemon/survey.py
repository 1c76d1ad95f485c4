# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a path or a mount is: one look at it each. Blocking, for as long as its file system
does not answer: see :mod:`imafs.sources.watch.daemon.filesystems`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from imafs.errors import FileError, Refused
from imafs.host.mount_table import Row, rows
from imafs.sources import file_attributes
from imafs.sources.watch import messages, scope

#: The listener reads /proc while openers wait: it must not wait for itself.
_NEVER = frozenset({"proc"})


@dataclass(frozen=True, slots=True)
class Mounts:
    """The table of mounts, and the devices of the emulator's own one (on ``leave``): a kernel's
    policies leave securityfs out as well, and each look at the list would make it longer."""

    rows: tuple[Row, ...]
    own: frozenset[bytes]

    @classmethod
    def read(cls, leave: bytes) -> Mounts:
        """As it is now."""
        table = tuple(rows(Path("/proc/self/mountinfo").read_bytes()))
        own = (row.device for row in table if row.point == leave and row.point != b"/")
        return cls(table, frozenset(own))

    def below(self, path: bytes) -> list[bytes]:
        """The points below ``path`` that may be watched."""
        return [
            mount.point
            for mount in scope.submounts(self.rows, path)
            if mount.kind not in _NEVER and mount.device not in self.own
        ]

    def check(self, path: bytes, name: str) -> None:
        """Raises :class:`Refused` for a path that must not be watched; ``name`` is what it is
        called."""
        on = scope.holding(self.rows, path)
        if on is not None and on.kind in _NEVER:
            raise Refused(errno.EINVAL, f"{name} is on {on.kind}, which cannot be watched")
        if on is not None and on.device in self.own:
            raise Refused(errno.EINVAL, f"{name} is on the emulator's own mount")
        if on is not None and (server := _server(on)) not in (0, os.geteuid()):
            raise Foreign(errno.EACCES, f"{name} is on a file system of uid {server}")


class Foreign(Refused):
    """Another user serves this file system: each open by the listener would wait for him, for as
    long as he likes, and what he shows is another content at each look."""


def _server(mount: Row) -> int:
    """Who answers for it: of FUSE the user who has mounted it."""
    if mount.kind.partition(".")[0] not in ("fuse", "fuseblk"):
        return 0
    found = re.search(rb"(?:^|,)user_id=(\d+)(?:,|$)", mount.options)
    return int(found[1]) if found else 0


def resolve(path: str, leave: bytes) -> bytes:
    """The path as records will show it. Raises :class:`FileError` and :class:`Refused`."""
    try:
        real = os.path.realpath(path, strict=True)
        os.stat(real)
    except OSError as error:
        raise FileError(path, error) from None
    Mounts.read(leave).check(os.fsencode(real), path)
    return os.fsencode(real)


@dataclass(frozen=True, slots=True)
class Point:
    """What one look at a point tells."""

    is_directory: bool
    file_system: messages.FileSystem


def look(point: bytes) -> Point:
    """Raises :class:`Refused`, for one that is not there any more, or is a dead mount."""
    try:
        info = os.stat(point)
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{os.fsdecode(point)}: {os.strerror(code)}") from None
    about = file_attributes.of_path(point)
    system = messages.FileSystem(
        info.st_dev,
        about.fsmagic,
        about.fsname,
        about.fs_subtype,
        about.fsuuid or b"",
        super_block(info.st_dev, about.fsname),
    )
    return Point(stat.S_ISDIR(info.st_mode), system)


def super_block(device: int, kind: str) -> bytes:
    """``s_id``: the name of the block device (``%pg``), of a file system without one its type."""
    if os.major(device):
        try:
            return os.path.basename(os.readlink(b"/sys/dev/block/%d:%d" % _numbers(device)))
        except OSError:
            return b"%d:%d" % _numbers(device)  # no sysfs here
    # NFS has its number; of btrfs' several devices the kernel names the first one.
    return b"%d:%d" % _numbers(device) if kind.startswith("nfs") else kind.encode()


def _numbers(device: int) -> tuple[int, int]:
    return os.major(device), os.minor(device)
