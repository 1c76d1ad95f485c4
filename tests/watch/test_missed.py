# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What was not measured is told: every reason, every use counted, and never without bound."""

from __future__ import annotations

import time

import pytest

from imafs.errors import Refused
from imafs.sources.watch.missed import MOST, PAUSE, Missed, line, reason


class World:
    """What was told, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[int, bytes, str, int]] = []
        self.now = 100.0
        self.missed = Missed(lambda *what: self.told.append(what))
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def flushed(self) -> list[tuple[int, bytes, str, int]]:
        self.missed.flush()
        told, self.told = self.told, []
        return told


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_the_first_at_once_then_in_sums(world: World) -> None:
    world.missed.note(b"/a", "slow", 1000)
    assert world.flushed() == [(1, b"/a", "slow", 1000)]
    for number in range(50_000):
        world.missed.note(b"/%d" % number, "slow", 1000)
    assert world.flushed() == []
    world.missed.note(b"/b", "slow", 0)
    assert world.flushed() == [(1, b"/b", "slow", 0)]
    world.now += PAUSE
    assert world.flushed() == [(50_000, b"/49999", "slow", 1000)]
    assert world.missed.total == 50_002


def test_many_users_and_reasons(world: World) -> None:
    """Nobody's user ids fill the log; who is left is told as a sum."""
    for uid in range(65_536):
        world.missed.note(b"/a", "slow", uid)
    told = world.flushed()
    assert len(told) == MOST + 1
    assert sum(count for count, *_ in told) == 65_536
    assert told[-1][2:] == ("further reasons", -1)
    world.now += PAUSE
    assert world.flushed() == []
    world.missed.note(b"/b", "late", 3)
    assert world.flushed() == [(1, b"/b", "late", 3)]


def test_a_line_of_the_log() -> None:
    forged = b"/a\nimafs: ERROR: forged\x1b[2J"
    text = line(1, forged, "slow", 1000)
    assert text.isprintable()
    assert text.startswith("not measured: /a\\x0a")
    assert text.endswith(", used by uid 1000: slow")
    assert line(7, b"/a", "slow", -1) == ("not measured: 7 uses of files, the last one of /a: slow")


def test_reasons_are_few() -> None:
    assert reason(OSError(36, "File name too long", "/proc/self/fd/7")) == "File name too long"
    assert reason(Refused(28, "the queue is full")) == "the queue is full"
    assert len(reason(ValueError("x" * 1000))) <= 200
