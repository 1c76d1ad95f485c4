# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Uses on their way: hashed, told to the watcher, answered; and openers that wait for that.

An opener waits for its file's measurement, at most until a deadline; nobody hashes on for an
opener that has gone. When the daemon lets a deadline pass, nobody waits for it any more until
it has answered again: what is used then is measured all the same.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections import Counter, deque
from collections.abc import Callable

from imafs.emulator import tasks
from imafs.errors import Refused
from imafs.formats.algorithms import by_name
from imafs.formats.fields import Measurement
from imafs.sources import local_files
from imafs.sources.watch import messages
from imafs.sources.watch.child import attributes
from imafs.sources.watch.child import task as opener
from imafs.sources.watch.child.hashing import Pool, Steps, Work
from imafs.sources.watch.child.job import Job, Opener, Use, Verdict, covers
from imafs.sources.watch.child.task import Account
from imafs.sources.watch.fanotify import Event
from imafs.sources.watch.missed import Missed, reason
from imafs.sources.watch.packets import MOST, Channel

#: Larger files are hashed in threads, and so is what is not in memory, bytes.
SMALL = 1 << 16
#: Uses that wait for the socket before more of them are lost.
_MOST_UNSENT = 1 << 16
#: Openers that are looked up at a time, whether they are still there.
_MOST_LOOKS = 256


