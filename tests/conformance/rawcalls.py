# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""System calls that Python's ``os`` changes or lacks, called through libc.

Every function raises :class:`OSError` with the call's errno; sizes are bytes.
Structures are those of 64-bit Linux (x86_64, aarch64).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

LIBC = ctypes.CDLL(None, use_errno=True)
BAD_ADDRESS = ctypes.c_void_p(8)

_FIONREAD = 0x541B
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS = 8

LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for _name in ("read", "write"):
    getattr(LIBC, _name).restype = ctypes.c_ssize_t
    getattr(LIBC, _name).argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
for _name in ("sendfile", "splice", "copy_file_range"):
    getattr(LIBC, _name).restype = ctypes.c_ssize_t
LIBC.opendir.restype = ctypes.c_void_p
LIBC.readdir.argtypes = [ctypes.c_void_p]
LIBC.closedir.argtypes = [ctypes.c_void_p]


def _fail() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _checked(result: int) -> int:
    if result < 0:
        raise _fail()
    return result


def bad_write(fd: int, size: int) -> int:
    """write(2) from an address that is not mapped."""
    return _checked(LIBC.write(fd, BAD_ADDRESS, size))


def bad_read(fd: int, size: int) -> int:
    """read(2) into an address that is not mapped."""
    return _checked(LIBC.read(fd, BAD_ADDRESS, size))


def map_page(fd: int, *, shared: bool) -> None:
    """mmap(2) of one page for reading, unmapped at once (Python's mmap asks fstat first)."""
    address = LIBC.mmap(None, 4096, 1, 1 if shared else 2, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        raise _fail()
    LIBC.munmap(address, 4096)


def fionread(fd: int) -> int:
    """FIONREAD: bytes that the file says it has."""
    answer = fcntl.ioctl(fd, _FIONREAD, struct.pack("i", -1))
    return int(struct.unpack("i", answer)[0])


def tcgets(fd: int) -> None:
    """TCGETS, which isatty(3) asks."""
    fcntl.ioctl(fd, 0x5401, bytes(64))


def sendfile(source: int, target: int, size: int) -> int:
    """sendfile(2) from the position of ``source``."""
    return _checked(LIBC.sendfile(target, source, None, ctypes.c_size_t(size)))


def splice(source: int, target: int, size: int) -> int:
    """splice(2) from the position of ``source`` into the pipe ``target``."""
    return _checked(LIBC.splice(source, None, target, None, ctypes.c_size_t(size), 0))


def copy_file_range(source: int, target: int, size: int) -> int:
    """copy_file_range(2) from position to position."""
    return _checked(LIBC.copy_file_range(source, None, target, None, ctypes.c_size_t(size), 0))


def fallocate(fd: int, size: int) -> None:
    """fallocate(2), not posix_fallocate(3), which tries writes of its own."""
    _checked(LIBC.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(size)))


def access(path: str, mode: int) -> None:
    """access(2), which says why not."""
    _checked(LIBC.access(os.fsencode(path), mode))


class _Statfs(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_long),
        ("bsize", ctypes.c_long),
        ("blocks", ctypes.c_ulong * 5),
        ("fsid", ctypes.c_int * 2),
        ("namelen", ctypes.c_long),
        ("rest", ctypes.c_long * 16),
    )


@dataclass(frozen=True)
class Statfs:
    """What scripts print of statfs(2); ``magic`` is f_type."""

    magic: int
    block_size: int
    name_length: int


def statfs(path: str) -> Statfs:
    """statfs(2): statvfs has no f_type."""
    answer = _Statfs()
    _checked(LIBC.statfs(os.fsencode(path), ctypes.byref(answer)))
    return Statfs(answer.type, answer.bsize, answer.namelen)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_ulong),
        ("off", ctypes.c_long),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


LIBC.readdir.restype = ctypes.POINTER(_Dirent)


def directory_entries(path: str) -> Iterator[tuple[str, int]]:
    """(name, d_type) in the directory's own order, ``.`` and ``..`` included."""
    stream = LIBC.opendir(os.fsencode(path))
    if not stream:
        raise _fail()
    try:
        while entry := LIBC.readdir(stream):
            yield os.fsdecode(entry.contents.name), entry.contents.type
    finally:
        LIBC.closedir(stream)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def set_capabilities(keep: int, *, only_these: bool) -> None:
    """Drop every capability whose bit is not in ``keep``.

    ``only_these`` also makes what is left effective again (a change of the uid clears
    the effective set, PR_SET_KEEPCAPS keeps the permitted one).
    """
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    _checked(LIBC.capget(ctypes.byref(header), data))
    for index, item in enumerate(data):
        mask = (keep >> (32 * index)) & 0xFFFFFFFF
        item.permitted &= mask
        item.effective = item.permitted if only_these else item.effective & mask
        item.inheritable &= mask
    _checked(LIBC.capset(ctypes.byref(header), data))


def keep_capabilities() -> None:
    """PR_SET_KEEPCAPS: the permitted set survives a change of the uid."""
    _checked(LIBC.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
