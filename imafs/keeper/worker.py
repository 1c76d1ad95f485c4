# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A thread of one's own for blocking work, under a deadline: always the same thread.

The kernel counts writers of its lists per thread, and a disk or a TPM may hang: then the work
is left alone with its thread, and whoever asks for more is refused until it comes back.
"""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import trio

from imafs.errors import Refused

T = TypeVar("T")


class _Job(Generic[T]):
    def __init__(self, work: Callable[[], T], token: trio.lowlevel.TrioToken) -> None:
        self._work = work
        self._token = token
        self.ended = trio.Event()
        self.results: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.results.append(self._work())
        except BaseException as error:  # raised again where it is waited for
            self.error = error
        try:
            self._token.run_sync_soon(self.ended.set)
        except trio.RunFinishedError:
            return  # nobody waits any more


class Worker:
    """``name`` is the thread's. It is a daemon thread: the end of the process waits for none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hung: _Job[object] | None = None

    @property
    def hangs(self) -> bool:
        """Whether work that was given up has not come back."""
        return self._hung is not None and not self._hung.ended.is_set()

    async def call(self, work: Callable[[], T], deadline: float) -> T:
        """What ``work`` returns, or raises. Raises :class:`Refused` (ETIMEDOUT) where that
        takes longer than ``deadline`` seconds, or an earlier call still hangs."""
        if self.hangs:
            raise Refused(errno.ETIMEDOUT, f"{self._name}: an earlier call still hangs")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name=self._name)
            self._thread.start()
        job = _Job(work, trio.lowlevel.current_trio_token())
        self._jobs.put(job)  # type: ignore[arg-type]
        with trio.move_on_after(deadline):
            await job.ended.wait()
        if not job.ended.is_set():
            self._hung = job  # type: ignore[assignment]
            raise Refused(errno.ETIMEDOUT, f"{self._name}: no answer within {deadline:g} s")
        if job.error is not None:
            raise job.error
        return job.results[0]

    def end(self) -> None:
        """The thread ends behind what it was asked for; work that hangs keeps it."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # its result may be a list of millions


class Pool:
    """Some such threads for reading: a disk that is silent holds up one of them, for the others'
    sake, and what was asked for there is refused until it comes back."""

    def __init__(self, name: str, count: int, deadline: float) -> None:
        self._workers = [Worker(f"{name} {number}") for number in range(count)]
        self._waiting = dict.fromkeys(self._workers, 0)
        self._deadline = deadline
        self._stuck: dict[Hashable, Worker] = {}

    async def call(self, key: Hashable, work: Callable[[], T]) -> T:
        """What ``work`` on ``key`` returns, or raises; :class:`Refused` (ETIMEDOUT) as above."""
        for known in [known for known, worker in self._stuck.items() if not worker.hangs]:
            del self._stuck[known]
        free = [worker for worker in self._workers if not worker.hangs]
        if key in self._stuck or not free:
            raise Refused(errno.ETIMEDOUT, "the disk does not answer")
        worker = min(free, key=self._waiting.__getitem__)
        self._waiting[worker] += 1
        try:
            return await worker.call(work, self._deadline)
        finally:
            self._waiting[worker] -= 1
            if worker.hangs:
                self._stuck[key] = worker

    def end(self) -> None:
        """As of one."""
        for worker in self._workers:
            worker.end()
