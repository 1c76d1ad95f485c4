# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Packed measurement lists: no object per record.

A list is a run of segments (:mod:`imafs.lists.segments`) of at most :data:`SEGMENT`
records, and one open tail.

Staging hands the whole list over; deleting drops whole segments and skips into one.
Nothing here frees a long list at once: what is dropped is handed to the caller,
because freeing 180 MB holds the interpreter for 20 ms (measured).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from imafs.formats.binary import Record
from imafs.lists.banks import Digests, Layout, View
from imafs.lists.segments import Run, Segment, ViewCache

#: Records per segment: rendering one as ASCII takes 3 to 4 ms, which everybody else waits;
#: smaller ones cost large reads a tenth (measured).
SEGMENT = 2048


class PackedList:
    """A measurement list. Record indexes and byte positions count from its present head."""

    def __init__(self, layout: Layout, cache: ViewCache) -> None:
        self._layout = layout
        self._widths = tuple(bank.digest_size for bank in layout.lists)
        self._cache = cache
        self._segments: list[Segment] = []
        # Absolute numbers at the start of each segment: records, SHA-1 bytes, SHA-1 text.
        self._records: list[int] = []
        self._bytes: list[int] = []
        self._texts: list[int] = []
        self._end = (0, 0, 0)
        self._most = self._most_text = 0  # longest record ever in here, SHA-1 forms
        self._skip = 0  # records of the first segment that are deleted
        self._tail: Segment | None = None

    @classmethod
    def joined(
        cls, layout: Layout, cache: ViewCache, lists: Sequence[PackedList], number: int
    ) -> PackedList:
        """The first ``number`` records of ``lists``, one list behind the other.

        Uses ``lists`` up. Costs a step per segment, and a copy of the one where a deletion
        began or ``number`` ends.
        """
        whole = cls(layout, cache)
        for one in lists:
            left = number - len(whole)
            if left <= 0:
                break
            part = one.split(left) if left < len(one) else one
            part.seal()
            whole.join(part)
        return whole

    def __len__(self) -> int:
        return self._end[0] - self._first if self._segments else 0

    @property
    def _first(self) -> int:
        return self._records[0] + self._skip

    @property
    def segments(self) -> Sequence[Segment]:
        """Its segments in order; the first may hold deleted records too."""
        return self._segments

    def append(self, record: Record, digests: Digests, surplus: int = 0) -> None:
        """Adds a record at the end; ``surplus`` see :func:`imafs.kernel.kexec.surplus`."""
        tail = self._tail
        if tail is None:
            tail = self._tail = Segment(self._layout)
            self._segments.append(tail)
            self._records.append(self._end[0])
            self._bytes.append(self._end[1])
            self._texts.append(self._end[2])
        tail.append(record, digests, surplus)
        self._most = max(self._most, tail.longest)
        self._most_text = max(self._most_text, tail.longest_text)
        self._end = (
            self._records[-1] + len(tail),
            self._bytes[-1] + len(tail.data),
            self._texts[-1] + tail.text_size,
        )
        if len(tail) >= SEGMENT:
            self.seal()

    def seal(self) -> None:
        """Ends the open tail: before the list is handed over, or when it is full."""
        if self._tail is not None:
            self._tail.seal()
            self._tail = None

    def drop(self, number: int) -> list[Segment]:
        """Deletes the first ``number`` records (at most all); returns segments to free."""
        if number >= len(self):
            gone = self._segments
            self._segments, self._tail, self._skip = [], None, 0
            self._records, self._bytes, self._texts = [], [], []
            return gone
        first = self._first + number
        whole = bisect_right(self._records, first) - 1
        gone = self._segments[:whole]
        for numbers in (self._records, self._bytes, self._texts):
            del numbers[:whole]
        del self._segments[:whole]
        self._skip = first - self._records[0]
        return gone

    def split(self, number: int) -> PackedList:
        """Takes the first ``number`` records (fewer than all) off, as a list of its own."""
        first = self._first + number
        whole = bisect_right(self._records, first) - 1
        inside = first - self._records[whole]
        head = PackedList(self._layout, self._cache)
        head._segments = self._segments[:whole]
        head._records, head._bytes = self._records[:whole], self._bytes[:whole]
        head._texts = self._texts[:whole]
        head._skip = self._skip if whole else 0
        head._end = (self._records[whole], self._bytes[whole], self._texts[whole])
        head._most, head._most_text = self._most, self._most_text
        start = 0 if whole else self._skip
        if inside > start:
            head._join(self._part(self._segments[whole], start, inside))
        for numbers in (self._records, self._bytes, self._texts):
            del numbers[:whole]
        del self._segments[:whole]
        self._skip = inside
        return head

    def join(self, other: PackedList) -> None:
        """Puts all records of ``other``, which is used up, behind these. Sealed lists only."""
        assert self._tail is None
        for at, segment in enumerate(other._segments):
            skip = other._skip if at == 0 else 0
            self._join(self._part(segment, skip, len(segment)) if skip else segment)
        if self._segments and self._segments[-1] is other._tail:
            self._tail = other._tail
        self._most = max(self._most, other._most)
        self._most_text = max(self._most_text, other._most_text)

    def _join(self, segment: Segment) -> None:
        self._segments.append(segment)
        for numbers, end in zip((self._records, self._bytes, self._texts), self._end, strict=True):
            numbers.append(end)
        records, size, text = self._end
        self._end = (records + len(segment), size + len(segment.data), text + segment.text_size)

    def _part(self, segment: Segment, start: int, stop: int) -> Segment:
        """A sealed copy of the records ``start`` to ``stop`` of a segment."""
        sha1 = next(at for at, bank in enumerate(self._layout.lists) if bank.name == "sha1")
        texts = self._cache.run(segment, View(True, sha1)).offsets
        offsets = segment.offsets
        part = Segment.of(
            self._layout,
            bytes(segment.data[offsets[start] : offsets[stop]]),
            array("I", [at - offsets[start] for at in offsets[start : stop + 1]]),
            [
                bytes(kept[start * a.digest_size : stop * a.digest_size])
                for kept, a in zip(segment.digests, self._layout.stored, strict=True)
            ],
            texts[start : stop + 1],
        )
        odd = slice(bisect_left(segment.odd, start), bisect_left(segment.odd, stop))
        part.odd = array("I", [at - start for at in segment.odd[odd]])
        part.surpluses = segment.surpluses[odd]
        return part

    def copy(self) -> PackedList:
        """The list of this moment, a step per segment: segments are shared."""
        self.seal()
        twin = PackedList(self._layout, self._cache)
        twin._segments, twin._records = self._segments[:], self._records[:]
        twin._bytes, twin._texts, twin._end = self._bytes[:], self._texts[:], self._end
        twin._most, twin._most_text, twin._skip = self._most, self._most_text, self._skip
        return twin

    def shrink(self) -> Segment | None:
        """Takes the last segment off a list that is being freed; None: it is empty."""
        if not self._segments:
            return None
        for numbers in (self._records, self._bytes, self._texts):
            numbers.pop()
        return self._segments.pop()

    def _position(self, view: View, segment: int) -> int:
        """Absolute byte position of a segment's start in a view (``len`` = the end)."""
        at_end = segment == len(self._segments)
        records = self._end[0] if at_end else self._records[segment]
        wider = self._widths[view.bank] - 20
        if view.ascii:
            return (self._end[2] if at_end else self._texts[segment]) + 2 * wider * records
        return (self._end[1] if at_end else self._bytes[segment]) + wider * records

    def _head(self, view: View) -> int:
        """Absolute byte position of the present first record in a view."""
        start = self._position(view, 0)
        if not self._skip:
            return start
        return start + self._cache.run(self._segments[0], view).offsets[self._skip]

    def size(self, view: View) -> int:
        """Bytes of the whole list in a view; renders at most one segment."""
        if not self._segments:
            return 0
        return self._position(view, len(self._segments)) - self._head(view)

    @property
    def surplus(self) -> int:
        """Bytes that a kernel counts beside those of the list; a step per segment."""
        total = sum(sum(segment.surpluses) for segment in self._segments)
        if self._skip:
            first = self._segments[0]
            total -= sum(first.surpluses[: bisect_left(first.odd, self._skip)])
        return total

    def odd(self) -> Iterator[tuple[int, int]]:
        """Index and surplus of every record that has one, in order."""
        for at, segment in enumerate(self._segments):
            begin = self._records[at] - self._first
            for inside, surplus in zip(segment.odd, segment.surpluses, strict=True):
                if begin + inside >= 0:
                    yield begin + inside, surplus

    def run(self, view: View, index: int) -> tuple[Run, int] | None:
        """The run that holds record ``index``, and its number in there; None at the end."""
        if not self._segments:
            return None
        record = self._first + index
        if record >= self._end[0]:
            return None
        at = bisect_right(self._records, record) - 1
        return self._cache.run(self._segments[at], view), record - self._records[at]

    def pieces(self, view: View) -> Iterator[bytes]:
        """The whole list in a view, a run at a time."""
        at = 0
        while (found := self.run(view, at)) is not None:
            run, first = found
            yield bytes(run.data[run.offsets[first] : run.offsets[-1]])
            at += len(run.offsets) - 1 - first

    def locate(self, view: View, position: int) -> tuple[int, int]:
        """Record index at a byte position, and how many of its bytes lie before it.

        ``(len, 0)`` at or beyond the end. By bisection; the kernel walks from the head.
        """
        if position >= self.size(view):
            return len(self), 0
        target = self._head(view) + position
        low, high = 0, len(self._segments)
        while high - low > 1:
            middle = (low + high) // 2
            if self._position(view, middle) <= target:
                low = middle
            else:
                high = middle
        offsets = self._cache.run(self._segments[low], view).offsets
        inside = target - self._position(view, low)
        number = bisect_right(offsets, inside) - 1
        return self._records[low] + number - self._first, inside - offsets[number]

    def _wider(self, view: View) -> int:
        """How much longer a record is than its SHA-1 form."""
        return (self._widths[view.bank] - 20) * (2 if view.ascii else 1)

    def may_have_pages(self, view: View) -> bool:
        """False when no record has as many bytes as a page."""
        most = self._most_text if view.ascii else self._most
        return most + self._wider(view) >= 4096

    def longest(self, view: View, end: int) -> int:
        """Size of the longest of the records before index ``end``, to segment precision.

        For seq_file's buffer, which doubles for a record that does not fit: exact
        where the answer matters only as a comparison with a whole page.
        """
        if not self.may_have_pages(view):
            return 0
        wider = self._wider(view)
        last = self._first + end if self._segments else 0
        best = 0
        for at, segment in enumerate(self._segments):
            if self._records[at] >= last:
                break
            size = (segment.longest_text if view.ascii else segment.longest) + wider
            if size < 4096 or size <= best:
                continue
            offsets = self._cache.run(segment, view).offsets
            begin = self._skip if at == 0 else 0
            stop = min(len(segment), last - self._records[at])
            best = max([best, *(offsets[i + 1] - offsets[i] for i in range(begin, stop))])
        return best

    def newest(self, view: View) -> bytes | None:
        """The bytes of the last record, None where the list is empty."""
        found = self.run(view, len(self) - 1) if len(self) else None
        if found is None:
            return None
        run, at = found
        return bytes(run.data[run.offsets[at] : run.offsets[at + 1]])
