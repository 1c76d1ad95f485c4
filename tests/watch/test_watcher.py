# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The daemon's side while a listener is replaced, with a listener that the test plays itself."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.emulator.policy_writer import PolicyWriter
from imafs.errors import Refused
from imafs.host.ratelimit import BURST
from imafs.sources.watch import messages
from imafs.sources.watch.daemon import watcher
from imafs.sources.watch.daemon.append import Told
from imafs.sources.watch.daemon.filesystems import Found, Surveyor
from imafs.sources.watch.daemon.listening import Gone
from tests.support import ExpectedLogs, wait_for_async
from tests.unit.emulator_fake import DEADLINE, FakeDevice


class Played:
    """A ``Listening`` of the test's; ``lives`` in their order.

    The answer to a later one's paths waits for ``marked``.
    """

    lives: list[Played]
    broken = False

    def __init__(
        self,
        deadline: float,
        take: Callable[[messages.Use | messages.Violation, Told], None],
        mounted: Callable[[], None],
        threads: trio.CapacityLimiter,
    ) -> None:
        if self.broken:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self._take = take
        self._nursery: trio.Nursery | None = None
        self.mounted = mounted
        self.sent: list[messages.ToListener] = []
        self.told: list[messages.Watch] = []
        self.left_out: dict[bytes, Refused] = {}
        self.counters = messages.Counters(pid=len(self.lives) + 1)
        self.asked, self.marked, self.dead = trio.Event(), trio.Event(), trio.Event()
        self.ended = trio.Event()
        self.ended.set()
        if not self.lives:
            self.marked.set()
        self.lives.append(self)

    def take(self, message: messages.Use | messages.Violation) -> None:
        """The listener tells it."""
        self._take(message, self)

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task)

    def send(self, message: messages.ToListener) -> None:
        self.sent.append(message)

    async def watch(self, message: messages.Watch) -> dict[bytes, Refused]:
        self.told.append(message)
        self.asked.set()
        await self.marked.wait()
        return self.left_out

    async def report(self, seconds: float) -> bool:
        return True

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            await self.dead.wait()
            self._nursery.cancel_scope.cancel()
        raise Gone("killed")

    async def end(self) -> str:
        await self.ended.wait()
        return "killed"


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs) -> list[Played]:
    """Every listener that is started; the test ends the first one."""
    expected_logs.allow("the listener of watched files has ended")
    found: list[Played] = []
    monkeypatch.setattr(Played, "lives", found, raising=False)
    monkeypatch.setattr(watcher, "Listening", Played)
    return found


@asynccontextmanager
async def _watching(*paths: str) -> AsyncIterator[tuple[Emulator, watcher.Watcher]]:
    """``paths`` are watched by the first listener."""
    emulator = Emulator(EmulatorConfig(), FakeDevice())
    await emulator.start()
    watching = watcher.Watcher(emulator, emulator.changes, leave="/nowhere", excused=())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emulator.run)
        nursery.start_soon(watching.run)
        with trio.fail_after(DEADLINE):
            await watching.watch(paths)
            yield emulator, watching
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _restarting(
    lives: list[Played],
) -> AsyncIterator[tuple[Emulator, watcher.Watcher, Played]]:
    """A second listener has its rules, and has not answered yet that it marks the paths."""
    async with _watching("/usr/bin/env") as (emulator, watching):
        lives[0].dead.set()
        await _until(lambda: len(lives) == 2)
        await lives[1].asked.wait()
        lives[1].sent.clear()
        yield emulator, watching, lives[1]


def _is_told(listener: Played, times: int) -> bool:
    return len(listener.told) == times


async def _gone(watching: watcher.Watcher) -> None:
    async def gone() -> bool:
        return (await watching.status())["listener"] is None

    await wait_for_async(gone, DEADLINE, "there is no listener")


async def _until(condition: Callable[[], bool]) -> None:
    async def met() -> bool:
        return condition()

    await wait_for_async(met, DEADLINE, "the condition is met")


