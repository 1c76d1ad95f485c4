# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A mount's lifetime: made, answering, gone."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyfuse3
import trio

from imafs.errors import MountError
from imafs.fuse import selftest
from imafs.fuse.directory import Directory
from imafs.fuse.operations import DirectoryOperations
from imafs.fuse.relay import Relay
from imafs.host import caller, mounts

log = logging.getLogger(__name__)

#: Seconds that the first stat through a new mount may take.
FIRST_ANSWER = 10.0
#: Calls that may wait at once, for a TPM or a scenario; pyfuse3's own 99 are few for clients
#: that a scenario holds, and the last one keeps everybody from everything.
WAITING = 1000


def _options(fsname: str) -> set[str]:
    # default_permissions: the kernel does the mode bits (EACCES). Never auto_unmount:
    # a dead daemon must show as ENOTCONN, never as an empty directory.
    options = {*pyfuse3.default_options, f"fsname={fsname}"}
    options.add(f"subtype={mounts.SUBTYPE}")
    if caller.can_mount() or _user_allow_other():
        options.add("allow_other")
    else:
        log.info("only this user sees the mount: user_allow_other is not in /etc/fuse.conf")
    return options


def _user_allow_other() -> bool:
    try:
        with open("/etc/fuse.conf") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


class End:
    """Ends the daemon when it is called, which is the orderly way.

    Until :meth:`in_use` every end is in order: who tried to start it is told.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self.in_order = True

    def in_use(self) -> None:
        """From now on clients rely on the mount: an end that nobody asked for is a death."""
        self.in_order = False

    def __call__(self) -> None:
        self.in_order = True
        self._cancel()


@dataclass(frozen=True, slots=True)
class Mount:
    """How a mount shows sizes, and why not as a kernel does."""

    hidden: bool = True
    why: str | None = None

    async def sizes(self) -> dict[str, object]:
        """For people who ask for the status."""
        return {"shown": "zero" if self.hidden else "true", "why": self.why}


@asynccontextmanager
async def mounted(
    directory: Directory[Any],
    path: str,
    end: End,
    *,
    true_sizes: bool = False,
    large_reads: bool = False,
    fsname: str = mounts.FSNAME,
    leave: bool = False,
) -> AsyncIterator[Mount]:
    """Mounts ``directory`` on ``path`` (resolved); inside, the mount has tried itself.

    ``true_sizes`` shows them, and fills every read; ``large_reads`` does the second alone.
    ``fsname`` stands in the table of mounts.
    ``end`` is called when the mount ends by itself (somebody unmounted it). Raises
    :class:`MountError`. Unmounts at an end in order, lazily if files are open; after any
    other one the mount stays and answers ENOTCONN, as after kill -9; with ``leave`` after any.
    """
    try:
        relay = Relay()
    except OSError as error:
        # EFBIG: the requests lie at the end of a sparse file, and ulimit -f forbids it.
        raise MountError(f"{path}: no file in memory for requests: {error.strerror}") from None
    operations = DirectoryOperations(
        directory, lambda: relay.request, true_sizes=true_sizes, large_reads=large_reads
    )
    try:
        pyfuse3.init(relay.install(operations, operations), path, _options(fsname))
    except RuntimeError as error:
        relay.close()
        raise MountError(f"{path}: cannot be mounted: {error}") from None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, end)
            await _first_answer(path)
            mount = await _tried(path, operations, hidden=not true_sizes)
            try:
                yield mount
            finally:
                pyfuse3.terminate()
    finally:
        relay.close()
        pyfuse3.close(unmount=end.in_order and not leave)


async def _serve(end: End) -> None:
    await pyfuse3.main(max_tasks=WAITING)
    end()


async def _first_answer(path: str) -> None:
    """The mount answers a stat (in a thread: we answer it)."""
    with trio.move_on_after(FIRST_ANSWER):
        await trio.to_thread.run_sync(os.stat, path, abandon_on_cancel=True)
        return
    raise MountError(f"{path}: the new mount does not answer")


async def _tried(path: str, operations: DirectoryOperations, *, hidden: bool) -> Mount:
    """What became of the self-test: true sizes where a hidden one would lose records.

    Raises :class:`MountError` where not even ``read(2)`` gives what there is.
    """
    finding = selftest.Finding(f"no answer within {FIRST_ANSWER:g} s", reads=False)
    node = operations.plant(selftest.Trial(), selftest.file())
    with trio.move_on_after(FIRST_ANSWER):
        finding = await trio.to_thread.run_sync(
            partial(selftest.run, path, hidden=hidden), abandon_on_cancel=True
        )
    operations.uproot(node)
    if not finding.reads:
        raise MountError(f"{path}: the self-test of the new mount failed: {finding.failed}")
    if finding.failed is not None:
        operations.tell_sizes()
        log.warning(
            "%s: the self-test failed (%s): sizes are true and every read is filled, unlike a "
            "kernel's",
            path,
            finding.failed,
        )
        return Mount(hidden=False, why=f"the self-test failed: {finding.failed}")
    return Mount() if hidden else Mount(hidden=False, why="--st-size actual")
