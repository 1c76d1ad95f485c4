# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A loop that goes on in another thread while the one that ran it is stuck in a call.

Reading a fanotify event opens its file for the reader, and that waits for a lease on it
(45 seconds), or for the other end of a fifo on older kernels. Such a call is made inside
:meth:`Relay.away`: when it takes long, a new thread takes the loop over. A thread that
returns late hands in its result and ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")

#: Seconds in a call after which another thread goes on; and while others are stuck already: who
#: has one lease has a thousand opens wait for it, and the next opener waits for each of those.
STUCK, STUCK_ON = 0.02, 0.002
#: Threads that may be stuck; with more the loop stands still, and its watchdog ends it.
MOST = 1 << 12
#: Seconds between two looks while nobody is away.
_LOOK = 0.1
#: Threads that are stuck need little memory.
_STACK = 256 << 10


class Late(Exception):
    """Another thread runs the loop by now: this one ends."""


class Relay(Generic[T]):
    """``loop`` runs in one thread at a time, and begins anew in the next one; ``woken`` is
    called when there is something in :attr:`late`."""

    def __init__(self, loop: Callable[[], NoReturn], woken: Callable[[], None]) -> None:
        self._loop = loop
        self._woken = woken
        self._lock = threading.Lock()
        self._turn = 0
        self._since: float | None = None
        self._stuck = 0
        #: What those brought who were late.
        self.late: deque[T] = deque()

    def run(self) -> NoReturn:
        """Runs the loop, and sees that it goes on."""
        self._start()
        while True:
            patience = STUCK_ON if self._stuck else STUCK
            time.sleep(patience if self._stuck or self._since is not None else _LOOK)
            if self._take_over(patience):
                # Where no thread is to be had the loop stands still, as above.
                with suppress(RuntimeError):
                    self._start()

    def _start(self) -> None:
        threading.stack_size(_STACK)
        threading.Thread(target=self._until_late, daemon=True).start()

    def _until_late(self) -> None:
        try:
            self._loop()
        except Late:
            return

    def _take_over(self, patience: float) -> bool:
        with self._lock:
            if self._since is None or time.monotonic() < self._since + patience:
                return False
            if self._stuck >= MOST:
                return False
            self._turn += 1
            self._stuck += 1
            self._since = None
            return True

    def away(self, call: Callable[[], T]) -> T:
        """The result of ``call``, however long it takes. Raises :class:`Late`, and what it
        raises itself."""
        with self._lock:
            turn = self._turn
            self._since = time.monotonic()
        try:
            result = call()
        except OSError:
            if self._is_late(turn):
                raise Late from None
            raise
        if self._is_late(turn):
            self.late.append(result)
            self._woken()
            raise Late
        return result

    def _is_late(self, turn: int) -> bool:
        with self._lock:
            if turn != self._turn:
                self._stuck -= 1
                return True
            self._since = None
            return False
