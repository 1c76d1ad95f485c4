# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A control server with made-up handlers, and ways to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from imafs.control import wire
from imafs.control.ops import Options, Table
from imafs.control.server import Handler, ProgressCallback, serve
from imafs.verbs.table import TABLE

T = TypeVar("T")
DEADLINE_SECONDS = 60.0


def handler(
    result: Mapping[str, object] | None = None, *, error: Exception | None = None
) -> Handler:
    """A handler that answers its options and ``result``, or raises ``error``."""

    async def handle(options: Options, progress: ProgressCallback) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return {"options": dict(options), **(result or {})}

    return handle


def table_of(handlers: Mapping[str, Handler]) -> Table:
    """Of the emulator's operations those that have a handler."""
    return Table(*(TABLE[name] for name in handlers))


async def in_thread(function: Callable[[], T]) -> T:
    """Run what blocks (the synchronous client) beside the server."""
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


class Talk:
    """A connection that sends anything and reads lines."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._lines = wire.LineBuffer(1 << 26)

    async def send(self, *messages: Mapping[str, object] | bytes) -> None:
        for message in messages:
            line = message if isinstance(message, bytes) else wire.encode(message)
            await self.stream.send_all(line)

    async def answer(self) -> dict[str, object] | None:
        """The next line, None when the server has closed the connection."""
        while (line := self._lines.next_line()) is None:
            received = await self.stream.receive_some(65536)
            if not received:
                return None
            self._lines.feed(received)
        return wire.decode(line)

    async def ask(self, message: Mapping[str, object] | bytes) -> dict[str, object]:
        await self.send(message)
        answer = await self.answer()
        assert answer is not None
        return answer


Connect = Callable[[], Awaitable[Talk]]


@asynccontextmanager
async def serving(
    path: Path, handlers: Mapping[str, Handler], about: Mapping[str, object] | None = None
) -> AsyncIterator[Connect]:
    """The server runs on ``path`` inside the block, DEADLINE_SECONDS at most.

    Gives a function that makes connections, which are closed at the end.
    """
    talks: list[Talk] = []

    async def connect() -> Talk:
        talks.append(Talk(await trio.open_unix_socket(str(path))))
        return talks[-1]

    try:
        with trio.fail_after(DEADLINE_SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(serve, path, table_of(handlers), handlers, about=about))
                yield connect
                nursery.cancel_scope.cancel()
    finally:
        for talk in talks:
            talk.stream.socket.close()
