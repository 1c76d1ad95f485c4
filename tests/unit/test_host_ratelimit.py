# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Log lines that others can cause: the first ones are told, all are counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from imafs.host import ratelimit
from imafs.host.ratelimit import BURST, INTERVAL, KINDS, Ratelimit


class Clock:
    """Seconds, as the test says."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ratelimit, "time", clock)
    return clock


@pytest.fixture
def seldom(caplog: pytest.LogCaptureFixture) -> Iterator[Ratelimit]:
    log = logging.getLogger("tests.ratelimit")
    with caplog.at_level(logging.INFO, log.name):
        yield Ratelimit(log)


def test_a_flood_is_a_few_lines_and_a_count(
    clock: Clock, seldom: Ratelimit, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        seldom.say("mounts", logging.INFO, "not watched: /m%d", number)
    said = [f"not watched: /m{number}" for number in range(BURST)]
    assert caplog.messages == [*said, f"further lines of this kind are left out for {INTERVAL:g} s"]
    caplog.clear()
    clock.now += INTERVAL
    seldom.say("mounts", logging.INFO, "not watched: /later")
    assert caplog.messages == [
        f"mounts: {1000 - BURST} lines were left out",
        "not watched: /later",
    ]


def test_a_kind_silences_no_other(
    clock: Clock, seldom: Ratelimit, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        seldom.say("mounts", logging.INFO, "noise")
    seldom.say("/usr", logging.INFO, "not watched: /usr")
    assert caplog.messages[-1] == "not watched: /usr"


def test_many_kinds_take_no_more_memory_than_a_few(
    clock: Clock, seldom: Ratelimit, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10_000):
        seldom.say(f"uid {number}", logging.INFO, "refused")
    assert caplog.messages.count("refused") == KINDS + BURST
    assert len(seldom._kinds) == KINDS + 1
