# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Signals that ``imafs run`` gets, and what is left when anybody is killed -9."""

from __future__ import annotations

import os
import signal

import pytest

from tests.run.runs import StartRun, Traces, family
from tests.support import stop, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: Says which signal came, and stays.
TELLING = (
    'for s in HUP INT QUIT TERM USR1 USR2 WINCH; do trap "echo $s" $s; done;'
    " echo up; while :; do sleep 1000 & wait $!; done"
)


def test_signals_are_passed_on(start_run: StartRun) -> None:
    one = start_run(TELLING, "--tpm", "none")
    assert one.line() == "up"
    for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH"):
        os.kill(one.pid, signal.Signals[f"SIG{name}"])
        assert one.line() == name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_ends_the_command(start_run: StartRun, number: signal.Signals) -> None:
    traces = Traces()
    one = start_run("echo up; exec sleep 1000")
    one.line()
    processes = family(one.pid)
    os.kill(one.pid, number)
    assert one.wait() == 128 + number
    traces.assert_none(processes)
    assert one.stderr() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_command(start_run: StartRun, number: signal.Signals) -> None:
    """While the daemon measures, the command is never started."""
    traces = Traces()
    one = start_run("echo started", "--measure", "/usr")
    _until_it_measures(one.pid)
    processes = family(one.pid)
    os.kill(one.pid, number)
    assert one.wait() == 128 + number
    traces.assert_none(processes)
    assert one.process.stdout is not None
    assert one.process.stdout.read() == b""


def _until_it_measures(pid: int) -> None:
    # imafs run, the namespace's first process, the daemon and its swtpm
    wait_for(lambda: len(family(pid)) >= 4, 60, "the daemon has its swtpm")


@pytest.mark.parametrize("who", ["root", "user"])
def test_kill_of_run(start_run: StartRun, who: str) -> None:
    """kill -9 of imafs run: the kernel ends all the others and forgets all mounts and files."""
    traces = Traces()
    one = start_run("setsid sleep 1000 & echo up; sleep 1000", who=who)
    one.line()
    processes = family(one.pid)
    os.kill(one.pid, signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    traces.assert_none(processes)


def test_kill_of_the_first_process(start_run: StartRun) -> None:
    traces = Traces()
    one = start_run("echo up; sleep 1000")
    one.line()
    processes = family(one.pid)
    init = next(pid for pid in sorted(processes - {one.pid}) if _inner(pid) == 1)
    os.kill(init, signal.SIGKILL)
    assert one.wait() == 137
    traces.assert_none(processes)


def _inner(pid: int) -> int:
    """The process id in its own pid namespace."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[-1]) for line in file if line.startswith("NSpid:"))


def test_a_stopped_daemon_is_not_waited_for_ever(start_run: StartRun) -> None:
    traces = Traces()
    one = start_run("echo up; read x; exit 2")
    one.line()
    processes = family(one.pid)
    swtpm = one.named("swtpm")
    for pid in processes - {one.pid, swtpm}:
        if swtpm in family(pid):
            stop(pid)
    one.type("")
    assert one.wait() == 2
    traces.assert_none(processes)
