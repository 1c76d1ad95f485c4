# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The verdicts: which events are uses, and what each of them asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.sources.watch import fanotify, messages
from imafs.sources.watch.child import decide, task
from imafs.sources.watch.child.decide import Judge
from imafs.sources.watch.child.job import Use, Verdict
from imafs.sources.watch.fanotify import Event

#: Read without asking first what is in memory.
TMPFS = messages.FileSystem(0, 0x0102_1994, "tmpfs", "", b"")


class World:
    """A judge that watches a folder with one file, and the openers' beginnings by thread."""

    def __init__(self, folder: Path, beginnings: dict[int, int]) -> None:
        self.file = folder / "file"
        self.file.write_bytes(b"content")
        self.beginnings = beginnings
        self.room = True
        self.judge = Judge(1, lambda account: self.room)
        self.verdicts: list[Verdict] = []
        path = os.fsencode(folder)
        self.judge.watch(messages.Watch(1, (path,), (path,), (TMPFS,)))

    def uses(self, mask: int, tid: int) -> int:
        """How many uses an event is."""
        with self.file.open("rb") as file:
            return self.consider(Event(mask, file.fileno(), tid)).counts.count("watched")

    def consider(self, event: Event) -> Verdict:
        verdict = self.judge.consider(event)
        self.verdicts.append(verdict)
        return verdict

    def again(self, use: Use) -> Verdict:
        verdict = self.judge.again(use)
        self.verdicts.append(verdict)
        return verdict

    def counted(self, name: str) -> int:
        """How often verdicts have said so."""
        return sum(verdict.counts.count(name) for verdict in self.verdicts)

    def rules(self, text: bytes) -> None:
        """The policy."""
        self.judge.rulebook.take(text, more=False)
        self.judge.rulebook.proceed(60)

    def close(self) -> None:
        os.close(self.judge.mounts)


def held(verdict: Verdict) -> Use:
    """The use that could not be judged yet."""
    assert verdict.held
    assert verdict.use is not None
    return verdict.use


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
    world.judge.know(messages.Settings("sha256", False, ((me, 100),)))
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
        verdict = world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
        for _ in range(running):
            verdict = world.again(held(verdict))
        assert not verdict.held
    assert world.counted("watched") == 1
    assert world.counted("hidden") == 0


def test_others_are_judged_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[int, task.Way | None] = {1: None, 2: task.Way(os.O_RDONLY)}
    monkeypatch.setattr(task, "way", shown.get)
    world.beginnings[1] = 100
    with world.file.open("rb") as file:
        assert world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1)).held
        assert not world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 2)).held
    assert world.counted("watched") == 2


def test_an_opener_that_runs_until_its_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then it counts as hidden."""
    monkeypatch.setattr(task, "way", lambda _: None)
    world.beginnings[1] = 100
    with world.file.open("rb") as file:
        use = held(world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1)))
        assert world.again(use).held
        use.deadline = 0.0
        assert not world.again(use).held
    assert world.counted("hidden") == 1


def test_an_opener_that_is_killed_while_it_is_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has opened anything."""
    monkeypatch.setattr(task, "way", lambda _: None)
    world.beginnings[1] = 100
    with world.file.open("rb") as file:
        use = held(world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1)))
        del world.beginnings[1]
        assert world.again(use) == Verdict(use)
    assert world.counted("hidden") == 0


def test_uses_wait_for_the_policy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written holds for the next open, also while it is still being read."""
    monkeypatch.setattr(task, "way", lambda _: task.Way(os.O_RDONLY))
    world.beginnings[1] = 100
    world.judge.rulebook.take(b"measure\n" * 10, more=False)
    with world.file.open("rb") as file:
        use = held(world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1)))
        world.judge.rulebook.proceed(10)
        verdict = world.again(use)
        assert not verdict.held
        assert verdict.measure is not None


def test_a_policy_that_is_not_read_in_time_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "way", lambda _: task.Way(os.O_RDONLY))
    world.beginnings[1] = 100
    world.judge.rulebook.take(b"measure\n" * 10, more=False)
    with world.file.open("rb") as file:
        use = held(world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1)))
        use.deadline = 0.0
        verdict = world.again(use)
    assert [missed.why for missed in verdict.missed] == ["the policy is still being read"]
    assert verdict.measure is None


def test_no_room(world: World) -> None:
    world.room = False
    with world.file.open("rb") as file:
        verdict = world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
    [missed] = verdict.missed
    assert (missed.name, missed.why) == (
        os.fsencode(world.file),
        "too many files are being opened",
    )
    assert verdict.counts == ("watched", "lost")
    assert not verdict.held


def test_the_rules_are_asked_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict has what the record needs: each PCR, and the template of its rule."""
    shown = {1: task.Way(os.O_RDONLY), 2: task.Way(os.O_RDONLY | os.O_DIRECT)}
    monkeypatch.setattr(task, "way", shown.get)
    world.beginnings.update({1: 100, 2: 100})
    world.rules(b"measure func=FILE_CHECK pcr=11 template=ima-sig\nmeasure func=BPRM_CHECK\n")
    with world.file.open("rb") as file:
        read = world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
        executed = world.consider(Event(fanotify.OPEN_EXEC_PERM, file.fileno(), 1))
        direct = world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 2))
    assert read.measure is not None
    assert read.measure.pcrs == {11: "ima-sig"}
    assert executed.measure is not None
    assert executed.measure.pcrs == {messages.DEFAULT_PCR: ""}
    assert direct.measure is not None
    assert direct.measure.use.is_direct
    # What is measured already is not asked for again.
    read.measure.inode.measured.add(11)
    with world.file.open("rb") as file:
        assert world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1)).measure is None


def test_violations_come_before_the_measurement(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {1: task.Way(os.O_RDONLY), 2: task.Way(os.O_WRONLY)}
    monkeypatch.setattr(task, "way", shown.get)
    monkeypatch.setattr(task, "holds", lambda *_, writing: not writing)
    monkeypatch.setattr(task, "is_written", lambda _: True)
    world.beginnings.update({1: 100, 2: 100})
    world.rules(b"measure func=FILE_CHECK\n")
    with world.file.open("rb") as file:
        read = world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 1))
        assert read.violations == ("open_writers",)
        assert read.measure is not None
        written = world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 2))
    assert written.violations == ("ToMToU",)


def test_a_directory_elsewhere_is_ignored_where_that_can_be_done(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "file"
    other.write_bytes(b"")
    with other.open("rb") as file:
        event = Event(fanotify.OPEN_PERM, file.fileno(), 1)
        assert world.consider(event) == Verdict()
        world.judge.ignoring = True
        verdict = world.consider(event)
    assert verdict.ignore is not None
    assert verdict.ignore[0] == os.fsencode(other.parent)
    assert verdict.use is None


def test_a_file_that_is_forgotten_while_it_is_read_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than there is room for: a ToMToU of it could not be seen any more."""
    monkeypatch.setattr(task, "way", lambda _: task.Way(os.O_RDONLY))
    inodes = world.judge._inodes
    monkeypatch.setattr(inodes, "_most", 1)
    inode = inodes.get((1, 7), 0)
    inode.may_emit_tomtou = True
    inode.readers[os.getpid()] = None
    monkeypatch.setattr(task, "holds", lambda *_, writing: not writing)
    with world.file.open("rb") as file:
        verdict = world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 0))
    [missed] = verdict.missed
    assert missed.name == b"inode 7"
    with world.file.open("rb") as file:
        assert world.consider(Event(fanotify.OPEN_PERM, file.fileno(), 0)).missed == ()
