# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Where the keeper's view is: in a directory of its own, or over the one that is kept.

The kernel's own ``policy`` is mounted over the view's: a policy that is loaded takes effect with
the rights of who writes it, and cannot be handed on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from imafs.errors import FileError, GapError, MountError
from imafs.fuse import session
from imafs.host import covers, mounts
from imafs.host.covers import Ground
from imafs.keeper.collector import Collector
from imafs.keeper.machine import Machine
from imafs.keeper.store import Store
from imafs.keeper.view import WholeDirectory

log = logging.getLogger(__name__)

#: In the store: there libfuse mounts what is to cover another directory.
_MADE = "view"
#: Seconds between two looks at the table of mounts.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Showing:
    """``made``: where libfuse mounts the view, resolved. ``path``: where readers find it; if that
    is another place it is laid there. ``gid``: the group of its files, root's for None.
    ``ground``: what it covers there; ``short``: at once, for a short list is to be read there."""

    made: str
    path: str
    of: Machine
    gid: int | None
    ground: Ground | None = None
    short: bool = False

    @property
    def laid(self) -> bool:
        """Whether the view is moved to its place once it answers."""
        return self.made != self.path


def prepared(place: str) -> str:
    """The mountpoint. What an earlier keeper left there goes, but for one dead view. Raises
    :class:`MountError`."""
    path = mounts.resolve(place)
    mounts.check_fuse()
    return path if covers.can_be_replaced(path) else _freed(path)


def showing(
    path: str | None, ground: Ground | None, store: Store, of: Machine, gid: int | None
) -> Showing | None:
    """How the view gets to ``path``, which is prepared, or over ``ground``.

    A dead view on ``path`` stays until this one answers: an agent that finds no file takes the
    kernel for one without a list. Raises :class:`MountError`, :class:`FileError`, and what a
    look at the store raises.
    """
    if ground is not None:
        return Showing(
            _place_in(store.path), ground.path, of, gid, ground, _is_short(ground, store)
        )
    if path is None:
        return None
    made = _place_in(store.path) if covers.can_be_replaced(path) else path
    return Showing(made, path, of, gid)


def _is_short(ground: Ground, store: Store) -> bool:
    """Whether readers find a list there that a keeper has made short: under a dead view nobody
    finds any."""
    return not covers.is_covered(ground.path) and store.has_deleted()


def _freed(path: str) -> str:
    if mounts.clean(path):
        log.info("%s: unmounted what an earlier imafs left", path)
    mounts.check_mountpoint(path)
    return path


def _place_in(store: str) -> str:
    """A mountpoint in the store. Raises :class:`MountError`, :class:`FileError`."""
    path = os.path.join(store, _MADE)
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        if mounts.top(mounts.resolve(path)) is None:  # a dead one says ENOTCONN
            raise FileError(path, error) from None
    return _freed(mounts.resolve(path))


@asynccontextmanager
async def shown(showing: Showing, collector: Collector, end: session.End) -> AsyncIterator[None]:
    """The view is there inside. A cover stays behind, whatever ends the keeper: the files below
    would be taken for the whole list; a view elsewhere goes with an end in order. Raises
    :class:`MountError`, :class:`GapError`."""
    view = WholeDirectory(collector, showing.gid)
    ground = showing.ground
    if ground is not None:
        await _until_coverable(showing, ground, collector)
    lain = None
    try:
        async with session.mounted(view, showing.made, end, fsname=mounts.KEPT, leave=showing.laid):
            if showing.laid:
                await trio.to_thread.run_sync(covers.set_apart, showing.made)
            await _show_policy(showing, view, showing.made)
            if showing.laid:
                lay = partial(covers.lay, showing.made, showing.path, bare=ground is None)
                lain = await trio.to_thread.run_sync(lay)
                log.info("the view lies on %s", showing.path)
            collector.let_delete()
            async with trio.open_nursery() as nursery:
                cover = None if ground is None else lain
                nursery.start_soon(_watch, showing, cover, view, collector)
                yield
                nursery.cancel_scope.cancel()
    finally:
        if showing.laid and lain is None:
            covers.take_away(showing.made)
        elif ground is None and lain is not None and end.in_order and covers.lies(lain):
            mounts.detach(lain)


async def _until_coverable(showing: Showing, ground: Ground, collector: Collector) -> None:
    """A kernel's list is covered by one that is whole, or where somebody accepts that it may
    not be. A dead view is covered by whatever there is, and so is a list that a keeper made
    short: after a kexec nothing covers it. Raises :class:`GapError`."""
    if showing.short:
        while collector.catalogue is None and not collector.joined:
            await collector.changed()
        return
    while collector.refusal is not None and not covers.is_covered(ground.path):
        if collector.joined:
            raise GapError(
                f"--cover: {ground.path}: {collector.refusal}. Cover it all the same with "
                "--accept-gap, or reboot"
            )
        await collector.changed()


async def _show_policy(showing: Showing, view: WholeDirectory, path: str) -> None:
    """In a thread: the place of the mount is ours to look up."""
    try:
        if showing.ground is None:
            policy = await trio.to_thread.run_sync(covers.policy_of, showing.of.reach)
        else:
            policy = showing.ground.policy
        view.has_policy = policy is not None
        if policy is not None:
            await trio.to_thread.run_sync(covers.show_policy, policy, path)
    except OSError as error:
        view.has_policy = False
        log.info("the view has no policy file: %s", error.strerror)


async def _watch(
    showing: Showing, cover: mounts.Mount | None, view: WholeDirectory, collector: Collector
) -> None:
    """Tells when the view is not where it should be any more."""
    while True:
        await trio.sleep(_LOOK)
        if cover is not None:
            if covers.lies(cover):
                collector.calm("uncovered")
            else:
                text = f"{cover.path} does not lead to the view any more: start the keeper again"
                collector.alarm("uncovered", text)
        elif _has_another_source(showing):
            await _show_policy(showing, view, showing.path)


def _has_another_source(showing: Showing) -> bool:
    """Whether an emulator was started anew: its policy is another file."""
    if not showing.of.emulated:
        return False
    now = mounts.top(showing.of.root)
    shown_now = covers.shown_policy(showing.path)
    if now is None or not now.emulated:
        return False
    return shown_now is None or shown_now.minor != now.minor


def uncovered(path: str) -> MountError:
    """The end of a keeper whose cover somebody took away."""
    return MountError(f"{path}: somebody unmounted the view: the files below show there")
