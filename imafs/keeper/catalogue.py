# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The whole list of a life as readers see it: what is stored, and behind it what is not yet.

Fulfils the protocol of :mod:`imafs.lists.seqfile`, as a packed list does, but that a look at
stored records is :class:`Absent` where their chunk is not in memory: whoever looks has it read
(:meth:`Catalogue.reading`, which may take as long as a broken disk does) and held, and looks
again. Chunks, and the forms of them that are rendered, share a bounded cache. Changed by the
event loop only, and without a turn for anybody in between: records never become fewer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

from imafs.errors import FormatError, StoreBrokenError
from imafs.formats.algorithms import Bank, by_name
from imafs.formats.binary import Reader
from imafs.keeper.archive import Sealed, Stored, Tail
from imafs.keeper.chunks import Absent, Cache, Chunk, Full, Holed, Left, Memory, Open, Read, found
from imafs.keeper.facts import Mode
from imafs.keeper.index import Indexed, Row, indexed
from imafs.keeper.journal import Era
from imafs.keeper.records import Away, Part, RecordList, unknown
from imafs.keeper.store import BadSectorError, BankFile
from imafs.lists.banks import Layout, View
from imafs.lists.segments import Run


def layout_of(banks: Sequence[BankFile]) -> Layout:
    """The banks that have files, in the order of the kernel's."""
    found = []
    for bank in banks:
        if bank.name.startswith("tpm_alg_"):
            found.append(Bank(int(bank.name.removeprefix("tpm_alg_"), 16), bank.size, None))
        else:
            algorithm = by_name(bank.name)
            found.append(Bank(algorithm.tpm_id or 0, algorithm.digest_size, algorithm))
    return Layout(tuple(found))


def _part(where: Full | Open, count: int, read: Read, *, whole: bool) -> Part:
    if whole:
        return where.part(read)
    try:
        part = where.part(read)
        ends = [row[-1] for row in Reader(bytes(part.data), 20, opaque=True).walk()]
    except (StoreBrokenError, BadSectorError, FormatError):
        return unknown(count)
    return part if ends == list(part.offsets[1:]) else unknown(count)