class Jobs:
    """``allow`` lets an opener go on; ``finished`` is readable when threads have hashed."""

    def __init__(self, channel: Channel, seconds: float, allow: Callable[[Event], None]) -> None:
        self.settings = messages.Settings("sha256", False, ())
        self.counts = messages.Counters(pid=os.getpid())
        self.finished = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.missed = Missed(self._tell)
        #: Seconds until an opener goes on.
        self.seconds = seconds
        self._channel = channel
        self._allow = allow
        self._next = 0
        self._openers: dict[int, Opener] = {}
        self._deadlines: list[tuple[float, int, Opener]] = []
        self._held: Counter[Account] = Counter()
        self._waited: dict[int, list[int]] = {}
        self._jobs: dict[int, Job] = {}
        self._hashed: dict[Work, Job] = {}
        #: The event that is being judged: answered at the end of that, not before.
        self.current: Event | None = None
        self._pending: dict[tuple[int, int, int, int], Job] = {}
        self._unsent: deque[tuple[bytes, int]] = deque()
        self._sent: set[int] = set()
        self._silent = False
        self._pool = Pool(lambda: os.eventfd_write(self.finished, 1))

    @property
    def descriptors(self) -> int:
        """How many are held: of openers that wait, and of files that are being hashed."""
        return len(self._openers) + len(self._hashed)

    def share(self, account: Account) -> int:
        """How many openers of this account wait."""
        return self._held[account]

    @property
    def unsent(self) -> int:
        """Messages that the socket has no room for."""
        return len(self._unsent)

    def wait(self, most: float) -> float:
        """Seconds until something is due."""
        if not self._deadlines:
            return most
        return min(most, max(0, self._deadlines[0][0] - time.monotonic()))

    # Beginning

    def carry_out(self, verdict: Verdict) -> None:
        """Does what a verdict asks for; :meth:`settle` tells then whether the opener waits."""
        for name in verdict.counts:
            setattr(self.counts, name, getattr(self.counts, name) + 1)
        for each in verdict.missed:
            self.missed.note(each.name, each.why, each.uid)
        use = verdict.use
        if use is None:
            return
        if use.elf is None:
            self._look(use, wanted=verdict.held)
        for cause in verdict.violations:
            self._violation(use, cause)
        if verdict.measure is not None:
            self._add(verdict.measure)

    def _look(self, use: Use, *, wanted: bool) -> None:
        """Has the first bytes of a file read by a thread; the judge looks at the work."""
        if wanted and use.look is None:
            descriptor = os.dup(use.event.fd)
            use.look = Work(descriptor, use.info.st_dev, _head(descriptor), {use.account})
            self._pool.add(use.look)
        elif not wanted and use.look is not None:
            self._pool.drop(use.look)

    def _add(self, job: Job) -> None:
        """Has a use measured; its opener waits for that."""
        pending = self._pending.get(job.key)
        if pending is not None and covers(pending, job):
            self._join(pending, job)
            return
        use = job.use
        job.number = self._number()
        self._jobs[job.number] = job
        self._pending[job.key] = job
        self._wait_for(use, job.number)
        job.until = use.deadline
        job.unasked = self._silent
        content = None
        if use.info.st_size <= SMALL and not use.is_direct:
            content = attributes.whole(use.event.fd, SMALL, use.system.magic)
        if content is None and not use.is_direct:
            self._hash_in_thread(job)
            return
        try:
            self._ask(job, self._hash(job, content))
        except (OSError, Refused) as error:
            self._fail(job, error)

    def _join(self, pending: Job, job: Job) -> None:
        use = job.use
        self._wait_for(use, pending.number)
        pending.until = max(pending.until, use.deadline)
        pending.unasked = pending.unasked or self._silent
        if pending.work is not None:
            self._pool.join(pending.work, use.account)
            self._note_beginning(use.event)

    def _violation(self, use: Use, cause: str) -> None:
        """Has a violation recorded; the opener waits for that."""
        number = self._number()
        self._wait_for(use, number)
        task = tasks.of(use.event.tid)
        # As an audit log has it: the name of the super block, and the inode.
        place = (use.system.id, use.info.st_ino)
        self._send(messages.Violation(number, use.name, cause, task, *place), number)

    def settle(self, event: Event) -> bool:
        """At the end of judging: whether the opener waits for anything."""
        self.current = None
        waiting = self._openers.get(event.fd)
        if waiting is not None and not waiting.numbers:
            self._forget(waiting)
        return event.fd in self._openers

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _wait_for(self, use: Use, number: int) -> None:
        if self._silent:
            self.counts.unasked += 1
            return
        event = use.event
        waiting = self._openers.get(event.fd)
        if waiting is None:
            waiting = Opener(event, use.deadline, use.account)
            self._openers[event.fd] = waiting
            self._held[waiting.account] += 1
            heapq.heappush(self._deadlines, (use.deadline, number, waiting))
        waiting.numbers.add(number)
        self._waited.setdefault(number, []).append(event.fd)

    def _forget(self, waiting: Opener) -> None:
        del self._openers[waiting.event.fd]
        self._held[waiting.account] -= 1
        if not self._held[waiting.account]:
            del self._held[waiting.account]

    # Hashing

    def _hash(self, job: Job, content: bytes | None) -> Measurement:
        settings, use = self.settings, job.use
        algorithm = by_name(settings.algorithm)
        if use.is_direct:
            return Measurement(use.name, algorithm, bytes(algorithm.digest_size), sha1=bytes(20))
        return local_files.describe(
            use.event.fd,
            use.name,
            algorithm,
            want_sha1=settings.want_sha1,
            content=content,
        )

    def _hash_in_thread(self, job: Job) -> None:
        settings, use = self.settings, job.use
        # The event's own descriptor goes with its answer.
        descriptor = os.dup(use.event.fd)
        steps = local_files.describing(
            descriptor, use.name, by_name(settings.algorithm), want_sha1=settings.want_sha1
        )
        job.work = Work(descriptor, use.info.st_dev, steps, {use.account})
        self._hashed[job.work] = job
        self._note_beginning(use.event)
        self._pool.add(job.work)

    def _note_beginning(self, event: Event) -> None:
        waiting = self._openers.get(event.fd)
        if waiting is not None:
            waiting.began = opener.began(event.tid)

    def proceed(self) -> None:
        """Sends what the socket has room for, and what threads have hashed."""
        while self._unsent and self._try(*self._unsent[0]):
            self._unsent.popleft()
        with contextlib.suppress(BlockingIOError):  # nothing was hashed
            os.eventfd_read(self.finished)
            for work in self._pool.take_finished():
                job = self._hashed.pop(work, None)
                if job is None:
                    continue  # a look: the judge looks at it
                job.work = None
                if isinstance(work.result, Measurement):
                    self._ask(job, work.result)
                else:
                    assert work.failure is not None
                    self._fail(job, work.failure)

    def _fail(self, job: Job, error: OSError | Refused) -> None:
        # As in a kernel, a file that cannot be read is opened all the same.
        self.trouble(error)
        self._miss(job, f"it cannot be read: {reason(error)}")
        self._finish(job.number)

    def _miss(self, job: Job, why: str) -> None:
        self.missed.note(job.use.name, why, job.use.who.uid)

    def _ask(self, job: Job, made: Measurement) -> None:
        self.counts.hashed += 1
        inode = job.inode
        if job.again and inode.digest == made.digest and job.pcrs.keys() <= inode.recorded:
            if job.generation == inode.generation:
                inode.measured |= job.pcrs.keys()
            self._finish(job.number)
            return
        job.digest = made.digest
        info = job.use.info
        use = messages.Use(
            job.number,
            job.use.name,
            tuple(job.pcrs.items()),
            info.st_uid,
            info.st_gid,
            info.st_mode & 0xFFFF,
            made.digest,
            made.sha1 or b"",
            made.signature,
            made.evm_signature,
        )
        self._send(use, job.number)

    # Talking

    def send(self, message: messages.ToWatcher) -> None:
        """To the watcher, behind what waits already."""
        self._send(message, 0)

    def _tell(self, count: int, name: bytes, why: str, uid: int) -> None:
        self.send(messages.Missed(count, name, why, uid))

    def _send(self, message: messages.ToWatcher, number: int) -> None:
        packet = messages.encode(message)
        if len(packet) > MOST or len(self._unsent) >= _MOST_UNSENT:
            self._lose(number)
            return
        self._sent.add(number)
        if self._unsent or not self._try(packet, number):
            self._unsent.append((packet, number))

    def _lose(self, number: int) -> None:
        self.counts.lost += 1
        job = self._jobs.get(number)
        if job is not None:
            self._miss(job, "the daemon takes no more messages")
        self._finish(number)

    def _try(self, packet: bytes, number: int) -> bool:
        try:
            return self._channel.send(packet)
        except ConnectionError:
            raise
        except OSError as error:
            self.trouble(error)
            self._lose(number)
            return True

    def report(self, *, ignoring: bool) -> None:
        """The counters."""
        self.counts.ignoring = ignoring
        self.counts.unmeasured = self.missed.total
        self.send(self.counts)

    def overflowed(self) -> None:
        """The kernel has thrown events away."""
        self.counts.overflows += 1
        self.missed.note(b"", "the kernel's queue of events was full")

    def trouble(self, error: BaseException | None) -> None:
        """An event that could not be judged, or a file that could not be read."""
        self.counts.errors += 1
        self.counts.trouble = repr(error)

    # Ending

    def done(self, number: int, *, measured: bool) -> None:
        """The watcher has dealt with ``number``."""
        self._silent = False
        job = self._jobs.get(number)
        if measured and job is not None and job.digest and not job.use.is_direct:
            if job.generation == job.inode.generation:
                job.inode.measured |= job.pcrs.keys()
            job.inode.digest = job.digest
            job.inode.recorded = frozenset(job.pcrs)
        self._finish(number)

    def _finish(self, number: int) -> None:
        self._sent.discard(number)
        job = self._jobs.pop(number, None)
        if job is not None and self._pending.get(job.key) is job:
            del self._pending[job.key]
        for fd in self._waited.pop(number, ()):
            waiting = self._openers.get(fd)
            if waiting is None or number not in waiting.numbers:
                continue  # went on at its deadline; the descriptor may be another's by now
            waiting.numbers.discard(number)
            if not waiting.numbers and waiting.event is not self.current:
                self._forget(waiting)
                self._allow(waiting.event)

    def expire(self) -> None:
        """Lets those go on whose deadline has passed."""
        now = time.monotonic()
        while self._deadlines:
            deadline, _, waiting = self._deadlines[0]
            if self._openers.get(waiting.event.fd) is waiting:
                if deadline > now and not self._silent:
                    return
                self._let_go(waiting, now)
            heapq.heappop(self._deadlines)

    def _let_go(self, waiting: Opener, now: float) -> None:
        self.counts.late += 1
        # Hashing that takes long is not the daemon's fault.
        self._silent = self._silent or bool(waiting.numbers & self._sent)
        self._forget(waiting)
        self._allow(waiting.event)
        for number in waiting.numbers:
            job = self._jobs.get(number)
            if job is None or job.work is None:
                continue
            if now >= job.until:
                self._give_up(job)
            else:
                job.unasked = True

    def _give_up(self, job: Job) -> None:
        """The last one who waited has gone on: a file that is hashed is not hashed any more."""
        seconds = f"{self.seconds:g} s"
        self._miss(job, f"hashing it takes longer than {seconds}")
        self._drop(job)

    def _drop(self, job: Job) -> None:
        assert job.work is not None
        del self._hashed[job.work]
        self._pool.drop(job.work)
        job.work = None
        self._finish(job.number)

    def look_after(self) -> None:
        """Now and then: ends what nobody waits for, and replaces threads that are stuck."""
        now = time.monotonic()
        looks = 0
        for job in list(self._hashed.values()):
            waiting = [
                self._openers[fd]
                for fd in self._waited.get(job.number, ())
                if fd in self._openers and job.number in self._openers[fd].numbers
            ]
            for each in waiting:
                looks += 1
                if looks <= _MOST_LOOKS and opener.began(each.event.tid) != each.began:
                    self._bury(each)
                    waiting = [other for other in waiting if other is not each]
            if job.work is not None and not waiting:
                if now >= job.until:
                    self._give_up(job)
                elif not job.unasked:
                    self._drop(job)
        self._pool.tend()

    def _bury(self, dead: Opener) -> None:
        """An opener was killed while it waited: nobody used what it opened."""
        self._forget(dead)
        self._allow(dead.event)

    def forget(self) -> None:
        """A boot: the same content is measured again, even if it is on its way now."""
        self._pending.clear()


def _head(descriptor: int) -> Steps:
    return os.pread(descriptor, 4, 0)
    yield
