# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The whole list of a life as readers see it: what is stored, and behind it what is not yet.

Fulfils the protocol of :mod:`imafs.lists.seqfile`, as a packed list does. Stored records are
pages of their segments' files; other banks and ASCII are rendered a chunk at a time into a
bounded cache. Changed by the event loop only, and without a turn for anybody in between:
records never become fewer.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from imafs.formats.algorithms import Bank, by_name
from imafs.formats.binary import Reader
from imafs.formats.views import padded_digests, render_ascii, render_binary
from imafs.keeper.archive import Sealed, Stored, index_name
from imafs.keeper.facts import Mode
from imafs.keeper.index import CHUNK, Index, measured
from imafs.keeper.journal import Era
from imafs.keeper.records import Part, RecordList
from imafs.keeper.store import BankFile
from imafs.lists.banks import Layout, View
from imafs.lists.segments import Run, ViewCache

#: The bytes of a segment's file, mapped: path, size.
Map = Callable[[str, int], memoryview]
#: Raises where a file has not so many bytes any more: path, size.
Intact = Callable[[str, int], None]
_serials = count()


class _Pages:
    """The bytes of a segment, mapped when they are first read.

    Of a file that was cut meanwhile no page is touched: it would be SIGBUS, and the end of the
    keeper. ``index``: bytes of the mapped index, 0 for one in memory.
    """

    __slots__ = ("_data", "_intact", "_map", "index", "path", "size")

    def __init__(self, map_: Map, intact: Intact, path: str, size: int, index: int = 0) -> None:
        self._map, self._intact, self.path, self.size = map_, intact, path, size
        self.index = index
        self._data: memoryview | None = None

    def check(self) -> None:
        """Raises :class:`StoreBrokenError`."""
        self._intact(self.path, self.size)
        if self.index:
            self._intact(index_name(self.path), self.index)

    def data(self) -> memoryview:
        """The bytes; whoever reads them has called :meth:`check` just before."""
        if self._data is None:
            self._data = self._map(self.path, self.size)
        return self._data


