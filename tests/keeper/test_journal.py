# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The journal's lines: what counts, what is torn, what is damaged, what nobody wrote."""

from __future__ import annotations

import json
import random

import pytest

from imafs.errors import StoreBrokenError
from imafs.keeper import journal
from imafs.keeper.facts import Anchor, Clock, Frame, Gap, How, Mode
from imafs.keeper.journal import Item, body_of, chain
from imafs.keeper.ledger import Ledger

PCRS = {"sha1": {10: bytes(range(20))}, "sha256": {10: bytes(range(32)), 11: bytes(32)}}
MODES = {"sha1": Mode.REAL, "sha384": Mode.PADDED}


def frame(n: int, first: int, count: int, off: int, seg: str = "000000000000.bin") -> Frame:
    return Frame(
        *(n, first, count, seg, off, 50 * count, bytes([n]) * 32, b"", "boot-1"),
        *(count + 2, bytes(32), 2, How.STAGE, Clock(1, 2, 3, 4), PCRS, MODES),
    )


ITEMS: tuple[Item, ...] = (
    frame(0, 0, 3, 0),
    0,
    Gap(3, "somebody deleted", missing=4, verified=2, verified_at=12.5),
    Anchor(3, PCRS, "behind a gap"),
    frame(1, 3, 2, 150),
    1,
    frame(2, 5, 1, 250),
)


def text(items: tuple[Item, ...] = ITEMS) -> bytes:
    ledger = Ledger()
    for item in items:
        ledger.add(item)
    return ledger.written()[0]


def read(data: bytes) -> Ledger:
    ledger = Ledger()
    ledger.read(chain(data).bodies)
    return ledger


def test_lines_are_read_as_they_were_told() -> None:
    ledger = read(text())
    assert (ledger.end, ledger.number, ledger.done, ledger.confirmed) == (6, 2, 1, False)
    assert [f.pcrs for f in ledger.frames] == [PCRS] * 3
    assert ledger.last is not None
    assert (ledger.last.clock, ledger.last.modes) == (Clock(1, 2, 3, 4), MODES)
    assert ledger.gaps == [ITEMS[2]]
    assert ledger.anchors == [ITEMS[3]]
    assert ledger.written()[0] == text()


def test_seal_stands_for_all_lines_of_its_segment() -> None:
    ledger = read(text())
    ledger.add(2)
    ledger.add(ledger.sealing(b"\1" * 32, b"\2" * 32))
    later = frame(3, 6, 1, 0, "000000000006.bin")
    ledger.add(later)
    folded, head = ledger.written()
    assert folded.count(b"\n") == 2
    again = read(folded)
    for found in (ledger, again):
        assert (found.end, found.sealed, found.number, found.done) == (7, 6, 3, 2)
        assert (found.gaps, found.anchors) == ([ITEMS[2]], [ITEMS[3]])
    assert [(e.first, e.boot) for e in again.eras] == [(0, "boot-1")]
    assert again.written() == (folded, head)
    assert chain(folded).head == head


def test_sealed_journal_keeps_the_newest_frame_for_a_restart() -> None:
    ledger = read(text())
    ledger.add(ledger.sealing(bytes(32), bytes(32)))
    again = read(ledger.written()[0])
    assert again.last is not None
    assert (again.last.n, again.last.g_count, again.confirmed) == (2, 3, False)


@pytest.mark.parametrize("size", range(1, 400, 7))
def test_torn_tail_is_cut_to_whole_lines(size: int) -> None:
    whole = text()
    lines = whole.splitlines(keepends=True)
    torn = whole[:-size] if size < len(lines[-1]) + len(lines[-2]) else whole[:-1]
    found = chain(torn)
    assert torn.startswith(b"".join(lines[: len(found.bodies)]))
    assert found.good == sum(map(len, lines[: len(found.bodies)]))
    assert len(found.bodies) >= len(lines) - 3


def test_flipped_bit_is_never_taken_for_a_line() -> None:
    whole = text()
    rng = random.Random(15)
    lines = whole.splitlines(keepends=True)
    for _ in range(2000):
        at = rng.randrange(len(whole))
        bad = bytearray(whole)
        bad[at] ^= 1 << rng.randrange(8)
        number = whole[:at].count(b"\n")
        try:
            found = chain(bytes(bad))
        except StoreBrokenError:
            assert number < len(lines) - 1
            continue
        assert number >= len(lines) - 2, "damage in the middle was cut as a torn tail"
        assert len(found.bodies) <= number


def test_lines_of_another_journal_do_not_follow() -> None:
    whole = text().splitlines(keepends=True)
    for missing in range(len(whole) - 3):
        with pytest.raises(StoreBrokenError):
            chain(b"".join(whole[:missing] + whole[missing + 1 :]))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "frame", "n": -1},
        {"kind": "frame", "n": "1"},
        {"kind": "frame", "first": 1 << 80},
        {"kind": "frame", "count": 1.5},
        {"kind": "frame", "seg": "../../etc/passwd"},
        {"kind": "frame", "seg": "/dev/sda"},
        {"kind": "frame", "sha256": "zz"},
        {"kind": "frame", "pcrs": {"sha1": {"x": "00"}}},
        {"kind": "frame", "pcrs": {"sha1": 3}},
        {"kind": "frame", "pcrs": []},
        {"kind": "frame", "modes": {"sha1": "odd"}},
        {"kind": "frame", "how": "magic"},
        {"kind": "frame", "clock": [1]},
        {"kind": "frame", "boot": "a\nb"},
        {"kind": "done", "n": 7},
        {"kind": "anchor", "index": 99},
        {"kind": "gap", "index": 0, "why": None},
        {"kind": "seal", "eras": 3, "seg": "000000000000.bin"},
        {"kind": "seal"},
        {"kind": "of tomorrow"},
        {"kind": None},
        {},
    ],
    ids=json.dumps,
)
def test_line_that_no_keeper_writes_is_refused(change: dict[str, object]) -> None:
    body = body_of(frame(0, 0, 3, 0)) if change.get("kind") == "frame" else {}
    data = journal.line({**body, **change}, journal.GENESIS)
    with pytest.raises(StoreBrokenError, match="journal"):
        read(data)


@pytest.mark.parametrize(
    "later",
    [
        frame(2, 3, 1, 150),
        frame(1, 4, 1, 150),
        frame(1, 3, 1, 100),
        frame(1, 3, 1, 0, "000000000003.bin"),
        1,
        Anchor(2, PCRS, ""),
    ],
)
def test_what_does_not_follow_is_refused(later: Item) -> None:
    ledger = Ledger()
    ledger.add(frame(0, 0, 3, 0))
    with pytest.raises(StoreBrokenError):
        ledger.add(later)


def test_a_gap_before_the_end_of_what_is_stored() -> None:
    """Of damaged records, or of a list that was never shown to be whole."""
    ledger = Ledger()
    ledger.add(frame(0, 0, 3, 0))
    ledger.add(Gap(0, "nobody knows"))
    assert [gap.index for gap in ledger.gaps] == [0]


@pytest.mark.parametrize("deep", [b"[" * 60000, b'{"a":' * 60000, b"\0" * 4096, b"{}", b'"'])
def test_nonsense_is_no_line(deep: bytes) -> None:
    assert chain(deep + b"\n").bodies == []
    with pytest.raises(StoreBrokenError):
        chain(b"\n".join([deep] * 4))
