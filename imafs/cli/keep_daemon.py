# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper's process: composes source, store, collector and view, and takes them down."""

from __future__ import annotations

import faulthandler
import grp
import logging
import os
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

from imafs.errors import ImafsError, UsageError
from imafs.fuse import session
from imafs.host import logs, mounts, programs
from imafs.host.sd_notify import notify
from imafs.keeper import machine
from imafs.keeper.collector import Collector, Settings
from imafs.keeper.config import Config
from imafs.keeper.source import Source
from imafs.keeper.status import Server
from imafs.keeper.store import Store, open_store
from imafs.keeper.view import WholeDirectory

log = logging.getLogger(__name__)

#: Seconds between two words to the service manager, where it names no other time.
_WATCHDOG = 5.0
#: The group of agents that use a TPM.
_GROUP = "tss"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that ``imafs keep`` was asked for."""

    source: str
    store: str
    mount: str | None = None
    accept_gap: bool = False
    pcrs: str | None = None
    boot_id: str | None = None
    log_file: str | None = None
    settings: Config = field(default_factory=Config)


def run(plan: Plan) -> int:
    """Runs until a signal; the exit code. Raises what ended it."""
    stream = logs.configure(plan.log_file)
    faulthandler.register(signal.SIGUSR1, file=stream)
    mountpoint = None if plan.mount is None else _prepared(plan.mount)
    store_path = os.path.abspath(plan.store)
    place = machine.place(os.path.abspath(plan.source), plan.boot_id)
    source = Source(place, machine.pcrs(plan.pcrs, place.directory))
    source.look()
    store = open_store(store_path)
    settings = Settings(
        records=plan.settings.records,
        age=plan.settings.age,
        on_read=plan.settings.on_read,
        keep_free=plan.settings.keep_free,
        serve_gaps=plan.accept_gap or plan.settings.on_gap == "serve",
        volatile=machine.volatile(store_path),
    )
    programs.leave_working_directory()
    try:
        trio.run(_main, plan, source, store, settings, mountpoint)
    except BaseExceptionGroup as group:
        raise _only(group) from None
    finally:
        store.close()
    return 0


def _group(name: str | None) -> int | None:
    """Its number. The usual one is taken where there is one. Raises :class:`UsageError`."""
    try:
        return grp.getgrnam(name or _GROUP).gr_gid
    except KeyError:
        if name is None:
            return None
        raise UsageError(f"[view] group = {name!r}: there is no such group") from None


def _prepared(path: str) -> str:
    """The mountpoint, free of what an earlier keeper left. Raises :class:`MountError`."""
    mountpoint = mounts.resolve(path)
    mounts.check_fuse()
    if mounts.clean(mountpoint):
        log.info("%s: unmounted what an earlier imafs left", mountpoint)
    mounts.check_mountpoint(mountpoint)
    return mountpoint


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of ours in a group of groups; the group itself for anything else."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop()
        if isinstance(error, BaseExceptionGroup):
            todo.extend(error.exceptions)
        else:
            leaves.append(error)
    return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], ImafsError) else group


async def _main(
    plan: Plan, source: Source, store: Store, settings: Settings, mountpoint: str | None
) -> None:
    collector = Collector(source, store, settings)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as nursery:
                end = session.End(nursery.cancel_scope.cancel)
                nursery.start_soon(_until_signal, signals, end)
                await nursery.start(Server(collector, store.path).run)
                nursery.start_soon(collector.run)
                await collector.looked()
                async with AsyncExitStack() as stack:
                    if mountpoint is not None:
                        view = WholeDirectory(collector, _group(plan.settings.group))
                        await stack.enter_async_context(
                            session.mounted(view, mountpoint, end, fsname=mounts.KEPT)
                        )
                        end.in_use()
                    _announce(plan, store, mountpoint)
                    await _report(collector)
        finally:
            with trio.CancelScope(shield=True):
                await collector.close()


def _announce(plan: Plan, store: Store, mountpoint: str | None) -> None:
    words = ["imafs: keeping", plan.source, f"store={shlex.quote(store.path)}"]
    if mountpoint is not None:
        words.append(f"view={shlex.quote(mountpoint)}")
    print(" ".join(words), flush=True)
    notify("READY=1")


async def _report(collector: Collector) -> None:
    """Tells the service manager that the keeper lives, and how."""
    seconds = _WATCHDOG
    if (given := os.environ.get("WATCHDOG_USEC", "")).isdigit():
        seconds = max(0.1, int(given) / 2e6)
    while True:
        total = len(collector.catalogue) if collector.catalogue is not None else 0
        why = f": {collector.why}" if collector.why else ""
        notify("WATCHDOG=1", f"STATUS={collector.state.value}{why}, {total} records")
        await trio.sleep(seconds)


async def _until_signal(signals: AsyncIterator[int], end: session.End) -> None:
    async for number in signals:
        log.info("%s: ending", signal.Signals(number).name)
        end()
        return
