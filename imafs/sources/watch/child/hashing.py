# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that are hashed in threads, in turns: one account's files do not hold up another's.

A thread hashes for a moment, then the file goes behind the others; so a huge one costs its
own openers time and nobody else. A thread that a file system does not let go is replaced,
and where two are stuck nobody looks until one of them has come back.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from imafs.errors import Refused
from imafs.formats.fields import Measurement
from imafs.sources.watch.child.task import Account

#: Threads that hash; those that are stuck in a file system do not count.
THREADS = 4
#: With those that are stuck.
MOST_THREADS = 64
#: Threads that may be stuck in one file system before it is left alone until one returns.
#: They are found a while later: up to THREADS others may have gone in behind the last but one.
PER_DEVICE = 2
#: Seconds of one turn.
SLICE = 0.02
#: Seconds in one read after which a thread counts as stuck.
STUCK = 0.5
#: A hash needs little; Python's default of 8 MiB each is much address space for stuck ones.
_STACK = 256 << 10

Steps = Generator[None, None, Measurement | bytes]


@dataclass(eq=False, slots=True)
class Work:
    """One open file: ``steps`` hash a piece each; ``descriptor`` is closed at the end.

    ``accounts`` are those who wait for it: it takes the turns of each of them. Then either
    ``result`` or ``failure`` is there.
    """

    descriptor: int
    device: int
    steps: Steps
    accounts: set[Account]
    result: Measurement | bytes | None = None
    failure: OSError | Refused | None = None
    #: Nobody needs it any more.
    over: bool = False
    running: bool = False
    queued: set[Account] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class _Worker:
    """A thread: ``since`` when it has been in one step of ``work``."""

    work: Work | None = None
    since: float = 0.0
    stuck: bool = False


class Pool:
    """``finished`` is called, in any thread, after a work was put into :meth:`take_finished`."""

    def __init__(self, finished: Callable[[], None]) -> None:
        self._finished = finished
        self._lock = threading.Condition()
        self._turns: OrderedDict[Account, dict[Work, None]] = OrderedDict()
        self._parked: dict[int, dict[Work, None]] = {}
        self._stuck: Counter[int] = Counter()
        self._workers: set[_Worker] = set()
        self._idle = 0
        self._done: list[Work] = []
        #: Works that are not finished.
        self.unfinished = 0

    # The listener's thread

    def add(self, work: Work) -> None:
        """Has it hashed."""
        with self._lock:
            self.unfinished += 1
            self._queue(work)
            self._staff()

    def join(self, work: Work, account: Account) -> None:
        """Somebody of this account waits for it too."""
        with self._lock:
            if account not in work.accounts:
                work.accounts.add(account)
                if not work.running and not work.over:
                    self._queue(work)

    def drop(self, work: Work) -> None:
        """Nobody waits any more: it ends at its next step, or at once where it has no turn."""
        with self._lock:
            if work.over:
                return
            work.over = True
            self.unfinished -= 1
            for account in work.queued:
                self._leave(account, work)
            self._parked.get(work.device, {}).pop(work, None)
            if not work.running:
                _end(work)

    def take_finished(self) -> list[Work]:
        """Those that were finished since, and not dropped."""
        with self._lock:
            done, self._done = [work for work in self._done if not work.over], []
            for work in done:
                work.over = True
            self.unfinished -= len(done)
        return done

    def tend(self) -> None:
        """Now and then: finds threads that are stuck, and replaces them."""
        now = time.monotonic()
        with self._lock:
            for worker in self._workers:
                work = worker.work
                if work is not None and not worker.stuck and now - worker.since > STUCK:
                    worker.stuck = True
                    self._stuck[work.device] += 1
            self._staff()

    # Under the lock

    def _queue(self, work: Work) -> None:
        for account in work.accounts - work.queued:
            self._turns.setdefault(account, {})[work] = None
            work.queued.add(account)
        self._lock.notify()

    def _leave(self, account: Account, work: Work) -> None:
        waiting = self._turns.get(account)
        if waiting is not None:
            waiting.pop(work, None)
            if not waiting:
                del self._turns[account]

    def _staff(self) -> None:
        """Another thread, where there is work for it and not enough of them are free."""
        moving = sum(not worker.stuck for worker in self._workers)
        if not self._turns or self._idle or moving >= THREADS:
            return
        if len(self._workers) < MOST_THREADS:
            worker = _Worker()
            self._workers.add(worker)
            thread = threading.Thread(target=self._run, args=(worker,), daemon=True)
            before = threading.stack_size(_STACK)
            try:
                thread.start()
            except RuntimeError:
                self._workers.discard(worker)  # no thread is to be had: the others go on
            finally:
                threading.stack_size(before)

    def _next(self) -> Work | None:
        """Whose turn it is: the accounts take turns, and so do the works of each."""
        while self._turns:
            account, waiting = self._turns.popitem(last=False)
            work = next(iter(waiting))
            del waiting[work]
            work.queued.discard(account)
            if waiting:
                self._turns[account] = waiting
            if work.over or work.running:
                continue
            if self._stuck[work.device] < PER_DEVICE:
                return work
            for other in work.queued:
                self._leave(other, work)
            work.queued.clear()
            self._parked.setdefault(work.device, {})[work] = None
        return None

    # The threads

    def _run(self, worker: _Worker) -> None:
        while (work := self._take(worker)) is not None:
            ended = _turn(worker, work)
            with self._lock:
                work.running = False
                worker.work = None
                if worker.stuck:
                    self._unstick(worker, work.device)
                if work.over:
                    _end(work)
                elif ended:
                    _end(work)
                    self._done.append(work)
                else:
                    self._queue(work)
                    continue
            if ended:
                self._finished()

    def _unstick(self, worker: _Worker, device: int) -> None:
        worker.stuck = False
        self._stuck[device] -= 1
        for work in self._parked.pop(device, {}):
            self._queue(work)

    def _take(self, worker: _Worker) -> Work | None:
        """The next turn; None: there are threads enough without this one."""
        with self._lock:
            while True:
                if sum(not other.stuck for other in self._workers) > THREADS:
                    self._workers.discard(worker)
                    return None
                work = self._next()
                if work is not None:
                    work.running = True
                    worker.work, worker.since = work, time.monotonic()
                    return work
                self._idle += 1
                self._lock.wait()
                self._idle -= 1


def _turn(worker: _Worker, work: Work) -> bool:
    """Hashes for a moment; whether it has come to an end."""
    end = time.monotonic() + SLICE
    try:
        while not work.over and worker.since < end:
            next(work.steps)
            worker.since = time.monotonic()
    except StopIteration as stop:
        work.result = stop.value
        return True
    except (OSError, Refused) as error:
        work.failure = error
        return True
    return False


def _end(work: Work) -> None:
    if work.descriptor >= 0:
        work.steps.close()
        os.close(work.descriptor)
        work.descriptor = -1
