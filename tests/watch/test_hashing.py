# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Turns of hashing: no account's files, and no dead file system, keep another's from its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.sources.watch.child import hashing
from imafs.sources.watch.child.hashing import PER_DEVICE, THREADS, Pool, Steps, Work
from imafs.sources.watch.child.task import Account
from tests.support import wait_for

SECONDS = 60
#: Threads in one file system: one less than make it left alone may be stuck in it while all
#: that hash go in too.
MOST_IN_ONE = THREADS + PER_DEVICE - 1


class World:
    """A pool, and works that the test makes."""

    def __init__(self) -> None:
        self.pool = Pool(lambda: None)
        self.go_on = threading.Event()
        self.done: list[Work] = []
        self.works: list[Work] = []

    def add(self, steps: Steps, account: Account, device: int = 1) -> Work:
        work = Work(os.open("/dev/null", os.O_RDONLY), device, steps, {account})
        self.works.append(work)
        self.pool.add(work)
        return work

    def finished(self, work: Work) -> bool:
        self.pool.tend()
        self.done += self.pool.take_finished()
        return work in self.done

    def finishes(self, work: Work) -> None:
        wait_for(lambda: self.finished(work), SECONDS, "it is hashed")

    def hang(self, account: Account, device: int) -> Work:
        """A work that is stuck in a read, in a thread by now."""
        work = self.add(hangs(self.go_on), account, device)
        return work

    def close(self) -> None:
        self.go_on.set()
        for work in self.works:
            self.pool.drop(work)
        closed = [work for work in self.works if work.descriptor >= 0]
        wait_for(lambda: all(w.descriptor < 0 for w in closed), SECONDS, "descriptors are closed")


def endless() -> Steps:
    """As a sparse file of terabytes: every step is short, and there is always another."""
    while True:
        os.sched_yield()
        yield


def hangs(until: threading.Event) -> Steps:
    until.wait(SECONDS)
    yield
    return b"late"


def quick() -> Steps:
    yield
    return b"digest"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(hashing, "SLICE", 0.002)
    monkeypatch.setattr(hashing, "STUCK", 0.05)
    made = World()
    yield made
    made.close()


def test_endless_files_of_one_hold_up_nobody_else(world: World) -> None:
    for _ in range(5 * THREADS):
        world.add(endless(), 1000)
    others = [world.add(quick(), uid) for uid in (0, 1001, ("namespace", 7))]
    for work in others:
        world.finishes(work)
        assert work.result == b"digest"
    # Nor his own other files.
    world.finishes(world.add(quick(), 1000))


def test_turns_go_from_account_to_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from file to file: a thousand files are one account's turn."""
    taken: list[Account] = []
    pool = Pool(lambda: None)
    monkeypatch.setattr(hashing, "THREADS", 0)  # the test takes the turns itself
    works = [Work(-1, 1, quick(), {1000}) for _ in range(50)]
    works += [Work(-1, 1, quick(), {0}), Work(-1, 1, quick(), {1001})]
    for work in works:
        pool.add(work)
    while (work_ := pool._next()) is not None:
        taken += work_.accounts
    assert taken[:4] == [1000, 0, 1001, 1000]
    assert len(taken) == 52


def test_who_waits_for_anothers_file_brings_his_own_turn(world: World) -> None:
    """Root opens what a user with a crowd of endless files has opened first."""
    for _ in range(5 * THREADS):
        world.add(endless(), 1000)
    work = world.add(quick(), 1000)
    world.pool.join(work, 0)
    world.finishes(work)


def test_a_file_system_that_hangs(world: World) -> None:
    """It keeps some threads and no others; further files of it wait without one."""
    hung = [world.hang(1000, 7) for _ in range(3 * THREADS)]
    for uid in (0, 1000):
        world.finishes(world.add(quick(), uid, device=8))
    assert PER_DEVICE <= sum(work.running for work in hung) <= MOST_IN_ONE
    # Many dead file systems: as many threads, up to the last one.
    more = [world.hang(1000, device) for device in range(100, 100 + 2 * THREADS)]
    world.finishes(world.add(quick(), 0, device=8))
    world.go_on.set()
    for work in (*hung, *more):
        world.finishes(work)


def test_the_most_threads_in_a_file_system_that_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but one of those that it may keep are stuck, and as many as hash are in it besides."""

    def stuck() -> int:
        world.pool.tend()
        return world.pool._stuck[7]

    hung = [world.hang(1000, 7) for _ in range(PER_DEVICE - 1)]
    wait_for(lambda: stuck() == PER_DEVICE - 1, SECONDS, "they are found")
    monkeypatch.setattr(hashing, "STUCK", 10 * SECONDS)
    hung += [world.hang(1000, 7) for _ in range(3 * THREADS)]

    def running() -> int:
        world.pool.tend()
        return sum(work.running for work in hung)

    wait_for(lambda: running() == MOST_IN_ONE, SECONDS, "all who may are in it")
    monkeypatch.setattr(hashing, "STUCK", 0.05)
    wait_for(lambda: stuck() == MOST_IN_ONE, SECONDS, "they are found too")
    for uid in (0, 1000):
        world.finishes(world.add(quick(), uid, device=8))
    assert running() == MOST_IN_ONE
    world.go_on.set()
    for work in hung:
        world.finishes(work)


def test_nobody_wants_it_any_more(world: World) -> None:
    work = world.add(endless(), 1000)
    wait_for(lambda: work.running, SECONDS, "it is being hashed")
    descriptor = work.descriptor
    world.pool.drop(work)
    wait_for(lambda: not work.running, SECONDS, "it has ended")
    assert world.pool.unfinished == 0
    wait_for(lambda: work.descriptor < 0, SECONDS, "its descriptor is closed")
    assert not Path(f"/proc/self/fd/{descriptor}").is_symlink()


def test_dropped_works_leave_nothing(world: World) -> None:
    """Also those of a file system that hangs for ever: openers come again and again."""
    for _ in range(THREADS):
        world.hang(1000, 7)
    world.finishes(world.add(quick(), 0, device=8))
    waiting = [world.add(quick(), 1000, device=7) for _ in range(100)]
    world.finishes(world.add(quick(), 1000, device=8))
    for work in waiting:
        world.pool.drop(work)
    assert not any(world.pool._parked.values())
    assert not world.pool._turns
    assert all(work.descriptor < 0 for work in waiting)


def test_an_error_is_the_end(world: World) -> None:
    def fails() -> Steps:
        yield
        raise OSError(5, "Input/output error")

    work = world.add(fails(), 0)
    world.finishes(work)
    assert work.failure is not None
    assert work.failure.errno == 5
