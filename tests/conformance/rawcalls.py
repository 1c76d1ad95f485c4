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
