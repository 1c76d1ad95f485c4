# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A mount's lifetime: made, answering, gone."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pyfuse3
import trio

from imafs.engine.emulator import Emulator
from imafs.errors import MountError
from imafs.fuse import mountinfo
from imafs.fuse.extras import Extra
from imafs.fuse.operations import ImaOperations

log = logging.getLogger(__name__)

#: Seconds that the first stat through a new mount may take.
FIRST_ANSWER = 10.0


def _options() -> set[str]:
    # default_permissions: the kernel does the mode bits (EACCES). Never auto_unmount:
    # a dead daemon must show as ENOTCONN, never as an empty directory.
    options = {*pyfuse3.default_options, f"fsname={mountinfo.FSNAME}"}
    options.add(f"subtype={mountinfo.SUBTYPE}")
    if os.geteuid() == 0 or _user_allow_other():
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


@asynccontextmanager
async def mounted(
    emulator: Emulator, path: str, layout: str, end: End, extras: Sequence[Extra] = ()
) -> AsyncIterator[None]:
    """Mounts ``emulator`` on ``path`` (resolved); inside, the mount has answered a stat.

    ``end`` is called when the mount ends by itself (somebody unmounted it). Raises
    :class:`MountError`. Unmounts at an end in order, lazily if files are open; after any
    other one the mount stays and answers ENOTCONN, as after kill -9.
    """
    operations = ImaOperations(emulator, layout, extras)
    try:
        pyfuse3.init(operations, path, _options())
    except RuntimeError as error:
        raise MountError(f"{path}: cannot be mounted: {error}") from None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, end)
            if _switch_readahead_off(await _first_answer(path)):
                operations.without_readahead()
            try:
                yield
            finally:
                pyfuse3.terminate()
    finally:
        pyfuse3.close(unmount=end.in_order)


async def _serve(end: End) -> None:
    await pyfuse3.main()
    end()


async def _first_answer(path: str) -> int:
    """The mount's device number, once it has answered a stat (in a thread: we answer it)."""
    with trio.move_on_after(FIRST_ANSWER):
        answer = await trio.to_thread.run_sync(os.stat, path, abandon_on_cancel=True)
        return answer.st_dev
    raise MountError(f"{path}: the new mount does not answer")


def _switch_readahead_off(device: int) -> bool:
    """Makes page cache reads single pages: see :class:`imafs.fuse.handles.Filling`."""
    knob = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    try:
        with open(knob, "w") as file:
            file.write("0")
    except OSError as error:
        log.info(
            "%s: %s: reads of whole pages at page boundaries are filled, unlike a kernel's",
            knob,
            error.strerror,
        )
        return False
    return True
