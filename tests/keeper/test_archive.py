# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The archive and the store on a real disk: commits, full segments, damage, others' files."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import cast

import pytest

from imafs.cli.main import main
from imafs.errors import DegradedError, FileError, FormatError, Refused, StoreBrokenError
from imafs.formats.binary import Reader
from imafs.keeper import archive as archives
from imafs.keeper import reading
from imafs.keeper.archive import Batch, Sealed, Tail
from imafs.keeper.catalogue import Catalogue
from imafs.keeper.facts import Anchor, LifeFacts, Mode
from imafs.keeper.files import BadPlaceError
from imafs.keeper.index import offsets_of
from imafs.keeper.journal import LINE_MAX
from imafs.keeper.store import (
    BadSectorError,
    BankFile,
    CutFileError,
    Life,
    Store,
    open_store,
)
from imafs.lists.banks import View
from imafs.lists.segments import Run
from tests.keeper import made
from tests.keeper.diskmodel import RecordingDisk, fails
from tests.support import ExpectedLogs

FACTS = LifeFacts(0, "0b7c", {"sha1": Mode.REAL}, "little", None)
BANKS = (BankFile("sha1", 20), BankFile("sha256", 32))
SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}


def batch(records: list[bytes]) -> Batch:
    return Batch(b"".join(records), len(records), "boot", len(records))


@pytest.fixture
def disk(tmp_path: Path) -> RecordingDisk:
    disk = RecordingDisk(str(tmp_path))
    disk.make_directory("life")
    return disk


def records(number: int, first: int = 0) -> list[bytes]:
    return made.some(random.Random(first), number, first)


def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.glob("*.bin")))


def test_segments_are_the_kernels_list(disk: RecordingDisk, tmp_path: Path) -> None:
    archive = archives.begin(disk, "life")
    some = records(10)
    for at in range(0, 10, 2):
        archive.commit(batch(some[at : at + 2]))
        archive.confirm()
    assert on_disk(tmp_path / "life") == b"".join(some)
    archive.close()


