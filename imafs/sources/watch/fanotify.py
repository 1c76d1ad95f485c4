# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""fanotify(7): a group for permission events, and one that tells of moved directories.

Through ctypes, because it takes two system calls: pyfanotify 0.3 is a C extension
with processes of its own and knows no marks that may be evicted. Numbers:
include/uapi/linux/fanotify.h, Linux 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

OPEN_PERM = 0x0001_0000
OPEN_EXEC_PERM = 0x0004_0000
Q_OVERFLOW = 0x0000_4000
_MOVED_TO = 0x0000_0080
_EVENT_ON_CHILD = 0x0800_0000
_ONDIR = 0x4000_0000
_PERMISSION = OPEN_PERM | OPEN_EXEC_PERM

_CLOEXEC, _NONBLOCK = 0x1, 0x2
_CLASS_CONTENT = 0x4
_UNLIMITED_QUEUE, _UNLIMITED_MARKS = 0x10, 0x20
_REPORT_TID = 0x100
_REPORT_DFID_NAME = 0x400 | 0x800

_MARK_ADD, _MARK_REMOVE = 0x1, 0x2
_MARK_ONLYDIR = 0x8
_MARK_IGNORED_SURV_MODIFY = 0x40
_MARK_FLUSH = 0x80
_MARK_FILESYSTEM = 0x100
_MARK_EVICTABLE = 0x200
_MARK_IGNORE = 0x400

_AT_FDCWD = -100
_ALLOW = 1
# struct fanotify_event_metadata: length, version, reserved, metadata length, mask, fd, pid.
_EVENT = struct.Struct("=IBBHQii")
_RESPONSE = struct.Struct("=iI")
_BUFFER = 4096
#: Reads that take one permission event each: its file is opened meanwhile, which may take
#: long, and the openers of others must not wait for that.
_ONE = _EVENT.size
#: Reads that fail one after the other, without any event, before a group is given up.
_MOST_FAILURES = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``fd`` is an open descriptor of the file (-1: none), ``tid`` the opener's."""

    mask: int
    fd: int
    tid: int


def _init(flags: int, event_flags: int) -> int:
    descriptor: int = _libc.fanotify_init(flags | _CLOEXEC | _NONBLOCK, event_flags)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def _mark(descriptor: int, flags: int, mask: int, path: bytes | None) -> None:
    if _libc.fanotify_mark(descriptor, flags, mask, _AT_FDCWD, path) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def _events(data: bytes) -> list[Event]:
    events = []
    at = 0
    while at + _EVENT.size <= len(data):
        length, _, _, _, mask, fd, tid = _EVENT.unpack_from(data, at)
        events.append(Event(mask, fd, tid))
        at += length
    return events


class Reader:
    """The events of one group; ``trouble`` is told of a read that fails.

    One that fails is no reason to go: a kernel that has no descriptor left (ENFILE) says so
    and has taken the event out. A group that does nothing but fail would be read for ever.
    """

    def __init__(
        self, descriptor: int, trouble: Callable[[OSError], None], size: int = _BUFFER
    ) -> None:
        self._descriptor = descriptor
        self._size = size
        self._trouble = trouble
        self._failures = 0

    @property
    def failing(self) -> bool:
        """Whether the last read has failed: events may have been lost."""
        return self._failures > 0

    def read(self) -> list[Event]:
        """The events that have come; raises OSError where it has long been failing."""
        try:
            data = os.read(self._descriptor, self._size)
        except BlockingIOError:
            data = b""
        except OSError as error:
            self._failures += 1
            if self._failures > _MOST_FAILURES:
                raise
            self._trouble(error)
            return []
        self._failures = 0
        return _events(data)


class Permissions:
    """Opens of every file of the marked file systems, each of which waits for an answer.

    A file system is marked whole: a mark on a mount is left behind by ``unshare -m``, and
    marks on directories miss what happens in a new one before it is marked. What
    that costs elsewhere is taken back by :meth:`ignore`. Raises OSError: EPERM without
    CAP_SYS_ADMIN in the initial user namespace.
    """

    def __init__(self, trouble: Callable[[OSError], None]) -> None:
        flags = _CLASS_CONTENT | _UNLIMITED_QUEUE | _UNLIMITED_MARKS | _REPORT_TID
        # No access times from hashing.
        modes = os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC | os.O_NOATIME
        self.descriptor = _init(flags, modes)
        self._reader = Reader(self.descriptor, trouble, _ONE)

    def mark(self, path: bytes) -> None:
        """Asks for the events of the file system that ``path`` is on."""
        _mark(self.descriptor, _MARK_ADD | _MARK_FILESYSTEM, _PERMISSION, path)

    def unmark(self, path: bytes) -> None:
        """Takes :meth:`mark` back; harmless where there is none."""
        try:
            _mark(self.descriptor, _MARK_REMOVE | _MARK_FILESYSTEM, _PERMISSION, path)
        except OSError:
            # No such mark. Or the path leads there no more, and its file system is marked
            # until its last mount goes: its events are known to be nobody's by their names.
            return

    def ignore(self, directory: int) -> bool:
        """Asks for no more events of files in an open directory; False: this kernel cannot.

        The mark does not keep the directory in memory; when it goes, events come again.
        Raises OSError. Needs Linux 6.0.
        """
        flags = _MARK_ADD | _MARK_ONLYDIR | _MARK_EVICTABLE
        flags |= _MARK_IGNORE | _MARK_IGNORED_SURV_MODIFY
        try:
            path = b"/proc/self/fd/%d" % directory
            _mark(self.descriptor, flags, _PERMISSION | _EVENT_ON_CHILD, path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def forget_ignored(self) -> None:
        """Takes every :meth:`ignore` back."""
        _mark(self.descriptor, _MARK_FLUSH, 0, None)

    def read(self) -> list[Event]:
        """The next event, if one has come; the caller closes its descriptor.

        As :meth:`Reader.read`. May wait for a lease on the event's file.
        """
        return self._reader.read()

    def allow(self, event: Event) -> None:
        """Lets the opener go on."""
        try:
            os.write(self.descriptor, _RESPONSE.pack(event.fd, _ALLOW))
        except FileNotFoundError:
            return  # the opener was killed while it waited


class Moves:
    """Directories that were moved on the marked file systems: an ignored one may be
    below a watched path now. Needs Linux 5.9."""

    def __init__(self, trouble: Callable[[OSError], None]) -> None:
        self._descriptor = _init(_REPORT_DFID_NAME | _UNLIMITED_MARKS, 0)
        self._reader = Reader(self._descriptor, trouble)

    def mark(self, path: bytes) -> None:
        """Watches the file system that ``path`` is on."""
        _mark(self._descriptor, _MARK_ADD | _MARK_FILESYSTEM, _MOVED_TO | _ONDIR, path)

    def moved(self) -> bool:
        """Whether a directory was moved since the last look (or that cannot be known)."""
        seen = False
        while events := self._reader.read():
            seen = seen or any(event.mask & (_ONDIR | Q_OVERFLOW) for event in events)
        return seen or self._reader.failing
