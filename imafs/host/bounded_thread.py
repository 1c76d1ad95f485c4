# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Blocking work on paths of others' choice, in threads that nothing else uses.

A dead NFS or FUSE keeps a thread in the kernel for as long as it is dead; nobody can end it.
So there are only so many, apart from those of the daemon's own work (trio's default ones, in
which nothing may hang) and from the TPM's: what hangs here holds up neither the listener nor
the end of the daemon. All of them are daemon threads: the interpreter's exit waits for none.

A request ends with an errno where no thread is free, or where its file system is silent; its
work ends between two pieces where nobody waits for it any more.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextvars import ContextVar
from math import inf
from typing import Generic, TypeVar

import trio

from imafs.errors import ImafsError, Refused

T = TypeVar("T")

#: Threads, and with them file systems that may hang at once.
MOST = 40
#: Seconds that a request waits for a thread.
WAIT = 10.0
#: Seconds without a word (:func:`going_on`) after which a file system counts as dead.
SILENCE = 20.0
#: The same where everybody waits meanwhile.
STANDSTILL = 5.0

_limiter = trio.lowlevel.RunVar[trio.CapacityLimiter]("imafs foreign paths")
_heard: ContextVar[Callable[[], None]] = ContextVar("heard")


def limiter() -> trio.CapacityLimiter:
    """The threads of this event loop that work on paths of others."""
    try:
        return _limiter.get()
    except LookupError:
        made = trio.CapacityLimiter(MOST)
        _limiter.set(made)
        return made


def going_on() -> None:
    """Called by the work between two pieces: a chunk was read, a name was found.

    Ends the work, by an exception that goes to nobody, where it was abandoned. Elsewhere than
    in the work of :func:`run` nothing happens.
    """
    heard = _heard.get(None)
    if heard is not None:
        heard()


async def run(work: Callable[[], T], *, silence: float = inf) -> T:
    """The result of ``work``; a caller that is cancelled leaves it alone with its thread.

    Raises :class:`Refused` (EAGAIN) where no thread is free within :data:`WAIT` seconds, or
    where nothing was heard of the work for ``silence`` seconds. However long the work itself
    takes: a large file is no failure.
    """
    token = trio.lowlevel.current_trio_token()
    waiting = trio.CancelScope(deadline=trio.current_time() + WAIT)
    begun = False

    def heard() -> None:
        nonlocal begun
        begun = True
        waiting.deadline = trio.current_time() + silence

    def tell() -> None:
        trio.from_thread.check_cancelled()
        token.run_sync_soon(heard, idempotent=True)

    def begin() -> T:
        tell()
        _heard.set(tell)  # the thread has a copy of the context
        return work()

    with waiting:
        return await trio.to_thread.run_sync(begin, abandon_on_cancel=True, limiter=limiter())
    if begun:
        raise _silent(silence)
    raise Refused(errno.EAGAIN, f"all threads are held up, none was free within {WAIT:g} s")


class Standstill:
    """Work during which the event loop stands still: nothing may happen before it is done.

    In a thread all the same, for a file system may never answer; one at a time.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``. Raises what it raises, and :class:`Refused` (EAGAIN) where
        nothing is heard of it for :data:`STANDSTILL` seconds, or an earlier one still hangs."""
        if self._thread is not None and self._thread.is_alive():
            raise Refused(errno.EAGAIN, "an earlier one still waits for its file system")
        job = _Job(work)
        self._thread = threading.Thread(target=job.begin, daemon=True, name="imafs standstill")
        self._thread.start()
        return job.result()


class _Abandoned(BaseException):
    """Nobody waits for this work any more: it ends, and cleans up on its way."""


class _Job(Generic[T]):
    """The state that the event loop and the thread of one work share."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._news = threading.Condition()
        self._ended = self._abandoned = False
        self._results: list[T] = []
        self._error: ImafsError | OSError | None = None

    def begin(self) -> None:
        """In the thread."""
        _heard.set(self._tell)
        try:
            self._results.append(self._work())
        except _Abandoned:
            return
        except (ImafsError, OSError) as error:
            self._error = error
        finally:
            with self._news:
                self._ended = True
                self._news.notify()

    def _tell(self) -> None:
        with self._news:
            if self._abandoned:
                raise _Abandoned
            self._news.notify()

    def result(self) -> T:
        """In the event loop."""
        with self._news:
            while not self._ended:
                if not self._news.wait(STANDSTILL):
                    self._abandoned = True
                    raise _silent(STANDSTILL)
        if self._error is not None:
            raise self._error
        (result,) = self._results
        return result


def _silent(seconds: float) -> Refused:
    return Refused(errno.EAGAIN, f"the file system does not answer: silent for {seconds:g} s")