@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_a_file_that_somebody_cuts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an index nothing is lost; of a segment others are read on, and what is in memory."""
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", 4000)
    store = open_store(str(tmp_path / "store"))
    life = store.begin(FACTS, BANKS)
    for first in (0, 4000):
        life.archive.commit(batch(records(4000, first)))
    for view in (View(False, 0), View(True, 1)):
        catalogue = Catalogue(BANKS, store.read_at, 1)
        catalogue.begin(life.archive.sealed, life.archive.tail, life.archive.ledger.eras)
        at = partial(made.waited, catalogue)
        assert at(partial(catalogue.run, view, 0)) is not None
        assert at(partial(catalogue.run, view, 7999)) is not None
        (path,) = (tmp_path / "store").glob(f"lives/*/000000000000.{kind}")
        whole = path.read_bytes()
        os.truncate(path, 0)
        for look in (partial(catalogue.run, view, 3999), partial(catalogue.locate, view, 9000)):
            if kind == "idx":
                assert at(look) is not None
                continue
            with pytest.raises(StoreBrokenError, match="somebody cut it"):
                at(look)
        assert at(partial(catalogue.run, view, 7999)) is not None
        with path.open("r+b") as file:
            file.write(whole)
        assert at(partial(catalogue.run, view, 3999)) is not None
    life.archive.close()
    store.close()


@pytest.mark.parametrize("limit", ["SEGMENT_RECORDS", "SEGMENT_SIZE", "SEGMENT_FRAMES"])
def test_full_segment_is_sealed_and_read_by_its_index(
    limit: str, disk: RecordingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, limit, {"SEGMENT_RECORDS": 7, "SEGMENT_SIZE": 700}.get(limit, 3))
    archive = archives.begin(disk, "life")
    some = records(40)
    for record in some:
        archive.commit(batch([record]))
        archive.confirm()
    archive.close()
    again = archives.recover(disk, "life")
    assert len(again.sealed) > 3
    assert (again.end, again.ledger.confirmed) == (40, True)
    at = 0
    for part in [*again.sealed, again.tail]:
        assert part is not None
        assert part.first == at
        data = disk.read_at(part.path, 0, part.size)
        ends = Reader(data, 20).ends()
        assert data == b"".join(some[at : at + len(ends)])
        at += len(ends)
        if isinstance(part, Sealed):
            assert (len(part.table), part.table.starts[-1]) == (len(ends), len(data))
            start, size = part.table.place(0)
            raw = disk.read_at(archives.index_name(part.path), start, size)
            assert offsets_of(raw, 0, len(data)).tolist() == [0, *ends]
    assert at == 40
    again.close()


def test_a_segment_of_many_anchors_is_read_again(disk: RecordingDisk, tmp_path: Path) -> None:
    """A seal has all anchors of its segment: one of 200 was longer than any line may be."""
    archive = archives.begin(disk, "life")
    pcrs = {bank: {pcr: bytes(size) for pcr in range(24)} for bank, size in SIZES.items()}
    for number, record in enumerate(records(200)):
        archive.commit(batch([record]))
        archive.mark(Anchor(number + 1, pcrs, f"the extend of record {number} failed"))
    for first in range(200, 203):
        archive.commit(batch(records(1, first)))
    archive.close()
    again = archives.recover(disk, "life")
    assert (again.end, len(again.ledger.anchors)) == (203, 200)
    lines = (tmp_path / "life" / "journal").read_bytes().splitlines()
    assert max(map(len, lines)) < LINE_MAX
    again.close()


def test_lost_index_is_made_anew(
    disk: RecordingDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected_logs: ExpectedLogs,
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", 4)
    archive = archives.begin(disk, "life")
    for at in range(3):
        archive.commit(batch(records(4, 4 * at)))
    archive.close()
    first, second = sorted((tmp_path / "life").glob("*.idx"))
    kept = first.read_bytes()
    first.unlink()
    second.write_bytes(second.read_bytes()[:-8] + bytes(8))
    expected_logs.expect("000000000000.idx: is not there: made anew")
    expected_logs.expect("000000000004.idx: is not the index that its segment had: made anew")
    archives.recover(disk, "life").close()
    assert first.read_bytes() == kept
    archives.recover(disk, "life").close()


@pytest.mark.parametrize("kind", ["write", "sync", "create", "syncdir"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_error_of_the_disk_loses_nothing(
    kind: str, number: int, disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("written")
    archive = archives.begin(disk, "life")
    archive.commit(batch(records(2)))
    for times in (1, 2, 3, 5):
        first = archive.end
        disk.fail = fails(kind, number, times=times)
        found = None
        try:
            archive.commit(batch(records(2, first)))
        except DegradedError as error:
            found = error
        if found is not None:
            assert (found.errno, archive.end) == (number, first)
            disk.fail = lambda step: 0
            archive.commit(batch(records(2, first)))
        disk.fail = lambda step: 0
        assert archive.end == first + 2
    want = b"".join(b"".join(records(2, at)) for at in range(0, archive.end, 2))
    archive.close()
    again = archives.recover(disk, "life")
    assert again.end == archive.end
    parts: list[Sealed | Tail] = [*again.sealed, *([again.tail] if again.tail else [])]
    assert b"".join(disk.read_at(part.path, 0, part.size) for part in parts) == want
    again.close()


def test_segment_whose_sync_failed_is_never_written_to_again(
    disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("000000000000.bin: Input/output error: no more is written to it")
    archive = archives.begin(disk, "life")
    archive.commit(batch(records(2)))
    disk.fail = fails("sync")
    archive.commit(batch(records(2, 2)))
    assert [part.first for part in archive.sealed] == [0]
    assert archive.ledger.segment == "000000000002.bin"
    archive.close()
    assert archives.recover(disk, "life").end == 4


def test_batch_of_other_than_its_records_is_refused(disk: RecordingDisk) -> None:
    archive = archives.begin(disk, "life")
    data = b"".join(records(3))
    for wrong in (Batch(data, 2, "boot"), Batch(data[:-1], 3, "boot"), Batch(b"nonsense", 1, "b")):
        with pytest.raises(FormatError):
            archive.commit(wrong)
    assert archive.end == 0
    archive.close()


def test_damaged_bytes_of_a_frame_that_was_not_deleted(
    disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """They are taken as never stored: the kernel has the records."""
    archive = archives.begin(disk, "life")
    archive.commit(batch(records(2)))
    archive.confirm()
    archive.commit(batch(records(2, 2)))
    archive.close()
    segment = tmp_path / "life" / "000000000000.bin"
    data = bytearray(segment.read_bytes())
    data[-30] ^= 1
    segment.write_bytes(data)
    expected_logs.expect("frame 1 has lost its bytes: taken as never stored")
    again = archives.recover(disk, "life")
    assert (again.end, again.ledger.confirmed) == (2, True)
    assert not again.damaged
    again.close()
    assert segment.read_bytes() == b"".join(records(2))


#: Of five frames of two records each: those whose bytes are others, and the gaps that are found.
HURT = {
    "first": ({0}, [(0, 2)]),
    "middle": ({2}, [(4, 2)]),
    "last": ({4}, [(8, 2)]),
    "two in a row": ({1, 2}, [(2, 4)]),
    "two apart": ({1, 3}, [(2, 2), (6, 2)]),
    "first and last": ({0, 4}, [(0, 2), (8, 2)]),
    "all": ({0, 1, 2, 3, 4}, [(0, 10)]),
}


def hurt(segment: Path, frames: set[int]) -> list[bytes]:
    """Bytes of these frames are others now; each frame as it was."""
    frame = [b"".join(records(2, at)) for at in range(0, 10, 2)]
    data = bytearray(segment.read_bytes())
    assert data == b"".join(frame)
    for number in frames:
        data[sum(map(len, frame[:number])) + 30] ^= 1
    segment.write_bytes(data)
    return frame


@pytest.fixture
def deleted(disk: RecordingDisk) -> None:
    """Five frames whose records the kernel has no more."""
    archive = archives.begin(disk, "life")
    for at in range(0, 10, 2):
        archive.commit(batch(records(2, at)))
        archive.confirm(sync=True)
    archive.close()


@pytest.mark.usefixtures("deleted")
@pytest.mark.parametrize("which", HURT)
def test_damaged_bytes_of_deleted_frames_are_a_gap(
    which: str, disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """The records before, between and behind them are as they were, and more are stored."""
    frames, gaps = HURT[which]
    place = tmp_path / "life"
    frame = hurt(place / "000000000000.bin", frames)
    expected_logs.allow("the bytes are not those that were stored")
    for _ in range(2):
        again = archives.recover(disk, "life")
        assert (again.end, again.ledger.number, again.ledger.confirmed) == (10, 4, True)
        assert [(gap.index, gap.missing) for gap in again.ledger.gaps] == gaps
        parts: list[Sealed | Tail] = [*again.sealed, *([again.tail] if again.tail else [])]
        assert [part.first for part in parts] == sorted(
            {0, *(g[0] for g in gaps), *(sum(g) for g in gaps if sum(g) < 10)}
        )
        lost = {f"life/{first:012d}.bin" for first, _ in gaps}
        assert set(again.lost) == lost
        assert len(again.damaged) == len(gaps)
        for part in parts:
            if part.path in lost:
                continue
            data = disk.read_at(part.path, 0, part.size)
            count = len(Reader(data, 20).ends())
            assert data == b"".join(frame[part.first // 2 : (part.first + count) // 2])
        again.close()
    more = archives.recover(disk, "life")
    more.commit(batch(records(2, 10)))
    more.close()
    last = archives.recover(disk, "life")
    assert (last.end, len(last.ledger.gaps)) == (12, len(gaps))
    last.close()


@pytest.mark.usefixtures("deleted")
def test_damaged_bytes_that_come_back(
    disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """From a backup. The gap stays: somebody may have been refused for it."""
    place = tmp_path / "life"
    frame = hurt(place / "000000000000.bin", {2})
    expected_logs.allow("the bytes are not those that were stored|is not there: made anew")
    archives.recover(disk, "life").close()
    (place / "000000000004.bin").write_bytes(frame[2])
    again = archives.recover(disk, "life")
    assert not again.lost
    assert not again.damaged
    assert len(again.ledger.gaps) == 1
    again.close()
    assert b"".join(path.read_bytes() for path in sorted(place.glob("*.bin"))) == b"".join(frame)


@pytest.mark.usefixtures("deleted")
@pytest.mark.parametrize("how", ["cut", "removed"])
def test_open_segment_that_somebody_cut_or_removed(
    how: str, disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    segment = tmp_path / "life" / "000000000000.bin"
    if how == "cut":
        segment.write_bytes(segment.read_bytes()[:-1])
    else:
        segment.unlink()
    expected_logs.allow("the bytes are not those that were stored")
    for _ in range(2):
        again = archives.recover(disk, "life")
        (gap,) = again.ledger.gaps
        assert (gap.index, gap.missing) == ((8, 2) if how == "cut" else (0, 10))
        assert again.end == 10
        again.close()


@pytest.mark.parametrize("index", ["there", "gone"])
@pytest.mark.parametrize("how", ["cut", "removed", "others"])
def test_missing_or_short_sealed_segment_is_a_gap(
    how: str,
    index: str,
    disk: RecordingDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected_logs: ExpectedLogs,
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", 2)
    archive = archives.begin(disk, "life")
    for at in range(3):
        archive.commit(batch(records(2, 2 * at)))
        archive.confirm(sync=True)
    archive.close()
    segment = tmp_path / "life" / "000000000000.bin"
    whole = segment.read_bytes()
    if how == "removed":
        segment.unlink()
    else:
        segment.write_bytes(whole[:-1] if how == "cut" else bytes(len(whole)))
    if index == "gone":
        expected_logs.allow("is not there: made anew")
        (tmp_path / "life" / "000000000000.idx").unlink()
    elif how == "others":
        return  # nothing of a full segment is read at a start: the scrub finds it
    for _ in range(2):
        again = archives.recover(disk, "life")
        (gap,) = again.ledger.gaps
        assert (gap.index, gap.missing, again.end) == (0, 2, 6)
        assert len(again.damaged) == 1
        assert again.damaged[0].startswith("life/000000000000.bin: ")
        again.close()
    segment.write_bytes(whole)
    again = archives.recover(disk, "life")
    assert not again.damaged
    again.close()
    segment.unlink()
    segment.symlink_to("/etc/passwd")
    with pytest.raises(DegradedError):
        archives.recover(disk, "life")


@pytest.mark.parametrize("parts", [1, 2])
def test_damaged_batch_that_the_kernel_has_is_no_gap(
    parts: int, disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """Also behind damaged records that it has not, and where two frames hold the batch: it would be
    deleted, and is stored nowhere."""
    archive = archives.begin(disk, "life")
    for at in (0, 2):
        archive.commit(batch(records(2, at)))
        archive.confirm(sync=True)
    for part in range(parts):
        some = records(2, 4 + 2 * part)
        archive.commit(Batch(b"".join(some), 2, "boot", 2 + 2 * part, skip=2 * part))
    archive.close()
    segment = tmp_path / "life" / "000000000000.bin"
    data = bytearray(segment.read_bytes())
    sizes = [len(b"".join(records(2, at))) for at in (0, 2)]
    for at in (sizes[0], sum(sizes)):  # of frames 1 and 2
        data[at + 30] ^= 1
    segment.write_bytes(data)
    expected_logs.allow("the bytes are not those|taken as never stored|removed, nothing counts it")
    for _ in range(2):
        again = archives.recover(disk, "life")
        assert [(gap.index, gap.missing) for gap in again.ledger.gaps] == [(2, 2)]
        assert (again.end, again.ledger.deleted, again.ledger.confirmed) == (4, 4, True)
        again.close()


def test_every_second_frame_damaged_is_copied_once(
    disk: RecordingDisk, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """And the journal is written once for all of them, not once for each."""
    archive = archives.begin(disk, "life")
    for record in records(80):
        archive.commit(batch([record]))
        archive.confirm()
    archive.close()
    segment = tmp_path / "life" / "000000000000.bin"
    data = bytearray(segment.read_bytes())
    ends = [0, *Reader(bytes(data), 20).ends()]
    for at in ends[:-1:2]:
        data[at + 30] ^= 1
    segment.write_bytes(data)
    expected_logs.allow("the bytes are not those that were stored")
    before = len(disk.steps)
    again = archives.recover(disk, "life")
    steps = disk.steps[before:]
    assert len(again.ledger.gaps) == 40
    assert again.end == 80
    again.close()
    assert sum(step.kind == "rename" and step.new == "life/journal" for step in steps) == 2
    copied = [step for step in steps if step.kind == "write" and step.named.endswith(".bin")]
    assert sum(len(step.data) for step in copied) == ends[-1] - ends[1]


def _gives(
    monkeypatch: pytest.MonkeyPatch, number: int, times: int, begin: int, end: int
) -> list[int]:
    """A disk that does not give some bytes of the first segment so many times."""
    really, left = RecordingDisk.read_at, [times]

    def read_at(self: RecordingDisk, path: str, at: int, size: int) -> bytes:
        if path.endswith("000000000000.bin") and at < end and at + size > begin and left[0]:
            left[0] -= 1
            raise BadPlaceError(path, OSError(number, os.strerror(number)), max(at, begin))
        return really(self, path, at, size)

    monkeypatch.setattr(RecordingDisk, "read_at", read_at)
    return left


@pytest.mark.usefixtures("deleted")
def test_disk_that_does_not_answer_for_a_moment_has_lost_nothing(
    disk: RecordingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.EIO, errno.ETIMEDOUT, errno.ENOMEM):
        left = _gives(monkeypatch, number, 1, 0, 1 << 20)
        if number != errno.EIO:
            with pytest.raises(DegradedError, match=os.strerror(number)):
                archives.recover(disk, "life")
        again = archives.recover(disk, "life")
        assert left == [0]
        assert (again.end, again.ledger.gaps, again.damaged) == (10, [], [])
        again.close()
        monkeypatch.undo()


@pytest.mark.usefixtures("deleted")
def test_what_a_disk_does_not_give_at_a_start_stays_where_it_was(
    disk: RecordingDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected_logs: ExpectedLogs,
) -> None:
    """It may give it later. Wrong bytes are cut off there: they are in a file of their own."""
    expected_logs.allow("the bytes are not those that were stored")
    segment = tmp_path / "life" / "000000000000.bin"
    whole = segment.read_bytes()
    at = len(b"".join(records(2)))
    _gives(monkeypatch, errno.EIO, 1 << 30, at, at + 1)
    again = archives.recover(disk, "life")
    assert [(gap.index, gap.missing) for gap in again.ledger.gaps] == [(2, 2)]
    again.close()
    assert segment.read_bytes() == whole
    behind = b"".join(path.read_bytes() for path in sorted(segment.parent.glob("*[1-9].bin")))
    assert behind == whole[len(whole) - len(behind) :]
    assert len(behind) == sum(len(b"".join(records(2, first))) for first in (4, 6, 8))


def test_shorter_file_in_the_place_of_a_segment_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    """It may be another segment. Put back it is read from the next start on: until then nobody
    knows how long the lines of its records are."""
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", 4)
    expected_logs.allow("is not there: made anew")
    store = open_store(str(tmp_path))
    life = store.begin(FACTS, BANKS)
    some = [made.record(f"/f/{at}" + "x" * (8 - at)) for at in range(9)]
    for first in (0, 4, 8):
        life.archive.commit(batch(some[first : first + 4]))
        life.archive.confirm(sync=True)
    life.archive.close()
    (name,) = store.lives()
    place = tmp_path / "lives" / name
    whole = (place / "000000000000.bin").read_bytes()
    (place / "000000000000.bin").write_bytes((place / "000000000004.bin").read_bytes())
    (place / "000000000000.idx").unlink()
    for there in (False, True):
        life = store.open(name)
        catalogue = Catalogue(BANKS, store.read_at, 1 << 20)
        catalogue.begin(life.archive.sealed, life.archive.tail, life.archive.ledger.eras)
        if not there:
            (place / "000000000000.bin").write_bytes(whole)
            (seal, _) = life.archive.ledger.seals
            with pytest.raises(StoreBrokenError, match="the next start reads it"):
                store.check(f"lives/{name}/{seal.segment}", seal.size, seal.sha256)
            with pytest.raises(StoreBrokenError, match="somebody cut it"):
                made.waited(catalogue, partial(catalogue.run, View(False, 0), 0))
        else:
            assert b"".join(made.pieces(catalogue, View(False, 0))) == b"".join(some)
        assert [(gap.index, gap.missing) for gap in life.archive.ledger.gaps] == [(0, 4)]
        life.archive.close()
        if not there:
            store.close()
            store = open_store(str(tmp_path))
    store.close()


# The store


def test_store_keeps_its_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "keeper")
    store = open_store(path)
    assert store.newest() is None
    life = store.begin(FACTS, BANKS)
    life.archive.commit(batch(records(3)))
    life.archive.mark(Anchor(3, {"sha1": {10: bytes(20)}}, "test"))
    life.archive.close()
    second = store.begin(FACTS, BANKS)
    second.archive.close()
    store.close()
    store = open_store(path)
    newest = store.newest()
    assert newest is not None
    assert (newest.facts.number, newest.archive.end, newest.banks) == (2, 0, BANKS)
    newest.archive.close()
    older = store.open(store.lives()[0])
    assert (older.facts.number, older.archive.end) == (1, 3)
    older.archive.close()
    store.close()
    assert oct(os.stat(path).st_mode & 0o777) == "0o750"


def test_two_keepers_do_not_share_a_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(Refused, match="another keeper"):
        open_store(str(tmp_path))
    store.close()
    open_store(str(tmp_path)).close()


def test_damaged_journal_of_an_older_life_keeps_nobody_from_the_newest(
    tmp_path: Path, expected_logs: ExpectedLogs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor ``verify --all`` from the others."""
    store = open_store(str(tmp_path))
    for _ in range(3):
        life = store.begin(FACTS, BANKS)
        for at in range(4):
            life.archive.commit(batch(records(1, at)))
        life.archive.close()
    assert not store.has_deleted()
    names = store.lives()
    journal = tmp_path / "lives" / names[1] / "journal"
    journal.write_bytes(b"x" + journal.read_bytes()[1:])
    expected_logs.expect("journal, line 1: damaged")
    assert store.has_deleted()  # for all that anybody knows
    newest = store.newest()
    assert newest is not None
    assert newest.facts.number == 3
    newest.archive.close()
    store.close()
    said = ["keep", "verify", "--json", "--store", str(tmp_path)]
    assert main(said) == 0
    assert main([*said, "--all"]) == 12
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line["life"] for line in lines] == names
    assert [len(line["complaints"]) for line in lines] == [0, 1, 0]


