# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that are read whole and written whole, by paths that others choose.

Blocking: call it in a thread. No open waits for the other end of a fifo, no read goes on
for ever, and nobody can prepare the name of what is not whole yet.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import select
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from imafs.errors import FileError, UsageError

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


@contextmanager
def opened(path: str | bytes, *, follow: bool = True) -> Iterator[int]:
    """A descriptor to read from; not ``follow``: ELOOP for a symbolic link. Raises OSError."""
    descriptor = os.open(path, _READ if follow else _READ | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def content(descriptor: int, most: int, going_on: Callable[[], object] = lambda: None) -> bytes:
    """All of an open regular file (else EINVAL) of at most ``most`` bytes (else EFBIG).

    ``going_on`` is called between two pieces; what it raises ends the work. Raises OSError.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")
    pieces, size = [], 0
    # Not by st_size: a file of proc or of an IMA directory has none.
    while piece := os.read(descriptor, _CHUNK):
        going_on()
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise OSError(errno.EFBIG, f"is larger than {_size(most)}")
    return b"".join(pieces)


def _size(most: int) -> str:
    return f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"


def read_whole(path: str, most: int, going_on: Callable[[], object] = lambda: None) -> bytes:
    """The content of a regular file of at most ``most`` bytes; see :func:`content`.

    Raises :class:`FileError` where it cannot be read, :class:`UsageError` where it is larger.
    """
    try:
        with opened(path) as descriptor:
            return content(descriptor, most, going_on)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UsageError(f"{path}: {error.strerror}") from None
        raise FileError(path, error) from None


@contextmanager
def replacing(path: str | bytes, mode: int, *, directory: int | None = None) -> Iterator[int]:
    """A descriptor to write to; what was written takes the place of ``path`` at the end.

    All or nothing: after an error inside the old file is there. ``mode`` is less the umask,
    ``directory`` what a relative path begins at. Raises OSError.
    """
    name = os.path.join(os.path.dirname(os.fsencode(path)), b".imafs-%x" % secrets.randbits(64))
    descriptor = os.open(name, _CREATE, mode, dir_fd=directory)
    try:
        yield descriptor
        os.fsync(descriptor)
        os.rename(name, path, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)


class Lines:
    """Appends lines to an open file; the half of one that a full disk left is ended first."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._busy = threading.Lock()
        self._torn = _ends_torn(descriptor)

    def append(self, data: bytes) -> tuple[int, int]:
        """How many bytes of ``data`` are in the file, and the errno that kept the rest out."""
        with self._busy:
            return self._append(data, len(data) + 1)

    def append_now(self, data: bytes, seconds: float) -> tuple[int, int]:
        """The same, but nobody waits for who reads a pipe or a terminal: EAGAIN.

        Nor for a thread that still writes: not longer than that.
        """
        if not self._busy.acquire(timeout=seconds):
            return 0, errno.EAGAIN
        try:
            return self._append(data, select.PIPE_BUF, patient=False)
        finally:
            self._busy.release()

    def _append(self, data: bytes, piece: int, *, patient: bool = True) -> tuple[int, int]:
        ending = 1 if self._torn else 0
        view = memoryview(b"\n" * ending + data)
        at = 0
        code = 0
        try:
            while at < len(view):
                if not patient and not _takes_more(self.descriptor):
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                at += os.write(self.descriptor, view[at : at + piece])
        except OSError as error:
            code = error.errno or errno.EIO
        if at:
            self._torn = view[at - 1] != 0x0A
        return max(at - ending, 0), code


def _takes_more(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _ends_torn(descriptor: int) -> bool:
    """Whether a regular file ends within a line: its last writer found the disk full."""
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or not info.st_size:
        return False
    try:
        with opened(f"/proc/self/fd/{descriptor}") as again:
            return os.pread(again, 1, info.st_size - 1) != b"\n"
    except OSError:
        return True  # an empty line hurts less than a glued one


def mount_number(descriptor: int) -> int | None:
    """Of the mount that an open file is on (proc(5), fdinfo); asks no file system."""
    with opened(f"/proc/self/fdinfo/{descriptor}") as info:
        found = re.search(rb"^mnt_id:\s*(\d+)$", os.read(info, _CHUNK), re.MULTILINE)
    return int(found[1]) if found else None


def fill(descriptor: int, pieces: Iterable[bytes]) -> None:
    """Writes all ``pieces``. Raises OSError."""
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]
