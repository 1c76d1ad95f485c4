# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Independent work in a process each: hashes of short messages hold the interpreter.

A child is a copy of this process, so nothing is imported and no list is copied. Copying is safe
only while no other thread may hold a lock: with threads about, all work is done here.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from imafs.errors import FormatError

T = TypeVar("T")

#: Called with (bytes read, bytes in all) now and then.
Progress = Callable[[int, int], None]
#: Bytes below which a process costs more than it gains.
WORTH = 8 << 20


def in_processes(
    work: Callable[[str, Progress], T], names: Sequence[str], progress: Progress, size: int
) -> list[T]:
    """``work(name, progress)`` for every name; the first here, the others in forks.

    ``size`` bytes are the work: a small one is done here alone. Raises the
    :class:`FormatError` of the first name that has one. Results must be picklable.
    """
    if size < WORTH or len(names) < 2 or threading.active_count() > 1:
        return [work(name, progress if name == names[0] else _silent) for name in names]
    children: list[_Child[T]] = []
    try:
        for name in names[1:]:
            children.append(_Child(work, name))
        results = [work(names[0], progress)]
        for child in children:
            found = child.result()
            # A child that was killed, or has found a bug: it is done, or found, again here.
            results.append(work(child.name, _silent) if found is None else found[0])
    finally:
        for child in children:
            child.end()
    return results


class Beside(Generic[T]):
    """``work`` for some names, one behind the other, in a fork: each result is to be had as soon
    as it is there, while this process does something else.

    They go through a file in memory: a pipe would have the fork wait until this process reads.
    """

    def __init__(self, work: Callable[[str], T], names: Sequence[str]) -> None:
        self._work, self._names = work, names
        self._place = 0
        self._pid: int | None = None
        if threading.active_count() > 1:
            return  # nothing may be forked: all is done here, when it is asked for
        self._file = os.memfd_create("imafs", os.MFD_CLOEXEC)
        self._reading, writing = os.pipe()
        with suppress(OSError):  # no room for a process
            self._pid = _fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._reading)
                self._run(writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        if self._pid is None:
            self._close()

    def _run(self, writing: int) -> None:
        with os.fdopen(self._file, "wb") as file, os.fdopen(writing, "wb", 0) as told:
            for name in self._names:
                answer: object
                try:
                    answer = self._work(name)
                except FormatError as error:
                    answer = error
                size = file.write(pickle.dumps(answer))
                file.flush()
                told.write(size.to_bytes(8, "little"))

    def results(self) -> Iterator[T]:
        """In the order of the names. Raises the :class:`FormatError` of the first that has one.

        What a fork that died has not done is done here.
        """
        for name in self._names:
            found = self._next()
            if isinstance(found, FormatError):
                raise found
            yield self._work(name) if found is None else found[0]

    def _next(self) -> tuple[T] | FormatError | None:
        if self._pid is None:
            return None
        head = os.read(self._reading, 8)
        if len(head) < 8:
            self.end()
            return None
        size = int.from_bytes(head, "little")
        with mmap.mmap(self._file, self._place + size, prot=mmap.PROT_READ) as view:
            found = pickle.loads(memoryview(view)[self._place :].tobytes())
        self._place += size
        return found if isinstance(found, FormatError) else (found,)

    def end(self) -> None:
        """Ends the fork, if it goes on."""
        if self._pid is None:
            return
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = None
        self._close()

    def _close(self) -> None:
        os.close(self._reading)
        os.close(self._file)


def _silent(done: int, total: int) -> None:
    return None


class _Child(Generic[T]):
    """A fork that does one work and says what came out through a pipe."""

    def __init__(self, work: Callable[[str, Progress], T], name: str) -> None:
        self.name = name
        self._reading, writing = os.pipe()
        try:
            self._pid: int | None = _fork()
        except OSError:  # no room for a process: result() has nothing
            self._pid = None
        if self._pid == 0:
            status = 1
            try:
                os.close(self._reading)
                _send(writing, work, name)
                status = 0
            finally:
                # Whatever happened: nothing of the parent's may be flushed or ended twice.
                os._exit(status)
        os.close(writing)

    def result(self) -> tuple[T] | None:
        """What came out; None where the child died. Raises :class:`FormatError`."""
        with os.fdopen(os.dup(self._reading), "rb") as file:
            sent = file.read()
        if self._status() != 0:
            return None
        found = pickle.loads(sent)
        if isinstance(found, FormatError):
            raise found
        return (found,)

    def end(self) -> None:
        """Ends it, if it goes on: another's work has failed."""
        os.close(self._reading)
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._status()

    def _status(self) -> int:
        if self._pid is None:
            return 1
        _, status = os.waitpid(self._pid, 0)
        self._pid = None
        return status


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 counts threads that hold no lock of its own too: that of faulthandler.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _send(writing: int, work: Callable[[str, Progress], T], name: str) -> None:
    answer: object
    try:
        answer = work(name, _silent)
    except FormatError as error:
        # The one who checks digests finds the same fault, or is told this one.
        answer = error
    with suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
        pickle.dump(answer, file)
