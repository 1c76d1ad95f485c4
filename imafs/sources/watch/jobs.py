# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Uses on their way: hashed, told to the watcher, answered; and openers that wait for that.

An opener waits for its file's measurement, at most until a deadline. When the daemon lets a
deadline pass, nobody waits for it any more until it has answered again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from imafs.errors import Refused
from imafs.formats.algorithms import by_name
from imafs.formats.fields import Measurement
from imafs.kernel.policy.match import Access
from imafs.sources import files
from imafs.sources.watch import wire
from imafs.sources.watch.fanotify import Event
from imafs.sources.watch.inodes import Inode

#: Stands for CONFIG_IMA_MEASURE_PCR_IDX, which only the daemon knows.
DEFAULT_PCR = -1
#: Larger files are hashed in threads, bytes.
_SMALL = 1 << 16
_THREADS = 4
#: Uses that wait for the socket before more of them are lost.
_MOST_UNSENT = 1 << 16


@dataclass(slots=True)
class Job:
    """One use that is measured into ``pcrs``; ``event`` opened the file that is hashed.

    ``again``: the file was that new when it was hashed before that its change time proved
    nothing; the same digest is then the same content. ``direct``: opened with O_DIRECT.
    """

    event: Event
    inode: Inode
    name: bytes
    info: os.stat_result
    pcrs: set[int]
    accesses: tuple[Access, ...]
    again: bool = False
    direct: bool = False
    number: int = 0
    descriptor: int = -1
    measurement: Measurement | None = None
    failure: OSError | Refused | None = None

    @property
    def content(self) -> tuple[int, int, int, int]:
        """The content of the file, as far as its inode tells."""
        info = self.info
        return info.st_dev, info.st_ino, info.st_ctime_ns, info.st_size


@dataclass(slots=True)
class Opener:
    """Who waits, for so many answers of the watcher."""

    event: Event
    deadline: float
    numbers: set[int]


