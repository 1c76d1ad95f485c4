# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The daemon: composes TPM, emulator, mount and control socket, and takes them down."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from imafs.cli import find_daemon, leftovers
from imafs.cli.background import Background
from imafs.cli.oom import is_out_of_memory
from imafs.control import paths
from imafs.control.server import serve
from imafs.emulator.audit_log import Audit, open_log
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.directory import ImaDirectory
from imafs.emulator.emulator import Changes, Emulator
from imafs.emulator.sysfs import extras
from imafs.errors import ControlError, ImafsError, TpmError, UsageError
from imafs.formats.algorithms import HashAlgorithm
from imafs.fuse import session
from imafs.host import bounded_thread, logs, programs
from imafs.host import mounts as mountinfo
from imafs.host.sd_notify import notify
from imafs.host.signals import EarlySignals, EndedEarly
from imafs.scenarios import library
from imafs.scenarios.script import Scenario
from imafs.sources import load as lists
from imafs.sources import local_files, measure_file
from imafs.sources.watch.child import task
from imafs.sources.watch.daemon.listening import check_allowed
from imafs.sources.watch.daemon.watcher import DEADLINE, Watcher
from imafs.text import counted, quoted, shown
from imafs.tpm import Device, open_device
from imafs.tpm.proxy import DeviceProxy
from imafs.tpm.swtpm import SwtpmDevice
from imafs.verbs.compose import Verbs
from imafs.verbs.table import TABLE

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that ``imafs mount`` was asked for."""

    directory: str
    layout: str
    control: Path | None
    config: EmulatorConfig
    tpm: str
    tpm_state: Path | None
    banks: Sequence[HashAlgorithm] | None
    allow_hardware: bool
    load: str | None
    load_bank: str | None
    load_moment: str | None
    as_is: bool
    measure: list[str]
    log_file: str | None
    log_level: str
    said: Sequence[str] = ()
    audit_log: str | None = None
    boot_log: bytes | None = None
    tpm_port: int | None = None
    tpm_port_preferred: int | None = None
    tpm_device: bool = False
    scenario: str | None = None
    watch: list[str] = field(default_factory=list)
    watch_deadline: float = DEADLINE


def run(plan: Plan) -> int:
    """Runs until the end of the mount; returns the exit code."""
    log_stream = logs.configure(plan.log_file, plan.log_level)
    # A hung FUSE daemon is otherwise opaque: kill -USR1 prints every thread's stack. Not always
    # to stderr: that of --background is a file which nobody can read any more.
    faulthandler.register(signal.SIGUSR1, file=log_stream)
    early = EarlySignals()
    background = Background()
    try:
        _run(plan, early, background)
    except EndedEarly:
        log.info("ended by a signal before there was a mount")
    except BaseException:
        if background.alone:
            log.exception("the daemon ends")
        raise
    return 0


def _run(plan: Plan, early: EarlySignals, background: Background) -> None:
    # The TPM thread must not keep the event loop waiting for its 5 ms slices.
    sys.setswitchinterval(0.0005)
    mountpoint = mountinfo.resolve(plan.directory)
    mountinfo.check_fuse()
    cleaned = mountinfo.clean(mountpoint)
    if cleaned:
        mounts = counted(cleaned, "dead mount")
        log.info("%s: unmounted %s of an earlier imafs", mountpoint, mounts)
    for state in leftovers.remove_dead_states():
        log.info("%s: removed what an earlier imafs left", state)
    for line in plan.said:
        log.info("%s", line)
    mountinfo.check_mountpoint(mountpoint)
    control = plan.control or _default_control(mountpoint)
    paths.check_socket(control)
    _check_inputs(plan)
    if plan.watch:
        check_allowed(plan.watch)
    scenario = library.find(plan.scenario, TABLE.validate) if plan.scenario else None
    with early.breakable():
        loaded = _loaded(plan)
    programs.leave_working_directory()
    programs.raise_descriptors()
    with ExitStack() as stack:
        device = open_device(
            plan.tpm,
            state_dir=plan.tpm_state,
            banks=plan.banks,
            allow_hardware=plan.allow_hardware,
            port=plan.tpm_port,
            preferred=plan.tpm_port_preferred,
        )
        stack.callback(device.close)
        early.check()
        about = {"mountpoint": mountpoint, "control": str(control), "pid": os.getpid()}
        if plan.tpm_device and isinstance(device, SwtpmDevice):
            proxy = DeviceProxy(device.link())
            stack.callback(proxy.close)
            about["tpm_device"] = proxy.number
            log.info("%s and %s are this TPM", proxy.path, proxy.managed)
        audit = Audit()
        stack.callback(audit.close)
        if plan.audit_log is not None:
            audit.begin(open_log(plan.audit_log, "--audit-log"))
        try:
            args = plan, about, device, audit, loaded, scenario, early, background
            trio.run(_main, *args)
        except BaseExceptionGroup as group:
            raise _single(group) from None
    background.remove_log()


def _loaded(plan: Plan) -> lists.Loaded | None:
    """The list of --load; what is not known of it is told."""
    if not plan.load:
        return None
    found = lists.load(plan.load, plan.load_bank, as_is=plan.as_is, moment=plan.load_moment)
    if said := found.said():
        log.info("%s: %s", plan.load, said)
    return found


def _check_inputs(plan: Plan) -> None:
    """Raises :class:`UsageError` for a file of --load or --measure that cannot be opened."""
    named = [("--load", plan.load)] if plan.load else []
    for option, path in [*named, *(("--measure", path) for path in plan.measure)]:
        try:
            # O_NONBLOCK: opening a fifo without a writer would wait for ever.
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            find_daemon.tell_if_dead(path, error)
            raise UsageError(f"{option} {path}: {error.strerror}") from None


def _default_control(mountpoint: str) -> Path:
    try:
        path = paths.default_socket(mountpoint)
    except ControlError:
        # No runtime directory: beside the mount, where its owner can write anyway.
        return paths.beside(mountpoint)
    paths.prepare_directory(path.parent)
    return path


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of ours in a group of groups; the group itself for anything else.

    Under a memory limit libfuse cannot make the buffer of a request (ENOMEM), and that
    ends its loop: an error that a user understands in one line.
    """
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop()
        if isinstance(error, BaseExceptionGroup):
            todo.extend(error.exceptions)
        else:
            leaves.append(error)
    if is_out_of_memory(group):
        return ImafsError("out of memory: the daemon has ended and its list is gone")
    return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], ImafsError) else group


