# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Uses on their way, and who waits for them: without fanotify, with a watcher that is played."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.sources import local_files
from imafs.sources.watch import fanotify
from imafs.sources.watch import messages as wire
from imafs.sources.watch.child import pending
from imafs.sources.watch.child.iint import Inode
from imafs.sources.watch.child.job import Job, Missed, Use, Verdict
from imafs.sources.watch.child.pending import Jobs
from imafs.sources.watch.child.task import UNKNOWN
from imafs.sources.watch.fanotify import Event
from imafs.sources.watch.messages import DEFAULT_PCR
from imafs.sources.watch.packets import Channel
from tests.support import wait_for

DEADLINE = 0.2
#: Read without asking first what is in memory.
TMPFS = wire.FileSystem(0, 0x0102_1994, "tmpfs", "", b"", b"tmpfs")


class World:
    """Jobs, the other end of their socket, and the openers that went on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        watcher, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.watcher, self.ours = Channel(watcher), Channel(ours)
        self.allowed: list[Event] = []
        self.jobs = Jobs(self.ours, DEADLINE, self._allow)
        self.inode = Inode()

    def _allow(self, event: Event) -> None:
        self.allowed.append(event)
        os.close(event.fd)

    def open(self, content: bytes, *, inode: Inode | None = None, again: bool = False) -> Event:
        """An open of a file with this content; judged, and answered if nobody waits."""
        path = self.folder / hashlib.sha256(content).hexdigest()
        if not path.exists():
            path.write_bytes(content)
        use = self.use(path)
        file = inode or self.inode
        job = Job(use, file, {DEFAULT_PCR: ""}, file.generation, again=again)
        self.jobs.carry_out(Verdict(use, measure=job))
        if not self.jobs.settle(use.event):
            self._allow(use.event)
        return use.event

    def use(self, path: Path) -> Use:
        """An open of ``path`` that is being judged."""
        event = Event(fanotify.OPEN_PERM, os.open(path, os.O_RDONLY), 1)
        self.jobs.current = event
        info = os.fstat(event.fd)
        return Use(event, b"/n", info, TMPFS, UNKNOWN, 0, self.deadline(), elf=False)

    def messages(self) -> list[wire.Message]:
        """What the watcher has been sent."""
        found = []
        while (packet := self.watcher.receive()) is not None:
            found.append(wire.decode(packet))
        return found

    def deadline(self) -> float:
        """Of an open that happens now."""
        return time.monotonic() + DEADLINE

    def uses(self) -> list[wire.Use]:
        return [message for message in self.messages() if isinstance(message, wire.Use)]

    def expires(self) -> None:
        """Waits until every deadline has passed."""
        wait_for(lambda: self.jobs.wait(1) in (0, 1), 60, "the deadline has passed")
        self.jobs.expire()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.watcher.close()
    made.ours.close()


def test_waits_for_the_answer(world: World) -> None:
    event = world.open(b"one")
    [use] = world.uses()
    assert use.digest == hashlib.sha256(b"one").digest()
    assert world.allowed == []
    world.jobs.done(use.number, measured=True)
    assert world.allowed == [event]
    assert world.inode.measured == {DEFAULT_PCR}
    assert world.jobs.descriptors == 0


def test_same_content_waits_for_the_same_job(world: World) -> None:
    first, second = world.open(b"one"), world.open(b"one")
    [use] = world.uses()
    world.jobs.done(use.number, measured=True)
    assert world.allowed == [first, second]


def test_a_large_file_is_hashed_in_a_thread(world: World) -> None:
    content = b"large" * 100_000
    world.open(content)
    small = world.open(b"small", inode=Inode())
    [use] = world.uses()
    world.jobs.done(use.number, measured=True)
    assert world.allowed == [small]
    poll = select.poll()
    poll.register(world.jobs.finished, select.POLLIN)
    assert poll.poll(60_000)
    world.jobs.proceed()
    [use] = world.uses()
    assert use.digest == hashlib.sha256(content).digest()
    assert not poll.poll(0)
    world.jobs.proceed()


def test_a_deadline_that_the_daemon_lets_pass(world: World) -> None:
    """One waits for it; the next ones do not, until the daemon has answered."""
    first = world.open(b"one")
    world.expires()
    assert world.allowed == [first]
    second = world.open(b"two", inode=Inode())
    assert world.allowed == [first, second]
    counts = world.jobs.counts
    assert (counts.late, counts.unasked) == (1, 1)
    one, two = world.uses()
    world.jobs.done(one.number, measured=True)
    # Late, but measured.
    assert world.inode.measured == {DEFAULT_PCR}
    world.open(b"three", inode=Inode())
    assert len(world.allowed) == 2
    world.jobs.done(two.number, measured=True)


def test_an_answer_to_a_descriptor_that_is_anothers(world: World) -> None:
    first = world.open(b"one")
    world.expires()
    [one] = world.uses()
    world.jobs.done(10_000, measured=True)  # the daemon is back
    second = world.open(b"two", inode=Inode())
    assert second.fd == first.fd
    world.jobs.done(one.number, measured=True)
    assert len(world.allowed) == 1


def test_what_the_queue_refused_is_tried_again(world: World) -> None:
    world.open(b"one")
    [use] = world.uses()
    world.jobs.done(use.number, measured=False)
    assert world.inode.measured == set()
    world.open(b"one")
    assert len(world.uses()) == 1


def test_hashed_again_for_nothing(world: World) -> None:
    """The file was too new to be trusted: the same digest is not told twice."""
    world.open(b"one")
    [use] = world.uses()
    world.jobs.done(use.number, measured=True)
    world.inode.measured.clear()
    world.open(b"one", again=True)
    assert world.uses() == []
    assert len(world.allowed) == 2
    assert world.inode.measured == {DEFAULT_PCR}


def test_a_file_that_cannot_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(local_files, "describe", fail)
    event = world.open(b"one")
    assert world.allowed == [event]
    assert world.jobs.counts.errors == 1
    assert "Input/output error" in world.jobs.counts.trouble
    assert world.jobs.missed.total == 1


def test_a_violation_and_a_use(world: World) -> None:
    """The opener waits for both, in whatever order they are answered."""
    path = world.folder / "file"
    path.write_bytes(b"x")
    use = world.use(path)
    job = Job(use, world.inode, {10: "ima-sig"}, 0)
    world.jobs.carry_out(Verdict(use, ("open_writers",), job))
    assert world.jobs.settle(use.event)
    violation, told = world.messages()
    assert isinstance(violation, wire.Violation)
    assert (violation.cause, violation.dev, violation.ino) == (
        "open_writers",
        b"tmpfs",
        use.info.st_ino,
    )
    assert isinstance(told, wire.Use)
    assert told.pcrs == ((10, "ima-sig"),)
    world.jobs.done(told.number, measured=True)
    assert world.allowed == []
    world.jobs.done(violation.number, measured=True)
    assert world.allowed == [use.event]


def test_a_daemon_that_reads_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages wait, a bounded number of them; the rest is lost, and counted."""
    monkeypatch.setattr(pending, "_MOST_UNSENT", 10)
    number = 0
    while not world.jobs.counts.lost:
        world.open(b"%d" % number, inode=Inode())
        number += 1
    assert world.jobs.unsent == 10
    lost = world.allowed
    assert len(lost) == 1
    received = 0
    while world.jobs.unsent:
        received += len(world.uses())
        world.jobs.proceed()
    received += len(world.uses())
    assert received == number - 1