async def test_a_policy_comes_while_a_listener_restarts(lives: list[Played]) -> None:
    async with _restarting(lives) as (emulator, _, listener):
        session = PolicyWriter(emulator)
        await session.write(b"measure func=FILE_CHECK uid=4711\n", 0)
        session.close()
        (rules,) = (message for message in listener.sent if isinstance(message, messages.Rules))
        assert b"uid=4711" in rules.text
        assert rules.text.count(b"\n") == 1


async def test_a_boot_comes_while_a_listener_restarts(lives: list[Played]) -> None:
    async with _restarting(lives) as (emulator, _, listener):
        await emulator.reset()
        assert messages.Forget() in listener.sent


async def test_openers_are_answered_while_a_listener_restarts(lives: list[Played]) -> None:
    """Marks work one after the other: the first ones ask before the last one is set."""
    async with _restarting(lives) as (_, _, listener):
        listener.take(messages.Violation(7, b"/x", "ToMToU"))
        while messages.Done(7) not in listener.sent:
            await trio.sleep(0.01)


async def test_a_listener_that_has_not_marked_is_none_yet(lives: list[Played]) -> None:
    """Who waits for it to be back would open a file too early."""
    async with _restarting(lives) as (_, watching, listener):
        assert (await watching.status())["listener"] is None
        listener.marked.set()
        while (await watching.status())["listener"] != 2:
            await trio.sleep(0.01)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Three directories."""
    found = [str(tmp_path / name) for name in "abc"]
    for path in found:
        os.mkdir(path)
    return found


def _told(listener: Played) -> list[list[str]]:
    return [[os.fsdecode(path) for path in message.paths] for message in listener.told]


async def test_unwatch_while_no_listener_can_be_started(
    lives: list[Played], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps a listener from starting can be taken from it."""
    one, two, _ = paths
    async with _watching(one, two) as (_, watching):
        monkeypatch.setattr(Played, "broken", True)
        lives[0].dead.set()
        await _gone(watching)
        await watching.unwatch([one])
        assert watching.paths == [two]
        monkeypatch.setattr(Played, "broken", False)
        await _until(lambda: len(lives) == 2)
        await lives[1].asked.wait()
        assert _told(lives[1]) == [[two]]


async def test_unwatch_while_a_listener_restarts(lives: list[Played], paths: list[str]) -> None:
    """Nobody waits for it; it is told of the rest before it counts as there."""
    one, two, _ = paths
    async with _watching(one, two) as (_, watching):
        lives[0].dead.set()
        await _until(lambda: len(lives) == 2)
        await lives[1].asked.wait()
        await watching.unwatch([one])
        assert _told(lives[1]) == [[one, two]]
        lives[1].marked.set()
        while (await watching.status())["listener"] is None:
            await trio.sleep(0.01)
        assert _told(lives[1]) == [[one, two], [two]]


