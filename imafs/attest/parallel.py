# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Independent work in a process each: hashes of short messages hold the interpreter.

A child is a copy of this process, so nothing is imported and no list is copied. Copying is safe
only while no other thread may hold a lock: with threads about, all work is done here.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
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