def test_overflow_is_counted(world: World) -> None:
    world.jobs.overflowed()
    assert world.jobs.counts.overflows == 1
    assert world.jobs.missed.total == 1


def test_what_a_verdict_counts_and_misses(world: World) -> None:
    """Nobody waits for it."""
    path = world.folder / "file"
    path.write_bytes(b"x")
    use = world.use(path)
    missed = (Missed(b"/n", "too many files are being opened", 1000),)
    world.jobs.carry_out(Verdict(use, missed=missed, counts=("watched", "lost")))
    assert not world.jobs.settle(use.event)
    os.close(use.event.fd)
    counts = world.jobs.counts
    assert (counts.watched, counts.lost, world.jobs.missed.total) == (1, 1, 1)
    world.jobs.missed.flush()
    [told] = world.messages()
    assert told == wire.Missed(1, b"/n", "too many files are being opened", 1000)


def test_a_truncation_by_the_use_itself_outlives_its_measurement(world: World) -> None:
    """``process_measurement`` comes before the truncation of O_TRUNC: the next one measures."""
    path = world.folder / "file"
    path.write_bytes(b"x")
    use = world.use(path)
    job = Job(use, world.inode, {10: ""}, world.inode.generation)
    world.inode.truncated()
    world.jobs.carry_out(Verdict(use, measure=job))
    assert world.jobs.settle(use.event)
    [told] = world.uses()
    world.jobs.done(told.number, measured=True)
    assert world.inode.measured == set()


def test_the_head_is_read_by_a_thread_while_a_use_is_held(world: World) -> None:
    path = world.folder / "file"
    path.write_bytes(b"\x7fELF...")
    use = world.use(path)
    use.elf = None
    world.jobs.carry_out(Verdict(use, held=True))
    look = use.look
    assert look is not None
    wait_for(lambda: look.result == b"\x7fELF", 60, "a thread has read it")
    world.jobs.carry_out(Verdict(use, held=True))
    assert use.look is look
    assert not world.jobs.settle(use.event)
    os.close(use.event.fd)
