# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Chunks of a list, in files or in memory, and the bounded cache of their bytes and their forms.

A chunk is read whole, elsewhere than in the event loop, and is :class:`Absent` before. Of one that
a disk does not give whole, the records before and behind the place are there all the same.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from imafs.errors import FormatError, ImafsError, StoreBrokenError
from imafs.formats.algorithms import Bank
from imafs.formats.binary import Reader
from imafs.formats.views import Buffer, padded_digests, render_ascii, render_binary
from imafs.keeper.archive import index_name
from imafs.keeper.facts import Mode
from imafs.keeper.index import CHUNK, Row, Table, offsets_of
from imafs.keeper.records import Part
from imafs.keeper.store import BadSectorError, CutFileError
from imafs.lists.banks import Layout, View
from imafs.lists.segments import Run, ViewCache

#: The bytes of a segment's file: path, first byte, size. Blocking; raises :class:`ImafsError`.
Read = Callable[[str, int, int], bytes]
_serials = count()
#: The least that a disk does not give; places behind a bad one that are tried, each of which may
#: take a disk seconds; chunks with lost records that are remembered.
_SECTOR = 4096
_TRIES = 4
_HOLED = 32
_NOTHING = Row(0, 0, 0, 0)
#: The bytes of a chunk, in the cache of rendered forms.
_STORED = View(False, -1)


class Full(NamedTuple):
    """A chunk of a full segment."""

    path: str
    table: Table
    number: int

    def part(self, read: Read) -> Part:
        """Its records. Raises what ``read`` does."""
        start, end = self.table.starts[self.number : self.number + 2]
        data = read(self.path, start, end - start)
        try:
            return Part(data, array("I", self.places(read)))
        except ImafsError:
            # Of an index nothing is lost: the records say where they end.
            return self._walked(data)

    def begins(self) -> int:
        """The byte of its file at which it begins."""
        return self.table.starts[self.number]

    def places(self, read: Read) -> Sequence[int]:
        """Where each record begins, and the last one ends, from there on."""
        start, end = self.table.starts[self.number : self.number + 2]
        at, size = self.table.place(self.number)
        return offsets_of(read(index_name(self.path), at, size), start, end)

    def _walked(self, data: bytes) -> Part:
        try:
            ends = Reader(data, 20, opaque=True).ends()
        except FormatError as error:
            raise StoreBrokenError(f"{self.path}: {error}") from None
        if len(ends) != self.table.records(self.number):
            raise StoreBrokenError(f"{self.path}: its records are not those that were stored")
        return Part(data, array("I", [0, *ends]))


class Open(NamedTuple):
    """A chunk of the open segment, as of one commit."""

    path: str
    offsets: array[int]

    def part(self, read: Read) -> Part:
        """As of a full one."""
        data = read(self.path, self.begins(), self.offsets[-1] - self.begins())
        return Part(data, array("I", self.places(read)))

    def begins(self) -> int:
        """The same."""
        return self.offsets[0]

    def places(self, read: Read) -> Sequence[int]:
        """The same."""
        start = self.offsets[0]
        return [offset - start for offset in self.offsets]


class Memory(NamedTuple):
    """A chunk of what is in no file yet."""

    run: Run


class Left(NamedTuple):
    """What is left of a chunk: its ``front``, and what is ``behind`` record ``last``. The records
    from ``first`` to there are ``lost``."""

    front: Part
    first: int
    lost: CutFileError | BadSectorError
    last: int
    behind: Part


def found(where: Full | Open, read: Read) -> Part | Left:
    """A chunk, or what of it the disk gives. Raises :class:`ImafsError`."""
    try:
        return where.part(read)
    except (CutFileError, BadSectorError) as error:
        return _left(where, read, error)