class Jobs:
    """``allow`` lets an opener go on; ``finished`` is readable when threads have hashed."""

    def __init__(
        self, channel: socket.socket, deadline: float, allow: Callable[[Event], None]
    ) -> None:
        self.settings = wire.Settings("sha256", False, ())
        self.counts = wire.Counters(pid=os.getpid())
        self.finished = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._channel = channel
        self._seconds = deadline
        self._allow = allow
        self._next = 0
        # All deadlines are equally far away, so the first one is the next one.
        self._openers: dict[int, Opener] = {}
        self._waited: dict[int, list[int]] = {}
        self._jobs: dict[int, Job] = {}
        self._hashing = 0
        #: The event that is being judged: answered at the end of that, not before.
        self.current: Event | None = None
        self._pending: dict[tuple[int, int, int, int], Job] = {}
        self._unsent: deque[bytes] = deque()
        self._sent: set[int] = set()
        self._silent = False
        self._todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._hashed: deque[Job] = deque()
        for _ in range(_THREADS):
            threading.Thread(target=self._hash_large, daemon=True).start()

    @property
    def descriptors(self) -> int:
        """How many are held: of openers that wait, and of files that are being hashed."""
        return len(self._openers) + self._hashing

    @property
    def unsent(self) -> int:
        """Messages that the socket has no room for."""
        return len(self._unsent)

    def wait(self, most: float) -> float:
        """Seconds until something is due."""
        first = next(iter(self._openers.values()), None)
        return most if first is None else min(most, max(0, first.deadline - time.monotonic()))

    # Beginning

    def add(self, job: Job) -> None:
        """Has a use measured; its opener waits for that."""
        pending = self._pending.get(job.content)
        if pending is not None and pending.direct is job.direct and job.pcrs <= pending.pcrs:
            self._wait_for(job.event, pending.number)
            return
        job.number = self._number()
        self._jobs[job.number] = job
        self._pending[job.content] = job
        self._wait_for(job.event, job.number)
        if job.info.st_size > _SMALL and not job.direct:
            # The event's own descriptor goes with its answer.
            job.descriptor = os.dup(job.event.fd)
            self._hashing += 1
            self._todo.put(job)
        else:
            job.descriptor = job.event.fd
            self._hash(job)
            self._ask(job)

    def violation(self, event: Event, name: bytes, cause: str) -> None:
        """Has a violation recorded; the opener waits for that."""
        number = self._number()
        self._wait_for(event, number)
        self._send(wire.Violation(number, name, cause), number)

    def settle(self, event: Event) -> bool:
        """At the end of judging: whether the opener waits for anything."""
        self.current = None
        opener = self._openers.get(event.fd)
        if opener is not None and not opener.numbers:
            del self._openers[event.fd]
        return event.fd in self._openers

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _wait_for(self, event: Event, number: int) -> None:
        if self._silent:
            self.counts.unasked += 1
            return
        opener = self._openers.get(event.fd)
        if opener is None:
            opener = Opener(event, time.monotonic() + self._seconds, set())
            self._openers[event.fd] = opener
        opener.numbers.add(number)
        self._waited.setdefault(number, []).append(event.fd)

    # Hashing

    def _hash(self, job: Job) -> None:
        settings = self.settings
        if job.direct:
            algorithm = by_name(settings.algorithm)
            zeros = bytes(algorithm.digest_size)
            job.measurement = Measurement(job.name, algorithm, zeros, sha1=bytes(20))
            return
        try:
            job.measurement = files.describe(
                job.descriptor,
                job.name,
                by_name(settings.algorithm),
                want_sha1=settings.want_sha1,
            )
        except (OSError, Refused) as error:
            job.failure = error

    def _hash_large(self) -> None:
        while True:
            job = self._todo.get()
            self._hash(job)
            os.close(job.descriptor)
            self._hashed.append(job)
            os.eventfd_write(self.finished, 1)

    def proceed(self) -> None:
        """Sends what the socket has room for, and what threads have hashed."""
        while self._unsent and self._try(self._unsent[0]):
            self._unsent.popleft()
        with contextlib.suppress(BlockingIOError):  # nothing was hashed
            os.eventfd_read(self.finished)
        while self._hashed:
            self._hashing -= 1
            self._ask(self._hashed.popleft())

    def _ask(self, job: Job) -> None:
        made = job.measurement
        if made is None:
            # As in a kernel, a file that cannot be read is opened all the same.
            self.trouble(job.failure)
            self._finish(job.number)
            return
        self.counts.hashed += 1
        if job.again and job.inode.digest == made.digest and job.pcrs <= job.inode.recorded:
            job.inode.measured |= job.pcrs
            self._finish(job.number)
            return
        use = wire.Use(
            job.number,
            job.name,
            job.accesses,
            job.info.st_uid,
            job.info.st_gid,
            job.info.st_mode & 0xFFFF,
            made.digest,
            made.sha1 or b"",
            made.signature,
            made.evm_signature,
        )
        self._send(use, job.number)

    # Talking

    def send(self, message: wire.ToWatcher) -> None:
        """To the watcher, behind what waits already."""
        self._send(message, 0)

    def _send(self, message: wire.ToWatcher, number: int) -> None:
        packet = wire.encode(message)
        if len(packet) > wire.LARGEST or len(self._unsent) >= _MOST_UNSENT:
            self.counts.lost += 1
            self._finish(number)
            return
        self._sent.add(number)
        if self._unsent or not self._try(packet):
            self._unsent.append(packet)

    def _try(self, packet: bytes) -> bool:
        try:
            self._channel.send(packet)
        except BlockingIOError:
            return False
        return True

    def report(self, *, ignoring: bool) -> None:
        """The counters."""
        self.counts.ignoring = ignoring
        self.send(self.counts)

    def trouble(self, error: BaseException | None) -> None:
        """An event that could not be judged, or a file that could not be read."""
        self.counts.errors += 1
        self.counts.trouble = repr(error)

    # Ending

    def done(self, number: int, *, measured: bool) -> None:
        """The watcher has dealt with ``number``."""
        self._silent = False
        job = self._jobs.get(number)
        if measured and job is not None and job.measurement is not None and not job.direct:
            job.inode.measured |= job.pcrs
            job.inode.digest = job.measurement.digest
            job.inode.recorded = frozenset(job.pcrs)
        self._finish(number)

    def _finish(self, number: int) -> None:
        self._sent.discard(number)
        job = self._jobs.pop(number, None)
        if job is not None and self._pending.get(job.content) is job:
            del self._pending[job.content]
        for fd in self._waited.pop(number, ()):
            opener = self._openers.get(fd)
            if opener is None or number not in opener.numbers:
                continue  # went on at its deadline; the descriptor may be another's by now
            opener.numbers.discard(number)
            if not opener.numbers and opener.event is not self.current:
                del self._openers[fd]
                self._allow(opener.event)

    def expire(self) -> None:
        """Lets those go on whose deadline has passed."""
        now = time.monotonic()
        while self._openers:
            opener = next(iter(self._openers.values()))
            if opener.deadline > now and not self._silent:
                return
            self.counts.late += 1
            # Hashing that takes long is not the daemon's fault.
            self._silent = self._silent or bool(opener.numbers & self._sent)
            del self._openers[opener.event.fd]
            self._allow(opener.event)

    def forget(self) -> None:
        """A boot: the same content is measured again, even if it is on its way now."""
        self._pending.clear()
