# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The file systems that a set of watched paths concerns, found beside those that do not answer.

Each look is made in a thread, which a dead NFS or FUSE keeps for as long as it is dead. Such
a thread is left behind, nobody looks there again until it has come back, and there are not
more than a few of them, which no other part of the daemon uses.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import trio

from imafs.errors import FileError, Refused
from imafs.host.mount_table import Row, rows
from imafs.sources import file_attributes
from imafs.sources.watch import messages, scope

T = TypeVar("T")

#: Looks at a time, and file systems that may hang before nothing more is looked at.
THREADS = 8
#: Seconds for a path that somebody has named: a file system may first be mounted for it.
RESOLVE = 10.0
#: Seconds for one file system, while the others wait; and for each further one when one has
#: not answered. A file system that answers later is looked at again.
LOOK, LOOK_ON = 2.0, 0.25
#: The listener reads /proc while openers wait: it must not wait for itself.
_NEVER = frozenset({"proc"})


class Silent(Refused):
    """A file system does not answer, or so many do not that nobody asks this one."""


@dataclass(frozen=True, slots=True)
class Found:
    """See :class:`~imafs.sources.watch.messages.Watch`. ``left_out``: no points, and why not."""

    points: tuple[bytes, ...]
    file_systems: tuple[messages.FileSystem, ...]
    files: tuple[bytes, ...]
    silent: tuple[bytes, ...]
    left_out: dict[bytes, Refused] = field(compare=False)


class Surveyor:
    """``answered`` is called when a file system that had not answered has done so.

    ``leave``: see :class:`Mounts`. ``threads`` are for what asks no file system.
    """

    def __init__(
        self, leave: bytes, answered: Callable[[], None], threads: trio.CapacityLimiter
    ) -> None:
        self._threads = threads
        self._leave = leave
        self._answered = answered
        self._limiter = trio.CapacityLimiter(THREADS)
        # Threads that were left behind, and what they look at.
        self._hung: dict[_Thread, bytes] = {}
        self._known: dict[bytes, Point] = {}

    async def resolve(self, path: str) -> bytes:
        """The path as records will show it. Raises FileError and :class:`Refused`."""
        look = partial(resolve, path, self._leave)
        return await self._look(os.fsencode(path), look, RESOLVE)

    async def real(self, path: str) -> bytes:
        """The same of a path that need not be there."""
        name = os.fsencode(path)
        return await self._look(name, partial(os.path.realpath, name), RESOLVE)

    async def survey(self, paths: Sequence[bytes], before: Found | None = None) -> Found:
        """One directory (or file) per file system that ``paths`` concern, paths first, and what
        rules ask of each. ``before`` is what the listener was told last."""
        mounts = await trio.to_thread.run_sync(Mounts.read, self._leave, limiter=self._threads)
        wanted = dict.fromkeys(paths)
        concerned = wanted | dict.fromkeys(p for path in wanted for p in mounts.below(path))
        points: list[bytes] = []
        left_out: dict[bytes, Refused] = {}
        silent: list[bytes] = []
        known: dict[bytes, Point] = {}
        # The listener is going to unmark what is not concerned any more.
        marked = (*before.points, *before.silent) if before is not None else ()
        for point in concerned | dict.fromkeys(marked):
            try:
                mounts.check(point, os.fsdecode(point))
                look = partial(look_at, point)
                about = await self._look(point, look, LOOK_ON if silent else LOOK)
            except Refused as refused:
                if point in concerned:
                    left_out[point] = refused
                if isinstance(refused, Silent | Foreign):
                    silent.append(point)
                    # It may well be marked: then this is still true.
                    if point in self._known:
                        known[point] = self._known[point]
                continue
            if point in concerned:
                points.append(point)
                known[point] = about
        self._known = known
        systems = {about.file_system.device: about.file_system for about in known.values()}
        directories = {point for point, about in known.items() if about.is_directory}
        return Found(
            tuple(points),
            tuple(systems.values()),
            tuple(path for path in wanted if path not in directories),
            tuple(silent),
            left_out,
        )

    async def _look(self, what: bytes, look: Callable[[], T], seconds: float) -> T:
        if what in self._hung.values():
            raise _silent(what)
        if len(self._hung) >= THREADS:
            names = ", ".join(map(os.fsdecode, self._hung.values()))
            text = f"{os.fsdecode(what)} is not looked at: {THREADS} file systems do not answer"
            raise Silent(errno.EBUSY, f"{text} ({names})")
        thread = _Thread(self._limiter, self._ended)
        try:
            with trio.fail_after(seconds):
                return await trio.to_thread.run_sync(
                    look,
                    abandon_on_cancel=True,
                    # Documented: anything that has these two methods.
                    limiter=cast(trio.CapacityLimiter, thread),
                )
        except trio.TooSlowError:
            raise _silent(what) from None
        finally:
            if thread.busy:
                self._hung[thread] = what

    def _ended(self, thread: _Thread) -> None:
        if self._hung.pop(thread, None) is not None:
            self._answered()


