# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The store after a power cut at every step, and between what was synced and what was not.

Random runs of a keeper's commits on a disk that records its steps (tests/keeper/diskmodel.py),
with errors of the disk among them. Behind each step the power is cut some times, each time with
another part of what was not durable. Then: nothing that was deleted in the kernel is missing
(I1), what is stored is the truth (I2), and a recovery that is itself cut off, or done twice,
comes to the same (I8).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imafs.errors import DegradedError, StoreBrokenError
from imafs.keeper import archive as archives
from imafs.keeper.archive import Archive, Batch, Sealed, Tail
from imafs.keeper.facts import Anchor, Gap
from tests.keeper import made
from tests.keeper.diskmodel import Image, RecordingDisk, Step, after_cut
from tests.support import ExpectedLogs, may_take

LIFE = "life"


@dataclass(frozen=True)
class Moment:
    """What the kernel had deleted when so many steps were done, and how many records there were."""

    steps: int
    deleted: int
    truth: int


class Run:
    """A keeper that stages, commits, deletes, on a disk that may fail."""

    def __init__(self, rng: random.Random, root: Path) -> None:
        self.rng = rng
        self.disk = RecordingDisk(str(root))
        self.truth: list[bytes] = []
        self.deleted = 0
        self.staged = 0
        self.moments: list[Moment] = []
        self.disk.make_directory(LIFE)
        self.archive = archives.begin(self.disk, LIFE)
        self.disk.sync_directory("")
        self.begun = len(self.disk.steps)
        self.note()

    def note(self) -> None:
        self.moments.append(Moment(len(self.disk.steps), self.deleted, len(self.truth)))

    def cycle(self) -> None:
        rng = self.rng
        self.truth += made.some(rng, rng.randrange(6), len(self.truth))
        if not self.staged:
            self.staged = len(self.truth) - self.deleted  # A
        self.note()
        if not self.archive.ledger.confirmed and self.archive.end == self.deleted:
            self.archive.confirm(sync=rng.random() < 0.5)
        if self.archive.end < self.deleted + self.staged or rng.random() < 0.1:
            self.commit(self.truth[self.archive.end : self.deleted + self.staged])
        if rng.random() < 0.9:
            self.deleted += self.staged  # D
            self.staged = 0
            self.note()
            if rng.random() < 0.8:
                self.archive.confirm(sync=rng.random() < 0.2)
        if rng.random() < 0.1:
            self.archive.mark(Anchor(self.archive.end, {"sha1": {10: bytes(20)}}, "a test"))
            self.archive.mark(Gap(self.archive.end, "a test", missing=3))

    def commit(self, records: list[bytes]) -> None:
        data = b"".join(records)
        batch = Batch(data, len(records), "boot", self.staged, bytes(32), 0)
        self.archive.commit(batch)

    def go(self, cycles: int) -> None:
        for _ in range(cycles):
            self.disk.fail = _failing(self.rng) if self.rng.random() < 0.3 else lambda step: 0
            with contextlib.suppress(DegradedError):  # no D: the kernel has them still
                self.cycle()
            self.note()
        self.disk.fail = lambda step: 0

    def at(self, steps: int) -> Moment:
        """What the kernel was at when so many steps were done."""
        return [moment for moment in self.moments if moment.steps <= steps][-1]


def _failing(rng: random.Random) -> Callable[[Step], int]:
    kind = rng.choice(("write", "sync", "create", "syncdir", "rename"))
    number = rng.choice((errno.EIO, errno.ENOSPC))
    left = [rng.randrange(1, 4), rng.randrange(3)]

    def fail(step: Step) -> int:
        if step.kind != kind or not left[0]:
            return 0
        if left[1]:
            left[1] -= 1
            return 0
        left[0] -= 1
        return number

    return fail


def stored(archive: Archive, disk: RecordingDisk) -> bytes:
    """All the bytes that readers see."""
    parts: list[Sealed | Tail] = [*archive.sealed, *([archive.tail] if archive.tail else [])]
    return b"".join(disk.read_at(part.path, 0, part.size) for part in parts)


def recovered(image: Image, root: Path) -> tuple[bytes, RecordingDisk]:
    root.mkdir()
    disk = image.lay_out(root)
    archive = archives.recover(disk, LIFE)
    assert not archive.damaged
    data = stored(archive, disk)
    archive.close()
    return data, disk


def play(
    seed: int,
    root: Path,
    *,
    cycles: int,
    cuts: int,
    forget: Callable[[Step], bool] = lambda step: False,
) -> int:
    """One run and all its power cuts; how many states of the disk were tried."""
    rng = random.Random(seed)
    (root / "run").mkdir()
    run = Run(rng, root / "run")
    run.disk.forget = forget
    run.go(cycles)
    run.archive.close()
    tried = 0
    for steps in range(run.begun, len(run.disk.steps) + 1):
        moment = run.at(steps)
        for _ in range(cuts):
            image = after_cut(Image(), run.disk.steps[:steps], rng)
            place = root / f"{steps}-{tried}"
            data, disk = recovered(image, place)
            truth = b"".join(run.truth)
            must = b"".join(run.truth[: moment.deleted])
            assert truth.startswith(data), f"seed {seed}, step {steps}: not the truth"
            assert len(data) >= len(must), f"seed {seed}, step {steps}: deleted records are lost"
            again(data, image, disk, place, rng)
            tried += 1
            _remove(place)
    return tried


def again(data: bytes, image: Image, disk: RecordingDisk, place: Path, rng: random.Random) -> None:
    """A recovery that is cut off changes nothing that the next one finds; nor does a whole one."""
    cut = rng.randrange(len(disk.steps) + 1)
    for steps in {cut, len(disk.steps)}:
        half = after_cut(image, disk.steps[:steps], rng)
        second, _ = recovered(half, place / f"again-{steps}")
        assert second == data


def _remove(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: the power cuts here are not real."""
    memory = "/dev/shm"
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", 12)
    monkeypatch.setattr(archives, "SEGMENT_FRAMES", 5)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("seed", range(8))
def test_power_cut_behind_every_step(seed: int, quick: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow(r"imafs\.keeper\.(archive|book)")
    assert play(seed, quick, cycles=12, cuts=3) > 100


def _no_sync_of(end: str) -> Callable[[Step], bool]:
    return lambda step: step.kind == "sync" and step.named.endswith(end)


PLANTED: dict[str, Callable[[Step], bool]] = {
    "records are not synced": _no_sync_of(".bin"),
    "the journal is not synced": _no_sync_of("journal"),
    "a new journal is not synced before it takes the place": _no_sync_of("journal.new"),
    "no directory is synced": lambda step: step.kind == "syncdir",
}


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug: str, quick: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow(r"imafs\.keeper\.(archive|book)")
    with pytest.raises((AssertionError, StoreBrokenError, DegradedError)):  # noqa: PT012
        for seed in range(20):
            place = quick / str(seed)
            place.mkdir()
            play(seed, place, cycles=6, cuts=2, forget=PLANTED[bug])


@pytest.mark.nightly
@pytest.mark.usefixtures("small_segments")
def test_power_cut_in_thousands_of_runs(quick: Path, expected_logs: ExpectedLogs) -> None:
    may_take(7200)
    expected_logs.allow(r"imafs\.keeper\.(archive|book)")
    for seed in range(1000, 3000):
        place = quick / str(seed)
        place.mkdir()
        play(seed, place, cycles=20, cuts=4)
        _remove(place)