def test_half_begun_life_is_passed_by(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.begin(FACTS, BANKS).archive.close()
    half = tmp_path / "lives" / "000002-boot"
    half.mkdir()
    newest = store.newest()
    assert newest is not None
    assert newest.facts.number == 1
    newest.archive.close()
    (half / "000000000000.bin").write_bytes(b"")
    with pytest.raises(StoreBrokenError, match="records without a journal"):
        store.newest()
    store.close()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("store.json", b'{"format": 2}', "use a newer one"),
        ("store.json", b"[" * 100000, "no JSON"),
        ("store.json", b"[]", "no JSON object"),
    ],
)
def test_store_of_others_is_refused(name: str, text: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(StoreBrokenError, match=why):
        open_store(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"banks": []},
        {"banks": [["../x", 20]]},
        {"banks": [["sha1", 1 << 40]]},
        {"byteorder": "middle"},
        {"modes": {"sha1": "x"}},
        {"modes": 3},
        {"clock": [1, 2]},
        {"boot": 3},
        {"deciding": [-1]},
        {"forked": [1]},
    ],
    ids=json.dumps,
)
def test_life_of_others_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.begin(FACTS, BANKS).archive.close()
    (path,) = tmp_path.glob("lives/*/life.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StoreBrokenError, match=r"not what a keeper writes|names no bank"):
        store.newest()
    store.close()


def test_store_on_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match=r"--store .*file: "):
        open_store(str(tmp_path / "file"))


