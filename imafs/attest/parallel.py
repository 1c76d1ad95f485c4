# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Independent work in a process each: hashes of short messages hold the interpreter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

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
    if size < WORTH or len(names) < 2:
        return [work(name, progress if name == names[0] else _silent) for name in names]
    context = multiprocessing.get_context("fork")
    children = []
    for name in names[1:]:
        receiving, sending = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(work, name, sending), daemon=True)
        child.start()
        sending.close()
        children.append((name, child, receiving))
    try:
        results = [work(names[0], progress)]
        for name, child, receiving in children:
            results.append(_result(receiving) or work(name, _silent))
            child.join()
    finally:
        for _, child, _ in children:
            child.terminate()
            child.join()
    return results


def _silent(done: int, total: int) -> None:
    return None


def _child(work: Callable[[str, Progress], T], name: str, sending: Connection) -> None:
    try:
        sending.send(work(name, _silent))
    except FormatError as error:
        # The one who checks digests finds the same fault, or is told this one.
        sending.send((error.reason, error.record, error.offset))


def _result(receiving: Connection) -> T | None:
    """What a child sent; None where it died (killed, out of memory)."""
    try:
        found = receiving.recv()
    except EOFError:
        return None
    if isinstance(found, tuple):
        reason, record, offset = found
        raise FormatError(reason, record=record, offset=offset)
    return found  # type: ignore[no-any-return]
