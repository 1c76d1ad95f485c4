# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One listener's life, seen from the daemon: its process, its socket, its end."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple
from typing import TypeVar

import trio

from imafs.errors import FormatError, Refused
from imafs.host import programs
from imafs.sources.watch import fanotify, messages, missed
from imafs.sources.watch.packets import Channel

log = logging.getLogger(__name__)

#: Seconds that a start (imports, marks) may take.
START = 15.0
#: Seconds without a sign of life after which a listener is killed, at least.
PATIENCE = 1.0
_MODULE = "imafs.sources.watch.child.listener"
_HUNG = 3
T = TypeVar("T")


class Gone(Exception):
    """The listener has ended; ``str()`` says how."""


class Listening:
    """A running listener. ``take`` is given every use and violation, in their order, and sends
    the answer here; ``mounted`` is called when the table of mounts has changed. ``threads`` are
    those that its management may use: no others' hung files may keep a listener from being
    replaced."""

    def __init__(
        self,
        deadline: float,
        take: Callable[[messages.Use | messages.Violation, Listening], None],
        mounted: Callable[[], None],
        threads: trio.CapacityLimiter,
    ) -> None:
        self._threads = threads
        # A listener that is only waiting for its turn on a busy machine is not dead.
        self._patience = max(deadline, PATIENCE)
        self._take = take
        self._mounted = mounted
        self._ended = self._closed = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, messages.BUFFER)
            # A session of its own: a Ctrl-C or Ctrl-Z is for the daemon.
            self._process = subprocess.Popen(
                programs.python(_MODULE, str(theirs.fileno()), str(deadline), str(self._patience)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                # strerror() would open catalogues of messages.
                env={**programs.environment(), "LC_ALL": "C"},
                cwd="/",
            )
        self._channel = Channel(ours)
        self._nursery: trio.Nursery | None = None
        self._unsent: deque[bytes] = deque()
        self._more = trio.Event()
        self._heard = trio.Event()
        self._asked: set[int] = set()
        self._answers: dict[int, messages.Watching] = {}
        self.counters = messages.Counters()
        self.reports = 0

    def send(self, message: messages.ToListener) -> None:
        """Sends at once where there is room: it then holds for the next open of anybody."""
        packet = messages.encode(message)
        if not self._unsent and self._try(packet):
            return
        self._unsent.append(packet)
        self._more.set()

    def _try(self, packet: bytes) -> bool:
        if self._closed:
            return True
        try:
            return self._channel.send(packet)
        except ConnectionError:
            return True  # it is gone: run() finds out
        except OSError as error:
            # It would go on without: the next one is told everything anew.
            log.error("the listener of watched files cannot be told anything: %s", error)
            self.kill()
            return True

    async def watch(self, message: messages.Watch) -> dict[bytes, Refused]:
        """Has other paths watched; what was left out, with why.

        Raises :class:`Refused` where a required path cannot be watched, or nobody answers
        (the message may have been taken all the same, as after a cancellation).
        """
        self._asked.add(message.number)
        self.send(message)
        try:
            with trio.fail_after(START):
                while message.number not in self._answers:
                    if self._ended:
                        raise Refused(errno.EIO, "the listener of watched files has ended")
                    await self._heard.wait()
        except trio.TooSlowError:
            what = f"the listener did not answer within {START:g} s"
            raise Refused(errno.ETIMEDOUT, what) from None
        finally:
            self._asked.discard(message.number)
            answer = self._answers.pop(message.number, None)
        assert answer is not None
        if answer.errno:
            names = [point for point, _ in answer.left_out] or message.paths
            raise Refused(answer.errno, _why(answer.errno, names))
        return {point: Refused(code, _why(code, [point])) for point, code in answer.left_out}

    async def report(self, seconds: float) -> bool:
        """Asks for new counters; whether they came within ``seconds``."""
        before = self.reports
        self.send(messages.Ask())
        with trio.move_on_after(seconds):
            while self.reports == before and not self._ended:
                await self._heard.wait()
        return self.reports != before

    async def run(self) -> None:
        """Until the listener has ended: raises :class:`Gone`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._send_rest)
            nursery.start_soon(self._look_after)
            try:
                while packet := await self._receive():
                    self._hear(messages.decode(packet))
            except ConnectionResetError:
                pass  # it was killed with messages unread
            except (OSError, FormatError) as error:
                log.error("the listener of watched files: %s", error)
            nursery.cancel_scope.cancel()
        self._ended = True
        self._wake()
        raise Gone(await self.end())

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Runs it until the listener has ended."""
        assert self._nursery is not None
        self._nursery.start_soon(task)

    async def _receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while (packet := self._channel.receive()) is None:
            await trio.lowlevel.wait_readable(self._channel)
        return packet

    def _hear(self, message: messages.Message) -> None:
        match message:
            case messages.Use() | messages.Violation():
                self._take(message, self)
                return
            case messages.Missed():
                log.error("%s", missed.line(*astuple(message)))
                return
            case messages.Mounted():
                self._mounted()
            case messages.Watching():
                if message.number in self._asked:
                    self._answers[message.number] = message
            case messages.Counters():
                self.counters = message
                self.reports += 1
            case _:
                raise FormatError(f"not for a watcher: {message!r}")
        self._wake()

    def _wake(self) -> None:
        heard, self._heard = self._heard, trio.Event()
        heard.set()

    async def _send_rest(self) -> None:
        while True:
            if not self._unsent:
                self._more = trio.Event()
                await self._more.wait()
            await trio.lowlevel.wait_writable(self._channel)
            while self._unsent and self._try(self._unsent[0]):
                self._unsent.popleft()

    async def _look_after(self) -> None:
        """The second line of defence, behind the listener's own watchdog (stopped as well?)."""
        with trio.move_on_after(START):
            await self._heard.wait()
        while True:
            if not await self.report(2 * self._patience):
                self.kill()
            await trio.sleep(self._patience)

    def kill(self) -> None:
        """SIGKILL to both of its processes: every opener goes on."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self) -> str:
        """Ends it, if it has not ended; how it ended."""
        self._closed = True
        trio.lowlevel.notify_closing(self._channel)
        self._channel.close()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(2.0):
                while self._process.poll() is None:
                    await trio.sleep(0.01)
            self.kill()
            code = await trio.to_thread.run_sync(self._process.wait, limiter=self._threads)
        if code == _HUNG:
            return "it hung and was killed"
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            return f"killed by {signal.Signals(number).name}"
        return f"exit code {code}"


def check_allowed(paths: Sequence[str]) -> None:
    """Raises :class:`Refused` where this process may not watch any files at all."""
    try:
        os.close(fanotify.Permissions(lambda _: None).descriptor)
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, _why(code, [os.fsencode(path) for path in paths])) from None


def _why(code: int, paths: Sequence[bytes]) -> str:
    names = ", ".join(map(os.fsdecode, paths))
    if code == errno.EPERM:
        return "watching needs CAP_SYS_ADMIN in the initial user namespace (fanotify)"
    if code == errno.ENOSYS:
        return "this kernel has no fanotify permission events"
    return f"{names}: fanotify cannot watch there: {os.strerror(code)}"
