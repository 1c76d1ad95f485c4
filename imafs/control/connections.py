# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The clients that are connected: not more than a daemon has descriptors for.

Of one user's idle connections the one that is idle longest makes room for a new one, so that
clients that forget theirs lock out nobody, and those that wait for an answer keep theirs.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from imafs.errors import Refused
from imafs.host.ratelimit import Ratelimit

log = logging.getLogger("imafs.control")

#: Connections of one user, and of all together.
MOST_OF_ONE = 256
MOST = 512
#: Connections that receive a long request at a time.
MOST_LONG = 4
#: Seconds until the next try where the machine or the daemon has no descriptor left.
PAUSE = 0.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class Connection:
    """One client. ``idle``: since when it has asked nothing (trio's time); None while it waits."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.idle: float | None = None
        self.scope = trio.CancelScope()
        #: Receives a request of more bytes than is usual.
        self.long = False
        #: Its descriptor is free again.
        self.ended = trio.Event()

    @contextmanager
    def idling(self) -> Iterator[None]:
        """Inside, the connection may be closed in favour of another."""
        self.idle = trio.current_time()
        try:
            yield
        finally:
            self.idle = None


class Connections:
    """All of one server."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()
        #: One line now and then: there may be thousands of clients.
        self.seldom = Ratelimit(log, burst=1)

    @contextmanager
    def entered(self, uid: int) -> Iterator[Connection]:
        """A new one, which ends without a word where it must make room.

        Raises :class:`Refused` (EAGAIN) where there are too many, and all wait for answers.
        """
        own = [other for other in self._open if other.uid == uid]
        if len(own) >= MOST_OF_ONE:
            self._make_room(own, f"uid {uid} has {len(own)} connections")
        elif len(self._open) >= MOST:
            self._make_room(list(self._open), f"there are {len(self._open)} connections")
        connection = Connection(uid)
        self._open.add(connection)
        try:
            with connection.scope:
                yield connection
        finally:
            self._open.discard(connection)
            connection.ended.set()

    def _make_room(self, others: list[Connection], why: str) -> None:
        if self._close_longest_idle(others) is None:
            self._tell(
                "refused connections",
                f"{why}, and all of them wait for answers: another one was refused",
            )
            raise Refused(errno.EAGAIN, f"{why}, and all of them wait for answers")
        self._tell(
            "closed connections", f"{why}: the one that was idle longest is closed for each new one"
        )

    def _close_longest_idle(self, others: list[Connection]) -> Connection | None:
        idle = [(other.idle, number) for number, other in enumerate(others) if other.idle]
        if not idle:
            return None
        longest = others[min(idle)[1]]
        self._open.discard(longest)
        longest.scope.cancel()
        return longest

    def receives_long(self, connection: Connection) -> bool:
        """Notes that it does; False where so many others do that there is no memory for it."""
        connection.long = connection.long or sum(c.long for c in self._open) < MOST_LONG
        return connection.long

    async def accept(self, listener: trio.SocketListener) -> trio.SocketStream:
        """The next client, also after a time in which there were no descriptors."""
        while True:
            try:
                return await listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                closed = self._close_longest_idle(list(self._open))
                what = "the one that was idle longest is closed for each" if closed else "they wait"
                self._tell("waiting connections", f"no more clients: {error.strerror}; {what}")
            with trio.move_on_after(PAUSE):
                if closed is None:
                    await trio.sleep_forever()
                else:
                    await closed.ended.wait()

    def _tell(self, kind: str, line: str) -> None:
        self.seldom.say(kind, logging.WARNING, "%s", line)
