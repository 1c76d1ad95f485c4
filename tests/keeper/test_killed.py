# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Random runs on the emulator: the keeper is killed -9 at any of its steps, kernels follow each
other by kexec with carries that are cut, and others stage and trim behind its back.

Whatever happened, the next keeper shows the truth (a list that leads to the TPM's PCRs in every
bank, with every record that was added), or refuses: exactly where records were lost that no store
has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from imafs.formats.algorithms import by_name
from imafs.keeper import machine, reading
from imafs.keeper.collector import Collector, Settings, State
from imafs.keeper.facts import Mode
from imafs.keeper.records import RecordList, listed, replayed
from imafs.keeper.source import Source
from imafs.lists.banks import View
from tests.keeper import made
from tests.keeper.machine import collecting
from tests.keeper.victim import DISK, HALF, OFTEN, SELDOM, STEPS, Victims
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import ExpectedLogs, may_take, wait_for_async

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
WAIT = 60.0


class Run:
    """One emulator, one store, and what is known to have happened."""

    def __init__(
        self, daemon: Daemon, victims: Victims, store: Path, rng: random.Random, *, foreign: bool
    ) -> None:
        self.daemon = daemon
        self.victims = victims
        self.store = store
        self.rng = rng
        self.foreign = foreign
        #: What keepers that died have said, for whoever looks into a failure.
        self.told: list[str] = []
        #: Records of this life are in no store and in no list.
        self.lost = False
        #: No keeper has seen this life yet.
        self.begins = True
        self.counts: Counter[str] = Counter()

    async def call(self, op: str, **options: object) -> dict[str, object]:
        return await trio.to_thread.run_sync(partial(self.daemon.call, op, **options))

    async def add(self) -> None:
        await trio.to_thread.run_sync(partial(self.daemon.generate, self.rng.randrange(1, 25)))

    async def trim(self) -> None:
        """A foreign trimmer, while no keeper runs."""
        await self.add()
        self.counts["foreign"] += 1
        writer = os.open(self.daemon.dir / "binary_runtime_measurements_sha1_staged", os.O_RDWR)
        try:
            for request in self.rng.choice(([b"A\n"], [b"A\n", b"D\n"], [b"D\n"])):
                with contextlib.suppress(OSError):
                    os.write(writer, request)
        finally:
            os.close(writer)
        self.lost = self.lost or await trio.to_thread.run_sync(self.has_lost_its_beginning)

    def has_lost_its_beginning(self) -> bool:
        """Whether this kernel's first record is gone, and no keeper has ever seen it: also where a
        boot before made the same records, so that those that are stored lead on to its PCRs."""
        life = newest(self.store)
        boots = set() if life is None else {era.boot for era in life.ledger.eras}
        found = listed(self.whole())
        begins = any(found.is_boot_aggregate(at) for at in range(len(found)))
        return not begins and self._source().boot_id() not in boots

    def _source(self) -> Source:
        of = machine.machine(str(self.daemon.dir))
        return Source(machine.place(of, None), machine.pcrs(None, of))

    async def kexec(self) -> None:
        """The list goes across, or its head alone, or nothing."""
        kind = self.rng.choice(("whole", "whole", "whole", "cut", "cut", "none"))
        if kind == "cut":
            # The room is reserved at load; what has come since then does not fit.
            await self.call("kexec_load")
            await trio.to_thread.run_sync(
                partial(self.daemon.generate, self.rng.randrange(40, 120))
            )
        if self.rng.random() < 0.5:
            await self.victim()
        found = await self.call("kexec_execute", **({"no_carry": True} if kind == "none" else {}))
        self.counts["kexec"] += 1
        self.counts["cut"] += bool(found.get("lost"))

    async def reboot(self) -> None:
        await self.call("reboot")
        self.counts["reboot"] += 1
        self.lost = False
        self.begins = True

    async def victim(self) -> None:
        """A keeper that dies at a random step, or does not get there."""
        step = self.rng.choice((*STEPS, *STEPS, *DISK, "write", "sync", HALF, HALF))
        # These come where a life begins, or behind one killed in the middle of a write.
        if self.begins and self.rng.random() < 0.25:
            step = "make_directory"
        if has_tail(self.store) and self.rng.random() < 0.5:
            step = "truncate"
        number = self.rng.randrange(1, 9) if step in OFTEN else self.rng.choice((1, 1, 2, 3))
        number = 1 if step in SELDOM else number
        self.begins = False
        await trio.to_thread.run_sync(self.victims.start, self.daemon.dir, self.store, step, number)
        for _ in range(self.rng.randrange(1, 4)):
            if not self.victims.alive:
                break
            await self.add()
            if self.rng.random() < 0.8:
                await trio.to_thread.run_sync(self.victims.store)
        status = await trio.to_thread.run_sync(self.victims.end)
        self.told.append(f"{step} {number}: {status}")
        assert status in (0, -signal.SIGKILL), self.victims.told()[-3000:]
        if status:
            self.counts[f"killed at {step}"] += 1
            self.counts["killed"] += 1

    @contextlib.asynccontextmanager
    async def keeper(self) -> AsyncIterator[Collector]:
        settings = Settings(records=10, age=3600.0)
        async with collecting(self._source(), self.store, settings) as collector:

            async def ready() -> bool:
                return collector.state is State.IDLE

            await wait_for_async(ready, WAIT, "the keeper has joined")
            yield collector

    async def look(self) -> None:
        """Records are lost where none of them can be left out of the kernel's list so that it
        leads on from what is stored to the PCR, nor all of it from zero."""
        if self.lost:
            return
        want = (await self.pcrs(["sha1"]))["sha1"]
        life = newest(self.store)
        stored = b"" if life is None else b"".join(life.export(0))
        kernel = digests(await trio.to_thread.run_sync(self.whole))
        start, zero = extended(digests(stored)), bytes(20)
        starts = [(start, place) for place in range(len(kernel) + 1)]
        ends = (extended(kernel[place:], begin) for begin, place in [*starts, (zero, 0)])
        self.lost = want not in ends

    def whole(self) -> bytes:
        """What the kernel has: staged and current."""
        name = "binary_runtime_measurements_sha1"
        return self.daemon.read(f"{name}_staged") + self.daemon.read(name)

    async def judge(self) -> None:
        """A view that is served is the truth; it is refused exactly where records were lost.

        Behind a gap it is until the next reboot: that comes soon, or most of a run would be so.
        """
        await self.look()
        if not await self.is_served() and self.rng.random() < 0.5:
            await self.reboot()

    async def is_served(self) -> bool:
        """Whether a keeper serves; what it serves is looked at."""
        self.begins = False
        async with self.keeper() as collector:
            if collector.refusal is not None:
                assert self.lost, f"refused, but nothing was lost: {collector.refusal}: {self.told}"
                self.counts["refused"] += 1
                return False
            assert not self.lost, "served, though records were lost"
            await self.add()
            catalogue = await collector.fresh()
            records = listed(shown(collector))
            assert len(records) == len(catalogue)
            banks = [bank.name for bank in catalogue.layout.lists]
            assert await self.pcrs(banks) == pcrs_of(records, banks), "not the truth"
            self.counts["served"] += 1
            return True

    async def pcrs(self, banks: list[str]) -> dict[str, bytes]:
        return await trio.to_thread.run_sync(self.daemon.pcrs, banks)


