# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A long list is verified in pieces: the verdict and the refusals are those of the whole."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imafs.attest import parallel, verify, walking
from imafs.attest.lanes import Digests, Task, digests
from imafs.attest.verify import Verdict, verify_parts
from imafs.attest.walking import Part, blocks, cut, whole
from imafs.errors import FormatError
from imafs.formats.binary import Reader
from tests.property.builders import banks, recs
from tests.property.reference import FORMATS, Rec, binary_list, ng, violation
from tests.unit.test_attest_verify import pcrs

(OWN,) = banks("sha1")
TASKS = [Task(name, {}) for name in ("sha1", "sha256")]


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any list is cut in five."""
    monkeypatch.setattr(verify, "WORTH", 1)
    monkeypatch.setattr(verify, "_PIECE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)))


def silent(done: int, total: int) -> None:
    return None


@given(
    st.lists(recs(), min_size=1, max_size=40),
    st.integers(0, 40),
    st.integers(1, 7),
    st.sampled_from([1, 3, 4096]),
)
def test_pieces_have_the_records_of_the_whole(
    some: list[Rec], split: int, count: int, size: int
) -> None:
    """Of any templates, with violations and PCRs between each other, in one part or two."""
    some = [ng(10, b"/first"), *some]
    both = (binary_list(some[:split], "sha1"), binary_list(some[split:], "sha1"))
    parts = [Part(data) for data in both if data]
    before, walking.BLOCK = walking.BLOCK, size
    try:
        one = digests(whole(parts), OWN, TASKS, silent)
        found = cut(parts, OWN, count)
        assert 1 <= len(found) <= count
        joined = [digests(piece, OWN, TASKS, silent) for piece in found]
        assert Digests.joined(joined) == one
    finally:
        walking.BLOCK = before


def test_pieces_are_of_about_one_length() -> None:
    parts = [Part(binary_list([ng(10, b"/%d" % n) for n in range(900)], "sha1"))] * 2
    found = cut(parts, OWN, 4)
    lengths = [sum(each.stop - each.start for each in piece) for piece in found]
    assert len(found) == 4
    assert max(lengths) - min(lengths) < 200


def test_a_template_that_is_known_to_nobody() -> None:
    some = [Rec(10, "ima-cgpath", (b"sha1:\0" + bytes(20), b"/%d\0" % n)) for n in range(9)]
    assert len(cut([Part(binary_list(some, "sha1"))], OWN, 3)) == 3


RECS = [
    ng(10, b"boot_aggregate"),
    *(ng(10 + (n % 5 == 0), b"/%d" % n) for n in range(60)),
    violation(10, b"/v"),
    *(ng(10, b"/late%d" % n) for n in range(60)),
]


def of(data: bytes, actual: dict[str, dict[int, bytes]]) -> Verdict | tuple[object, ...]:
    """The verdict, or the refusal."""
    try:
        return verify_parts([Part(data)], OWN, actual)
    except FormatError as error:
        return error.reason, error.record, error.offset


def embedded(place: int) -> list[Rec]:
    """A list in whose middle a signature holds records that look like the list's own."""
    inner = binary_list(RECS[:9], "sha1")
    hostile = Rec(10, "ima-sig", (b"sha1:\0" + bytes(20), b"/evil\0", inner * 3))
    return [*RECS[:place], hostile, *RECS[place:]]


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("place", [1, 20, 62, 100, len(RECS)])
def test_bytes_that_only_look_like_records(place: int) -> None:
    """A piece may begin within a record: what it found there is thrown away."""
    some = embedded(place)
    found = of(binary_list(some, "sha1"), pcrs(some))
    assert isinstance(found, Verdict)
    assert (found.records, found.violations, found.matched) == (len(some), 1, len(some))


def test_a_piece_that_begins_within_a_record_is_noticed() -> None:
    """So that the test above tests something."""
    seen = 0
    for place in range(1, len(RECS)):
        parts = [Part(binary_list(embedded(place), "sha1"))]
        starts = {row[4] for row in Reader(parts[0].data, 20, opaque=True).walk()}
        for piece in cut(parts, OWN, 5):
            if piece[-1].stop not in {*starts, len(parts[0].data)}:
                seen += 1
                with pytest.raises(FormatError, match="goes on behind byte"):
                    digests(piece, OWN, TASKS, silent)
    assert seen > 5


@pytest.mark.usefixtures("pieces")
def test_the_same_refusals_and_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list cut anywhere, or with any byte changed."""
    data, actual = binary_list(RECS, "sha1"), pcrs(RECS)
    rng = random.Random(3)
    broken = [data[: rng.randrange(1, len(data))] for _ in range(60)]
    for _ in range(240):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        broken.append(bytes(changed))
    found = [of(one, actual) for one in broken]
    monkeypatch.setattr(verify, "WORTH", 1 << 40)
    assert found == [of(one, actual) for one in broken]
    assert sum(isinstance(one, tuple) for one in found) > 200


@pytest.mark.usefixtures("pieces")
def test_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece but the first in a fork, then each bank but the first."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(parallel, "WORTH", 1)
    forks = 0
    real = parallel._fork

    def counting() -> int:
        nonlocal forks
        forks += 1
        return real()

    monkeypatch.setattr(parallel, "_fork", counting)
    found = of(binary_list(RECS, "sha1"), pcrs(RECS))
    assert isinstance(found, Verdict)
    assert found.matched == len(RECS)
    assert forks == 4 + 1


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("processors", [2, 3, 8])
@pytest.mark.parametrize("bank", ["sha1", "sha256"])
def test_one_bank_beside_its_chain(
    monkeypatch: pytest.MonkeyPatch, processors: int, bank: str
) -> None:
    """The same verdicts and refusals as of all banks: of whole lists, cut ones, changed ones."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(parallel, "WORTH", 1)
    monkeypatch.setattr(verify, "_STEP", 700)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    data, rng = binary_list(RECS, "sha1"), random.Random(4)
    some = [data, binary_list([*RECS, *RECS[:3]], "sha1"), data[:-5]]
    for _ in range(20):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        some.append(bytes(changed))
    actual = {bank: pcrs(RECS)[bank]}
    found = [of(one, actual) for one in some]
    monkeypatch.setattr(verify, "_one_bank", lambda *given: None)
    assert found == [of(one, actual) for one in some]
    assert isinstance(found[0], Verdict)
    assert found[0].matched == len(RECS)


@given(st.data())
def test_fields_that_do_not_fit_are_found(data: st.DataObject) -> None:
    """In a run of one template as :meth:`Template.fits` finds them, whatever lengths say."""
    label = data.draw(
        st.sampled_from(["ima-ng", "ima-sig", "ima-buf", "n-ng", "d-ng|n-ng|iuid|igid"])
    )
    fields = len(FORMATS.get(label, label).split("|"))
    lengths = st.lists(st.integers(0, 6), max_size=fields + 1)
    sizes = data.draw(st.lists(lengths, min_size=1, max_size=8))
    good = Rec(10, label, tuple(b"\0" for _ in range(fields)))

    def bad(parts: Sequence[int]) -> Rec:
        return Rec(10, label, tuple(b"x" * size for size in parts))

    part = Part(binary_list([good, *map(bad, sizes), good], "sha1"))
    expected = [
        number
        for number, (_, template, body, *_) in enumerate(Reader(part.data, 20, opaque=True).walk())
        if not template.fits(body)
    ]
    doubtful = [b.first + at for b in blocks([part], 20, fields=True) for at in b.doubtful]
    assert doubtful == expected
