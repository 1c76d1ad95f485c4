# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The daemon's end of a control socket; its table and handlers are handed in."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

import trio

from imafs import __version__
from imafs.control import paths, peers, wire
from imafs.control.connections import Connection, Connections
from imafs.control.ops import HELLO, Options, Table
from imafs.errors import ControlError, ImafsError, Refused, UsageError
from imafs.host import locks
from imafs.host.ratelimit import Ratelimit

log = logging.getLogger("imafs.control")

SEND_SECONDS = 5.0  # a client that does not take a line within this is cut off
LINGER_SECONDS = 2.0  # how long the rest of a line that is too long is read and thrown away
PROGRESS_SECONDS = 0.1  # between two progress lines
_PIECE = 4096  # bytes of an answer whose encoding takes a while
HANGUP_SECONDS = 0.5  # between two looks whether the client of an abandonable operation is there

ProgressCallback = Callable[[int, int], None]
"""``progress(done, total)``: never blocks; what is reported too fast is left out."""

#: The look-out for the end of the client whose operation this task carries out.
_hangup: ContextVar[trio.CancelScope] = ContextVar("hangup")

Handler = Callable[[Options, ProgressCallback], Awaitable[Mapping[str, object]]]
"""Takes validated options, returns what stands beside ``"ok": true``; raises ImafsError."""


