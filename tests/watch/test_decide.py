# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which events are uses: the second one of an execve is none, another thread's is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.sources.watch import fanotify, messages
from imafs.sources.watch.channel import Channel
from imafs.sources.watch.child import decide, task
from imafs.sources.watch.child.decide import Judge
from imafs.sources.watch.child.pending import Jobs
from imafs.sources.watch.fanotify import Event


class World:
    """A judge that watches a folder with one file, and the openers' beginnings by thread."""

    def __init__(self, folder: Path, beginnings: dict[int, int]) -> None:
        self.file = folder / "file"
        self.file.write_bytes(b"content")
        self.beginnings = beginnings
        self.watcher, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._jobs = Jobs(Channel(self._ours), 1, lambda event: None)
        self.judge = Judge(self._jobs)
        path = os.fsencode(folder)
        self.judge.watch(messages.Watch(1, (path,), (path,), ()))

    def uses(self, mask: int, tid: int) -> int:
        """How many uses an event is."""
        before = self._jobs.counts.watched
        with self.file.open("rb") as file:
            self.judge.consider(Event(mask, file.fileno(), tid))
        return self._jobs.counts.watched - before

    @property
    def counts(self) -> messages.Counters:
        return self._jobs.counts

    @property
    def missed(self) -> int:
        return self._jobs.missed.total

    def seconds(self, seconds: float) -> None:
        """Until an opener goes on."""
        self._jobs.seconds = seconds

    def close(self) -> None:
        self.watcher.close()
        self._ours.close()
        os.close(self.judge.mounts)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    beginnings: dict[int, int] = {}
    monkeypatch.setattr(task, "began", beginnings.get)
    made = World(tmp_path, beginnings)
    yield made
    made.close()


def test_two_events_of_one_execve(world: World) -> None:
    world.beginnings[1] = 100
    assert world.uses(fanotify.OPEN_EXEC_PERM, 1) == 1
    assert world.uses(fanotify.OPEN_PERM, 1) == 0
    assert world.uses(fanotify.OPEN_PERM, 1) == 1


def test_killed_between_the_two(world: World) -> None:
    """The next thread of that number opens the very file."""
    world.beginnings[1] = 100
    assert world.uses(fanotify.OPEN_EXEC_PERM, 1) == 1
    world.beginnings[1] = 200
    assert world.uses(fanotify.OPEN_PERM, 1) == 1


def test_a_thread_that_cannot_be_looked_up(world: World) -> None:
    """All those of other pid namespaces have the number 0: nothing of them is left out."""
    for mask in (fanotify.OPEN_EXEC_PERM, fanotify.OPEN_PERM):
        assert world.uses(mask, 0) == 1


def test_those_killed_in_between_are_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide, "_MOST_EXECUTING", 3)
    world.beginnings.update(dict.fromkeys(range(1, 6), 100))
    for tid in range(1, 6):
        world.uses(fanotify.OPEN_EXEC_PERM, tid)
    # Of the oldest two the second event is a use; one too many does no harm.
    assert [world.uses(fanotify.OPEN_PERM, tid) for tid in range(1, 6)] == [1, 1, 0, 0, 0]


def test_a_later_process_of_an_excused_number_is_measured(world: World) -> None:
    """swtpm has ended, and its number is another process's now."""
    me = os.getpid()
    world.beginnings[me] = 100
    world.judge.settings = messages.Settings("sha256", False, ((me, 100),))
    assert world.uses(fanotify.OPEN_PERM, me) == 0
    world.beginnings[me] = 200
    assert world.uses(fanotify.OPEN_PERM, me) == 1


class Looks:
    """What /proc shows of an opener: running so many times, then an open for writing."""

    def __init__(self, running: int) -> None:
        self.running = running

    def __call__(self, tid: int) -> task.Way | None:
        self.running -= 1
        return task.Way(os.O_WRONLY) if self.running < 0 else None


@pytest.mark.parametrize("running", [0, 1, 50])
def test_an_opener_that_is_still_running(
    world: World, monkeypatch: pytest.MonkeyPatch, running: int
) -> None:
    """On a busy machine: it is looked at again, and never taken for a reader."""
    monkeypatch.setattr(task, "way", Looks(running))
    world.beginnings[1] = 100
    with world.file.open("rb") as file:
        event = Event(fanotify.OPEN_PERM, file.fileno(), 1)
        held = world.judge.consider(event)
        assert held is (running > 0)
        looks = 0
        while held:
            assert world.judge.wait(1) < 0.01
            for use, pause in world.judge.due():
                held = world.judge.again(use, pause)
                looks += 1
        assert looks == running
    assert world.counts.hidden == 0


def test_others_are_judged_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[int, task.Way | None] = {1: None, 2: task.Way(os.O_RDONLY)}
    monkeypatch.setattr(task, "way", shown.get)
    world.beginnings[1] = 100
    with world.file.open("rb") as file:
        assert world.judge.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
        assert not world.judge.consider(Event(fanotify.OPEN_PERM, file.fileno(), 2))
    assert world.counts.watched == 2


def test_an_opener_that_runs_until_its_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then it counts as hidden."""
    monkeypatch.setattr(task, "way", lambda _: None)
    world.beginnings[1] = 100
    world.seconds(0.05)
    with world.file.open("rb") as file:
        held = world.judge.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
        assert held
        while held:
            for use, pause in world.judge.due():
                held = world.judge.again(use, pause)
    assert world.counts.hidden == 1


def test_an_opener_that_is_killed_while_it_is_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has opened anything."""
    monkeypatch.setattr(task, "way", lambda _: None)
    world.beginnings[1] = 100
    with world.file.open("rb") as file:
        assert world.judge.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
        del world.beginnings[1]
        while not (due := list(world.judge.due())):
            pass
        [(use, pause)] = due
        assert not world.judge.again(use, pause)
    assert world.counts.hidden == 0


def test_uses_wait_for_the_policy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written holds for the next open, also while it is still being read."""
    monkeypatch.setattr(task, "way", lambda _: task.Way(os.O_RDONLY))
    world.beginnings[1] = 100
    world.judge.rulebook.take(b"measure\n" * 10, more=False)
    with world.file.open("rb") as file:
        assert world.judge.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
        world.judge.rulebook.proceed(10)
        while not (due := list(world.judge.due())):
            pass
        [(use, pause)] = due
        assert not world.judge.again(use, pause)


def test_a_file_that_is_forgotten_while_it_is_read_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than there is room for: a ToMToU of it could not be seen any more."""
    held = world.judge._inodes
    monkeypatch.setattr(held, "_most", 1)
    inode = held.get((1, 7), 1000)
    inode.may_emit_tomtou = True
    inode.readers[os.getpid()] = None
    monkeypatch.setattr(task, "holds", lambda *_, writing: not writing)
    held.get((1, 8), 1000)
    assert world.missed == 1
    held.get((1, 9), 1000)
    assert world.missed == 1
