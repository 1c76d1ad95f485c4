# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The listener: answers every open of the marked file systems, soon.

Two processes, begun by ``python -m imafs.sources.watch.child.listener DESCRIPTOR DEADLINE
PATIENCE``. The child listens; the parent does nothing but kill it when it gives no sign of
life for PATIENCE seconds: its end closes the fanotify group, which lets every waiting opener
go on. The child dies with the parent, and ends when the watcher's end of the socket closes.

Nothing is opened by path outside of /proc once something is marked: such an open would
wait for an answer from this very process. So everything is imported at the start, and a
traceback (which reads source files) is never printed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from imafs.errors import FormatError
from imafs.host.linux import die_with_parent
from imafs.sources.watch import fanotify, messages
from imafs.sources.watch.child import attributes
from imafs.sources.watch.child.decide import NOTHING, Judge
from imafs.sources.watch.child.forward import Late, Relay
from imafs.sources.watch.child.held import FIRST, Held
from imafs.sources.watch.child.job import Use, Verdict
from imafs.sources.watch.child.marks import Marks
from imafs.sources.watch.child.pending import Jobs
from imafs.sources.watch.child.task import Account
from imafs.sources.watch.fanotify import Event, Moves, Permissions
from imafs.sources.watch.missed import reason
from imafs.sources.watch.packets import Channel
from imafs.text import shown

#: Exit codes: the listener hung and was killed; it failed; the watcher is gone.
HUNG, FAILED, ENDED = 3, 4, 0
#: Seconds between two signs of life.
_BEAT = 0.25
#: Descriptors beside those of events; one read may bring 170 of them.
_SPARE = 512
_BOTH = select.POLLIN | select.POLLOUT
#: Events that are read before everything else is looked at.
_EVENTS = 32
#: Seconds of parsing rules between two looks at events.
_PARSING = 0.002
#: Everybody's opens wait for this process.
_NICE = -10


