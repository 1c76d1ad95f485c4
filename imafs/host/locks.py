# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The lock of a directory of sockets: inside it nobody's socket is taken for a dead one.

flock(2) asks for no right but to open the directory, so every user who may read it could hold
its lock for ever: nobody blocks in it, and everybody gives up after a while.
"""

from __future__ import annotations

import fcntl

#: Seconds that the lock is waited for.
SECONDS = 5.0
#: Seconds between two tries.
PAUSE = 0.02


def taken(descriptor: int) -> bool:
    """Tries to take the lock of what is open there, once; it goes with the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
