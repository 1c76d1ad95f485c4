# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Damaged stores at random (:mod:`damage`), before the real collector and a kernel on paper.

Whatever is damaged: the view is the truth as far as it goes, or it is EIO; nothing is deleted that
is not stored; ``keep verify`` passes nothing that was not stored; and a store that cannot be used
is refused, and left as it is.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from imafs.cli.main import main
from imafs.errors import DegradedError, FileError, ImafsError, Refused, StoreBrokenError, UsageError
from imafs.keeper import collector as collectors
from imafs.keeper import reading
from imafs.keeper.catalogue import Catalogue
from imafs.keeper.collector import Collector, State
from imafs.keeper.store import Store
from imafs.lists.banks import View
from tests.keeper import made
from tests.keeper.damage import content, damaged
from tests.keeper.machine import WAIT, Machine
from tests.support import ExpectedLogs, wait_for_async

SEGMENT = 8
VIEWS = [View(ascii_, bank) for ascii_ in (False, True) for bank in (0, 1)]
#: What came of a store.
Outcome = str


@dataclass
class Past:
    """A machine whose keeper has ended, and what an undamaged store makes of it."""

    machine: Machine
    exports: dict[str, bytes]
    shown: dict[View, bytes]


async def past(place: Path, rng: random.Random) -> Past:
    """Several segments, frames, an anchor, and a gap: in the life before, or in the newest one."""
    place.mkdir()
    machine = Machine(place)
    gap_in_newest = rng.random() < 0.3
    for life in range(2):
        if life:
            machine.kernel.power_on()
        await _grown(machine, rng, gap=gap_in_newest if life else not gap_in_newest)
    for number in range(rng.randrange(3)):
        machine.kernel.add(f"/last/{number}")
    step = rng.choice(("stage", "staged", "commit", "committed", "delete", "deleted", "confirmed"))
    await machine.killed(step, 1)
    for number in range(rng.randrange(3)):
        machine.kernel.add(f"/away/{number}")
    names = reading.lives(str(machine.store))
    lives = {name: reading.Reading(str(machine.store), name) for name in names}
    assert all(len(life.ledger.seals) > 1 and life.ledger.anchors for life in lives.values())
    assert sum(len(life.ledger.gaps) for life in lives.values()) == 1
    exports = {name: b"".join(life.export(0)) for name, life in lives.items()}
    twin = _twin(machine, place / "twin")
    found: dict[View, bytes] = {}
    outcome = await Run(twin, Past(twin, exports, found)).outcome()
    assert outcome == ("refused" if gap_in_newest else "served")
    if not gap_in_newest:
        assert found[VIEWS[0]] == b"".join(twin.kernel.truth)
    return Past(machine, exports, found)


async def _grown(machine: Machine, rng: random.Random, *, gap: bool) -> None:
    kernel = machine.kernel
    for part in range(6):
        for number in range(rng.randrange(4, 10)):
            name = f"/{kernel.boot}/{part}/{number}" + "x" * rng.randrange(80)
            kernel.take(made.violation(name) if rng.random() < 0.1 else made.record(name))
        if part == 3 and gap:
            kernel.add("/lost")
            kernel.trim()
            kernel.add("/behind")
            await machine.kept()
            continue
        async with machine.keeper() as collector:
            await collector.flush()
            if part == 1:
                kernel.extend()
                await collector._joined()


def _twin(machine: Machine, place: Path) -> Machine:
    """The same kernel before a copy of the store."""
    place.mkdir()
    twin = Machine(place)
    twin.kernel = copy.deepcopy(machine.kernel)
    shutil.copytree(machine.store, twin.store)
    return twin


