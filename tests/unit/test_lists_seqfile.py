# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""seq_file by examples: sizes of reads as a kernel answers them (any sequence: tests/property)."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import pytest

from imafs.kernel.queue import Queue
from imafs.lists import packed
from imafs.lists.banks import Hasher, Layout, View
from imafs.lists.packed import PackedList
from imafs.lists.segments import Run, Segment, ViewCache
from imafs.lists.seqfile import BUFFERS, SeqFile
from tests.property.builders import banks, record
from tests.property.reference import Rec, ng
from tests.property.seqmodel import SeqModel

BINARY = View(False, 0)
LAYOUT = Layout(banks("sha1", "sha256"))


def exact(number: int, size: int) -> Rec:
    """A record of ``size`` bytes in the SHA-1 binary list."""
    base = len(ng(10, b"/%06d" % number).binary(bytes(20)))
    return ng(10, b"/%06d" % number + b"n" * (size - base))


class File:
    """A list of records of these sizes, open once."""

    def __init__(self, *sizes: int) -> None:
        self.queue = Queue(Layout(banks("sha1")))
        self.content = b""
        self.number = 0
        self.add(*sizes)
        self.seq = SeqFile(lambda: self.queue.current, BINARY)
        self.model = SeqModel(lambda: self.records)
        self.position = 0

    def add(self, *sizes: int) -> None:
        for size in sizes:
            self.number += 1
            self.queue.append(record(exact(self.number, size)))

    @property
    def records(self) -> list[bytes]:
        """The records as the list holds them now."""
        found = [self.queue.current.run(BINARY, n) for n in range(len(self.queue.current))]
        return [
            bytes(place[0].data[place[0].offsets[place[1]] : place[0].offsets[place[1] + 1]])
            for place in found
            if place is not None
        ]

    def read(self, size: int, at: int | None = None) -> int:
        """Length of what a read gives; the model must give the same bytes."""
        self.position = self.position if at is None else at
        got = bytes(self.seq.read(self.position, size))
        assert got == self.model.read(self.position, size)
        self.position += len(got)
        return len(got)


@pytest.mark.parametrize(
    ("sizes", "reads"),
    [
        ([], [0]),
        # Two records fill the page but for one byte: both. To the byte: overflow, one.
        ([2047, 2048, 300], [4095, 300, 0]),
        ([2048, 2048, 300], [2048, 2348, 0]),
        ([2048, 2049], [2048, 2049, 0]),
        # One record of a page, less, more: the buffer doubles and stays so.
        ([4095, 300], [4095, 300, 0]),
        ([4096, 300], [4396, 0]),
        ([4097, 4094, 300], [8191, 300, 0]),
        ([8192, 4000, 4000], [16192, 0]),
        ([300, 4096, 300, 3500], [300, 7896, 0]),
        ([4096, 4096, 4096], [4096, 4096, 4096, 0]),
    ],
)
def test_what_reads_of_a_mebibyte_return(sizes: Sequence[int], reads: Sequence[int]) -> None:
    file = File(*sizes)
    assert [file.read(1 << 20) for _ in reads] == list(reads)


def test_a_short_read_leaves_a_rest_and_the_next_adds_whole_records() -> None:
    # Recorded on 7.2.13: 100, 100, then 4200 of 5000 and 1584 of 4096 asked.
    file = File(*[184] * 30)
    assert file.read(100) == 100
    assert file.read(100) == 100
    # The rest of the second record, then a page full of whole ones.
    assert file.read(5000) == 168 + 22 * 184
    assert file.read(4096) == 6 * 184
    assert file.read(4096) == 0


def test_a_read_that_ends_with_a_record_prepares_the_next_one() -> None:
    file = File(200, 200, 200)
    assert file.read(100) == 100
    assert file.read(100) == 100  # exactly the rest: the next record is in the buffer now
    file.queue.delete_first(3)
    assert file.read(1000) == 200
    assert file.read(1000) == 0


def test_no_more_records_are_shown_than_asked_for() -> None:
    file = File(200, 200, 200, 200)
    assert file.read(400) == 400
    file.queue.delete_first(2)  # the cursor is at index 2: nothing is left there
    assert file.read(400) == 0
    file = File(200, 200, 200, 200)
    assert file.read(401) == 401
    file.queue.delete_first(2)  # the third record was shown already
    assert file.read(400) == 199


def test_the_cursor_is_an_index_and_skips_after_a_delete() -> None:
    # Recorded on 7.2.13: read 20, echo 1, read on: the rest of the record, then the end.
    file = File(134, 134)
    assert file.read(20) == 20
    file.queue.delete_first(1)
    assert file.read(4096) == 114
    assert file.read(4096) == 0
    assert file.read(4096, at=0) == 134