def _left(where: Full | Open, read: Read, lost: CutFileError | BadSectorError) -> Left:
    places, start = where.places(read), where.begins()
    first = max(0, bisect_right(places, lost.good - start) - 1)
    data = read(where.path, start, places[first])
    front = Part(data, array("I", places[: first + 1]))
    last = len(places) - 1
    behind, good = Part(b"", array("I", (0,))), lost.good
    for _ in range(_TRIES if isinstance(lost, BadSectorError) else 0):
        after = bisect_left(places, (good // _SECTOR + 1) * _SECTOR - start)
        if after >= last:
            break
        try:
            data = read(where.path, start + places[after], places[-1] - places[after])
        except BadSectorError as error:
            good = error.good
            continue
        behind = Part(data, array("I", [place - places[after] for place in places[after:]]))
        last = after
        break
    return Left(front, first, lost, last, behind)


class Chunk:
    """Some records of one segment; what a rendering is made of."""

    __slots__ = (
        *("_count", "first", "longest", "longest_text", "sealed", "serial", "size", "text_size"),
        *("violations", "where"),
    )

    where: Full | Open | Memory

    def __init__(self, first: int) -> None:
        self.serial = next(_serials)
        self.first = first
        self._count = self.size = 0
        self.sealed = True  # nothing is added to it any more

    def __len__(self) -> int:
        return self._count

    def take(self, row: Row, where: Full | Open | Memory, count: int, size: int) -> None:
        """It has ``count`` records of ``size`` bytes now."""
        self.text_size, self.longest, self.longest_text, self.violations = row
        self.where, self._count, self.size = where, count, size
        self.sealed = count >= CHUNK or not isinstance(where, Open)


class Holed:
    """A chunk of which some records are lost: those before and behind it are chunks themselves."""

    __slots__ = ("_behind", "_chunk", "_count", "_front", "_told", "left")

    def __init__(self, chunk: Chunk, left: Left) -> None:
        self._chunk, self.left = chunk, left
        self._told = False
        self._count = len(chunk)
        self._front = _in_memory(chunk.first, left.front)
        self._behind = _in_memory(chunk.first + left.last, left.behind)

    def is_of(self, chunk: Chunk) -> bool:
        """Whether it is of the chunk as it is now."""
        return self._count == len(chunk)

    def around(self, number: int) -> tuple[Chunk, int]:
        """The chunk that has record ``number``, and from which record on. Raises what it lost."""
        if number < self.left.first:
            return self._front, 0
        if number < self.left.last:
            raise self.lost()
        return self._behind, self.left.last

    def lost(self) -> Exception:
        """To be raised where a record is asked for that is lost. Once: a disk may give it later,
        and whoever asks again has it read again (:class:`Absent`)."""
        if self._told:
            return Absent(self._chunk)
        self._told = True
        return self.left.lost

    def ends(self) -> tuple[tuple[Chunk, int], tuple[Chunk, int]]:
        """Both, each with the number of its first record."""
        return (self._front, 0), (self._behind, self.left.last)


def _in_memory(first: int, part: Part) -> Chunk:
    chunk = Chunk(first)
    assert isinstance(part.offsets, array)
    run = Run(part.data, part.offsets, sealed=True)
    count = len(part.offsets) - 1
    chunk.take(_NOTHING, Memory(run), count, part.offsets[-1])
    return chunk


class Absent(Exception):
    """A chunk is not in memory. Nothing has changed."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__(chunk)
        self.chunk = chunk


class Pin:
    """Keeps a chunk in memory as long as somebody has it, whatever the cache does."""

    __slots__ = ("__weakref__", "run")

    def __init__(self, run: Run) -> None:
        self.run = run


class Cache(ViewCache):
    """Chunks as they are stored, and their forms; digests of other banks are computed."""

    def __init__(self, layout: Layout, limit: int, mode: Callable[[str, int], Mode]) -> None:
        super().__init__(layout, limit)
        self._mode = mode
        self._pins: WeakValueDictionary[int, Pin] = WeakValueDictionary()
        self.holed: dict[int, Holed] = {}

    def run(self, segment: Any, view: View) -> Run:
        """The records of a chunk in a view. Raises :class:`Absent`."""
        if not view.ascii and self._lists[view.bank].digest_size == 20:
            return self.stored(segment)
        held = self._runs.get((segment.serial, view))
        if held is None or len(held.offsets) <= len(segment):
            self.stored(segment)  # or nothing is begun
        return super().run(segment, view)

    def stored(self, chunk: Chunk) -> Run:
        """The bytes of a chunk. Raises :class:`Absent`."""
        if isinstance(chunk.where, Memory):
            return chunk.where.run
        key = chunk.serial, _STORED
        held = self._runs.get(key)
        if held is not None and len(held.offsets) > len(chunk):
            self._runs.move_to_end(key)
            return held
        pin = self._pins.get(chunk.serial)
        if pin is None or len(pin.run.offsets) <= len(chunk):
            raise Absent(chunk)
        return pin.run

    def hold(self, chunk: Chunk, part: Part | Left) -> object:
        """The bytes of a chunk are these."""
        if isinstance(part, Left):
            while len(self.holed) >= _HOLED:
                del self.holed[next(iter(self.holed))]
            self.holed[chunk.serial] = Holed(chunk, part)
            return part
        self.holed.pop(chunk.serial, None)
        assert isinstance(part.offsets, array)
        run = Run(part.data, part.offsets, sealed=True)
        pin = self._pins[chunk.serial] = Pin(run)
        self._drop(chunk)
        self._runs[chunk.serial, _STORED] = run
        self.size += _cost(run)
        self._shrink()
        return pin

    def _drop(self, chunk: Chunk) -> None:
        old = self._runs.pop((chunk.serial, _STORED), None)
        if old is not None:
            self.size -= _cost(old)

    def forget(self, segment: Any) -> None:
        """Drops all of a chunk that is going away."""
        self._drop(segment)
        super().forget(segment)

    def _render(
        self, segment: Any, view: View, bank: Bank, done: int, data: bytearray, ends: array[int]
    ) -> None:
        run = self.stored(segment)
        offsets = run.offsets[done:]
        digests = self._digests(bank, run.data, offsets, segment.first + done)
        render = render_ascii if view.ascii else render_binary
        text, positions = render(run.data, offsets, digests, bank.digest_size)
        base = len(data)
        data += text
        ends.extend([base + position for position in positions])

    def _digests(self, bank: Bank, pages: Buffer, offsets: Sequence[int], first: int) -> bytes:
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


def _cost(run: Run) -> int:
    return len(run.data) + 4 * len(run.offsets)