async def serve(
    path: str | os.PathLike[str],
    table: Table,
    handlers: Mapping[str, Handler],
    *,
    about: Mapping[str, object] | None = None,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on ``path`` until cancelled; started with the path once clients can connect.

    ``handlers``: one for every operation of ``table`` but ``hello``, which is answered here, with
    ``about`` added (for example the mountpoint). Raises :class:`ControlError` when somebody else
    listens there or the socket cannot be made.

    An answer that is being sent when the server is cancelled is still sent (within
    SEND_SECONDS), so a handler may set off the end of the daemon and return.
    """
    if odd := {*handlers, HELLO.name} ^ set(table):
        raise ValueError(f"operations without a handler, or the other way round: {sorted(odd)}")
    if HELLO.name in handlers:
        raise ValueError("hello needs no handler")
    async with _listening(Path(path)) as listener:
        server = _Server(table, handlers, about or {})
        task_status.started(Path(path))
        async with listener, trio.open_nursery() as clients:
            while True:
                clients.start_soon(server.connection, await server.connections.accept(listener))


@asynccontextmanager
async def _listening(path: Path) -> AsyncIterator[trio.SocketListener]:
    """A socket of mode 0600 that listens on ``path``; removed at the end if still ours."""
    if len(os.fsencode(path)) > paths.SUN_PATH_MAX:
        raise ControlError(f"{path}: too long for a socket ({paths.SUN_PATH_MAX} bytes at most)")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        async with _locked(path.parent):
            who = paths.listener(path)
            if who is not None:
                raise ControlError(f"{path}: {who} listens there already")
            made = _bind(sock, path)
        try:
            if stat.S_IMODE(made.st_mode) & 0o077:
                raise ControlError(f"{path}: this system made the socket accessible to others")
            # A duplicate for the event loop, which closes it before we are done: while our
            # own listens nobody takes the name for stale, so what is removed is ours.
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
        finally:
            _remove(path, made)


def _bind(sock: socket.socket, path: Path) -> os.stat_result:
    try:
        path.unlink(missing_ok=True)  # stale: nobody listens
        # Linux gives the file the mode of the socket's own inode, less the umask (unix_bind,
        # net/unix/af_unix.c): at no moment lax, and without the process-wide umask.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fspath(path))
        sock.listen(socket.SOMAXCONN)
        return path.lstat()
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}") from error


def _remove(path: Path, made: os.stat_result) -> None:
    try:
        now = path.lstat()
        if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()
    except FileNotFoundError:
        log.debug("%s: removed by somebody else", path)
    except OSError as error:
        log.warning("%s: cannot be removed: %s", path, error.strerror)


@asynccontextmanager
async def _locked(directory: Path) -> AsyncIterator[None]:
    """Only one daemon at a time looks for a stale socket and replaces it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ControlError(f"{directory}: {error.strerror}") from error
    try:
        with trio.move_on_after(locks.SECONDS) as scope:
            while not locks.taken(descriptor):
                await trio.sleep(locks.PAUSE)
        if scope.cancelled_caught:
            raise ControlError(f"{directory}: locked by another process")
        yield
    finally:
        os.close(descriptor)


class _Server:
    """What all connections share."""

    def __init__(
        self, table: Table, handlers: Mapping[str, Handler], about: Mapping[str, object]
    ) -> None:
        self._table = table
        self._handlers = handlers
        self._about = about
        self.connections = Connections()
        self._seldom = Ratelimit(log)

    async def connection(self, stream: trio.SocketStream) -> None:
        """One client, from its first byte to its last."""
        try:
            try:
                who = peers.peer_of(stream.socket)
                with self.connections.entered(who.uid) as connection:
                    async with stream:
                        await self._of(who, stream, connection)
            except Refused as refusal:
                async with stream:
                    await _refuse(stream, refusal)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a client hung up")
        except trio.TooSlowError:
            kind, line = "clients cut off", "a client that does not read its answers was cut off"
            self._seldom.say(kind, logging.INFO, line)

    async def _of(self, who: peers.Peer, stream: trio.SocketStream, connection: Connection) -> None:
        if peers.is_ours(who.uid):
            await self._requests(stream, connection)
            return
        self._seldom.say("refused clients", logging.WARNING, "%s was refused", who)
        with connection.idling():
            refusal = Refused(errno.EPERM, "only the daemon's own user may ask here")
            await _refuse(stream, refusal)

    async def _requests(self, stream: trio.SocketStream, connection: Connection) -> None:
        buffer = wire.LineBuffer(wire.MAX_REQUEST)
        while True:
            try:
                line = buffer.next_line()
            except UsageError as error:
                await _refuse(stream, error)
                return
            if line is not None:
                await self._request(stream, line)
                continue
            with connection.idling():
                received = await stream.receive_some(65536)
            if not received:
                break
            buffer.feed(received)
            if len(buffer) <= wire.LONG_REQUEST:
                connection.long = False
            elif not self.connections.receives_long(connection):
                busy = f"other requests of more than {wire.LONG_REQUEST} bytes are being received"
                await _refuse(stream, Refused(errno.EAGAIN, busy))
                return
        if rest := buffer.rest():  # a last line without its end, as from printf | nc -U
            await self._request(stream, rest)

    async def _request(self, stream: trio.SocketStream, line: bytes) -> None:
        try:
            request = wire.parse_request(self._table, line)
        except wire.BadRequestError as error:
            answer = wire.encode(wire.failure(error, error.id))
        else:
            answer = await self._perform(stream, request)
        # Shielded: a handler that ends the daemon is still answered.
        await _send(stream, answer, shield=True)

    async def _perform(self, stream: trio.SocketStream, request: wire.Request) -> bytes:
        """The answer; BrokenResourceError or TooSlowError when the client is lost meanwhile."""
        progress = _Progress(stream, request.id)
        watch = trio.CancelScope()
        _hangup.set(watch)
        answer = b""
        async with trio.open_nursery() as nursery:
            if request.progress:
                nursery.start_soon(progress.run)
            if self._table[request.op].abandonable:
                nursery.start_soon(_watch, stream.socket.fileno(), watch, nursery.cancel_scope)
            answer = await self._answer(request, progress.report)
            progress.finish()
            watch.cancel()
        if nursery.cancel_scope.cancelled_caught:
            raise trio.BrokenResourceError
        if progress.failure is not None:
            raise progress.failure
        return answer

    async def _answer(self, request: wire.Request, progress: ProgressCallback) -> bytes:
        try:
            if request.op == HELLO.name:
                result = self._hello()
            else:
                result = await self._handlers[request.op](request.options, progress)
            return await _encoded(wire.success(result, request.id))
        except ImafsError as error:
            return wire.encode(wire.failure(error, request.id))
        except Exception:  # a bug in one operation must not end the emulated kernel
            log.exception("operation %s failed", request.op)
            bug = ImafsError(f"{request.op}: internal error, see the daemon's log")
            return wire.encode(wire.failure(bug, request.id))

    def _hello(self) -> Mapping[str, object]:
        offered = {name: operation.describe() for name, operation in self._table.items()}
        return {**self._about, "imafs": __version__, "protocol": wire.PROTOCOL, "ops": offered}


def carry_through() -> None:
    """Called by a handler that must not stop half way: from here on the operation goes on to
    its end, whether its client is there or not."""
    hangup = _hangup.get(None)
    if hangup is not None:
        hangup.cancel()


class _Progress:
    """Sends the latest progress now and then; a slow client never holds the handler up."""

    def __init__(self, stream: trio.SocketStream, request_id: wire.RequestId) -> None:
        self._stream = stream
        self._id = request_id
        self._latest: tuple[int, int] | None = None
        self._news = trio.Event()
        self._ended = trio.Event()
        self.failure: Exception | None = None

    def report(self, done: int, total: int) -> None:
        self._latest = (done, total)
        self._news.set()

    def finish(self) -> None:
        """Let :meth:`run` send what is left and return."""
        self._ended.set()
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            latest, self._latest, self._news = self._latest, None, trio.Event()
            ended = self._ended.is_set()
            if latest is not None:
                try:
                    await _send(self._stream, wire.encode(wire.progress(*latest, self._id)))
                except (trio.BrokenResourceError, trio.TooSlowError) as error:
                    self.failure = error
                    return
            if ended:
                return
            with trio.move_on_after(PROGRESS_SECONDS):
                await self._ended.wait()


async def _watch(descriptor: int, watch: trio.CancelScope, abandoned: trio.CancelScope) -> None:
    """Cancel ``abandoned`` when the client is gone.

    A client that only shut down its sending half still reads: POLLHUP tells both halves
    closed (unix_poll, net/unix/af_unix.c). Looked at from time to time, for readiness
    itself cannot be waited for: a half-closed socket is always readable.
    """
    poll = select.poll()
    poll.register(descriptor, 0)
    with watch:
        while not poll.poll(0):
            await trio.sleep(HANGUP_SECONDS)
        if not watch.cancel_called:  # perhaps before this task began
            abandoned.cancel()


async def _encoded(message: Mapping[str, object]) -> bytes:
    """The line; others have turns while a measure of 100,000 files is encoded."""
    found = []
    for piece in wire.pieces(message):
        found.append(piece)
        if len(piece) > _PIECE:
            await trio.lowlevel.checkpoint()
    return b"".join(found)


async def _send(stream: trio.SocketStream, line: bytes, *, shield: bool = False) -> None:
    """Send a line; TooSlowError when the client does not take it in time."""
    with trio.fail_after(SEND_SECONDS, shield=shield):
        await stream.send_all(line)


async def _refuse(stream: trio.SocketStream, error: ImafsError) -> None:
    """The last answer on a connection."""
    await _send(stream, wire.encode(wire.failure(error, None)))
    await _linger(stream)


async def _linger(stream: trio.SocketStream) -> None:
    """Read on for a while: a client still sending would get EPIPE instead of the answer."""
    await stream.send_eof()
    with trio.move_on_after(LINGER_SECONDS):
        while await stream.receive_some(65536):
            pass
