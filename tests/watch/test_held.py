# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""When what cannot be judged yet is looked at again."""

from __future__ import annotations

from imafs.sources.watch.child.held import FIRST, LONGEST, Held


def test_pauses_grow() -> None:
    held: Held[str] = Held()
    now, pause, looks = 100.0, FIRST, 0
    held.add("a", now, deadline=105.0)
    while True:
        assert list(held.due(now)) == []
        now += held.wait(now, 1.0)
        [(item, pause)] = held.due(now)
        assert item == "a"
        looks += 1
        if now >= 105.0:
            break
        held.add(item, now, 105.0, pause)
    assert now == 105.0
    assert pause == LONGEST
    # A few hundred looks a second at most: nobody spins.
    assert looks <= 5.0 / LONGEST + 10
    assert not len(held)
    assert held.wait(now, 0.25) == 0.25


def test_others_go_on() -> None:
    held: Held[int] = Held()
    for number in range(1000):
        held.add(number, 100.0 + number / 1e6, deadline=105.0)
    assert len(list(held.due(100.0 + FIRST))) == 1
    assert len(list(held.due(101.0))) == 999
