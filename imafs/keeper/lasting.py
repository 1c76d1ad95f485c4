# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Whether what is stored outlives a reboot: what a store's file system lies on, layer by layer.

An overlay lies on its upper layer, a file system on its device, a loop device on a file, a mapped
one on others. Where a layer is not to be seen from here nothing says that it is volatile, but of
an overlay: see :func:`_unseen`. Blocking.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat

from imafs.errors import FileError
from imafs.host import mount_table, mounts

#: File systems that a reboot empties, and devices of that kind.
_VOLATILE = ("tmpfs", "ramfs")
_MEMORY = re.compile(r"(?:ram|zram)[0-9]+")
#: Options of an overlay that syncs nothing: of Linux 5.10, and of newer ones.
_UNSYNCED = {b"volatile", b"fsync=volatile"}
#: Layers that are looked through.
_LAYERS = 8
#: FS_IOC_FIEMAP, and a struct fiemap without extents.
_FIEMAP, _FIEMAP_SIZE = 0xC020660B, 32
_DEVICES = "/sys/dev/block"


def volatile(store: str) -> str | None:
    """Why records in ``store``, which is open, would not outlive this boot; None: nothing says so.

    Raises :class:`FileError`.
    """
    lock = os.path.join(os.path.realpath(store), "lock")
    try:
        why = _of_file(lock, lock, _LAYERS)
    except OSError as error:
        raise FileError(store, error, option="--store") from None
    return None if why is None else f"{store} {why}: nothing is deleted"


def _of_file(file: str, lock: str, layers: int) -> str | None:
    """The same of any file; ``lock`` is that of the store, where another one lies below it."""
    mount = mounts.beneath(file) if layers else None
    if mount is None:
        return None
    if mount.fstype in _VOLATILE:
        kind = f"{mount.fstype}, which a reboot empties"
        return f"is on {kind}" if file == lock else f"lies over {kind}"
    if mount.fstype == "overlay":
        if _UNSYNCED & set(mount.options.split(b",")):
            return "is on an overlay that is mounted volatile"
        below = _below(mount, file)
        return _unseen(lock) if below is None else _of_file(below, lock, layers - 1)
    return _of_device(mount.source, lock, layers - 1)


def _of_device(path: str, lock: str, layers: int) -> str | None:
    """The same of a file system's source, where that is a block device."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not os.path.isabs(path) or not stat.S_ISBLK(found.st_mode):
        return None
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return _of_block(os.path.realpath(f"{_DEVICES}/{number}"), lock, layers)


def _of_block(device: str, lock: str, layers: int) -> str | None:
    """The same of a directory of sysfs that is a block device's, or a part of one."""
    if os.path.exists(f"{device}/partition"):
        device = os.path.dirname(device)
    if _MEMORY.fullmatch(os.path.basename(device)):
        return f"lies over the memory of {os.path.basename(device)}"
    if layers <= 0:
        return None
    try:
        with open(f"{device}/loop/backing_file", "rb") as text:
            file = text.read().removesuffix(b"\n")
        return _of_file(os.fsdecode(file), lock, layers - 1)
    except OSError:
        pass  # no loop device, or its file is seen in another namespace alone
    try:
        slaves = os.listdir(f"{device}/slaves")
    except OSError:
        return None
    found = (_of_block(os.path.realpath(f"{device}/slaves/{n}"), lock, layers - 1) for n in slaves)
    return next((why for why in found if why is not None), None)


def _below(mount: mounts.Mount, file: str) -> str | None:
    """The same file in the upper layer of an overlay; None where no path of ours leads there.

    The layer was named by who mounted that, maybe in another mount namespace.
    """
    upper = mount_table.option(mount.options, b"upperdir") or b""
    within = os.path.relpath(file, mount.path)
    if within.startswith(".."):
        return None
    # mount(2) takes "\\," for a comma, and the option shows it so; fsconfig(2) takes it as it is.
    for name in dict.fromkeys((upper, re.sub(rb"\\(.)", rb"\1", upper))):
        below = os.path.normpath(f"{os.fsdecode(name)}/{mount.root}/{within}")
        try:
            if os.path.isabs(name) and _like(os.lstat(below)) == _like(os.lstat(file)):
                return below
        except OSError:
            continue
    return None


def _like(found: os.stat_result) -> tuple[int, ...]:
    """What an overlay shows as its upper layer has it: the inode's number need not be."""
    return found.st_ctime_ns, found.st_mtime_ns, found.st_mode, found.st_uid, found.st_size


def _unseen(lock: str) -> str | None:
    """The same where no path leads to the upper layer: of a container, or of a system whose root
    is an overlay. An overlay hands FIEMAP on, which tmpfs and ramfs do not have."""
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.ioctl(descriptor, _FIEMAP, bytes(_FIEMAP_SIZE))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return (
                "is on an overlay whose upper layer is on no disk that is seen from here (put it "
                "on a file system of its own)"
            )
    finally:
        os.close(descriptor)
    return None