def test_records_added_after_the_end_are_read_on() -> None:
    file = File(200)
    assert [file.read(4096), file.read(4096)] == [200, 0]
    file.add(300, 400)
    assert [file.read(4096), file.read(4096)] == [700, 0]


def test_position_zero_starts_again() -> None:
    file = File(200, 300)
    assert file.read(50) == 50
    assert file.read(4096, at=0) == 500
    assert file.read(4096, at=0) == 500


@pytest.mark.parametrize("at", [1, 199, 200, 201, 499, 500, 501, 100_000])
def test_any_other_position_is_resolved(at: int) -> None:
    file = File(200, 300)
    # The rest of the record at that position, and the following ones.
    assert file.read(4096, at=at) == max(0, 500 - at)
    assert file.read(4096) == 0


def test_a_traverse_grows_the_buffer_for_every_record_on_its_way() -> None:
    # Into a large record, right behind it, right before it, and where it is not reached.
    for at, expected in ((301, 4999 + 7200), (5300, 7200), (300, 5000 + 2400), (0, 300)):
        file = File(300, 5000, 2400, 2400, 2400)
        assert file.read(1 << 20, at=at) == expected, at


@pytest.mark.parametrize(("size", "expected"), [(4095, 2048), (4096, 4097), (4097, 4097)])
def test_a_traverse_over_a_record_of_about_a_page(size: int, expected: int) -> None:
    assert File(size, 2048, 2049).read(1 << 20, at=size) == expected


def test_a_traverse_does_not_grow_for_records_that_are_gone() -> None:
    file = File(5000, 300, 2400, 2400, 2400)
    file.queue.delete_first(1)
    assert file.read(1 << 20, at=300) == 2400
    assert file.read(1 << 20, at=300) == 2400


def test_two_files_do_not_share_a_cursor() -> None:
    file = File(200, 300)
    other = SeqFile(lambda: file.queue.current, BINARY)
    assert file.read(200) == 200
    assert len(other.read(0, 100)) == 100
    assert file.read(4096) == 300
    assert len(other.read(100, 4096)) == 400


def test_nothing_asked_is_nothing_read() -> None:
    file = File(200)
    assert file.seq.read(0, 0) == b""
    assert file.seq.read(7, -1) == b""


@pytest.mark.parametrize("size", [4096, 8192, 1 << 20])
def test_a_filled_read_grows_the_buffer_for_each_of_its_records(size: int) -> None:
    """Asked of 7.2.13: after such reads to the end, one from 0 gives more than a page."""
    file = File(158, 4200, 300)
    whole = 158 + 4200 + 300
    while got := len(file.seq.read(file.position, size, fill=True)):
        file.position += got
    assert file.position == whole
    assert len(file.seq.read(0, 1 << 20)) == whole


class Archive:
    """Records of mapped segments: no packed list, and all that SeqFile asks for."""

    def __init__(self, records: PackedList, place: Path, kind: str) -> None:
        self._cache = ViewCache(LAYOUT, 1 << 20)
        self.maps: list[mmap.mmap] = []
        self._segments = [
            self._mapped(s, place / str(n), kind) for n, s in enumerate(records.segments)
        ]
        self._same = records

    def _mapped(self, segment: Segment, file: Path, kind: str) -> Segment:
        texts = self._cache.run(segment, View(True, 0)).offsets
        file.write_bytes(bytes(segment.data))
        with file.open("rb") as opened:
            found = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        self.maps.append(found)
        data = memoryview(found) if kind == "memoryview" else found
        return Segment.of(LAYOUT, data, segment.offsets, segment.digests, texts)

    def __len__(self) -> int:
        return sum(map(len, self._segments))

    def size(self, view: View) -> int:
        return sum(len(self._cache.run(segment, view).data) for segment in self._segments)

    def run(self, view: View, index: int) -> tuple[Run, int] | None:
        for segment in self._segments:
            if index < len(segment):
                return self._cache.run(segment, view), index
            index -= len(segment)
        return None

    def locate(self, view: View, position: int) -> tuple[int, int]:
        return self._same.locate(view, position)

    def may_have_pages(self, view: View) -> bool:
        return True

    def longest(self, view: View, end: int) -> int:
        return self._same.longest(view, end)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("kind", ["mmap", "memoryview"])
