# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""SeqFile over packed lists against seq_file.c over Python lists (tests/property/seqmodel.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View
from imafs.lists.seqfile import SeqFile
from tests.property.builders import banks, record
from tests.property.reference import Rec, ng, violation
from tests.property.seqmodel import SeqModel

TPM = ("sha1", "sha256")
VIEWS = tuple((form, name) for form in (False, True) for name in TPM)

#: Sizes around everything that matters: a byte, a record, a page.
sizes = st.one_of(
    st.sampled_from([1, 2, 7, 511, 4094, 4095, 4096, 4097, 8192, 9000, 131072, 1 << 20]),
    st.integers(1, 9000),
)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of a few dozen records then span several segments."""
    monkeypatch.setattr("imafs.lists.packed.SEGMENT", 5)


def shown(rec: Rec) -> tuple[bytes, ...]:
    """The record in every view."""
    return tuple(
        rec.ascii(rec.shown(name)) if form else rec.binary(rec.shown(name)) for form, name in VIEWS
    )


def big(number: int, size: int) -> Rec:
    """An ima-buf record of about ``size`` bytes in binary form."""
    buf = (b"%08d" % number) * (size // 8) + b"x" * (size % 8)
    digest = hashlib.sha256(buf).digest()
    return Rec(10, "ima-buf", (b"sha256:\0" + digest, b"event\0", buf))


def of_size(number: int, size: int) -> Rec:
    """A record of exactly ``size`` bytes in the SHA-1 binary list."""
    rec = big(number, size - 110)
    missing = size - len(rec.binary(rec.shown("sha1")))
    rec = Rec(10, "ima-buf", (*rec.parts[:2], rec.parts[2] + b"y" * missing))
    assert len(rec.binary(rec.shown("sha1"))) == size
    return rec


@dataclass
class Handle:
    """An open file: the real one, the model, the file position."""

    staged: bool
    view: int
    seq: SeqFile
    model: SeqModel
    position: int = 0
    history: list[str] = field(default_factory=list)


class SeqFileMachine(RuleBasedStateMachine):
    """Appends, requests and reads in any order, several handles, all views."""

    def __init__(self) -> None:
        super().__init__()
        # A cache of a few segments, so that views are dropped and rendered again.
        self.queue = Queue(Layout(banks(*TPM)), cache=3000)
        self.current: list[tuple[bytes, ...]] = []
        self.staged: list[tuple[bytes, ...]] = []
        self.handles: list[Handle] = []
        self.number = 0

    def _append(self, rec: Rec) -> None:
        self.queue.append(record(rec))
        self.current.append(shown(rec))

    @initialize(count=st.integers(0, 150), length=st.integers(1, 120))
    def fill(self, count: int, length: int) -> None:
        self.append(count, length)
        for view in range(len(VIEWS)):
            self.open(False, view)

    @rule(count=st.integers(1, 40), length=st.integers(1, 120))
    def append(self, count: int, length: int) -> None:
        for _ in range(count):
            self.number += 1
            self._append(ng(10, b"/%d" % self.number + b"n" * length))

    @rule()
    def append_violation(self) -> None:
        self._append(violation(10, b"/violated"))

    @rule(size=st.one_of(st.integers(300, 4300), st.sampled_from([4094, 4095, 4096, 4097, 9000])))
    def append_large(self, size: int) -> None:
        self.number += 1
        self._append(of_size(self.number, size) if size < 4300 else big(self.number, size))

    @precondition(lambda self: self.current and not self.staged)
    @rule()
    def stage(self) -> None:
        self.queue.stage()
        self.staged, self.current = self.current, []

    @precondition(lambda self: self.staged)
    @rule()
    def delete_staged(self) -> None:
        assert self.queue.delete_staged() == len(self.staged)
        self.staged = []

    @precondition(lambda self: self.current)
    @rule(data=st.data())
    def delete_first(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, len(self.current)))
        self.queue.delete_first(number)
        del self.current[:number]

    @rule()
    def collect(self) -> None:
        self.queue.collect(1)

    @rule(staged=st.booleans(), view=st.integers(0, len(VIEWS) - 1))
    def open(self, staged: bool, view: int) -> None:
        form, name = VIEWS[view]
        seq = SeqFile(lambda: self.queue.list(staged), View(form, TPM.index(name)))
        model = SeqModel(lambda: [rec[view] for rec in (self.staged if staged else self.current)])
        self.handles.append(Handle(staged, view, seq, model))
        del self.handles[:-6]

    def _read(self, handle: Handle, position: int, size: int) -> int:
        expected = handle.model.read(position, size)
        actual = bytes(handle.seq.read(position, size))
        note(f"read at {position} size {size}: {len(expected)} bytes")
        assert actual == expected
        return len(expected)

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), size=sizes, times=st.integers(1, 5))
    def read_on(self, data: st.DataObject, size: int, times: int) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        for _ in range(times):
            handle.position += self._read(handle, handle.position, size)

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), size=sizes, moves=st.booleans())
    def read_at(self, data: st.DataObject, size: int, moves: bool) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        records = self.staged if handle.staged else self.current
        end = sum(len(rec[handle.view]) for rec in records)
        starts = [0]
        for rec in records:
            starts.append(starts[-1] + len(rec[handle.view]))
        position = data.draw(
            st.one_of(st.integers(0, end + 10), st.sampled_from(starts), st.just(end + 100_000))
        )
        count = self._read(handle, position, size)
        if moves:  # lseek and read, else pread
            handle.position = position + count

    @invariant()
    def sizes_and_counts(self) -> None:
        for staged, records in ((False, self.current), (True, self.staged)):
            packed = self.queue.list(staged)
            assert len(packed) == len(records)
            for number, (form, name) in enumerate(VIEWS):
                expected = sum(len(rec[number]) for rec in records)
                assert packed.size(View(form, TPM.index(name))) == expected


TestSeqFile = SeqFileMachine.TestCase


def exact(number: int, view: int, size: int) -> Rec:
    """A record of exactly ``size`` bytes in a view (a byte of the name is one in every view)."""
    rec = ng(10, b"/%06d" % number)
    rec = ng(10, b"/%06d" % number + b"n" * (size - len(shown(rec)[view])))
    assert len(shown(rec)[view]) == size
    return rec


#: Sizes that make pages full to the byte, or to one byte less or more.
page_parts = st.sampled_from([256, 512, 1024, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 5000])
asked = st.sampled_from([1, 255, 256, 257, 512, 2048, 4095, 4096, 4097, 8192, 131072])
places = st.tuples(st.floats(0, 1.1), st.sampled_from([-1, 0, 1, 100]))
steps_of_one = st.one_of(
    st.tuples(st.just("read on"), asked),
    st.tuples(st.just("read at"), st.tuples(places, asked)),
    st.tuples(st.just("append"), page_parts),
    st.tuples(st.just("delete"), st.floats(0, 1)),
)


@given(
    st.integers(0, len(VIEWS) - 1),
    st.lists(page_parts, max_size=24),
    st.lists(steps_of_one, min_size=1, max_size=20),
)
def test_pages_full_to_the_byte(view: int, sizes: list[int], steps: list[tuple[str, Any]]) -> None:
    form, name = VIEWS[view]
    recs = [exact(number, view, size) for number, size in enumerate(sizes)]
    queue, present = filled(recs), [shown(rec)[view] for rec in recs]
    seq = SeqFile(lambda: queue.current, View(form, TPM.index(name)))
    model = SeqModel(lambda: present)
    position = number = 0
    for what, value in steps:
        number += 1
        if what == "append":
            rec = exact(1000 + number, view, value)
            queue.append(record(rec))
            present.append(shown(rec)[view])
            continue
        if what == "delete":
            count = round(value * len(present))
            if count:
                queue.delete_first(count)
                del present[:count]
            continue
        size = value
        if what == "read at":
            (share, offset), size = value
            start = sum(map(len, present[: round(share * len(present))]))
            position = max(0, start + offset)
        expected = model.read(position, size)
        assert bytes(seq.read(position, size)) == expected
        position += len(expected)


def filled(records: list[Rec]) -> Queue:
    queue = Queue(Layout(banks(*TPM)), cache=3000)
    for rec in records:
        queue.append(record(rec))
    return queue


def reads(seq: SeqFile, steps: Iterator[int], fill: bool) -> Iterator[tuple[int, int, bytes]]:
    """(position, asked, got) of sequential reads up to the end of the file."""
    position = 0
    for size in steps:
        got = bytes(seq.read(position, size, fill=fill))
        if not got:
            return
        yield position, size, got
        position += len(got)


records_of_all_sizes = st.lists(
    st.one_of(st.integers(150, 400), st.integers(3900, 4300), st.integers(150, 20_000)),
    max_size=30,
).map(lambda wanted: [big(number, size) for number, size in enumerate(wanted)])


@given(records_of_all_sizes, st.integers(0, 3), st.lists(sizes, min_size=1), st.booleans())
def test_concatenation_of_reads_is_the_file(
    records: list[Rec], view: int, steps: list[int], fill: bool
) -> None:
    form, name = VIEWS[view]
    queue = filled(records)
    whole = b"".join(shown(rec)[view] for rec in records)
    seq = SeqFile(lambda: queue.current, View(form, TPM.index(name)))

    def endless() -> Iterator[int]:
        while True:
            yield from steps

    got = list(reads(seq, endless(), fill))
    assert b"".join(piece for *_, piece in got) == whole
    for position, size, piece in got:
        if fill:  # every request is filled
            assert len(piece) == min(size, len(whole) - position)


@given(
    records_of_all_sizes,
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 1 << 17), sizes), min_size=1, max_size=10),
)
def test_filled_reads_anywhere(
    records: list[Rec], view: int, places: list[tuple[int, int]]
) -> None:
    form, name = VIEWS[view]
    queue = filled(records)
    whole = b"".join(shown(rec)[view] for rec in records)
    seq = SeqFile(lambda: queue.current, View(form, TPM.index(name)))
    for position, size in places:
        assert bytes(seq.read(position, size, fill=True)) == whole[position : position + size]


@given(records_of_all_sizes, st.integers(0, 3), sizes)
def test_filled_reads_see_what_is_added_later(records: list[Rec], view: int, size: int) -> None:
    form, name = VIEWS[view]
    queue = filled([])
    seq = SeqFile(lambda: queue.current, View(form, TPM.index(name)))
    got = b""
    for rec in records:
        queue.append(record(rec))
        got += bytes(seq.read(len(got), size, fill=True))
    while piece := bytes(seq.read(len(got), size, fill=True)):
        got += piece
    assert got == b"".join(shown(rec)[view] for rec in records)


@given(
    records_of_all_sizes,
    st.integers(0, 3),
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(0, 60_000)), sizes, st.booleans()), max_size=30
    ),
)
def test_filled_reads_among_others(
    records: list[Rec], view: int, steps: list[tuple[int | None, int, bool]]
) -> None:
    """Single reads are filled for the page cache's sake; the others stay what they are."""
    form, name = VIEWS[view]
    queue = filled(records)
    whole = b"".join(shown(rec)[view] for rec in records)
    seq = SeqFile(lambda: queue.current, View(form, TPM.index(name)))
    position = 0
    for place, size, fill in steps:
        position = position if place is None else place
        got = bytes(seq.read(position, size, fill=fill))
        assert got == whole[position : position + len(got)]
        if fill:
            assert len(got) == len(whole[position : position + size])
        else:
            assert bool(got) == (position < len(whole))
        position += len(got)