def newest(store: Path) -> reading.Reading | None:
    """The newest life, if there is one."""
    names = reading.lives(str(store)) if (store / "lives").exists() else []
    return reading.Reading(str(store), names[-1]) if names else None


def has_tail(store: Path) -> bool:
    """Whether a recovery has bytes to cut that count for nothing."""
    life = newest(store)
    if life is None or life.ledger.segment is None:
        return False
    segment = store / "lives" / life.life / life.ledger.segment
    return segment.stat().st_size > life.ledger.offset > 0


def shown(collector: Collector) -> bytes:
    """The SHA-1 binary list of the view."""
    catalogue = collector.catalogue
    assert catalogue is not None
    names = [bank.name for bank in catalogue.layout.lists]
    return b"".join(made.pieces(catalogue, View(False, names.index("sha1"))))


def digests(data: bytes) -> list[bytes]:
    """What the records of a list extend PCR 10 in SHA-1 with."""
    records = listed(data)
    found = records.extends("sha1", Mode.REAL, 0, len(records))
    return [digest for pcr, digest in found if pcr == 10]


def extended(extends: list[bytes], value: bytes = bytes(20)) -> bytes:
    """PCR 10 in SHA-1 behind so many extends; it was ``value``."""
    for digest in extends:
        value = hashlib.sha1(value + digest).digest()
    return value


