# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Writing the list to the file that ``list_name`` was given: all or nothing.

Only below ``--export-root``, and through no symbolic link: the daemon writes by paths that
clients choose. As in the drafts everything waits while the list is written.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from imafs import disk
from imafs.errors import Refused
from imafs.host import bounded_thread, ownership
from imafs.interface.profiles import Export
from imafs.kernel.queue import Queue

log = logging.getLogger(__name__)

_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Exporter:
    """Exports the current list of one kernel."""

    def __init__(self, queue: Queue, rules: Export, root: Path, limit: int | None) -> None:
        self._rules = rules
        self._root = os.fsencode(os.path.realpath(root)).rstrip(b"/")
        self._limit = rules.limit if limit is None else limit
        self._queue = queue
        self._name = b""
        self._first = True
        self._armed = False
        self._standstill = bounded_thread.Standstill()

    def request(self, path: bytes) -> None:
        """A path was written to ``list_name``. Raises :class:`Refused`; the list is kept then."""
        if not self._name or not self._rules.name_once:
            self._name = path
        self._armed = self._rules.automatic
        if not self._limit or len(self._queue.current) > self._limit:
            self._export()

    def grown(self) -> None:
        """The list has grown: exported where it is too long and a name is known."""
        if not self._armed or len(self._queue.current) <= self._limit:
            return
        try:
            self._export()
        except Refused as refused:
            # Until the next name: there is nobody to tell, and every record would try again.
            self._armed = False
            log.warning("%r: the list was not exported: %s", self._name, refused)

    def _export(self) -> None:
        try:
            self._standstill.run(partial(self._write, _told(self._queue.ascii_list())))
        except OSError as error:
            code = self._rules.failure or error.errno or errno.EIO
            raise Refused(code, f"{error.strerror}") from None
        except Refused as refused:
            raise Refused(self._rules.failure or refused.errno, str(refused)) from None
        self._first = False
        self._queue.delete_first(None)

    def _write(self, pieces: Iterable[bytes]) -> None:
        with _parent(self._root, self._name) as (directory, name):
            if self._first:
                # Before the first export since boot the drafts unlink the target.
                with disk.replacing(name, self._rules.mode, directory=directory) as descriptor:
                    disk.fill(descriptor, pieces)
                    bounded_thread.going_on()
            else:
                _append(directory, name, pieces, self._rules)


def _told(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces, none made where nobody waits any more: the list may be another one by then."""
    while True:
        bounded_thread.going_on()
        piece = next(pieces, None)
        if piece is None:
            return
        yield piece


@contextlib.contextmanager
def _parent(root: bytes, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The target's directory, opened step by step from the root, and its name there."""
    below = path.removeprefix(root + b"/") if path.startswith(root + b"/") else b".."
    parts = [part for part in below.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Refused(errno.EACCES, f"{os.fsdecode(path)} is not below --export-root")
    if not parts:
        raise Refused(errno.EISDIR, f"{os.fsdecode(path)} is the directory of --export-root")
    directory = os.open(root or b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(part, flags, dir_fd=directory)
            outer, directory = directory, inner
            try:
                _check_mount(outer, inner)
                _check_owner(inner, part)
            finally:
                os.close(outer)
        yield directory, parts[-1]
    finally:
        os.close(directory)


def _check_mount(outer: int, inner: int) -> None:
    """Raises :class:`Refused` at a mountpoint: behind it may be this very daemon, which would
    wait for its own answer, or another file system that hangs. O_PATH has asked neither."""
    if disk.mount_number(outer) != disk.mount_number(inner):
        raise Refused(errno.EXDEV, "another file system is mounted there")


def _check_owner(directory: int, name: bytes) -> None:
    """Raises :class:`Refused` where another user can change what lies in a directory."""
    try:
        ownership.check_directory(os.fstat(directory), os.fsdecode(name))
    except ownership.ForeignError as error:
        raise Refused(errno.EACCES, str(error)) from None


def _existing(directory: int, name: bytes) -> int:
    """The file ``name``, open for appending, and no link."""
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        _check_mount(directory, place)
        info = os.fstat(place)
        if stat.S_ISLNK(info.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if info.st_uid not in ownership.trusted() or info.st_nlink > 1:
            raise Refused(errno.EACCES, "the target is not this user's alone")
        return os.open(f"/proc/self/fd/{place}", _FLAGS & ~os.O_NOFOLLOW | os.O_APPEND)
    finally:
        os.close(place)


def _append(directory: int, name: bytes, pieces: Iterable[bytes], rules: Export) -> None:
    """Behind what is there; on a failure the file is as it was."""
    new = True
    try:
        flags = _FLAGS | os.O_APPEND | os.O_CREAT | os.O_EXCL
        descriptor = os.open(name, flags, rules.mode, dir_fd=directory)
    except FileExistsError:
        if rules.exclusive:
            raise
        new = False
        descriptor = _existing(directory, name)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise Refused(errno.EINVAL, "the target is no regular file")
        try:
            disk.fill(descriptor, pieces)
            os.fsync(descriptor)
            bounded_thread.going_on()
        except BaseException:
            os.ftruncate(descriptor, before.st_size)
            if new:
                os.unlink(name, dir_fd=directory)
            raise
    finally:
        os.close(descriptor)