class _Memory:
    """Bytes that are in no file yet."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def check(self) -> None:
        """There is nothing to lose."""

    def data(self) -> memoryview:
        return self._data


class Chunk:
    """Some records of one segment; what a rendering is made of."""

    __slots__ = (
        *("first", "longest", "longest_text", "offsets", "pages", "serial", "text_size"),
        *("sealed", "violations"),
    )

    def __init__(self, first: int, pages: _Pages | _Memory) -> None:
        self.serial = next(_serials)
        self.first = first
        self.pages = pages
        self.offsets: Sequence[int] = array("Q")
        self.sealed = True  # nothing is added to it any more
        self.text_size = self.longest = self.longest_text = self.violations = 0

    def __len__(self) -> int:
        return max(0, len(self.offsets) - 1)

    @property
    def data(self) -> memoryview:
        """The bytes that the offsets are in."""
        return self.pages.data()


class _Rendered(ViewCache):
    """The forms of chunks; digests of other banks are computed, not stored."""

    def __init__(self, layout: Layout, limit: int, mode: Callable[[str, int], Mode]) -> None:
        super().__init__(layout, limit)
        self._mode = mode

    def _render(
        self, segment: Any, view: View, bank: Bank, done: int, data: bytearray, ends: array[int]
    ) -> None:
        offsets = segment.offsets[done:]
        pages = segment.data
        first = segment.first + done
        digests = self._digests(bank, pages, offsets, first)
        render = render_ascii if view.ascii else render_binary
        text, positions = render(pages, offsets, digests, bank.digest_size)
        base = len(data)
        data += text
        ends.extend([base + position for position in positions])

    def _digests(self, bank: Bank, pages: memoryview, offsets: Sequence[int], first: int) -> bytes:
        width = bank.digest_size
        if bank.algorithm is None or bank.algorithm.name == "sha1":
            return padded_digests(pages, offsets, width)
        make, zeros = bank.algorithm.constructor(), bytes(width)
        name = bank.name
        found = []
        data = bytes(pages[offsets[0] : offsets[-1]])
        rows = Reader(data, 20, opaque=True).walk()
        for index, (_, template, body, digest, _, _) in enumerate(rows, first):
            if not any(digest):
                found.append(zeros)
            elif self._mode(name, index) is Mode.PADDED:
                found.append(digest.ljust(width, b"\0"))
            else:
                found.append(make(template.hash_input(body)).digest())
        return b"".join(found)


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


class Catalogue:
    """See the module. ``map_`` gives the bytes of a segment's file."""

    def __init__(
        self, banks: Sequence[BankFile], map_: Map, cache: int, intact: Intact = lambda *_: None
    ) -> None:
        self.layout = layout_of(banks)
        self._widths = tuple(bank.digest_size for bank in self.layout.lists)
        self._map, self._intact = map_, intact
        self._cache = _Rendered(self.layout, cache, self._mode)
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
        """Those stored under earlier kernels than that of ``boot``."""
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
                chunk.pages.check()
                data = bytes(chunk.data[chunk.offsets[0] : chunk.offsets[end - at]])
                found += sum(not any(row[3]) for row in Reader(data, 20, opaque=True).walk())
        return found

    @property
    def pending(self) -> int:
        """Records behind those, which the kernel has still."""
        return self._end[0] - self._stored_end[0]

    # Growing

    def begin(self, sealed: Sequence[Sealed], tail: Sealed | None, eras: Sequence[Era]) -> None:
        """What an archive has at a start."""
        self._eras = list(eras)
        for segment in sealed:
            self._take(segment, segment.index)
            self._opened = len(self._chunks)
        if tail is not None:
            self._take(tail, tail.index)
            for chunk in self._chunks[self._opened :]:
                chunk.offsets = array("Q", chunk.offsets)
            self._chunks[-1].sealed = len(self._chunks[-1]) >= CHUNK
        self._settle()

    def _take(self, segment: Sealed, index: Index) -> None:
        self._indexed(index, self._pages(segment))

    def _pages(self, segment: Sealed) -> _Pages:
        words = (segment.path, segment.size, segment.index.mapped)
        return _Pages(self._map, self._intact, *words)

    def _indexed(self, index: Index, pages: _Pages | _Memory) -> None:
        for number, text in enumerate(index.texts):
            chunk = Chunk(self._end[0], pages)
            chunk.offsets = index.offsets[number * CHUNK : (number + 1) * CHUNK + 1]
            chunk.text_size, chunk.longest = text, index.longest[number]
            chunk.longest_text = index.longest_texts[number]
            chunk.violations = index.violations[number]
            self._append(chunk)

    def _append(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        for numbers, end in zip((self._records, self._bytes, self._texts), self._end, strict=True):
            numbers.append(end)
        self._grown(chunk)

    def _grown(self, chunk: Chunk) -> None:
        """The last chunk has its records."""
        self._end = (
            self._records[-1] + len(chunk),
            self._bytes[-1] + chunk.offsets[-1] - chunk.offsets[0],
            self._texts[-1] + chunk.text_size,
        )
        self._most = max(self._most, chunk.longest)
        self._most_text = max(self._most_text, chunk.longest_text)

    def _settle(self) -> None:
        self._stored_end, self._stored_chunks = self._end, len(self._chunks)

    def show(self, data: bytes) -> None:
        """The records behind the stored ones are these: the kernel has them."""
        self._hide()
        self._pending = data
        if not data:
            return
        index = Index()
        index.take(measured(data))
        self._indexed(index, _Memory(data))

    def _hide(self) -> None:
        for chunk in self._chunks[self._stored_chunks :]:
            self._cache.forget(chunk)  # type: ignore[arg-type]
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
        if frame.count:
            self._store(stored)
        self._settle()
        self.show(rest)

    def _seal(self, segment: Sealed) -> None:
        """The open segment is full: its index is a file's pages from now on."""
        pages = self._pages(segment)
        for number, chunk in enumerate(self._chunks[self._opened :]):
            chunk.offsets = segment.index.offsets[number * CHUNK : (number + 1) * CHUNK + 1]
            chunk.pages = pages
            chunk.sealed = True
        self._opened = len(self._chunks)

    def _store(self, stored: Stored) -> None:
        frame = stored.frame
        pages = _Pages(self._map, self._intact, stored.path, frame.off + frame.len)
        begin = frame.off
        found = stored.measured
        for end, line, violation in zip(*found, strict=True):
            if len(self._chunks) == self._opened or len(self._chunks[-1]) >= CHUNK:
                chunk = Chunk(self._end[0], pages)
                chunk.offsets = array("Q", (begin,))
                chunk.sealed = False
                self._append(chunk)
            chunk = self._chunks[-1]
            offsets = chunk.offsets
            assert isinstance(offsets, array)
            offsets.append(frame.off + end)
            chunk.pages = pages
            chunk.text_size += line
            chunk.violations += violation
            chunk.longest = max(chunk.longest, frame.off + end - begin)
            chunk.longest_text = max(chunk.longest_text, line)
            self._grown(chunk)
            chunk.sealed = len(chunk) >= CHUNK
            begin = frame.off + end

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
        """The run that holds record ``index``, and its number in there; None at the end."""
        if index >= self._end[0]:
            return None
        at = bisect_right(self._records, index) - 1
        return self._run(self._chunks[at], view), index - self._records[at]

    def _run(self, chunk: Chunk, view: View) -> Run:
        chunk.pages.check()
        return self._cache.run(chunk, view)  # type: ignore[arg-type]

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
        offsets = self._run(self._chunks[low], view).offsets
        inside = position - self._position(view, low) + offsets[0]
        number = bisect_right(offsets, inside) - 1
        return self._records[low] + number, inside - offsets[number]

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
            offsets = self._run(chunk, view).offsets
            stop = min(len(chunk), end - self._records[at])
            best = max([best, *(offsets[i + 1] - offsets[i] for i in range(stop))])
        return best

    def records(self) -> RecordList:
        """What is stored, for a join."""
        stored = self._chunks[: self._stored_chunks]
        for chunk in stored:
            chunk.pages.check()
        return RecordList([Part(chunk.data, chunk.offsets) for chunk in stored])
