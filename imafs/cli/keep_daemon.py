# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper's process: composes source, store, collector and view, and takes them down."""

from __future__ import annotations

import ctypes
import faulthandler
import grp
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

from imafs.cli import keep_view
from imafs.cli.keep_view import Showing
from imafs.errors import ImafsError, UsageError
from imafs.fuse import session
from imafs.host import covers, logs, mounts, programs
from imafs.host.covers import Ground
from imafs.host.sd_notify import notify
from imafs.keeper import lasting, machine
from imafs.keeper.collector import Collector, Settings
from imafs.keeper.config import Config
from imafs.keeper.source import NEEDED, Source
from imafs.keeper.status import Server
from imafs.keeper.store import Store, open_store
from imafs.text import quoted

log = logging.getLogger(__name__)

#: Seconds between two words to the service manager, where it names no other time.
_WATCHDOG = 5.0
#: Seconds between two words during a start, and how long one holds.
_WORD = 5.0
_HOLDS = 60.0
#: Of mallopt(3).
_M_MMAP_THRESHOLD = -3
#: The group of agents that use a TPM.
_GROUP = "tss"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that ``imafs keep`` was asked for."""

    source: str
    store: str
    mount: str | None = None
    cover: bool = False
    accept_gap: bool = False
    pcrs: str | None = None
    boot_id: str | None = None
    log_file: str | None = None
    settings: Config = field(default_factory=Config)


def run(plan: Plan) -> int:
    """Runs until a signal; the exit code. Raises what ended it."""
    give_back()
    stream = logs.configure(plan.log_file)
    faulthandler.register(signal.SIGUSR1, file=stream)
    store_path = os.path.abspath(plan.store)
    directory = os.path.abspath(plan.source)
    gid = _group(plan.settings.group)
    ground = _ground(directory) if plan.cover else None
    place = None if plan.mount is None else keep_view.prepared(plan.mount)
    of = machine.machine(directory, ground)
    source = Source(machine.place(of, plan.boot_id), machine.pcrs(plan.pcrs, of))
    if not source.look().deletes:
        raise UsageError(f"--source {directory}: this kernel deletes no records; {NEEDED}")
    store = open_store(store_path)
    settings = Settings(
        records=plan.settings.records,
        age=plan.settings.age,
        on_read=plan.settings.on_read,
        keep_free=plan.settings.keep_free,
        serve_gaps=plan.accept_gap or plan.settings.on_gap == "serve",
        volatile=lasting.volatile(store_path),
    )
    try:
        showing = keep_view.showing(place, ground, store, of, gid)
        programs.leave_working_directory()
        trio.run(_main, plan, source, store, settings, showing)
    except BaseExceptionGroup as group:
        raise _only(group) from None
    finally:
        store.close()
    return 0


def give_back() -> None:
    """From now on what has 128 KiB and more goes back to the kernel once it is freed.

    glibc raises that bound whenever something larger is freed. Chunks come and go, and holes
    were left between them: behind full reads of 10M records 81 MiB beside the cache.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def _group(name: str | None) -> int | None:
    """Its number. The usual one is taken where there is one. Raises :class:`UsageError`."""
    try:
        return grp.getgrnam(name or _GROUP).gr_gid
    except KeyError:
        if name is None:
            return None
        raise UsageError(f"[view] group = {name!r}: there is no such group") from None


def _ground(directory: str) -> Ground:
    """What is to be covered. Raises :class:`MountError`."""
    mounts.check_fuse()
    found = covers.ground(directory)
    log.warning(
        "%s will be covered: from the first deletion on its own list is short until the next "
        "reboot, and the view alone is whole",
        found.path,
    )
    return found


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
    plan: Plan, source: Source, store: Store, settings: Settings, showing: Showing | None
) -> None:
    covering = showing is not None and showing.ground is not None
    collector = Collector(source, store, settings, hold=covering)
    told = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as nursery:
                end = session.End(nursery.cancel_scope.cancel)
                nursery.start_soon(_until_signal, signals, end, told)
                starting = await nursery.start(_starting, collector)
                await nursery.start(Server(collector, store.path).run)
                nursery.start_soon(collector.run)
                nursery.start_soon(collector.scrub)
                if showing is None or not showing.short:
                    await collector.looked()
                async with AsyncExitStack() as stack:
                    if showing is not None:
                        await stack.enter_async_context(keep_view.shown(showing, collector, end))
                        end.in_use()
                    await collector.looked()
                    starting.cancel()
                    _announce(plan, store, showing)
                    await _report(collector)
        finally:
            with trio.CancelScope(shield=True):
                await collector.close()
    if showing is not None and covering and not told.is_set():
        raise keep_view.uncovered(showing.path)


def _announce(plan: Plan, store: Store, showing: Showing | None) -> None:
    words = ["imafs: keeping", quoted(plan.source), f"store={quoted(store.path)}"]
    if showing is not None:
        words.append(f"view={quoted(showing.path)}")
    print(" ".join(words), flush=True)
    notify("READY=1")


async def _starting(collector: Collector, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """A start takes as long as it takes: a long list, a reader in the way, a busy machine. It is
    given up where the service manager hears nothing."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        while True:
            why = f": {collector.why}" if collector.why else ""
            notify(
                f"EXTEND_TIMEOUT_USEC={int(_HOLDS * 1e6)}",
                f"STATUS=starting, {collector.state.value}{why}",
            )
            await trio.sleep(_WORD)


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


async def _until_signal(signals: AsyncIterator[int], end: session.End, told: trio.Event) -> None:
    async for number in signals:
        log.info("%s: ending", signal.Signals(number).name)
        told.set()
        end()
        return
