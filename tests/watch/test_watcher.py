# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The daemon's side while a listener is replaced, with a listener that the test plays itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from imafs.engine.config import EmulatorConfig
from imafs.engine.emulator import Emulator
from imafs.engine.policy import PolicyWriter
from imafs.sources.watch import watcher, wire
from imafs.sources.watch.listening import Gone
from tests.support import ExpectedLogs
from tests.unit.engine_fake import DEADLINE, FakeDevice


class Played:
    """A :class:`~imafs.sources.watch.listening.Listening` of the test's; ``lives`` in their order.

    The answer to a later one's paths waits for ``marked``.
    """

    lives: list[Played]

    def __init__(
        self,
        deadline: float,
        take: Callable[[wire.Use | wire.Violation], None],
        mounted: Callable[[], None],
    ) -> None:
        self.take = take
        self.sent: list[wire.ToListener] = []
        self.counters = wire.Counters(pid=len(self.lives) + 1)
        self.asked, self.marked, self.dead = trio.Event(), trio.Event(), trio.Event()
        if not self.lives:
            self.marked.set()
        self.lives.append(self)

    def send(self, message: wire.ToListener) -> None:
        self.sent.append(message)

    async def watch(self, message: wire.Watch) -> None:
        self.asked.set()
        await self.marked.wait()

    async def report(self, seconds: float) -> bool:
        return True

    async def run(self) -> None:
        await self.dead.wait()
        raise Gone("killed")

    async def end(self) -> str:
        return "killed"


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs) -> list[Played]:
    """Every listener that is started; the test ends the first one."""
    expected_logs.expect("the listener of watched files has ended")
    found: list[Played] = []
    monkeypatch.setattr(Played, "lives", found, raising=False)
    monkeypatch.setattr(watcher, "Listening", Played)
    return found


@asynccontextmanager
async def _restarting(
    lives: list[Played],
) -> AsyncIterator[tuple[Emulator, watcher.Watcher, Played]]:
    """A second listener has its rules, and has not answered yet that it marks the paths."""
    emulator = Emulator(EmulatorConfig(), FakeDevice())
    await emulator.start()
    watching = watcher.Watcher(emulator, leave="/nowhere", excused=())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emulator.run)
        nursery.start_soon(watching.run)
        with trio.fail_after(DEADLINE):
            await watching.watch(["/usr/bin/env"])
            lives[0].dead.set()
            while len(lives) < 2:
                await trio.sleep(0.01)
            await lives[1].asked.wait()
            lives[1].sent.clear()
            yield emulator, watching, lives[1]
        nursery.cancel_scope.cancel()


async def test_a_policy_comes_while_a_listener_restarts(lives: list[Played]) -> None:
    async with _restarting(lives) as (emulator, _, listener):
        session = PolicyWriter(emulator)
        await session.write(b"measure func=FILE_CHECK uid=4711\n", 0)
        session.close()
        (rules,) = (message for message in listener.sent if isinstance(message, wire.Rules))
        assert b"uid=4711" in rules.text
        assert rules.text.count(b"\n") == 1


async def test_a_boot_comes_while_a_listener_restarts(lives: list[Played]) -> None:
    async with _restarting(lives) as (emulator, _, listener):
        await emulator.reset()
        assert wire.Forget() in listener.sent


async def test_openers_are_answered_while_a_listener_restarts(lives: list[Played]) -> None:
    """Marks work one after the other: the first ones ask before the last one is set."""
    async with _restarting(lives) as (_, _, listener):
        listener.take(wire.Violation(7, b"/x", "ToMToU"))
        while wire.Done(7) not in listener.sent:
            await trio.sleep(0.01)


async def test_a_listener_that_has_not_marked_is_none_yet(lives: list[Played]) -> None:
    """Who waits for it to be back would open a file too early."""
    async with _restarting(lives) as (_, watching, listener):
        assert (await watching.status())["listener"] is None
        listener.marked.set()
        while (await watching.status())["listener"] != 2:
            await trio.sleep(0.01)
