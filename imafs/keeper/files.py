# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The few operations on files that the keeper's store is made of, and what each makes durable.

Blocking: called in a thread. Every method is one step that a crash may come before or behind,
so that tests put a layer under the store which records the steps and replays any part of
them. Paths are below the store's own directory. Methods raise OSError.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from imafs.disk import fill
from imafs.errors import DegradedError

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FILE_MODE = 0o640
_DIRECTORY_MODE = 0o750
#: Bytes of a long file that are read at once.
_PIECE = 1 << 20


class CutError(OSError):
    """A file has become shorter than ``size`` bytes, which it had: it has ``left``."""

    def __init__(self, path: str, size: int, left: int) -> None:
        super().__init__(errno.EIO, f"somebody cut it: {size} bytes were there", path)
        self.left = left


class BadPlaceError(OSError):
    """The disk does not give the byte ``at``; those before it that were asked for it gives."""

    def __init__(self, path: str, error: OSError, at: int) -> None:
        super().__init__(error.errno, f"{error.strerror} at byte {at}", path)
        self.at = at


class Files(Protocol):
    """What the store asks of a disk."""

    def make_directory(self, path: str) -> None:
        """A new directory; durable with :meth:`sync_directory` of its parent."""

    def create(self, path: str) -> int:
        """A new empty file, open for writing (EEXIST where there is one)."""

    def open(self, path: str) -> int:
        """A file that is there, open for writing."""

    def write(self, descriptor: int, at: int, data: bytes) -> None:
        """All of ``data`` at byte ``at``; durable with :meth:`sync`."""

    def truncate(self, descriptor: int, size: int) -> None:
        """Cuts a file; durable with :meth:`sync`."""

    def sync(self, descriptor: int) -> None:
        """The file's content and size are durable behind it; its name is not."""

    def sync_directory(self, path: str) -> None:
        """The names in a directory are durable behind it."""

    def rename(self, old: str, new: str) -> None:
        """``new`` is what ``old`` was, in one step, within one directory."""

    def remove(self, path: str) -> None:
        """The name is gone."""

    def close(self, descriptor: int) -> None:
        """Lets go of a descriptor."""

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""

    def read(self, path: str, most: int) -> bytes:
        """A regular file of at most ``most`` bytes, whole (EFBIG)."""

    def pieces(self, path: str) -> Iterator[bytes]:
        """The same in pieces, however long it is: of one file, also where another one takes its
        place meanwhile."""

    def size(self, path: str) -> int:
        """Of a regular file (EINVAL for anything else)."""

    def read_at(self, path: str, at: int, size: int) -> bytes:
        """``size`` bytes of a regular file from byte ``at`` on; :class:`CutError`: it has ended.

        Never a mapping: a page that the disk does not give, or that somebody has cut off, would
        be SIGBUS there, and the end of the keeper. One that is open for writing is not opened
        again: IMA takes root's reading of a file that somebody writes for a violation.
        """

    def free(self, path: str) -> tuple[int, int]:
        """Bytes of the file system below ``path`` that are free for us, and all of it."""


