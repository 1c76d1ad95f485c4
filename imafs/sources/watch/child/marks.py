# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The marks of the listener: they follow the paths and mounts that it is told of.

A point may stop being markable while it is watched (a mount covers it, a directory is gone):
that is no reason to let go of the others.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Set
from typing import Protocol

from imafs.sources.watch import messages


class Opens(Protocol):
    """The part of :class:`~imafs.sources.watch.fanotify.Permissions` that is needed."""

    def mark(self, path: bytes) -> None: ...

    def unmark(self, path: bytes) -> None: ...


class Renames(Protocol):
    """The part of :class:`~imafs.sources.watch.fanotify.Moves` that is needed."""

    def mark(self, path: bytes) -> None: ...


class Marks:
    """The marks of both groups; ``moves`` None: this kernel has no such group."""

    def __init__(self, opens: Opens, moves: Renames | None) -> None:
        self._opens = opens
        self._moves = moves
        self._marked: set[bytes] = set()

    def change(self, message: messages.Watch) -> tuple[int, dict[bytes, int]]:
        """Marks what is new, then unmarks the rest: nothing is unwatched in between.

        An errno, and the points that are left out, each with its errno. Unless the first one
        is 0, a required path is that point, and what was marked before is marked.
        """
        points, silent = set(message.points), set(message.silent)
        required = set(message.required)
        new: set[bytes] = set()
        refused: dict[bytes, int] = {}
        for point in message.points:
            code = self._mark(point)
            if not code:
                new.add(point)
                continue
            refused[point] = code
            if point in required:
                keep = self._marked & points - refused.keys()
                self._unmark((new - self._marked) | refused.keys(), keep)
                return code, {point: code}
        gone = self._marked - new - silent
        self._marked = new | self._marked & silent
        # FUSE takes the first mark and not the second (no handles of files).
        self._unmark(gone | refused.keys(), new)
        return 0, refused

    def _mark(self, point: bytes) -> int:
        try:
            self._opens.mark(point)
            if self._moves is not None:
                self._moves.mark(point)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _unmark(self, points: Set[bytes], keep: Set[bytes]) -> None:
        if not points:
            return
        for point in points:
            self._opens.unmark(point)
        for point in keep:
            # Two points may be on one file system. A point that has just become unmarkable
            # is told by the next change: the table of mounts has changed as well.
            with contextlib.suppress(OSError):
                self._opens.mark(point)
