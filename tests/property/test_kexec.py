# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The kexec buffer over any list: round trip, cut as the kernel cuts, broken at will."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imafs.errors import FormatError
from imafs.formats import kexec_buffer
from imafs.formats.algorithms import by_name
from imafs.formats.binary import Record
from imafs.formats.kexec_buffer import decode
from imafs.interface.behaviour import CARRIES_BOTH
from imafs.kernel import carry, kexec
from imafs.kernel.kexec import Image
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View
from imafs.lists.packed import PackedList
from tests.property.builders import banks, record, recs
from tests.property.reference import Rec, ascii_list, binary_list

LAYOUT = Layout(banks("sha1", "sha256"), by_name("sha256"))
ORDINARY = recs().filter(lambda rec: rec.label != "ima")
LISTS = st.lists(recs(), max_size=12)
CARRIED = st.lists(ORDINARY, max_size=12)


def queue(staged: Sequence[Rec], current: Sequence[Rec], *, dropped: int = 0) -> Queue:
    """A queue with these lists, in the TPM already; ``dropped`` more were deleted first."""
    made = Queue(LAYOUT, disable_htable=True)
    for rec in staged:
        made.append(record(rec))
    if staged:
        made.stage()
    for _ in range(dropped):
        made.append(record(Rec(10, "ima-ng", (b"sha1:\0" + bytes(20), b"/gone\0"))))
    for rec in current:
        made.append(record(rec))
    if dropped:
        made.delete_first(dropped)
    made.confirm_extends(made.pending)
    return made


def restored(data: bytes) -> list[Record]:
    """What a kernel restores: up to the first record that it cannot."""
    found = []
    reading = decode(data)
    while True:
        try:
            found.append(next(reading).record)
        except (StopIteration, FormatError):
            return found


def contents(records: PackedList) -> dict[View, bytes]:
    """All views of a list."""
    found = {}
    for bank in range(len(LAYOUT.lists)):
        for ascii_ in (False, True):
            view = View(ascii_, bank)
            index, pieces = 0, []
            while (run := records.run(view, index)) is not None:
                data, offsets, _ = run[0]
                pieces.append(bytes(data[offsets[run[1]] : offsets[-1]]))
                index += len(offsets) - 1 - run[1]
            found[view] = b"".join(pieces)
            assert len(found[view]) == records.size(view)
    return found


@given(CARRIED, st.integers(0, 5000))
def test_round_trip(records: list[Rec], padding: int) -> None:
    data = kexec_buffer.encode(binary_list(records, "sha1"), len(records)) + bytes(padding)
    assert [parsed.record for parsed in decode(data)] == [record(rec) for rec in records]


@given(LISTS, LISTS, st.integers(0, 3), st.integers(0, 6000))
def test_what_crosses_is_what_a_kernel_restores_from_the_buffer(
    staged: list[Rec], current: list[Rec], dropped: int, segment: int
) -> None:
    """However the segment cuts the lists, and whatever templates are in them."""
    old = queue(staged, current, dropped=dropped)
    image = Image(segment + kexec_buffer.HEADER_SIZE)
    data, _ = carry.buffer(old, CARRIES_BOTH, image)
    assert len(data) <= image.segment_size
    found = carry.crossing(old, image, CARRIES_BOTH)
    assert found.records == len(staged) + len(current)
    assert (found.why is None) == (found.lost == 0)

    new = Queue(LAYOUT)
    new.take_over(old, carry.carried(old, CARRIES_BOTH), found.carried)
    expected = [*staged, *current][: found.carried]
    assert restored(data) == [record(rec) for rec in expected]
    assert len(new.current) == found.carried
    assert len(new.staged) == 0
    lists = contents(new.current)
    for number, bank in enumerate(LAYOUT.lists):
        assert lists[View(False, number)] == binary_list(expected, bank.name)
        assert lists[View(True, number)] == ascii_list(expected, bank.name)
    assert new.violations == 0
    assert new.full.records == found.carried
    assert new.full.size == sum(kexec.runtime_size(record(rec)) for rec in expected)
    # Restored records are in no hash table; they can be measured again, once.
    for rec in expected[:1]:
        assert new.append(record(rec)) == new.totals.added