def pcrs_of(records: RecordList, banks: list[str]) -> dict[str, bytes]:
    modes = dict.fromkeys(banks, Mode.REAL)
    values = replayed({}, records, modes, 0, len(records))
    return {bank: values[bank].get(10, bytes(by_name(bank).digest_size)) for bank in banks}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no hung kernel."""
    monkeypatch.setattr("imafs.keeper.collector.FRESH", WAIT)


async def play(run: Run, steps: int) -> None:
    """Random steps; the last one is a look at what the keeper says."""
    kinds = {run.add: 44, run.victim: 28, run.judge: 12, run.kexec: 8, run.reboot: 3}
    if run.foreign:
        kinds[run.trim] = 3
    for _ in range(steps):
        (step,) = run.rng.choices([*kinds], [*kinds.values()])
        await step()
    await run.judge()


async def played(seeds: range, steps: int, start: Starter, place: Path) -> Counter[str]:
    """Runs, one behind the other; what happened in all of them."""
    counts: Counter[str] = Counter()
    victims = Victims(place / "victims.log")
    daemon = start("--banks", "sha1,sha256")
    try:
        for seed in seeds:
            daemon.logs.allow("records were not carried over")
            rng = random.Random(seed)
            run = Run(daemon, victims, place / str(seed), rng, foreign=seed % 3 == 2)
            try:
                await play(run, steps)
            except AssertionError as error:
                pytest.fail(f"run {seed}: {error}: {run.told[-20:]}")
            counts += run.counts
            await trio.to_thread.run_sync(daemon.boot_anew)
    finally:
        victims.close()
    return counts


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """As many nightly parts of ten runs as ``--kill-runs`` asks for."""
    if "nightly_part" in metafunc.fixturenames:
        runs: int = metafunc.config.getoption("--kill-runs")
        metafunc.parametrize("nightly_part", range(-(-runs // 10)))


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
async def test_killed_at_any_step(
    part: int, start: Starter, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """Five runs of two hundred steps each."""
    may_take(1800)
    expected_logs.allow("keeper")
    counts = await played(range(part * 5, part * 5 + 5), 200, start, tmp_path)
    assert counts["killed"] > 100
    assert counts["served"] > 40
    _all_came(counts, *STEPS, *OFTEN, "truncate")


@pytest.mark.nightly
async def test_killed_thousands_of_times(
    nightly_part: int, start: Starter, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """Two hundred runs of two hundred steps, or as many as were asked for."""
    may_take(7200)
    expected_logs.allow("keeper")
    first = 1_000 + nightly_part * 10
    counts = await played(range(first, first + 10), 200, start, tmp_path)
    print(f"runs {first} to {first + 9}: {json.dumps(dict(sorted(counts.items())))}")
    _all_came(counts, *STEPS, *DISK, HALF)


def _all_came(counts: Counter[str], *steps: str) -> None:
    wanted = [f"killed at {step}" for step in steps]
    wanted += ["kexec", "cut", "foreign", "reboot", "refused"]
    assert not [what for what in wanted if not counts[what]]