@pytest.mark.parametrize("view", [View(form, bank) for form in (False, True) for bank in (0, 1)])
def test_mapped_segments_read_as_their_bytes(
    view: View, kind: str, fill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "SEGMENT", 7)
    hasher = Hasher(LAYOUT)
    records = PackedList(LAYOUT, ViewCache(LAYOUT, 1 << 20))
    for number in range(40):
        made = record(exact(number, 5000 if number % 11 == 10 else 300 + number))
        records.append(made, hasher.digests(made))
    records.seal()
    archive = Archive(records, tmp_path, kind)
    assert (len(archive), archive.size(view)) == (len(records), records.size(view))
    mine, theirs = SeqFile(lambda: archive, view), SeqFile(lambda: records, view)
    position = 0
    for size in (100, 4096, 1, 6000, 1 << 16, 100):
        got = bytes(mine.read(position, size, fill=fill))
        assert got == bytes(theirs.read(position, size, fill=fill))
        position += len(got)
    for position in (1, 2500, records.size(view) - 1, records.size(view)):
        got = bytes(mine.read(position, 3000, fill=fill))
        assert got == bytes(theirs.read(position, 3000, fill=fill))


def test_a_read_of_a_mapped_segment_is_no_copy(tmp_path: Path) -> None:
    hasher = Hasher(LAYOUT)
    records = PackedList(LAYOUT, ViewCache(LAYOUT, 1 << 20))
    for number in range(100):
        made = record(exact(number, 300))
        records.append(made, hasher.digests(made))
    records.seal()
    archive = Archive(records, tmp_path, "mmap")
    read = SeqFile(lambda: archive, BINARY).read(0, 20_000, fill=True)
    assert isinstance(read, memoryview)
    assert read.obj is archive.maps[0]


@pytest.mark.parametrize("number", [3, 7, 19])
def test_mapped_segments_in_a_packed_list(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting, splitting and joining do with them what they do with bytes."""
    monkeypatch.setattr(packed, "SEGMENT", 7)
    lists = []
    for mapped in (False, True):
        hasher, records = Hasher(LAYOUT), PackedList(LAYOUT, ViewCache(LAYOUT, 1 << 20))
        for at in range(20):
            made = record(exact(at, 300 + at))
            records.append(made, hasher.digests(made))
        records.seal()
        if mapped:
            for at, segment in enumerate(records.segments):
                (tmp_path / str(at)).write_bytes(bytes(segment.data))
                with (tmp_path / str(at)).open("rb") as opened:
                    segment.data = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        head = records.split(number)
        head.drop(2)
        records.drop(1)
        lists.append((head, records))
    for view in (View(form, bank) for form in (False, True) for bank in (0, 1)):
        for plain, other in zip(*lists, strict=True):
            assert b"".join(other.pieces(view)) == b"".join(plain.pieces(view))
            assert other.newest(view) == plain.newest(view)
            assert other.size(view) == plain.size(view)


def test_many_open_handles_have_few_buffers() -> None:
    """Whoever may read the lists may open thousands: a megabyte for each would be all memory."""
    file = File(*(200,) * 12_000)
    handles = [SeqFile(lambda: file.queue.current, BINARY) for _ in range(BUFFERS + 40)]
    first = [bytes(handle.read(0, 1 << 20, fill=True)) for handle in handles]
    assert len(set(first)) == 1
    assert len(first[0]) == 1 << 20
    assert sum(len(handle._buffer) for handle in handles) <= BUFFERS << 20
    # All of them read on, also those that have lost theirs.
    rest = {bytes(handle.read(1 << 20, 1 << 20, fill=True)) for handle in handles}
    assert len(rest) == 1
    whole = b"".join(file.records)
    assert (first[0] + rest.pop()) == whole[: 2 << 20]


def test_a_handle_that_is_not_read_on_holds_no_run() -> None:
    """The rendered forms that a cache has given up are nobody's."""
    file = File(*(300,) * 3000)
    for fill in (False, True):
        file.seq.read(0, 1000, fill=fill)
        assert type(file.seq._rest) is bytes
    file.seq.read(12_345, 1000)
    assert type(file.seq._rest) is bytes


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("size", [100, 1000, 5000])
def test_a_read_that_fails_passes_nothing_over(
    size: int, fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the list fails once: what had been taken before is there for the next read."""
    monkeypatch.setattr(packed, "SEGMENT", 3)
    file = File(*[150] * 40)
    whole = b"".join(file.records)
    found = b""
    lengths = []
    original, seen = PackedList.run, set[int]()

    def run(self: PackedList, view: View, index: int) -> tuple[Run, int] | None:
        if index not in seen:
            seen.add(index)
            raise ConnectionError
        return original(self, view, index)

    monkeypatch.setattr(PackedList, "run", run)
    while len(found) < len(whole):
        try:
            got = bytes(file.seq.read(len(found), size, fill=fill))
        except ConnectionError:
            continue
        assert got, "the next read is behind records that nobody has got"
        lengths.append(len(got))
        found += got
    assert found == whole
    assert len(seen) > 3
    # Nor does a failure change how much a read gives.
    monkeypatch.undo()
    other = SeqFile(lambda: file.queue.current, BINARY)
    at = 0
    for length in lengths:
        assert len(other.read(at, size, fill=fill)) == length
        at += length
