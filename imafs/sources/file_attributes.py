# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The facts of a file that the policy may ask for: its owner and its file system.

Blocking: call it in a thread. The kernel looks at the super block (``s_magic``,
``s_type->name``, ``s_subtype``, ``s_uuid``); user space is told the same by statfs,
/proc/self/mountinfo and FS_IOC_GETFSUUID (Linux 6.9 on, else /dev/disk/by-uuid).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imafs.errors import Refused
from imafs.host.mount_table import rows
from imafs.kernel.policy.match import Access
from imafs.kernel.policy.rules import MAY_EXEC, MAY_READ

#: _IOR(0x15, 0, struct fsuuid2): a length and 16 bytes.
_GETFSUUID = 0x80111500
_BY_UUID = Path("/dev/disk/by-uuid")
_LIBC = ctypes.CDLL(None, use_errno=True)
#: More than any struct statfs; ``f_type`` is its first member, a long.
_STATFS_SIZE = 512

#: The mask that each hook is called with, where it is always the same one.
MASKS: Mapping[str, int] = {
    "FILE_CHECK": MAY_READ,
    "MMAP_CHECK": MAY_EXEC,
    "MMAP_CHECK_REQPROT": MAY_EXEC,
    "BPRM_CHECK": MAY_EXEC,
    "CREDS_CHECK": MAY_EXEC,
    "MODULE_CHECK": MAY_READ,
    "FIRMWARE_CHECK": MAY_READ,
    "POLICY_CHECK": MAY_READ,
    "KEXEC_KERNEL_CHECK": MAY_READ,
    "KEXEC_INITRAMFS_CHECK": MAY_READ,
}


@dataclass(frozen=True, slots=True)
class Facts:
    """See :class:`imafs.kernel.policy.match.Access` for the fields."""

    fowner: int = 0
    fgroup: int = 0
    fsmagic: int = 0
    fsname: str = ""
    fs_subtype: str = ""
    fsuuid: bytes | None = None


@dataclass(frozen=True, slots=True)
class User:
    """The user of a file; the saved ids are those that a task with the capability may take."""

    uid: int = 0
    euid: int = 0
    suid: int = 0
    gid: int = 0
    egid: int = 0
    sgid: int = 0
    cap_setuid: bool = False
    cap_setgid: bool = False

    @classmethod
    def of(cls, uid: int = 0, euid: int = 0, gid: int = 0, egid: int = 0) -> User:
        """By ids alone: an effective root may change them, nobody else."""
        root = euid == 0
        return cls(uid, euid, euid, gid, egid, egid, root, root)


def access(func: str, mask: int, user: User, facts: Facts) -> Access:
    """The use of a file as the policy judges it."""
    return Access(
        func,
        mask,
        uid=user.uid,
        euid=user.euid,
        gid=user.gid,
        egid=user.egid,
        fowner=facts.fowner,
        fgroup=facts.fgroup,
        fsmagic=facts.fsmagic,
        fsname=facts.fsname,
        fs_subtype=facts.fs_subtype,
        fsuuid=facts.fsuuid,
        suid=user.suid,
        sgid=user.sgid,
        cap_setuid=user.cap_setuid,
        cap_setgid=user.cap_setgid,
    )


def of_path(path: str | bytes) -> Facts:
    """The facts of a file by path. Raises :class:`Refused` with the errno of the open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return of_descriptor(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{os.fsdecode(path)}: {os.strerror(code)}") from None


def of_descriptor(descriptor: int) -> Facts:
    """The facts of an open file. Raises OSError."""
    info = os.fstat(descriptor)
    name, subtype = _type(_mount_id(descriptor))
    return Facts(
        info.st_uid,
        info.st_gid,
        _magic(descriptor),
        name,
        subtype,
        _uuid(descriptor, info.st_dev),
    )


def _magic(descriptor: int) -> int:
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _LIBC.fstatfs(descriptor, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    kind = ctypes.c_long.from_buffer(buffer).value
    return kind & 0xFFFFFFFF


def _mount_id(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENODATA, "/proc/self/fdinfo has no mnt_id")


def _type(mount_id: int) -> tuple[str, str]:
    """Type and subtype of a mount of ours; empty where it is in nobody's table (a pipe)."""
    for row in rows(Path("/proc/self/mountinfo").read_bytes()):
        if row.number == mount_id:
            name, _, subtype = row.kind.partition(".")
            return name, subtype
    return "", ""


def _uuid(descriptor: int, device: int) -> bytes | None:
    try:
        answer = fcntl.ioctl(descriptor, _GETFSUUID, bytes(17))
    except OSError:
        # An older kernel, or a file system without one.
        return _uuid_of_device(device)
    return answer[1:17] if answer[0] == 16 else None


def _uuid_of_device(device: int) -> bytes | None:
    try:
        links = list(_BY_UUID.iterdir())
    except OSError:
        return None  # no udev here: fsuuid= does not match
    for link in links:
        try:
            if link.stat().st_rdev == device:
                return uuid.UUID(link.name).bytes
        except (OSError, ValueError):
            continue  # gone meanwhile, or FAT's short serial number
    return None
