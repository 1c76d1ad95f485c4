# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Reading a list as fs/seq_file.c does: one object per open handle.

A read gives the rest of the buffer plus whole records until the asked size or the
buffer's size (a page, doubled for a larger record and then kept) is reached. The
cursor is a record *index*: a sequential read goes on there even after a delete, and
sees records that were added after an end of file. Only a read at another position
resolves a byte position (``traverse``), by bisection where the kernel walks from the
head (observed: 391 s for 500,000 records on a real kernel).
"""

from __future__ import annotations

import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from imafs.lists.banks import View
from imafs.lists.segments import Run

PAGE = 4096
Bytes = bytes | memoryview


class Records(Protocol):
    """A measurement list as it is read: a packed list, or an archive.

    Indexes and positions count from its present first record.
    """

    def __len__(self) -> int: ...

    def size(self, view: View) -> int:
        """Bytes of the whole list in a view."""

    def run(self, view: View, index: int) -> tuple[Run, int] | None:
        """The run that holds record ``index``, and its number in there; None at the end."""

    def locate(self, view: View, position: int) -> tuple[int, int]:
        """Record index at a byte position, and how many of its bytes lie before it; ``(len, 0)``
        at or beyond the end."""

    def may_have_pages(self, view: View) -> bool:
        """False when no record has as many bytes as a page."""

    def longest(self, view: View, end: int) -> int:
        """Size of the longest of the records before index ``end``; anything below a page where
        that one has less."""


def _slice(run: Run, start: int, end: int) -> Bytes:
    # A slice of a growing buffer must be a copy: an exported view would forbid growth.
    if run.sealed:
        return memoryview(run.data)[start:end]
    with memoryview(run.data) as view:
        return bytes(view[start:end])


class SeqFile:
    """``struct seq_file`` of one handle.

    ``source`` gives the list at the moment of each read (staging replaces it).
    """

    __slots__ = (
        *("__weakref__", "_buffer", "_index", "_position", "_rest", "_size", "_source", "_view"),
    )

    def __init__(self, source: Callable[[], Records], view: View) -> None:
        self._source = source
        self._view = view
        self._buffer = bytearray()
        self._index = 0
        self._rest: Bytes = b""
        self._size = PAGE
        self._position = 0

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        """``seq_read_iter``: up to ``size`` bytes at ``position``; empty at the end.

        One that raises has changed nothing. ``fill``: all ``size`` bytes if there are so many,
        instead of stopping at a page.
        """
        if size <= 0:
            return b""
        before = self._index, self._rest, self._size, self._position
        try:
            return self._read(position, size, fill=fill)
        except BaseException:
            # The records before the place where it failed are not passed over by the next one.
            self._index, self._rest, self._size, self._position = before
            raise

    def _read(self, position: int, size: int, *, fill: bool) -> Bytes:
        if position == 0:
            self._index = 0
            self._rest = b""
        if position != self._position:
            self._traverse(position)
            self._position = position
        rest = self._rest
        if fill and len(rest) < size:
            return self._read_filled(size)
        if rest:
            self._rest = rest[size:]
            self._position += min(size, len(rest))
            if self._rest:
                return rest[:size]
        out = self._fill(size - len(rest))
        self._position += len(out)
        if not rest:
            return out
        return b"".join((rest, out)) if out else rest

    def _read_filled(self, size: int) -> Bytes:
        """``size`` bytes unless the list ends: one copy at most, none within one segment.

        Valid until the handle's next read: copies go into a buffer that the handle keeps
        (a fresh megabyte per read is page faults, measured: 3 times the cost of the copy),
        unless many others are open.
        """
        rest = self._rest
        self._rest = b""
        left = size - len(rest)
        pieces = [rest] if rest else []
        records = self._source()
        while left > 0 and (found := records.run(self._view, self._index)) is not None:
            run, first = found
            offsets = run.offsets
            start = offsets[first]
            count = len(offsets) - 1
            end, last = offsets[count], count
            if end - start > left:
                end = start + left
                last = bisect_left(offsets, end, first + 1)
                self._rest = bytes(_slice(run, end, offsets[last]))
            if records.may_have_pages(self._view):
                # In a kernel each of them was in the buffer, alone if need be.
                self._hold(max(b - a for a, b in pairwise(offsets[first : last + 1])))
            pieces.append(_slice(run, start, end))
            self._index += last - first
            left -= end - start
        total = size - left
        self._position += total
        if len(pieces) == 1:
            return pieces[0]
        if len(self._buffer) < total:
            self._buffer = bytearray(total)
            _keep(self)
        out = memoryview(self._buffer)
        at = 0
        for piece in pieces:
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out[:total]

    def _fill(self, want: int) -> Bytes:
        """Whole records into the buffer, ``want`` bytes of them out, the others kept."""
        records = self._source()
        found = records.run(self._view, self._index)
        if found is None:
            return b""
        run, first = found
        start = run.offsets[first]
        self._hold(run.offsets[first + 1] - start)
        limit = self._size - 1
        pieces: list[Bytes] = []
        total = 0
        while True:
            offsets = run.offsets
            count = len(offsets) - 1
            start = offsets[first]
            enough = bisect_left(offsets, start + want - total, first + 1)
            fits = bisect_right(offsets, start + limit - total, first) - 1
            last = min(enough, fits, count)
            if last <= first and total:
                break
            last = max(last, first + 1) if not total else last
            pieces.append(_slice(run, start, offsets[last]))
            total += offsets[last] - start
            self._index += last - first
            if last < count or total >= want:
                break
            found = records.run(self._view, self._index)
            if found is None:
                break
            run, first = found
        buffer = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if total <= want:
            self._rest = b""
            return buffer
        view = memoryview(buffer)
        # A copy, of a page or a record: a handle that is not read on holds no run.
        self._rest = bytes(view[want:])
        return view[:want]

    def _hold(self, longest: int) -> None:
        """Grow the buffer for a record of so many bytes."""
        # It must not become quite full: count == size means overflow.
        while longest >= self._size:
            self._size *= 2

    def _traverse(self, position: int) -> None:
        self._rest = b""
        self._index = 0
        if position == 0:
            return
        records = self._source()
        index, inside = records.locate(self._view, position)
        # traverse() renders every record on its way, so each of them grows the buffer.
        self._hold(records.longest(self._view, index + (1 if inside else 0)))
        self._index = index
        if inside:
            found = records.run(self._view, index)
            assert found is not None
            run, at = found
            self._rest = bytes(_slice(run, run.offsets[at] + inside, run.offsets[at + 1]))
            self._index = index + 1


#: Handles that have a buffer of their own, at most: whoever may read may open some thousands.
BUFFERS = 64
_having: deque[weakref.ref[SeqFile]] = deque()


def _keep(handle: SeqFile) -> None:
    """``handle`` has a buffer now. The one that has had its own for longest makes another."""
    _having.append(weakref.ref(handle))
    while len(_having) > BUFFERS:
        oldest = _having.popleft()()
        if oldest is not None and oldest is not handle:
            oldest._buffer = bytearray()
