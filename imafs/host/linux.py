# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""System calls that Python (3.11) has no function for; OSError with the place when refused.

The listener of watched files has this module too: nothing that takes a lock is imported here.
"""

from __future__ import annotations

import ctypes
import os
import signal

# include/uapi/linux/sched.h, mount.h, prctl.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_BENEATH = 0x200
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
#: include/uapi/asm-generic/unistd.h; the same on every architecture that has FUSE and a TPM.
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, place: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), place)


def proc_is_ours() -> bool:
    """Whether /proc numbers tasks as we do: in another's, the number is somebody else's."""
    return os.readlink("/proc/self") == str(os.getpid())


def unshare(flags: int) -> None:
    """unshare(2): this process leaves namespaces; of pids, its later children do."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    words = (os.fsencode(word) for word in (source, target, fstype))
    result = _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data) or None)
    _check(result, target)


def umount(target: str) -> None:
    """umount2(2), lazily."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), target)


def bind(source: str, target: str) -> None:
    """Bind with all that is mounted below: without it a user namespace refuses (locked mounts)."""
    mount(source, target, flags=MS_BIND | MS_REC)


def tmpfs(target: str) -> None:
    """An empty file system of our own on ``target``."""
    mount("imafs", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")


def _syscall(number: int, place: str, *arguments: int | bytes) -> int:
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    _check(result, place)
    return result


def clone_of_mount(path: str, *, below: bool = True) -> int:
    """open_tree(2): a descriptor of what is at ``path``, and of all mounts ``below`` it, as a
    mount that is nowhere yet. It goes with the descriptor unless it is moved somewhere."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if below else 0)
    return _syscall(_OPEN_TREE, path, _AT_FDCWD, os.fsencode(path), flags)


def move_mount(descriptor: int, path: str, flags: int = 0) -> None:
    """move_mount(2): what :func:`clone_of_mount` gave, to ``path``."""
    words = (descriptor, b"", _AT_FDCWD, os.fsencode(path), MOVE_MOUNT_F_EMPTY_PATH | flags)
    _syscall(_MOVE_MOUNT, path, *words)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """The kernel sends ``number`` to this process when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0), "prctl")


def no_new_privileges() -> None:
    """No program that this process or a child of it executes has more rights than it."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl")
