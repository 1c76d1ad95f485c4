# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The task that waits in an open: its credentials, and how it opens.

Only ``status``, ``stat``, ``syscall`` and ``fd`` of /proc are looked at:
``cmdline``, ``exe`` or ``maps`` of a blocked task can wait for its memory lock.
"""

from __future__ import annotations

import fcntl
import os
import platform
import stat
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import islice

from imafs.sources.file_attributes import User
from imafs.sources.watch.child import attributes

_CAP_SETGID, _CAP_SETUID = 6, 7

#: System call number -> index of its flags argument (-1: as creat, -2: executes a file).
_CREAT, _EXEC = -1, -2
_CALLS: dict[str, dict[int, int]] = {
    "x86_64": {2: 1, 257: 2, 85: _CREAT, 59: _EXEC, 322: _EXEC, 134: _EXEC},
    "aarch64": {56: 2, 221: _EXEC, 281: _EXEC},
}
_HERE = _CALLS.get(platform.machine(), {})
#: Looks at a task that has not gone to sleep yet, at once; one look takes some 5 us.
_LOOKS = 4
#: Descriptors of a process that are looked through, some 3 us each.
_DESCRIPTORS = 1024


@dataclass(frozen=True, slots=True)
class Credentials(User):
    """Whose open it is; ``process`` is the thread group's id."""

    process: int = 0


#: A task that cannot be looked up (gone, or of another pid namespace): judged as root,
#: so that no rule misses it.
UNKNOWN = Credentials()


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 8192)
    finally:
        os.close(descriptor)


def credentials(tid: int) -> Credentials:
    """Of thread ``tid``; :data:`UNKNOWN` where it cannot be looked up."""
    try:
        text = _read(f"/proc/{tid}/status")
    except OSError:
        return UNKNOWN
    uid = _line(text, b"\nUid:").split()
    gid = _line(text, b"\nGid:").split()
    capabilities = int(_line(text, b"\nCapEff:"), 16)
    return Credentials(
        int(uid[0]),
        int(uid[1]),
        int(uid[2]),
        int(gid[0]),
        int(gid[1]),
        int(gid[2]),
        bool(capabilities >> _CAP_SETUID & 1),
        bool(capabilities >> _CAP_SETGID & 1),
        process=int(_line(text, b"\nTgid:")),
    )


def began(tid: int) -> int | None:
    """When thread ``tid`` began, in clock ticks: tells it from a later one of this number.

    None where it cannot be looked up.
    """
    try:
        # A name may hold anything, also brackets.
        return int(_read(f"/proc/{tid}/stat").rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None


def _line(text: bytes, key: bytes) -> bytes:
    start = text.index(key) + len(key)
    return text[start : text.index(b"\n", start)]


@dataclass(frozen=True, slots=True)
class Way:
    """How a file is opened. ``flags`` None: the call does not tell (openat2, io_uring)."""

    flags: int | None = None
    executes: bool = False

    @property
    def is_direct(self) -> bool:
        """Opened with O_DIRECT."""
        return bool((self.flags or 0) & os.O_DIRECT)

    @property
    def truncates(self) -> bool:
        """Opened with O_TRUNC."""
        return bool((self.flags or 0) & os.O_TRUNC)


def way(tid: int) -> Way | None:
    """How thread ``tid``, which waits in an open, opens the file.

    None while it is shown as running: on a busy machine it may take long until it has gone
    to sleep, but then it is shown in its call.
    """
    try:
        for _ in range(_LOOKS):
            words = _read(f"/proc/{tid}/syscall").split()
            if words[0] != b"running":
                break
        else:
            return None
    except OSError:
        return Way()
    place = _HERE.get(int(words[0]))
    if place is None:
        return Way()
    if place == _EXEC:
        return Way(os.O_RDONLY, True)
    if place == _CREAT:
        return Way(os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    return Way(int(words[1 + place], 16))


Account = int | tuple[str, int]
"""Whose turn it is: a user id, or a user namespace by its inode."""

#: _IO(0xb7, 2) and _IO(0xb7, 4) of include/uapi/linux/nsfs.h.
_NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB702, 0xB704
#: User namespaces in one another: a kernel allows 32.
_DEEPEST = 33


def account(tid: int, uid: int) -> Account:
    """The account that thread ``tid`` of user ``uid`` is on.

    In a user namespace anybody has 65536 user ids and may make more namespaces: it is the
    owner of the outermost one who does. Root's ones (containers) each answer for themselves.
    """
    try:
        path = f"/proc/{tid}/ns/user"
        if os.stat(path).st_ino == _own_namespace():
            return uid
        return _outermost(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return uid  # ended, or it cannot be looked at


@cache
def _own_namespace() -> int:
    return os.stat("/proc/self/ns/user").st_ino


def _outermost(descriptor: int) -> Account:
    """The owner of the outermost namespace below ours; closes ``descriptor``."""
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        for _ in range(_DEEPEST):
            parent = fcntl.ioctl(descriptor, _NS_GET_PARENT)
            stack.callback(os.close, parent)
            if os.fstat(parent).st_ino == _own_namespace():
                break
            descriptor = parent
        owner = fcntl.ioctl(descriptor, _NS_GET_OWNER_UID, bytes(4))
        uid = int.from_bytes(owner, sys.byteorder)
        return uid if uid else ("namespace", os.fstat(descriptor).st_ino)


def is_written(descriptor: int) -> bool | None:
    """Whether anybody has the file open for writing; None: its file system does not tell.

    A read lease is refused exactly then. It is given back at once; a writer that
    comes in between waits that long (SIGIO must be ignored).
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def holds(process: int, device: int, inode: int, *, writing: bool) -> bool:
    """Whether ``process`` has the file open: for writing, or for reading only.

    A descriptor that another process has by now (fork, SCM_RIGHTS) is not found, nor is one
    behind the first :data:`_DESCRIPTORS`.
    """
    try:
        with os.scandir(f"/proc/{process}/fd") as entries:
            paths = [entry.path for entry in islice(entries, _DESCRIPTORS)]
    except OSError:
        return False  # ended
    return any(_leads(path, device, inode, writing) for path in paths)


def _leads(path: str, device: int, inode: int, writing: bool) -> bool:
    # Not by fdinfo: it lists whatever is behind a descriptor, a hundred thousand files of an
    # epoll or locks of a file. The link's own mode tells how it is opened (proc_pid_fd(5)).
    try:
        info = attributes.of_path(path)
        if (info.st_dev, info.st_ino) != (device, inode):
            return False
        mode = os.lstat(path).st_mode
    except OSError:
        return False  # closed meanwhile
    if writing:
        return bool(mode & stat.S_IWUSR)
    return bool(mode & stat.S_IRUSR) and not mode & stat.S_IWUSR