class Listener:
    """The child: one loop over the group, the socket and finished hashes."""

    def __init__(self, channel: Channel, beat: int, deadline: float) -> None:
        self._channel = channel
        self._beat = beat
        self._signed = 0.0
        self._writing = False
        self._jobs = Jobs(channel, deadline, self._allow)
        self._judge = Judge(deadline, self._has_room)
        # Uses that cannot be judged yet.
        self._held: Held[Use] = Held()
        #: So many descriptors may be held, and half of them by one account.
        self._room = _raise_limit() - _SPARE
        self._permissions: Permissions | None = None
        self._moves: Moves | None = None
        self._marks: Marks | None = None
        self._poll = select.poll()
        finished = partial(os.eventfd_write, self._jobs.finished, 1)
        self._relay: Relay[list[Event]] = Relay(self._loop, finished)

        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(self._jobs.finished, select.POLLIN)
        # Of /proc/self/mountinfo the kernel tells changes by these.
        self._poll.register(self._judge.mounts, select.POLLPRI | select.POLLERR)

    def run(self) -> NoReturn:
        """Until the watcher is gone."""
        self._relay.run()

    def _loop(self) -> NoReturn:
        try:
            while True:
                self._look()
        except ConnectionError:
            os._exit(ENDED)
        except Late:
            raise
        except Exception as error:
            text = f"imafs: ERROR: the listener: {shown(repr(error))}\n"
            os.write(2, text.encode(errors="backslashreplace"))
            os._exit(FAILED)

    def _look(self) -> None:
        self._sign()
        ready = self._ready()
        # What the watcher says holds for every event that is read after it.
        if self._channel.fileno() in ready:
            self._take()
        self._judge.rulebook.proceed(_PARSING)
        self._jobs.proceed()
        if self._judge.mounts in ready:
            self._judge.look_at_mounts()
            self._forget_ignored()
            self._jobs.send(messages.Mounted())
        if self._moves is not None and self._moves.moved():
            self._forget_ignored()
        for use, pause in self._held.due(time.monotonic()):
            self._answer(use.event, partial(self._judge.again, use), pause)
        self._jobs.expire()
        self._jobs.missed.flush()
        if self._writing is not bool(self._jobs.unsent):
            self._writing = not self._writing
            self._poll.modify(self._channel, _BOTH if self._writing else select.POLLIN)
        # At the end: a thread that is late here has left nothing undone.
        while self._relay.late:
            self._consider(self._relay.late.popleft())
        if self._permissions is not None and self._permissions.descriptor in ready:
            self._read(self._permissions)

    def _read(self, permissions: Permissions) -> None:
        for _ in range(_EVENTS):
            events = self._relay.away(permissions.read)
            if not events:
                return
            self._consider(events)

    def _consider(self, events: list[Event]) -> None:
        for event in events:
            if event.mask & fanotify.Q_OVERFLOW:
                self._jobs.overflowed()
                continue
            self._jobs.counts.events += 1
            self._answer(event, partial(self._judge.consider, event))

    def _ready(self) -> dict[int, int]:
        """Waits for readable descriptors: poll() knows milliseconds only, and waits for no less."""
        if not self._judge.rulebook.ready:
            return dict(self._poll.poll(0))
        seconds = self._held.wait(time.monotonic(), self._jobs.wait(_BEAT))
        if not 0 < seconds < 0.001:
            return dict(self._poll.poll(1000 * seconds))
        ready = self._poll.poll(0)
        if not ready:
            time.sleep(seconds)
            ready = self._poll.poll(0)
        return dict(ready)

    def _sign(self) -> None:
        """A sign of life, when it is time for one."""
        now = time.monotonic()
        if now < self._signed + _BEAT:
            return
        self._signed = now
        self._jobs.look_after()
        try:
            os.write(self._beat, b".")
        except BlockingIOError:
            return  # the parent is stopped: it does not watch, but neither does it harm

    # Events

    def _answer(self, event: Event, judge: Callable[[], Verdict], pause: float = FIRST) -> None:
        """Has an event judged and does what is to be done; its opener goes on unless it waits."""
        self._jobs.current = event
        verdict = NOTHING
        try:
            verdict = judge()
            self._jobs.carry_out(verdict)
        except Exception as error:
            verdict = NOTHING
            self._jobs.trouble(error)
            self._jobs.missed.note(b"", f"an event cannot be judged: {reason(error)}")
        waits = self._jobs.settle(event)
        if verdict.held and verdict.use is not None:
            self._held.add(verdict.use, time.monotonic(), verdict.use.deadline, pause)
        elif not waits:
            self._allow(event)
        if verdict.ignore is not None:
            self._ignore(*verdict.ignore)

    def _has_room(self, account: Account) -> bool:
        held = self._jobs.descriptors + len(self._held)
        if held < self._room // 2:
            return True
        return held < self._room and self._jobs.share(account) < self._room // 2

    def _allow(self, event: Event) -> None:
        if event.fd < 0:
            return
        assert self._permissions is not None
        try:
            self._permissions.allow(event)
        finally:
            os.close(event.fd)

    def _ignore(self, path: bytes, mount: int) -> None:
        assert self._permissions is not None
        try:
            # Its path may lead to a watched one by now: its owner may have put a link there.
            with attributes.directory(path, mount) as directory:
                self._judge.ignoring = self._permissions.ignore(directory)
        except OSError:
            return  # gone, or renamed: its next event asks again

    def _forget_ignored(self) -> None:
        if self._permissions is not None:
            self._permissions.forget_ignored()

    # The watcher

    def _take(self) -> None:
        while (packet := self._channel.receive()) is not None:
            if not packet:
                os._exit(ENDED)
            match message := messages.decode(packet):
                case messages.Done():
                    self._jobs.done(message.number, measured=message.measured)
                case messages.Settings():
                    self._judge.know(message)
                    self._jobs.settings = message
                case messages.Rules():
                    self._judge.rulebook.take(message.text, more=message.more)
                case messages.Watch():
                    self._jobs.send(self._watch(message))
                case messages.Forget():
                    self._judge.forget()
                    self._jobs.forget()
                case messages.Ask():
                    self._jobs.report(ignoring=self._judge.ignoring)
                case _:
                    raise FormatError(f"not for a listener: {message!r}")

    def _watch(self, message: messages.Watch) -> messages.Watching:
        try:
            marks = self._marks or self._begin()
        except OSError as error:
            return messages.Watching(message.number, error.errno or errno.EIO, ())
        code, left_out = marks.change(message)
        if not code:
            self._judge.watch(message)
            self._forget_ignored()
        return messages.Watching(message.number, code, tuple(left_out.items()))

    def _begin(self) -> Marks:
        self._permissions = Permissions(self._jobs.trouble)
        self._moves = _moves(self._jobs.trouble)
        self._judge.ignoring = self._moves is not None
        self._poll.register(self._permissions.descriptor, select.POLLIN)
        self._marks = Marks(self._permissions, self._moves)
        return self._marks


def _moves(trouble: Callable[[OSError], None]) -> Moves | None:
    try:
        return Moves(trouble)
    except OSError:
        return None  # Linux before 5.9: nothing is ignored then


def _raise_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, 1 << 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def watchdog(beats: int, child: int, seconds: float) -> int:
    """The parent: waits for the child, kills it when it is silent; the exit code."""
    poll = select.poll()
    poll.register(beats, select.POLLIN)
    silent_since = time.monotonic()
    while True:
        if poll.poll(1000 * seconds / 4):
            if not os.read(beats, 65536):
                _, status = os.waitpid(child, 0)
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HUNG


def _child(channel: socket.socket, beat: int, deadline: float, parent: int) -> NoReturn:
    die_with_parent()
    if os.getppid() != parent:
        os._exit(ENDED)
    # A lease that is_written() holds for a moment may be broken; that tells nothing.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with contextlib.suppress(PermissionError):  # without CAP_SYS_NICE as everybody else
        os.nice(_NICE)
    Listener(Channel(channel), beat, deadline).run()


def main(arguments: list[str]) -> int:
    """Runs both processes; the exit code of the parent."""
    channel = socket.socket(fileno=int(arguments[0]))
    deadline = float(arguments[1])
    beats, beat = os.pipe()
    os.set_blocking(beat, False)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(beats)
        _child(channel, beat, deadline, parent)
    os.close(beat)
    channel.close()
    return watchdog(beats, child, float(arguments[2]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
