# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Blocking work that a request asks for, in one of trio's threads.

There are not endlessly many: files on a file system that has stopped answering may hold them
all. A request then ends with an errno and does not wait with them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from math import inf
from typing import TypeVar

import trio

from imafs.errors import Refused

T = TypeVar("T")

#: Seconds that a request waits for a thread.
WAIT = 10.0


async def run(work: Callable[[], T]) -> T:
    """What ``work`` returns; who is cancelled leaves it alone with its thread.

    Raises :class:`Refused` (EAGAIN) where no thread is free within :data:`WAIT` seconds.
    However long the work itself takes: a large file is no failure.
    """
    token = trio.lowlevel.current_trio_token()
    waiting = trio.CancelScope(deadline=trio.current_time() + WAIT)

    def begun() -> T:
        token.run_sync_soon(setattr, waiting, "deadline", inf)
        return work()

    with waiting:
        return await trio.to_thread.run_sync(begun, abandon_on_cancel=True)
    raise Refused(errno.EAGAIN, f"all threads are held up, none was free within {WAIT:g} s")