@given(LISTS, LISTS)
def test_the_sizes_are_the_kernels_arithmetic(staged: list[Rec], current: list[Rec]) -> None:
    def size(rec: Rec) -> int:
        # get_binary_runtime_size; a custom format's descriptor has an empty name.
        name = b"" if "|" in rec.label or rec.label in ("d-ng",) else rec.label.encode()
        # Names are kept with a NUL, which template ima alone writes them without.
        data = sum(4 + len(part) for part in rec.parts) + (rec.label == "ima")
        return 4 + 20 + 4 + len(name) + 4 + data

    made = queue(staged, current)
    assert carry.runtime_size(made) == sum(map(size, [*staged, *current]))
    assert made.full.size == carry.runtime_size(made)


@pytest.mark.usefixtures("short_segments")
@given(LISTS, LISTS, st.integers(0, 24), st.integers(0, 24))
def test_the_sizes_of_what_is_left_over_segments(
    staged: list[Rec], current: list[Rec], carried: int, trimmed: int
) -> None:
    """Begun, joined and cut segments know which of their records are counted otherwise."""
    old = queue(staged, current)
    new = Queue(LAYOUT)
    new.take_over(old, carry.carried(old, CARRIES_BOTH), carried)
    assert new.full.size == sum(
        kexec.runtime_size(record(r)) for r in [*staged, *current][:carried]
    )
    trimmed = min(trimmed, len(new.current))
    if trimmed:
        new.delete_first(trimmed)
    left = [record(rec) for rec in [*staged, *current][trimmed:carried]]
    assert carry.runtime_size(new) == sum(map(kexec.runtime_size, left))
    found = carry.crossing(new, Image(1 << 20), CARRIES_BOTH)
    ends = [n for n, one in enumerate(left) if one.template.label == "ima"]
    assert found.carried == (ends[0] if ends else len(left))


@given(LISTS, LISTS, st.integers(0, 6000))
def test_the_count_of_a_cut_buffer(staged: list[Rec], current: list[Rec], room: int) -> None:
    made = queue(staged, current)
    sizes = [len(rec.binary(rec.shown("sha1"))) for rec in [*staged, *current]]
    begun = sum(sum(sizes[:number]) < room for number in range(len(sizes)))
    _, count = carry.buffer(made, CARRIES_BOTH, Image(room + kexec_buffer.HEADER_SIZE))
    assert count == begun


@given(st.binary(max_size=600))
def test_random_bytes_are_refused_or_whole(data: bytes) -> None:
    for candidate in (data, kexec_buffer.encode(data, 1), kexec_buffer.encode(data, 3)):
        restored(candidate)


@given(CARRIED, st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=4))
@example([], [(0, 255)])
def test_mutations_raise_format_errors_only(
    records: list[Rec], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(kexec_buffer.encode(binary_list(records, "sha1"), len(records)))
    for at, value in changes:
        data[at % len(data)] = value
    restored(bytes(data))
    restored(bytes(data[: len(data) // 2]))


@pytest.fixture(scope="module")
def short_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imafs.lists.packed.SEGMENT", 3)
        yield


@pytest.mark.usefixtures("short_segments")
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 45))
def test_joined_lists_over_segments(first: int, second: int, number: int) -> None:
    """Segments of three records: whole ones, begun ones and cut ones."""
    names = [b"/%d" % n for n in range(first + second)]
    made = [Rec(10, "ima-ng", (b"sha1:\0" + hashlib.sha1(n).digest(), n + b"\0")) for n in names]
    old = queue(made[:first], made[first:], dropped=second % 3)
    new = Queue(LAYOUT)
    new.take_over(old, carry.carried(old, CARRIES_BOTH), number)
    expected = made[:number]
    assert contents(new.current)[View(False, 0)] == binary_list(expected, "sha1")
    more = Rec(11, "ima-ng", (b"sha1:\0" + bytes(20), b"/more\0"))
    new.append(record(more))
    new.delete_first(min(2, len(new.current)))
    expected = [*expected, more][min(2, len(expected) + 1) :]
    assert contents(new.current)[View(True, 1)] == ascii_list(expected, "sha256")