class _Thread:
    """One thread of a limiter: ``busy`` until it has really ended, also when nobody waits."""

    def __init__(self, limiter: trio.CapacityLimiter, ended: Callable[[_Thread], None]) -> None:
        self.busy = False
        self._limiter = limiter
        self._ended = ended

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.acquire_on_behalf_of(borrower)
        self.busy = True

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)
        self.busy = False
        self._ended(self)


def _silent(what: bytes) -> Silent:
    return Silent(errno.ETIMEDOUT, f"{os.fsdecode(what)}: its file system does not answer")


# One look each: it lasts for as long as the file system does not answer.


@dataclass(frozen=True, slots=True)
class Mounts:
    """The table of mounts, and the devices of the emulator's own one (on ``leave``): a kernel's
    policies leave securityfs out as well, and each look at the list would make it longer."""

    rows: tuple[Row, ...]
    own: frozenset[bytes]

    @classmethod
    def read(cls, leave: bytes) -> Mounts:
        """As it is now."""
        table = tuple(rows(Path("/proc/self/mountinfo").read_bytes()))
        own = (row.device for row in table if row.point == leave and row.point != b"/")
        return cls(table, frozenset(own))

    def below(self, path: bytes) -> list[bytes]:
        """The points below ``path`` that may be watched."""
        return [
            mount.point
            for mount in scope.submounts(self.rows, path)
            if mount.kind not in _NEVER and mount.device not in self.own
        ]

    def check(self, path: bytes, name: str) -> None:
        """Raises :class:`Refused` for a path that must not be watched; ``name`` is what it is
        called."""
        on = scope.holding(self.rows, path)
        if on is not None and on.kind in _NEVER:
            raise Refused(errno.EINVAL, f"{name} is on {on.kind}, which cannot be watched")
        if on is not None and on.device in self.own:
            raise Refused(errno.EINVAL, f"{name} is on the emulator's own mount")
        if on is not None and (server := _server(on)) not in (0, os.geteuid()):
            raise Foreign(errno.EACCES, f"{name} is on a file system of uid {server}")


class Foreign(Refused):
    """Another user serves this file system: each open by the listener would wait for him, for as
    long as he likes, and what he shows is another content at each look."""


def _server(mount: Row) -> int:
    """The user who answers for it: of FUSE the one who has mounted it."""
    if mount.kind.partition(".")[0] not in ("fuse", "fuseblk"):
        return 0
    found = re.search(rb"(?:^|,)user_id=(\d+)(?:,|$)", mount.options)
    return int(found[1]) if found else 0


def resolve(path: str, leave: bytes) -> bytes:
    """The path as records will show it. Raises :class:`FileError` and :class:`Refused`."""
    try:
        real = os.path.realpath(path, strict=True)
        os.stat(real)
    except OSError as error:
        raise FileError(path, error) from None
    Mounts.read(leave).check(os.fsencode(real), path)
    return os.fsencode(real)


@dataclass(frozen=True, slots=True)
class Point:
    """The result of one look at a point."""

    is_directory: bool
    file_system: messages.FileSystem


def look_at(point: bytes) -> Point:
    """Raises :class:`Refused`, for one that is not there any more, or is a dead mount."""
    try:
        info = os.stat(point)
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{os.fsdecode(point)}: {os.strerror(code)}") from None
    about = file_attributes.of_path(point)
    system = messages.FileSystem(
        info.st_dev,
        about.fsmagic,
        about.fsname,
        about.fs_subtype,
        about.fsuuid or b"",
        super_block(info.st_dev, about.fsname),
    )
    return Point(stat.S_ISDIR(info.st_mode), system)


def super_block(device: int, kind: str) -> bytes:
    """``s_id``: the name of the block device (``%pg``), of a file system without one its type."""
    if os.major(device):
        try:
            return os.path.basename(os.readlink(b"/sys/dev/block/%d:%d" % _numbers(device)))
        except OSError:
            return b"%d:%d" % _numbers(device)  # no sysfs here
    # NFS has its number; of btrfs' several devices the kernel names the first one.
    return b"%d:%d" % _numbers(device) if kind.startswith("nfs") else kind.encode()


def _numbers(device: int) -> tuple[int, int]:
    return os.major(device), os.minor(device)