class Disk:
    """:class:`Files` on a real file system, below the directory ``root``."""

    def __init__(self, root: str) -> None:
        self._root = root
        #: Files that are open for writing. A reader maps while the store's thread closes.
        self._writing: dict[str, int] = {}
        self._lock = threading.Lock()

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path) if path else self._root

    def make_directory(self, path: str) -> None:
        """See :class:`Files`."""
        os.mkdir(self._path(path), _DIRECTORY_MODE)

    def create(self, path: str) -> int:
        """See :class:`Files`."""
        descriptor = os.open(self._path(path), _WRITE | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        return self._written(path, descriptor)

    def open(self, path: str) -> int:
        """See :class:`Files`."""
        descriptor = os.open(self._path(path), _WRITE)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a regular file", self._path(path))
        return self._written(path, descriptor)

    def _written(self, path: str, descriptor: int) -> int:
        with self._lock:
            self._writing[path] = descriptor
        return descriptor

    def write(self, descriptor: int, at: int, data: bytes) -> None:
        """See :class:`Files`."""
        os.lseek(descriptor, at, os.SEEK_SET)
        fill(descriptor, (data,))

    def truncate(self, descriptor: int, size: int) -> None:
        """See :class:`Files`."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """See :class:`Files`."""
        os.fdatasync(descriptor)

    def sync_directory(self, path: str) -> None:
        """See :class:`Files`."""
        descriptor = os.open(self._path(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """See :class:`Files`."""
        os.rename(self._path(old), self._path(new))
        with self._lock:
            self._writing.pop(new, None)
            if (own := self._writing.pop(old, None)) is not None:
                self._writing[new] = own

    def remove(self, path: str) -> None:
        """See :class:`Files`."""
        os.unlink(self._path(path))
        with self._lock:
            self._writing.pop(path, None)

    def close(self, descriptor: int) -> None:
        """See :class:`Files`."""
        with self._lock:
            for path in [p for p, own in self._writing.items() if own == descriptor]:
                del self._writing[path]
        os.close(descriptor)

    def names(self, path: str) -> list[str]:
        """See :class:`Files`."""
        return sorted(os.listdir(self._path(path)))

    def read(self, path: str, most: int) -> bytes:
        """See :class:`Files`."""
        with self._reading(path) as descriptor:
            size = _regular(descriptor, self._path(path))
            if size > most:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._path(path))
            return self._piece(descriptor, path, 0, size)

    def pieces(self, path: str) -> Iterator[bytes]:
        """See :class:`Files`."""
        with self._reading(path) as descriptor:
            size = _regular(descriptor, self._path(path))
            for at in range(0, size, _PIECE):
                yield self._piece(descriptor, path, at, min(_PIECE, size - at))

    @contextmanager
    def _reading(self, path: str) -> Iterator[int]:
        """A descriptor of a file, the one for writing again where there is one."""
        with self._lock:
            own = self._writing.get(path)
            descriptor = None if own is None else os.dup(own)
        if descriptor is None:
            descriptor = os.open(self._path(path), _READ)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def size(self, path: str) -> int:
        """See :class:`Files`."""
        found = os.stat(self._path(path), follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", self._path(path))
        return found.st_size

    def read_at(self, path: str, at: int, size: int) -> bytes:
        """See :class:`Files`."""
        with self._reading(path) as descriptor:
            left = _regular(descriptor, self._path(path))
            if left < at + size:
                raise CutError(self._path(path), at + size, left)
            return self._piece(descriptor, path, at, size)

    def _piece(self, descriptor: int, path: str, at: int, size: int) -> bytes:
        pieces = []
        end = at + size
        while at < end:
            try:
                piece = os.pread(descriptor, end - at, at)
            except OSError as error:
                # What is in front of a bad sector comes by itself: here is the place.
                raise BadPlaceError(self._path(path), error, at) from None
            if not piece:
                raise CutError(self._path(path), end, at)
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def free(self, path: str) -> tuple[int, int]:
        """See :class:`Files`."""
        found = os.statvfs(self._path(path))
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _regular(descriptor: int, path: str) -> int:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return found.st_size


def replace(files: Files, directory: str, name: str, content: bytes) -> None:
    """``content`` takes the place of the file ``name``, whole and durable, or not at all."""
    path = f"{directory}/{name}" if directory else name
    temporary = f"{path}.new"
    try:
        descriptor = files.create(temporary)
    except FileExistsError:  # a crash came in between
        files.remove(temporary)
        descriptor = files.create(temporary)
    try:
        files.write(descriptor, 0, content)
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    files.rename(temporary, path)
    files.sync_directory(directory)


def failed(what: str, error: OSError) -> DegradedError:
    """An error of the disk as a user reads it."""
    found = DegradedError(f"{what}: {error.strerror}")
    found.errno = error.errno or errno.EIO
    return found
