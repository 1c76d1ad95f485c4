# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Looks at open files that wait for no file system: a dead server, or a FUSE of anybody's.

``fstat`` and ``read`` may hang; ``statx`` with AT_STATX_DONT_SYNC tells what the kernel knows,
and RWF_NOWAIT reads what is in memory. Both take a microsecond more. A path is looked up in
the kernel's memory of names alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

_AT_EMPTY_PATH, _DONT_SYNC = 0x1000, 0x4000
_BASIC_STATS = 0x7FF
# struct statx: links, uid, gid, mode at 16; inode, size, blocks at 32; the times of change and
# of modification at 96; the device number of its file system at 136.
_STATX = struct.Struct("=16x IIIHxx QQQ 40x qIxxxx qIxxxx 8x II 112x")
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_char_p,
)
#: openat2(2) has this number everywhere; struct open_how: flags, mode, resolve.
_OPENAT2 = 437
_OPEN_HOW = struct.Struct("=QQQ")
_NO_SYMLINKS, _CACHED = 0x04, 0x20
#: One thread alone looks.
_ANSWER = ctypes.create_string_buffer(_STATX.size)
#: A file that is read whole, at once: larger ones are read in threads.
_BUFFER = bytearray((1 << 16) + 1)
#: What reads from memory and does not know RWF_NOWAIT: tmpfs and ramfs.
_IN_MEMORY = frozenset({0x0102_1994, 0x8584_58F6})


class Info(Protocol):
    """The part of os.stat_result that is needed."""

    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_mode(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...


class Attributes(NamedTuple):
    """As os.stat_result has them."""

    st_dev: int
    st_ino: int
    st_mode: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_blocks: int
    st_ctime_ns: int
    st_mtime_ns: int


def of(descriptor: int) -> Info:
    """Of an open file. Raises OSError."""
    return _statx(descriptor, b"")


def of_path(path: str) -> Info:
    """Of what a path (of /proc) leads to. Raises OSError."""
    return _statx(-100, path.encode())


def _statx(directory: int, path: bytes) -> Info:
    flags = _DONT_SYNC if path else _DONT_SYNC | _AT_EMPTY_PATH
    if _LIBC.statx(directory, path, flags, _BASIC_STATS, _ANSWER) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    links, uid, gid, mode, inode, size, blocks, *times, major, minor = _STATX.unpack(_ANSWER)
    changed, changed_ns, modified, modified_ns = times
    return Attributes(
        os.makedev(major, minor),
        inode,
        mode,
        links,
        uid,
        gid,
        size,
        blocks,
        changed * 1_000_000_000 + changed_ns,
        modified * 1_000_000_000 + modified_ns,
    )


def head(descriptor: int, size: int, magic: int) -> bytes | None:
    """The first bytes of a file, at most ``size``; None: not without waiting.

    ``magic`` is that of its file system. Raises OSError.
    """
    return piece(descriptor, size, 0, magic)


def whole(descriptor: int, most: int, magic: int) -> bytes | None:
    """All of a file of at most ``most`` bytes; None: it is larger, or not without waiting."""
    pieces: list[bytes] = []
    at = 0
    while at <= most:
        found = piece(descriptor, most + 1, at, magic)
        if not found:
            return found if found is None else b"".join(pieces)
        pieces.append(found)
        at += len(found)
    return None


def piece(descriptor: int, size: int, at: int, magic: int) -> bytes | None:
    """As :func:`head`, from an offset on."""
    flags = 0 if magic in _IN_MEMORY else os.RWF_NOWAIT
    view = memoryview(_BUFFER)[:size]
    try:
        return bytes(view[: os.preadv(descriptor, [view], at, flags)])
    except OSError as error:
        # EINVAL: a file that can be opened for O_DIRECT alone, say.
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise


def mount_number(descriptor: int) -> int:
    """Of the mount that an open file is on (``mnt_id`` of its fdinfo)."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as file:
        text = file.read(4096)
    return int(text[text.index(b"mnt_id:") + 7 :].split(None, 1)[0])


@contextmanager
def directory(path: bytes, mount: int) -> Iterator[int]:
    """A descriptor (O_PATH) of the directory that has this very path on this mount.

    Raises OSError: EAGAIN where the kernel would have to ask a file system, ELOOP behind a
    symbolic link, ESTALE on another mount. Needs Linux 5.12.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    how = _OPEN_HOW.pack(flags, 0, _NO_SYMLINKS | _CACHED)
    descriptor: int = _LIBC.syscall(_OPENAT2, -100, path, how, len(how))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        if mount_number(descriptor) != mount:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        yield descriptor
    finally:
        os.close(descriptor)