class Run:
    """A keeper before a store that may be damaged."""

    def __init__(self, machine: Machine, past: Past) -> None:
        self.machine, self.past = machine, past
        self.checked, self.opened = 0, False

    async def outcome(self) -> Outcome:
        """One keeper's; asserts what is to hold of each."""
        kernel, store = self.machine.kernel, self.machine.store
        had, before, self.opened = self._deleted(), content(store), False
        found = ""
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Store, "check", self._checking(Store.check))
                found = await self._kept()
        except* StoreBrokenError:
            found = "broken"
        except* (UsageError, FileError, DegradedError):
            found = "unusable"
            assert not self.opened
        if found in ("broken", "unusable"):
            self._left(before)
        deleted = self._deleted()
        assert deleted >= had
        if deleted > had:
            assert b"".join(kernel.truth[had:deleted]) in self._stored()
        return found

    def _checking(self, check: Callable[..., None]) -> Callable[..., None]:
        def checking(*words: object) -> None:
            try:
                check(*words)
            finally:
                self.checked += 1

        return checking

    async def _kept(self) -> Outcome:
        machine = self.machine
        async with machine.running(scrub=0.001) as collector, trio.open_nursery() as nursery:
            self.opened = True
            for number in range(3):
                await self._settled(collector)
                with suppress(DegradedError, Refused):
                    await collector.flush()
                machine.kernel.add(f"/while/{number}")
            await self._settled(collector)
            nursery.start_soon(collector.scrub)
            await self._scrubbed(collector)
            found = await self._looked(collector)
            nursery.cancel_scope.cancel()
        return found

    @staticmethod
    async def _settled(collector: Collector) -> None:
        async def so() -> bool:
            idle = collector.state is State.IDLE and collector.joined
            return idle or collector.state is State.DEGRADED

        await wait_for_async(so, WAIT, "the keeper is idle, or cannot store")

    async def _scrubbed(self, collector: Collector) -> None:
        """Full segments of the same length are read behind the start."""
        if collector.life is None or collector.catalogue is None:
            return
        until = self.checked + len(collector.life.archive.ledger.seals)

        async def so() -> bool:
            return self.checked >= until

        await wait_for_async(so, WAIT, "all full segments are read")

    async def _looked(self, collector: Collector) -> Outcome:
        """What readers get."""
        try:
            catalogue = await collector.fresh()
        except Refused:
            return "degraded" if collector.state is State.DEGRADED else "refused"
        whole = True
        for view in VIEWS:
            data, error = _shown(catalogue, view)
            known = self.past.shown.setdefault(view, data)
            if view == VIEWS[0]:
                known = b"".join(self.machine.kernel.truth)
            assert known.startswith(data)
            assert error is not None or known == data
            whole = whole and error is None
        return "served" if whole else "served in part"

    def _deleted(self) -> int:
        kernel = self.machine.kernel
        return len(kernel.truth) - len(kernel._staged) - len(kernel._current)

    def _stored(self) -> bytes:
        """All of the newest life that is as it was stored."""
        store = str(self.machine.store)
        life, found = reading.Reading(store, reading.lives(store)[-1]), []
        for piece in life.pieces():
            with suppress(StoreBrokenError):
                found.append(life.bytes_of(piece))
        return b"".join(found)

    def _left(self, before: dict[str, object]) -> None:
        """Of a store that is refused nothing has changed; its lock may have been made."""
        after = content(self.machine.store)
        assert {name: after.get(name) for name in before} == before
        assert set(after) - set(before) <= {"lock", "store.json", "lives"}


def _shown(catalogue: Catalogue, view: View) -> tuple[bytes, ImafsError | None]:
    """A view as far as it goes, and why no further."""
    found = bytearray()
    try:
        for piece in made.pieces(catalogue, view):
            found += piece
    except (StoreBrokenError, DegradedError) as error:
        return bytes(found), error
    return bytes(found), None


def verified(store: Path, exports: dict[str, bytes]) -> int:
    """What ``keep verify --all`` says, as an exit code. Whatever it passes is what was stored."""
    code = main(["keep", "verify", "--all", "--store", str(store)])
    if code not in (0, 10):
        return code
    for name in reading.lives(str(store)):
        assert exports.get(name, b"").startswith(
            b"".join(reading.Reading(str(store), name).export(0))
        )
    return code


async def damaged_stores(
    place: Path, seeds: range, capsys: pytest.CaptureFixture[str]
) -> Counter[str]:
    """One past, damaged as each of the seeds says; what came of it."""
    found: Counter[str] = Counter()
    before = await past(place / "past", random.Random(seeds[0]))
    for seed in seeds:
        machine = _twin(before.machine, place / str(seed))
        done = damaged(random.Random(seed), machine.store)
        try:
            code = verified(machine.store, before.exports)
            assert code in (0, 2, 10, 11, 12)
            said = capsys.readouterr().err
            assert "Traceback" not in said
            assert bool(said) == bool(code)
            run = Run(machine, Past(machine, before.exports, dict(before.shown)))
            outcome = await run.outcome()
            assert outcome != "broken" or code not in (0, 10), "verify passes it"
            if outcome.startswith("served"):
                assert await Run(machine, Past(machine, {}, {})).outcome() == outcome
        except Exception as error:
            error.add_note(f"seed {seed}: {done}")
            raise
        found[f"{outcome} ({code})"] += 1
        shutil.rmtree(machine.store.parent)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("keeper")
    monkeypatch.setattr("imafs.keeper.archive.SEGMENT_RECORDS", SEGMENT)
    monkeypatch.setattr(collectors, "_PAUSES", (0.02,))
    monkeypatch.setattr(collectors, "FRESH", 0.5)


@pytest.mark.parametrize("part", range(3))
async def test_damaged_stores(
    part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print(await damaged_stores(tmp_path, range(part * 10, part * 10 + 10), capsys))


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(20))
async def test_many_damaged_stores(
    part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = 1_000 + part * 20
    print(await damaged_stores(tmp_path, range(first, first + 20), capsys))
