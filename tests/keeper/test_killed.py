# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Random runs on the emulator: the keeper is killed -9 at any of its steps, kernels follow each
other by kexec with carries that are cut, and others stage and trim behind its back.

Whatever happened, the next keeper shows the truth (a list that leads to the TPM's PCRs in every
bank, with every record that was added), or refuses: exactly where records were lost that no store
has.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
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
from imafs.keeper.store import open_store
from imafs.lists.banks import View
from tests.keeper.victim import STEPS
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import ROOT, ExpectedLogs, may_take, wait_for_async

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
WAIT = 40.0


class Run:
    """One emulator, one store, and what is known to have happened."""

    def __init__(self, daemon: Daemon, store: Path, rng: random.Random, *, foreign: bool) -> None:
        self.daemon = daemon
        self.store = store
        self.rng = rng
        self.foreign = foreign
        #: What keepers that died have said, for whoever looks into a failure.
        self.told: list[str] = []
        #: Records of this life are in no store and in no list.
        self.lost = False

    async def call(self, op: str, **options: object) -> dict[str, object]:
        return await trio.to_thread.run_sync(partial(self.daemon.call, op, **options))

    async def add(self) -> None:
        await trio.to_thread.run_sync(partial(self.daemon.generate, self.rng.randrange(1, 25)))

    async def trim(self) -> None:
        """A foreign trimmer, while no keeper runs."""
        writer = os.open(self.daemon.dir / "binary_runtime_measurements_sha1_staged", os.O_RDWR)
        try:
            for request in self.rng.choice(([b"A\n"], [b"A\n", b"D\n"], [b"D\n"])):
                with contextlib.suppress(OSError):
                    os.write(writer, request)
        finally:
            os.close(writer)

    async def kexec(self) -> None:
        await self.call("kexec_execute")

    async def victim(self) -> int | None:
        """A keeper that dies at a random step, or does not get there; its exit status."""
        step, number = self.rng.choice(STEPS), self.rng.randrange(1, 4)
        words = [sys.executable, "-P", "-m", "tests.keeper.victim", str(self.daemon.dir)]
        process = _started([*words, str(self.store), step, str(number)])
        assert process.stdout is not None
        assert process.stdin is not None
        await trio.to_thread.run_sync(process.stdout.readline)
        for _ in range(self.rng.randrange(1, 4)):
            if process.poll() is not None:
                break
            await self.add()
        process.stdin.close()
        status = await trio.to_thread.run_sync(process.wait)
        assert process.stderr is not None
        told = process.stderr.read().decode()
        process.stdout.close()
        process.stderr.close()
        self.told.append(f"{step} {number}: {status}: {told}")
        assert status in (0, -9), told
        return status

    @contextlib.asynccontextmanager
    async def keeper(self) -> AsyncIterator[Collector]:
        of = machine.machine(str(self.daemon.dir))
        place = machine.place(of, None)
        store = open_store(str(self.store))
        collector = Collector(
            Source(place, machine.pcrs(None, of)),
            store,
            Settings(records=10, age=3600.0),
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collector.run)

                async def ready() -> bool:
                    return collector.state is State.IDLE

                await wait_for_async(ready, WAIT, "the keeper has joined")
                yield collector
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await collector.close()
            store.close()

    async def look(self) -> None:
        """Records are lost where none of them can be left out of the kernel's list so that it
        leads on from what is stored to the PCR."""
        stored = listed(b"")
        if names := reading.lives(str(self.store)):
            stored = listed(b"".join(reading.Reading(str(self.store), names[-1]).export(0)))
        kernel = listed(await trio.to_thread.run_sync(self.whole))
        start = replayed({}, stored, {"sha1": Mode.REAL}, 0, len(stored))
        want = (await self.pcrs(["sha1"]))["sha1"]
        ends = (
            replayed(start, kernel, {"sha1": Mode.REAL}, place, len(kernel))
            for place in range(len(kernel) + 1)
        )
        self.lost = self.lost or want not in [end["sha1"].get(10) for end in ends]

    def whole(self) -> bytes:
        """What the kernel has: staged and current."""
        name = "binary_runtime_measurements_sha1"
        return self.daemon.read(f"{name}_staged") + self.daemon.read(name)

    async def judge(self) -> bool:
        """Whether the view was served; it was the truth then."""
        await self.look()
        async with self.keeper() as collector:
            if collector.refusal is not None:
                assert self.lost, f"refused, but nothing was lost: {collector.refusal}: {self.told}"
                return False
            assert not self.lost, "served, though records were lost"
            await self.add()
            catalogue = await collector.fresh()
            await self.call("wait", extended=True)
            records = listed(shown(collector))
            assert len(records) == len(catalogue)
            banks = [bank.name for bank in catalogue.layout.lists]
            assert await self.pcrs(banks) == pcrs_of(records, banks), "not the truth"
            return True

    async def pcrs(self, banks: list[str]) -> dict[str, bytes]:
        return {
            bank: await trio.to_thread.run_sync(partial(self.daemon.pcr, bank)) for bank in banks
        }


def _started(words: list[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT)


def shown(collector: Collector) -> bytes:
    """The SHA-1 binary list of the view."""
    catalogue = collector.catalogue
    assert catalogue is not None
    names = [bank.name for bank in catalogue.layout.lists]
    view = View(False, names.index("sha1"))
    pieces, at = [], 0
    while (found := catalogue.run(view, at)) is not None:
        run, first = found
        pieces.append(bytes(run.data[run.offsets[first] : run.offsets[-1]]))
        at += len(run.offsets) - 1 - first
    return b"".join(pieces)


def pcrs_of(records: RecordList, banks: list[str]) -> dict[str, bytes]:
    modes = dict.fromkeys(banks, Mode.REAL)
    values = replayed({}, records, modes, 0, len(records))
    return {bank: values[bank].get(10, bytes(by_name(bank).digest_size)) for bank in banks}


async def play(run: Run, rounds: int) -> tuple[int, int]:
    """Rounds in which a keeper dies; how many died, and in how many the view was served."""
    died = served = 0
    for _ in range(rounds):
        await run.add()
        died += await run.victim() != 0
        kind = run.rng.random()
        if kind < 0.3:
            await run.kexec()
        elif kind < 0.5 and run.foreign:
            await run.add()
            await run.trim()
        served += await run.judge()
    return died, served


@pytest.mark.parametrize("seed", range(6))
async def test_killed_at_any_step(
    seed: int, start: Starter, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("keeper")
    rng = random.Random(seed)
    run = Run(start("--banks", "sha1,sha256"), tmp_path / "store", rng, foreign=seed % 3 == 2)
    _, served = await play(run, 4)
    assert served == 4 or run.lost


@pytest.mark.nightly
async def test_killed_hundreds_of_times(
    start: Starter, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    may_take(7200)
    expected_logs.allow("keeper")
    died = 0
    for seed in range(100, 140):
        rng = random.Random(seed)
        daemon = start("--banks", "sha1,sha256")
        run = Run(daemon, tmp_path / str(seed), rng, foreign=seed % 3 == 2)
        dead, served = await play(run, 20)
        assert served == 20 or run.lost, seed
        died += dead
    assert died > 200