async def test_watch_while_no_listener_can_be_started(
    lives: list[Played], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_START", 0.05)
    async with _watching(paths[0]) as (_, watching):
        monkeypatch.setattr(Played, "broken", True)
        lives[0].dead.set()
        await _gone(watching)
        with pytest.raises(Refused, match=r"is not there: .*Cannot allocate memory"):
            await watching.watch(paths[1:])
        assert watching.paths == paths[:1]


async def test_watch_while_listeners_die(
    lives: list[Played], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the next one alone is waited for, but whichever is there at last."""

    async def at_once(self: Surveyor, path: str) -> bytes:
        return os.fsencode(path)

    monkeypatch.setattr(Surveyor, "resolve", at_once)
    async with _restarting(lives) as (_, watching, listener), trio.open_nursery() as nursery:
        nursery.start_soon(watching.watch, paths)
        await trio.testing.wait_all_tasks_blocked()
        listener.dead.set()
        await _until(lambda: len(lives) == 3)
        lives[2].marked.set()


async def test_whoever_wants_more_watched_gives_up(lives: list[Played], paths: list[str]) -> None:
    """The listener may have taken the paths: it is told again which ones are watched."""
    async with _watching(paths[0]) as (_, watching):
        lives[0].marked = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watching.watch, paths[1:])
            await _until(lambda: len(lives[0].told) == 2)
            nursery.cancel_scope.cancel()
        assert watching.paths == paths[:1]
        lives[0].marked.set()
        await _until(lambda: len(lives[0].told) == 3)
        assert _told(lives[0]) == [paths[:1], paths, paths[:1]]


async def test_the_first_one_gives_up(lives: list[Played], paths: list[str]) -> None:
    """Then there is nobody to listen for."""
    async with _watching(paths[0]) as (_, watching):
        await watching.unwatch([paths[0]])
        await _gone(watching)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watching.watch, paths)
            await _until(lambda: len(lives) == 2 and lives[1].asked.is_set())
            nursery.cancel_scope.cancel()
        await _gone(watching)


async def test_nothing_is_watched_any_more_while_a_listener_ends(
    lives: list[Played], paths: list[str]
) -> None:
    """Its end is of no concern for who comes next."""
    async with _watching(paths[0]) as (_, watching):
        lives[0].ended = trio.Event()
        lives[0].dead.set()
        await _gone(watching)
        await watching.unwatch(paths[:1])
        lives[0].ended.set()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watching.watch, paths[:1])
            await _until(lambda: len(lives) == 2)
            lives[1].marked.set()
        assert watching.paths == paths[:1]


async def test_a_path_that_is_left_out(
    lives: list[Played], paths: list[str], expected_logs: ExpectedLogs
) -> None:
    """Only who asks for it is refused; it is told once, and in the status until it is back."""
    expected_logs.expect("not watched: /a: no")
    one, two, three = paths
    async with _watching(one, two) as (_, watching):
        lives[0].left_out = {os.fsencode(one): Refused(errno.EINVAL, "/a: no")}
        for number in range(2, 4):
            lives[0].mounted()
            await _until(partial(_is_told, lives[0], number))
            assert lives[0].told[-1].required == ()
        await watching.watch([three])
        assert lives[0].told[-1].required == (os.fsencode(three),)
        status = await watching.status()
        assert (status["left_out"], status["paths"]) == (["/a: no"], paths)
        lives[0].left_out = {}
        lives[0].mounted()
        await _until(lambda: len(lives[0].told) == 5)
        assert (await watching.status())["left_out"] == []


async def test_mounts_of_others_fill_no_log(
    lives: list[Played], paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody mounts a file system of his own again and again; each path of ours is still told."""
    caplog.set_level(logging.INFO, watcher.__name__)
    async with _watching(*paths) as (_, watching):
        for number in range(2, 22):
            point = f"{paths[0]}/{number}"
            lives[0].left_out = {os.fsencode(point): Refused(errno.EACCES, f"{point} is of uid 7")}
            lives[0].mounted()
            await _until(partial(_is_told, lives[0], number))
        last = Refused(errno.ENOENT, f"{paths[1]}: gone")
        lives[0].left_out = {os.fsencode(paths[1]): last}
        lives[0].mounted()
        await _until(partial(_is_told, lives[0], 22))
        assert (await watching.status())["left_out"] == [str(last)]
    said = [line for line in caplog.messages if line.startswith("not watched: ")]
    assert said[-1] == f"not watched: {last}"
    assert len(said) == BURST + 1


async def test_a_path_that_comes_back_without_a_mount(
    lives: list[Played], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_AGAIN", 0.02)
    surveys: list[object] = []
    survey = Surveyor.survey

    async def counting(self: Surveyor, paths: Sequence[bytes], before: Found | None) -> Found:
        surveys.append(paths)
        return await survey(self, paths, before)

    monkeypatch.setattr(Surveyor, "survey", counting)
    one, two, _ = paths
    async with _watching(one, two) as (_, watching):
        listener = lives[0]
        os.rmdir(one)
        listener.mounted()
        await _until(lambda: len(listener.told) == 2)
        assert listener.told[1].points == (os.fsencode(two),)
        assert listener.told[1].files == (os.fsencode(one),)
        assert (await watching.status())["left_out"] == [f"{one}: No such file or directory"]
        # It is looked for, and the listener left alone.
        await _until(lambda: len(surveys) >= 6)
        assert len(listener.told) == 2
        os.mkdir(one)
        await _until(lambda: len(listener.told) == 3)
        assert listener.told[2].points == (os.fsencode(one), os.fsencode(two))


async def test_a_path_may_be_unwatched_by_another_name(
    lives: list[Played], paths: list[str]
) -> None:
    """Also one that is not there any more."""
    one, two, three = paths
    link = f"{one}-link"
    os.symlink(two, link)
    async with _watching(*paths) as (_, watching):
        os.rmdir(one)
        await watching.unwatch([f"{one}/../a", link])
        assert watching.paths == [three]


async def test_a_listener_is_replaced_while_all_threads_are_held_up(lives: list[Played]) -> None:
    """Requests on files of a dead file system take every thread that they may have."""
    limiter = trio.to_thread.current_default_thread_limiter()
    async with _watching("/usr/bin/env") as (_, watching):
        for number in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(number)
        try:
            lives[0].dead.set()
            with trio.fail_after(DEADLINE):
                await _until(lambda: len(lives) == 2)
                await lives[1].asked.wait()
                lives[1].marked.set()
                while (await watching.status())["listener"] != 2:
                    await trio.sleep(0.01)
        finally:
            for number in range(int(limiter.total_tokens)):
                limiter.release_on_behalf_of(number)


async def test_a_refused_use_is_told(
    lives: list[Played], expected_logs: ExpectedLogs, caplog: pytest.LogCaptureFixture
) -> None:
    """An ERROR, and one line for as many as come."""
    expected_logs.expect("not measured: /a: measurements are suspended")
    async with _watching("/usr/bin/env") as (emulator, watching):
        emulator.queue.suspended = True
        for number in range(100):
            lives[0].take(messages.Violation(number, b"/a", "ToMToU"))
        assert (await watching.status())["refused"] == 100
    assert sum("not measured" in line for line in caplog.messages) == 1


async def test_a_use_is_recorded_as_the_listener_has_decided_it(
    lives: list[Played], expected_logs: ExpectedLogs
) -> None:
    """One record per PCR, by the template of its rule; the policy is not asked again."""
    expected_logs.expect("not measured: /a: template format 'nonsense")
    async with _watching("/usr/bin/env") as (emulator, _):
        before = emulator.queue.totals.added
        pcrs = ((messages.DEFAULT_PCR, "ima-sig"), (11, "d-ng|n-ng|iuid"), (12, ""))
        lives[0].take(messages.Use(7, b"/a", pcrs, 5, 6, 0o100644, bytes(32), b"", b"", b""))
        await _until(lambda: messages.Done(7) in lives[0].sent)
        assert emulator.queue.totals.added == before + 3
        lines = b"".join(emulator.queue.ascii_list()).splitlines()
        found = [line.split(b" ") for line in lines][before:]
        assert [(words[0], words[2]) for words in found] == [
            (b"10", b"ima-sig"),
            (b"11", b"d-ng|n-ng|iuid"),
            (b"12", b"ima-ng"),
        ]
        lives[0].take(messages.Use(8, b"/a", ((11, "nonsense|n-ng"),), 5, 6, 0, b"", b"", b"", b""))
        assert messages.Done(8, False) in lives[0].sent


async def test_appended_rules_alone_are_told(lives: list[Played]) -> None:
    """A boot script that writes rule by rule is not told all of them again and again."""
    async with _watching("/usr/bin/env") as (emulator, _):
        for number in range(3):
            session = PolicyWriter(emulator)
            await session.write(b"measure func=FILE_CHECK uid=%d\n" % number, 0)
            session.close()
        told = [message for message in lives[0].sent if isinstance(message, messages.Rules)][1:]
        assert [message.more for message in told] == [False, True, True]
        assert [message.text.count(b"\n") for message in told] == [1, 1, 1]
        await emulator.reset()
        last = [message for message in lives[0].sent if isinstance(message, messages.Rules)][-1]
        assert not last.more