async def _main(
    plan: Plan,
    about: Mapping[str, object],
    device: Device,
    audit: Audit,
    loaded: lists.Loaded | None,
    scenario: Scenario | None,
    early: EarlySignals,
    background: Background,
) -> None:
    mountpoint, control = str(about["mountpoint"]), Path(str(about["control"]))
    changes = Changes()
    emulator = Emulator(plan.config, device, audit, measure_file.read_policy, changes)
    # The signals are taken before anything exists that they would leave behind.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        early.check()
        async with trio.open_nursery() as nursery:
            end = session.End(nursery.cancel_scope.cancel)
            nursery.start_soon(_until_signal, signals, end)
            if loaded is None:
                await emulator.start()
            else:
                await emulator.start(loaded.records, staged=loaded.staged)
                loaded.records.clear()
            nursery.start_soon(emulator.run)
            nursery.start_soon(audit.run)
            await _measure(emulator, plan.measure)
            beside = extras(emulator, plan.boot_log if plan.layout == "securityfs" else None)
            directory = ImaDirectory(emulator, plan.layout, beside)
            async with session.mounted(
                directory,
                mountpoint,
                end,
                true_sizes=plan.config.true_sizes,
                large_reads=plan.config.large_reads,
            ) as mount:
                watcher = Watcher(
                    emulator,
                    changes,
                    leave=mountpoint,
                    excused=_own_processes(device),
                    deadline=plan.watch_deadline,
                )
                verbs = Verbs(emulator, watcher, end, about, {"sizes": mount.sizes})
                nursery.start_soon(verbs.director.run)
                nursery.start_soon(watcher.run)
                if plan.watch:
                    await watcher.watch(plan.watch)
                await nursery.start(
                    partial(serve, control, TABLE, verbs.handlers, about={"mountpoint": mountpoint})
                )
                if scenario is not None:
                    await verbs.director.begin(scenario)
                _announce(mountpoint, control, device)
                background.leave()
                end.in_use()
                await trio.sleep_forever()
    notify("STOPPING=1")


def _own_processes(device: Device) -> list[tuple[int, int]]:
    """Those that measure, each with when it began: none of them may wait for a measurement."""
    found = [(os.getpid(), task.began(os.getpid()))]
    if isinstance(device, SwtpmDevice):
        found.append((device.process.pid, task.began(device.process.pid)))
        try:
            device.process.verify()
        except TpmError:
            found.pop()  # the number may already have been another process's
    return [(pid, began) for pid, began in found if began is not None]


async def _until_signal(signals: AsyncIterator[int], end: Callable[[], object]) -> None:
    async for number in signals:
        log.info("%s: unmounting", signal.Signals(number).name)
        end()


async def _measure(emulator: Emulator, paths_: list[str]) -> None:
    """The files of --measure, hashed in a thread, in order."""
    if not paths_:
        return
    walk = partial(local_files.walk, paths_, bounded_thread.going_on)
    names = await bounded_thread.run(lambda: list(walk()), silence=bounded_thread.SILENCE)
    measured = 0
    for name in names:
        judged = await measure_file.judge(emulator, name, measure_file.root_read)
        if judged.measurement is None:
            continue
        decision = judged.decision
        emulator.append(emulator.kernel.record(judged.measurement, decision.template, decision.pcr))
        measured += 1
    await emulator.wait_extended(emulator.queue.totals.added, 60.0)
    log.info("measured %s of %d", counted(measured, "file"), len(names))


def _announce(mountpoint: str, control: Path, device: Device) -> None:
    tcti = shown(device.tcti or "none")
    print(
        f"imafs: mounted {quoted(mountpoint)} control={quoted(control)} tcti={tcti}",
        flush=True,
    )
    notify("READY=1", f"STATUS=mounted {mountpoint}")