def test_full_disk_is_told_before_anything_is_staged(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert store.room(1000, 0.0) is None
    said = store.room(1 << 60, 0.05)
    assert said is not None
    assert "are needed" in said
    store.close()


def test_open_segment_is_read_through_the_descriptor_that_writes_it(
    disk: RecordingDisk, tmp_path: Path
) -> None:
    """Another open, for reading, is a violation to IMA."""
    descriptor = disk.create("life/one.bin")
    disk.write(descriptor, 0, b"records")
    (tmp_path / "life/one.bin").rename(tmp_path / "life/elsewhere")
    assert disk.read_at("life/one.bin", 1, 3) == b"eco"
    assert disk.read("life/one.bin", 7) == b"records"
    disk.close(descriptor)
    with pytest.raises(FileNotFoundError):
        disk.read_at("life/one.bin", 0, 7)


def test_reading_beside_a_keeper_opens_no_file_that_it_writes_for_reading_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none that the keeper itself only reads for writing."""
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", 4)
    store = open_store(str(tmp_path))
    life = store.begin(FACTS, BANKS)
    for first in (0, 4):
        life.archive.commit(batch(records(4, first)))
    (name,) = reading.lives(str(tmp_path))
    opened: dict[str, int] = {}
    really = os.open

    def watched(path: str, flags: int, mode: int = 0o777) -> int:
        opened[os.path.basename(path)] = flags & os.O_ACCMODE
        return really(path, flags, mode)

    monkeypatch.setattr(os, "open", watched)
    found = reading.Reading(str(tmp_path), name)
    assert found.verify().complaints == ()
    assert b"".join(found.export(0)) == on_disk(tmp_path / "lives" / name)
    monkeypatch.undo()
    writers = {"journal": os.O_RDWR, "000000000004.bin": os.O_RDWR}
    assert opened == {**writers, "000000000000.bin": os.O_RDONLY}
    life.archive.close()
    store.close()


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("bad", [[5], [5, 7], [0], [5, 6, 7, 8, 9, 10, 12]])
def test_what_a_disk_does_not_give_is_lost_and_no_more(
    sealed: bool, cut: bool, bad: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", 500 if sealed else 1 << 16)
    store = open_store(str(tmp_path / "store"))
    life = store.begin(FACTS, BANKS)
    some = records(500)
    life.archive.commit(batch(some))
    life.archive.commit(batch(records(10, 500)))

    def read(path: str, at: int, size: int) -> bytes:
        if path.endswith("000000000000.bin"):
            for page in bad:
                if at < 4096 * (page + 1) and at + size > 4096 * page:
                    where = max(at, 4096 * page)
                    if cut:
                        raise CutFileError("cut", 4096 * bad[0])
                    raise BadSectorError("bad", where)
        return store.read_at(path, at, size)

    whole = _views(life, store)
    catalogue = Catalogue(BANKS, read, 1 << 20)
    catalogue.begin(life.archive.sealed, life.archive.tail, life.archive.ledger.eras)
    if not sealed:
        some += records(10, 500)
    ends = list(accumulate(map(len, some)))
    gone = [
        number
        for number, end in enumerate(ends)
        if end > 4096 * bad[0] and (cut or end - len(some[number]) < 4096 * (bad[-1] + 1))
    ]
    # Beyond some bad places nothing more is tried: a disk may take seconds for each.
    least, most = min(gone), len(some) - 1 if len(bad) > 4 else max(gone)
    for view, lines in whole.items():
        starts = accumulate(map(len, lines), initial=0)
        for number, start in enumerate(list(starts)[:-1]):
            looks: list[Callable[[], object]] = [
                partial(catalogue.run, view, number),
                partial(catalogue.locate, view, start + 3),
            ]
            for look in looks:
                if least <= number <= most:
                    with pytest.raises((CutFileError, BadSectorError)):
                        made.waited(catalogue, look)
                    continue
                found = made.waited(catalogue, look)
                if look is looks[1]:
                    assert found == (number, 3)
                    continue
                run, at = cast(tuple[Run, int], found)
                assert run.data[run.offsets[at] : run.offsets[at + 1]] == lines[number]
    life.archive.close()
    store.close()


def _views(life: Life, store: Store) -> dict[View, list[bytes]]:
    """The records in some views, each as its bytes."""
    catalogue = Catalogue(BANKS, store.read_at, 1 << 20)
    catalogue.begin(life.archive.sealed, life.archive.tail, life.archive.ledger.eras)
    found: dict[View, list[bytes]] = {}
    for view in (View(False, 0), View(True, 1), View(False, 1)):
        found[view] = []
        for number in range(len(catalogue)):
            place = made.waited(catalogue, partial(catalogue.run, view, number))
            assert place is not None
            run, at = place
            found[view].append(bytes(run.data[run.offsets[at] : run.offsets[at + 1]]))
    return found
