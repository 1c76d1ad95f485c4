# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What is known of a file: measured PCRs, and the two violations."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from imafs.sources.watch.child.iint import Identity, Inode, Inodes, Key
from imafs.sources.watch.child.task import Account

OLD = Identity(1, 1, 10)
NEW = Identity(2, 2, 10)


@dataclass
class World:
    """A file and the tasks that have it open: (task, for writing)."""

    inode: Inode = field(default_factory=Inode)
    identity: Identity = OLD
    open: set[tuple[int, bool]] = field(default_factory=set)
    asked: list[bool] = field(default_factory=list)

    def _live(self, tid: int, writing: bool) -> bool:
        self.asked.append(writing)
        return (tid, writing) in self.open

    def read(self, tid: int, *, must_measure: bool = True) -> bool:
        written = any(writing for _, writing in self.open)
        violation = self.inode.reading(
            tid, self.identity, must_measure=must_measure, written=written, live=self._live
        )
        self.open.add((tid, False))
        if must_measure and not self.inode.measured:
            self.inode.identity = self.identity
            self.inode.measured.add(10)
        return violation

    def write(self, tid: int, *, change: bool = False) -> bool:
        violation = self.inode.writing(tid, self.identity, self._live)
        self.open.add((tid, True))
        if change:
            self.identity = Identity(
                self.identity.ctime + 1, self.identity.mtime + 1, self.identity.size
            )
        return violation

    def close(self, tid: int, *, writing: bool) -> None:
        self.open.remove((tid, writing))

    def must_measure(self) -> bool:
        """Whether the next read has anything to measure."""
        self.inode.measured.discard(11)
        before = self.inode.measured.copy()
        self.inode.reading(
            99,
            self.identity,
            must_measure=False,
            written=any(writing for _, writing in self.open),
            live=self._live,
        )
        assert self.inode.measured <= before
        return not self.inode.measured


@pytest.fixture
def world() -> World:
    return World()


def test_open_writers_once_per_writer(world: World) -> None:
    """As recorded in viol.script: the second reader makes none, one after the close does."""
    world.write(1)
    assert world.read(2)
    assert not world.read(3)
    world.close(1, writing=True)
    assert not world.read(2)
    world.write(4)
    assert world.read(2)


def test_open_writers_after_another_writer(world: World) -> None:
    """No read between the two writers: the flag is cleared all the same."""
    world.write(1)
    assert world.read(2)
    world.close(1, writing=True)
    world.close(2, writing=False)
    world.write(4)
    assert world.read(2)


def test_open_writers_of_overlapping_writers(world: World) -> None:
    """The last writer's close counts: one violation while any of them is there."""
    world.write(1)
    assert world.read(2)
    world.write(3)
    world.close(1, writing=True)
    world.write(4)
    assert not world.read(2)


def test_no_violation_of_what_no_rule_measures(world: World) -> None:
    world.write(1)
    assert not world.read(2, must_measure=False)
    world.close(1, writing=True)
    assert not world.write(3)


def test_tomtou_once_per_reader(world: World) -> None:
    world.read(1)
    assert world.write(2)
    assert not world.write(3)
    world.read(1)
    assert world.write(2)


def test_no_tomtou_without_reader(world: World) -> None:
    world.read(1)
    world.close(1, writing=False)
    assert not world.write(2)
    # The flag stays: a reader of before may have been somebody else's.
    world.close(2, writing=True)
    world.open.add((1, False))
    world.inode.readers[1] = None
    assert world.write(3)


def test_content_counts_when_the_last_writer_has_closed(world: World) -> None:
    world.read(1)
    world.write(2, change=True)
    assert not world.must_measure()
    world.close(2, writing=True)
    assert world.must_measure()


def test_content_of_a_writer_before_another(world: World) -> None:
    world.read(1)
    world.write(2, change=True)
    world.close(2, writing=True)
    world.write(3)
    assert world.must_measure()


@pytest.mark.parametrize(
    ("identity", "dirty", "again"),
    [
        (OLD, False, False),
        (Identity(9, 1, 10), False, False),  # renamed, linked, another mode
        (Identity(9, 1, 10), True, True),  # written, the time of modification set back
        (Identity(1, 9, 10), False, True),  # written before it was watched
        (Identity(1, 1, 11), False, True),
    ],
)
def test_identity(world: World, identity: Identity, dirty: bool, again: bool) -> None:
    world.read(1)
    if dirty:
        world.write(2)
        world.close(2, writing=True)
    world.identity = identity
    assert world.must_measure() is again


def test_readers_are_bounded(world: World) -> None:
    """Those that ended are looked for, a few at each open and never all of them."""
    for tid in range(1, 1000):
        world.read(tid)
        world.close(tid, writing=False)
    assert len(world.inode.readers) <= 65
    assert len(world.asked) <= 2 * 1000
    world.open.add((999, False))
    assert world.write(2000)


def test_many_that_have_it_open_cost_a_look_or_two(world: World) -> None:
    for tid in range(1, 1000):
        world.read(tid)
        world.asked.clear()
        world.write(10_000 + tid)
        assert len(world.asked) <= 2
    world.asked.clear()
    world.read(5000)
    assert len(world.asked) <= 2


def test_inodes_are_bounded() -> None:
    known = Inodes(most=2)
    first = known.get((1, 1), 0)
    known.get((1, 2), 0)
    assert known.get((1, 1), 0) is first
    known.get((1, 3), 0)
    assert known.find((1, 2)) is None
    assert known.find((1, 1)) is first
    known.clear()
    assert len(known) == 0


def test_who_uses_many_files_forgets_his_own() -> None:
    """Also where he has used the others' as well, before them or after them."""
    forgotten: list[tuple[Key, Account]] = []
    known = Inodes(10, lambda key, inode, account: forgotten.append((key, account)))
    known.get((1, 1), 1000)
    others = [known.get((1, n), 0) for n in (1, 2, 3)]
    for n in range(100, 200):
        known.get((1, n), 1000)
        known.get((1, n % 3 + 1), 1000)
    assert [known.find((1, n)) for n in (1, 2, 3)] == others
    assert forgotten == [((1, n), 1000) for n in range(100, 193)]


@pytest.mark.parametrize(
    ("size", "blocks", "zero", "measured"),
    [
        (3, 8, False, set()),  # smaller
        (8, 8, False, {10}),  # the same
        (20, 8, False, {10}),  # written behind its end
        (20, 8, True, set()),  # truncated to a larger size
        (9000, 24, True, {10}),  # a hole, and something behind it; or fallocate()
    ],
)
def test_truncated_since_the_last_look(
    size: int, blocks: int, zero: bool, measured: set[int]
) -> None:
    inode = Inode()
    inode.look(8, 8, lambda _: False)
    inode.measured.add(10)
    asked: list[int] = []

    def zero_at(offset: int) -> bool:
        asked.append(offset)
        return zero

    inode.look(size, blocks, zero_at)
    assert inode.measured == measured
    assert inode.generation == (not measured)
    assert set(asked) <= {8}
    inode.look(size, blocks, lambda _: True)
    assert inode.measured == measured
