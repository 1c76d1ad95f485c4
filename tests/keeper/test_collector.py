# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The collector on the emulator, which it knows as a kernel only: by its files and its TPM."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from imafs.errors import DegradedError, Refused
from imafs.keeper.collector import Collector, Settings, State
from imafs.keeper.source import Place, Source
from imafs.keeper.tcti_pcrs import TctiPcrs
from imafs.lists.banks import View
from tests.keeper import made
from tests.keeper.machine import collecting
from tests.mount.daemon import BINARY, Daemon
from tests.mount.fixtures import Starter
from tests.support import ExpectedLogs, wait_for_async

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
WAIT = 60.0


class Kept:
    """A keeper of one emulator, and the boot_id that its kernel is said to have."""

    def __init__(self, daemon: Daemon, base: Path, **settings: object) -> None:
        self.daemon = daemon
        self.base = base
        self.boot = base / "boot_id"
        self.boot.write_text(f"{uuid.uuid4()}\n")
        self.settings = Settings(**{"records": 50, "age": 3600.0, **settings})  # type: ignore[arg-type]
        self.collector: Collector

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Collector]:
        place = Place(str(self.daemon.dir), str(self.boot), None)
        source = Source(place, TctiPcrs(self.daemon.tcti))
        async with collecting(source, self.base / "store", self.settings) as collector:
            self.collector = collector
            yield collector

    async def generate(self, count: int, **options: object) -> None:
        await trio.to_thread.run_sync(partial(self.daemon.generate, count, **options))

    def view(self, *, ascii_: bool = False, bank: int = 0) -> bytes:
        catalogue = self.collector.catalogue
        assert catalogue is not None
        view = View(ascii_, bank)
        data = b"".join(made.pieces(catalogue, view))
        assert len(data) == catalogue.size(view)
        return data


@pytest.fixture
def kept(start: Starter, tmp_path: Path) -> Kept:
    return Kept(start("--layout", "ima"), tmp_path)


async def idle(collector: Collector) -> None:
    async def ready() -> bool:
        return collector.state is State.IDLE and collector.refusal is None

    await wait_for_async(ready, WAIT, "the keeper is idle")


async def test_records_are_stored_and_then_deleted(kept: Kept) -> None:
    truth = kept.daemon.read(BINARY)
    async with kept.running() as collector:
        await idle(collector)
        await kept.generate(20)
        catalogue = await collector.fresh()
        assert len(catalogue) == 21
        await collector.flush()
        assert kept.view().startswith(truth)
        assert collector.life is not None
        assert collector.life.archive.end == 21
        assert (await trio.to_thread.run_sync(kept.daemon.group, "records"))["current"] == 0


async def test_restart_finds_what_is_stored(kept: Kept) -> None:
    async with kept.running() as collector:
        await idle(collector)
        await kept.generate(20)
        await collector.flush()
        first = kept.view()
    await kept.generate(5)
    async with kept.running() as collector:
        await idle(collector)
        await collector.fresh()
        assert kept.view().startswith(first)
        assert len(collector.catalogue or ()) == 26
        assert collector.verified is not None


_ = ExpectedLogs


async def test_flush_does_not_say_stored_of_what_it_could_not_look_at(
    kept: Kept, expected_logs: ExpectedLogs
) -> None:
    """Somebody has a list open; then the emulator is dead, with records that nobody has stored."""
    expected_logs.expect("waiting: somebody else has")
    expected_logs.expect("suspended: .*Transport endpoint is not connected")
    with (kept.daemon.dir / BINARY).open("rb"):
        async with kept.running() as collector:
            with pytest.raises(DegradedError, match="somebody else has a measurement list open"):
                await collector.flush()
    async with kept.running() as collector:
        await idle(collector)
        await collector.flush()
        await kept.generate(4)
        await trio.to_thread.run_sync(kept.daemon.kill)
        with pytest.raises(DegradedError, match="Transport endpoint"):
            await collector.flush()
        assert collector.state is State.SUSPENDED


async def test_flush_waits_for_the_rest_of_a_long_first_list(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    """Its view is refused while it comes in pieces, and answers so; a look at the rest follows."""
    expected_logs.expect("joining: most of a long list is stored")
    for module in ("joining", "collector"):
        monkeypatch.setattr(f"imafs.keeper.{module}.WHOLE", 10)
        monkeypatch.setattr(f"imafs.keeper.{module}.PIECE", 1000)  # some records
    await kept.generate(40)
    truth = kept.daemon.read(BINARY)
    async with kept.running() as collector:
        while collector.state is not State.IDLE:
            await collector.changed()
        await collector.flush()
        assert kept.view() == truth
        assert collector.life is not None
        assert collector.life.archive.end == 41


async def test_flush_in_the_window_of_a_kexec_is_refused(
    kept: Kept, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("suspended: measuring has ended")
    async with kept.running() as collector:
        await idle(collector)
        await collector.flush()
        await kept.generate(3)
        await trio.to_thread.run_sync(kept.daemon.call, "suspend")
        with pytest.raises(DegradedError, match=r"measuring has ended .*EACCES"):
            await collector.flush()


async def test_list_that_would_fill_the_memory_is_an_alarm_and_no_loss(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    """Somebody staged it, and left: nothing is deleted, readers are refused, and are told why."""
    expected_logs.allow("too_long|degraded|gets EIO")
    await kept.generate(30)
    truth = kept.daemon.read(BINARY)
    monkeypatch.setattr("imafs.keeper.source.MOST", 2000)
    async with kept.running() as collector:

        async def told() -> bool:
            return "too_long" in collector.alarms

        await wait_for_async(told, WAIT, "there is an alarm")
        with pytest.raises(Refused, match="the view is refused"):
            await collector.fresh()
        records = await trio.to_thread.run_sync(kept.daemon.group, "records")
        assert records["deleted"] == 0
        monkeypatch.undo()
        await idle(collector)
        await collector.flush()
        assert kept.view() == truth
        assert "too_long" not in collector.alarms
