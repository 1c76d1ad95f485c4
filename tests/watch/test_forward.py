# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A loop goes on while a thread of it is stuck, and nothing that was read is lost."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

from imafs.sources.watch.child.forward import Late, Relay
from tests.support import wait_for

SECONDS = 60


class World:
    """A loop that takes numbers; those that hang are read by who hangs with them."""

    def __init__(self, hanging: set[int]) -> None:
        self.hanging = hanging
        self.go_on = threading.Event()
        self.taken: list[int] = []
        self.threads: set[int] = set()
        self._next = 0
        self._inside = 0
        self.most_inside = 0
        self._numbers = threading.Lock()
        self.relay: Relay[int] = Relay(self._loop, lambda: None)
        threading.Thread(target=self.relay.run, daemon=True).start()

    def _loop(self) -> NoReturn:
        while True:
            self._enter()
            while self.relay.late:
                self.taken.append(self.relay.late.popleft())
            self._leave()
            self.taken.append(self.relay.away(self._read))

    def _enter(self) -> None:
        self.threads.add(threading.get_native_id())
        with self._numbers:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)

    def _leave(self) -> None:
        with self._numbers:
            self._inside -= 1

    def _read(self) -> int:
        with self._numbers:
            self._next += 1
            number = self._next
        if number in self.hanging:
            self.go_on.wait(SECONDS)
        if number >= max(self.hanging) + 100:
            raise Late  # the end of the test: whoever takes over ends here as well
        os.sched_yield()
        return number


def test_the_loop_goes_on() -> None:
    world = World({5, 6, 20})
    wait_for(lambda: 119 in world.taken, SECONDS, "others are taken")
    assert not {5, 6, 20} & set(world.taken)
    assert len(world.threads) >= 4
    world.go_on.set()
    wait_for(lambda: {5, 6, 20} <= {*world.taken, *world.relay.late}, SECONDS, "the late ones")
    assert world.most_inside == 1
    assert len(world.taken) == len(set(world.taken))
