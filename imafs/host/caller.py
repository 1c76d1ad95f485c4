# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Whether the caller of an open has CAP_SYS_ADMIN, as ``capable()`` would say; and we ourselves.

FUSE tells a thread id only. A full effective set is anybody's by ``unshare -Ur``, so it
counts in the daemon's own user namespace only. No look takes a descriptor: a daemon that has
none left must not answer EPERM. Read nothing else of a blocked caller: cmdline, exe and maps
can wait for its memory lock.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache

from imafs.host.linux import proc_is_ours

log = logging.getLogger(__name__)

_CAP_SYS_ADMIN = 21
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: 64 bits
_libc = ctypes.CDLL(None, use_errno=True)


def has_sys_admin(tid: int) -> bool:
    """True where the thread has CAP_SYS_ADMIN in our user namespace.

    ``tid`` 0 is a caller outside our pid namespace: nobody can look it up, so it is
    refused. The log says why, once: a container may ask as often as it likes.
    """
    if not proc_is_ours():
        _tell("/proc is of another pid namespace: nobody's capabilities can be read (EPERM)")
        return False
    if tid == 0:
        _tell(
            "a writer outside the daemon's pid namespace was refused (EPERM): share it "
            "with --pid=host or by starting imafs in the same namespace"
        )
        return False
    try:
        effective = _effective(tid)
        same = os.stat(f"/proc/{tid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino
    except OSError as error:
        _tell(
            f"a thread cannot be looked at ({os.strerror(error.errno or 0)}): refused as a writer"
        )
        return False
    return same and bool(effective >> _CAP_SYS_ADMIN & 1)


def can_mount() -> bool:
    """Whether this thread mounts and unmounts without a helper, for everybody to see: root, or who
    was given CAP_SYS_ADMIN. Anybody has that in a user namespace of his own, where root is nobody:
    then it does not count."""
    if os.geteuid() == 0:
        return True
    return bool(_effective(0) >> _CAP_SYS_ADMIN & 1) and _has_root()


def _has_root() -> bool:
    """Whether there is a uid 0 in our user namespace."""
    with open("/proc/self/uid_map", "rb") as file:
        return any(int(line.split()[0]) == 0 for line in file)


@cache
def _tell(why: str) -> None:
    log.info(why)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _effective(tid: int) -> int:
    """The effective set of a thread, ours for 0, by capget(2). Raises OSError."""
    header, data = _Header(_VERSION, tid), (_Data * 2)()
    if _libc.capget(ctypes.byref(header), data):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(data[0].effective) | int(data[1].effective) << 32