class Catalogue:
    """See the module. ``read`` gives the bytes of a segment's file."""

    def __init__(self, banks: Sequence[BankFile], read: Read, cache: int) -> None:
        self.layout = layout_of(banks)
        self._widths = tuple(bank.digest_size for bank in self.layout.lists)
        self._read = read
        self._cache = Cache(self.layout, cache, self._mode)
        self._eras: list[Era] = []
        self._chunks: list[Chunk] = []
        # At the start of each chunk, counted from the list's head: records, bytes, text.
        self._records: list[int] = []
        self._bytes: list[int] = []
        self._texts: list[int] = []
        self._end = (0, 0, 0)
        self._most = self._most_text = 0
        self._stored_end = (0, 0, 0)
        self._stored_chunks = 0
        self._pending = b""
        #: A boot_id, the index of its first record, and the violations in front of it.
        self._before: tuple[str, int, int] | None = None
        self._opened = 0  # index of the open segment's first chunk

    def _mode(self, bank: str, index: int) -> Mode:
        at = bisect_right(self._eras, index, key=lambda era: era.first) - 1
        return self._eras[max(at, 0)].modes.get(bank, Mode.REAL) if self._eras else Mode.REAL

    def __len__(self) -> int:
        return self._end[0]

    @property
    def stored(self) -> int:
        """Records that are stored."""
        return self._stored_end[0]

    @property
    def violations(self) -> int:
        """Records whose digests are zeros."""
        return sum(chunk.violations for chunk in self._chunks)

    def violations_before(self, boot: str) -> int:
        """Those stored under earlier kernels than that of ``boot``. Raises :class:`Absent`."""
        first = next((era.first for era in self._eras if era.boot == boot), self._stored_end[0])
        if self._before is None or self._before[:2] != (boot, first):
            self._before = boot, first, self._violations_until(first)
        return self._before[2]

    def _violations_until(self, end: int) -> int:
        found = 0
        for at, chunk in zip(self._records, self._chunks, strict=True):
            if at + len(chunk) <= end:
                found += chunk.violations
            elif at < end:
                run = self._cache.stored(self._unholed(chunk))
                data = bytes(run.data[run.offsets[0] : run.offsets[end - at]])
                found += sum(not any(row[3]) for row in Reader(data, 20, opaque=True).walk())
        return found

    @property
    def pending(self) -> int:
        """Records behind those, which the kernel has still."""
        return self._end[0] - self._stored_end[0]

    # Growing

    def begin(self, sealed: Sequence[Sealed], tail: Tail | None, eras: Sequence[Era]) -> None:
        """What an archive has at a start."""
        self._eras = list(eras)
        for segment in sealed:
            for number, row in enumerate(segment.table.rows):
                chunk = self._append()
                self._fill(chunk, segment, number, row)
                self._grown(chunk)
            self._opened = len(self._chunks)
        if tail is not None:
            self._extend(tail)
        self._settle()

    @staticmethod
    def _fill(chunk: Chunk, segment: Sealed, number: int, row: Row) -> None:
        table = segment.table
        size = table.starts[number + 1] - table.starts[number]
        chunk.take(row, Full(segment.path, table, number), table.records(number), size)

    def _extend(self, tail: Tail) -> None:
        """The open segment has these chunks now; the first of them may have been there."""
        for number, (row, offsets) in enumerate(tail.chunks, self._opened + tail.at):
            chunk = self._chunks[number] if number < len(self._chunks) else self._append()
            where = Open(tail.path, offsets)
            chunk.take(row, where, len(offsets) - 1, offsets[-1] - offsets[0])
            self._grown(chunk)

    def _append(self) -> Chunk:
        chunk = Chunk(self._end[0])
        self._chunks.append(chunk)
        for numbers, end in zip((self._records, self._bytes, self._texts), self._end, strict=True):
            numbers.append(end)
        return chunk

    def _grown(self, chunk: Chunk) -> None:
        """The last chunk has its records."""
        self._end = (
            self._records[-1] + len(chunk),
            self._bytes[-1] + chunk.size,
            self._texts[-1] + chunk.text_size,
        )
        self._most = max(self._most, chunk.longest)
        self._most_text = max(self._most_text, chunk.longest_text)

    def _settle(self) -> None:
        self._stored_end, self._stored_chunks = self._end, len(self._chunks)

    def show(self, shown: Indexed) -> None:
        """The records behind the stored ones are these: the kernel has them. To index them takes
        as long as they are many: elsewhere than in the event loop."""
        self._hide()
        self._pending = shown.data
        for row, offsets in shown.idx.chunks():
            chunk = self._append()
            where = Memory(Run(shown.data, offsets, sealed=True))
            chunk.take(row, where, len(offsets) - 1, offsets[-1] - offsets[0])
            self._grown(chunk)

    def forget(self, path: str) -> None:
        """Nothing of a full segment is in memory any more: its bytes were found to be others."""
        for chunk in self._chunks:
            if isinstance(chunk.where, Full) and chunk.where.path == path:
                self._cache.forget(chunk)

    def _hide(self) -> None:
        for chunk in self._chunks[self._stored_chunks :]:
            self._cache.forget(chunk)
        for numbers in (self._records, self._bytes, self._texts):
            del numbers[self._stored_chunks :]
        del self._chunks[self._stored_chunks :]
        self._end = self._stored_end

    def store(self, stored: Stored) -> None:
        """A commit: the first of the records that were shown are in a file now."""
        rest = self._pending[stored.frame.len :] if self._pending else b""
        self._hide()
        for segment in stored.sealed:
            self._seal(segment)
        frame = stored.frame
        if not self._eras or (self._eras[-1].boot, self._eras[-1].modes) != (
            *(frame.boot, frame.modes),
        ):
            self._eras.append(Era(frame.first, frame.boot, frame.modes))
        if stored.tail is not None:
            self._extend(stored.tail)
        self._settle()
        if rest:
            self.show(indexed(rest))

    def _seal(self, segment: Sealed) -> None:
        """The open segment is full: its index is in a file from now on."""
        chunks = self._chunks[self._opened :]
        for number, (chunk, row) in enumerate(zip(chunks, segment.table.rows, strict=True)):
            self._fill(chunk, segment, number, row)
        self._opened = len(self._chunks)

    # Reading: see PackedList, whose rules these are

    def _position(self, view: View, chunk: int) -> int:
        at_end = chunk == len(self._chunks)
        records = self._end[0] if at_end else self._records[chunk]
        wider = self._widths[view.bank] - 20
        if view.ascii:
            return (self._end[2] if at_end else self._texts[chunk]) + 2 * wider * records
        return (self._end[1] if at_end else self._bytes[chunk]) + wider * records

    def size(self, view: View) -> int:
        """Bytes of the whole list in a view."""
        return self._position(view, len(self._chunks))

    def run(self, view: View, index: int) -> tuple[Run, int] | None:
        """The run that holds record ``index``, and its number in there; None at the end. Raises
        :class:`Absent`, as :meth:`locate` and :meth:`longest` do."""
        if index >= self._end[0]:
            return None
        at = bisect_right(self._records, index) - 1
        chunk, number = self._chunks[at], index - self._records[at]
        if self._cache.holed and (holed := self._holed(chunk)) is not None:
            part, first = holed.around(number)
            return self._cache.run(part, view), number - first
        return self._cache.run(chunk, view), number

    def _holed(self, chunk: Chunk) -> Holed | None:
        holed = self._cache.holed.get(chunk.serial)
        return holed if holed is not None and holed.is_of(chunk) else None

    def _unholed(self, chunk: Chunk) -> Chunk:
        """The chunk. Raises what it has lost."""
        holed = self._holed(chunk)
        if holed is not None:
            raise holed.lost()
        return chunk

    def reading(self, absent: Absent) -> Callable[[], Part | Left]:
        """What reads a chunk; it touches nothing of ours. Blocking."""
        where = absent.chunk.where
        assert not isinstance(where, Memory)
        return partial(found, where, self._read)

    def hold(self, absent: Absent, part: Part | Left) -> object:
        """The chunk is this: it stays in memory for as long as the object that is returned."""
        return self._cache.hold(absent.chunk, part)

    def locate(self, view: View, position: int) -> tuple[int, int]:
        """Record index at a byte position, and how many of its bytes lie before it."""
        if position >= self.size(view):
            return len(self), 0
        low, high = 0, len(self._chunks)
        while high - low > 1:
            middle = (low + high) // 2
            if self._position(view, middle) <= position:
                low = middle
            else:
                high = middle
        chunk, inside = self._chunks[low], position - self._position(view, low)
        holed, first = self._holed(chunk), 0
        if holed is not None:
            size = self._position(view, low + 1) - self._position(view, low)
            chunk, first, inside = self._beside(holed, view, inside, size)
        offsets = self._cache.run(chunk, view).offsets
        inside += offsets[0]
        number = bisect_right(offsets, inside) - 1
        return self._records[low] + first + number, inside - offsets[number]

    def _beside(self, holed: Holed, view: View, inside: int, size: int) -> tuple[Chunk, int, int]:
        """The part that has a byte of a chunk with so many, its first record, and the byte's place
        in it. Raises what is lost."""
        front, behind = holed.ends()
        lengths = []
        for part, _ in (front, behind):
            offsets = self._cache.run(part, view).offsets
            lengths.append(offsets[-1] - offsets[0])
        if inside < lengths[0]:
            return (*front, inside)
        if inside < size - lengths[1]:
            raise holed.lost()
        return (*behind, inside - (size - lengths[1]))

    def _wider(self, view: View) -> int:
        return (self._widths[view.bank] - 20) * (2 if view.ascii else 1)

    def may_have_pages(self, view: View) -> bool:
        """False when no record has as many bytes as a page."""
        most = self._most_text if view.ascii else self._most
        return most + self._wider(view) >= 4096

    def longest(self, view: View, end: int) -> int:
        """Size of the longest of the records before index ``end``, where that is a page."""
        if not self.may_have_pages(view):
            return 0
        wider, best = self._wider(view), 0
        for at, chunk in enumerate(self._chunks):
            if self._records[at] >= end:
                break
            size = (chunk.longest_text if view.ascii else chunk.longest) + wider
            if size < 4096 or size <= best:
                continue
            stop = end - self._records[at]
            if stop >= len(chunk):
                best = size
                continue
            if self._holed(chunk) is not None:
                return size  # at most
            offsets = self._cache.run(chunk, view).offsets
            best = max([best, *(offsets[i + 1] - offsets[i] for i in range(stop))])
        return best

    def records(self, *, whole: bool = True) -> RecordList:
        """What is stored. Reading it is blocking, in any thread. For a join, which cannot wait for
        records that are lost, others stand in their place (not ``whole``)."""
        stored = self._chunks[: self._stored_chunks]
        return RecordList(
            Away(len(chunk), partial(_part, chunk.where, len(chunk), self._read, whole=whole))
            for chunk in stored
            if not isinstance(chunk.where, Memory)
        )
