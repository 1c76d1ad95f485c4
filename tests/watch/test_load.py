# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Thousands of files, used by four processes at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.mount.daemon import Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import ROOT
from tests.watch.disk import Disk
from tests.watch.looking import names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

PROCESSES = 4
Sizes = pytest.mark.parametrize(
    "number", [2000, pytest.param(10_000, marks=pytest.mark.nightly)], ids=str
)


def fill(disk: Disk, number: int) -> None:
    """So many files of different contents below ``in``."""
    for i in range(number):
        disk.file(f"in/{i:05}", f"{i}\n".encode() * (i % 100 + 1))


def opening(disk: Disk, seed: int) -> list[str]:
    """The command of one process."""
    return [sys.executable, "-P", "-m", "tests.watch.opening", str(disk.root / "in"), str(seed)]


@contextmanager
def openers(disk: Disk) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that open all of them; killed at the end if they have not ended."""
    with ExitStack() as stack:
        running = []
        for seed in range(PROCESSES):
            command = opening(disk, seed)
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
        yield running


def percentiles(took: Sequence[int]) -> str:
    return f"median {took[len(took) // 2]} us, 99 % within {took[len(took) * 99 // 100]} us"


def check_pcrs(emulator: Daemon) -> None:
    """The list in its order leads to the PCRs of every bank."""
    assert len(emulator.assert_replays()) == 4
    imafs("verify", emulator.dir / "binary_runtime_measurements", "--tcti", emulator.tcti)


@Sizes
def test_four_processes(
    disk: Disk, start: Starter, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(disk, number)
    emulator = start("--watch", str(disk.root / "in"), "--watch-deadline", "60")
    with openers(disk) as running:
        rounds = [json.loads(process.communicate(timeout=240)[0]) for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES
    expected = sorted(str(disk.root / "in" / f"{i:05}") for i in range(number))
    assert sorted(names(emulator)[1:]) == expected
    check_pcrs(emulator)
    part = status(emulator)
    assert (part["measured"], part["duplicates"]) == (number, 0)
    troubles = ("late", "unasked", "lost", "overflows", "errors", "restarts")
    assert [part[key] for key in troubles] == [0] * len(troubles)
    first, cached = (sorted(one for took in rounds for one in took[i]) for i in (0, 1))
    with capsys.disabled():
        print(f"\n{number} files, {PROCESSES} processes: an open in the first round ", end="")
        print(f"{percentiles(first)}; in the second {percentiles(cached)}")


def test_one_process(disk: Disk, start: Starter, capsys: pytest.CaptureFixture[str]) -> None:
    """What an open takes when nobody else opens anything."""
    fill(disk, 500)
    emulator = start("--watch", str(disk.root / "in"))
    out = subprocess.run(
        opening(disk, 0), cwd=ROOT, capture_output=True, timeout=240, check=True
    ).stdout
    first, cached = json.loads(out.splitlines()[1])
    assert status(emulator)["measured"] == 500
    with capsys.disabled():
        print(f"\n1 process: first open {percentiles(first)}; cached {percentiles(cached)}")


@pytest.mark.parametrize("number", [6000, pytest.param(20_000, marks=pytest.mark.nightly)], ids=str)
def test_killed_in_the_middle(disk: Disk, start: Starter, number: int) -> None:
    """Daemon and listener at once, by SIGKILL: every process goes on to its end."""
    fill(disk, number)
    emulator = start("--watch", str(disk.root / "in"))
    listener = status(emulator)["listener"]
    with openers(disk) as running:
        # Nearly all is still to come: they are in the middle, however late this is noticed.
        emulator.call("wait", records=100, timeout=60)
        assert all(process.poll() is None for process in running)
        os.kill(listener, signal.SIGKILL)
        emulator.kill()
        for process in running:
            process.communicate(timeout=240)
    assert [process.returncode for process in running] == [0] * PROCESSES


def test_listener_killed_again_and_again(disk: Disk, start: Starter) -> None:
    """Nobody hangs, nothing is in the list twice, and the PCRs are right."""
    fill(disk, 1000)
    emulator = start("--watch", str(disk.root / "in"))
    emulator.logs.allow(r"the listener of watched files has ended \(killed by SIGKILL\)")
    kills = 0
    with openers(disk) as running:
        while any(process.poll() is None for process in running) and kills < 5:
            listener = status(emulator)["listener"]
            if listener is not None:
                os.kill(listener, signal.SIGKILL)
                kills += 1
        for process in running:
            process.communicate(timeout=240)
    assert kills
    listed = names(emulator)
    assert len(listed) == len(set(listed))
    check_pcrs(emulator)


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that do nothing but run."""
    with ExitStack() as stack:
        for _ in range(number):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.enter_context(process)
            stack.callback(process.kill)
        yield


def violations(disk: Disk, number: int) -> None:
    """Each file is opened for writing while a reader has it open."""
    for i in range(number):
        path = disk.file(f"in/v{i:04}", b"%d" % i)
        with path.open("rb"):
            path.open("ab").close()


@pytest.mark.parametrize(
    ("load", "opens", "wanted"),
    [(4, 100, 10), pytest.param(8, 3000, 100, marks=pytest.mark.nightly)],
)
def test_a_busy_machine(disk: Disk, start: Starter, load: int, opens: int, wanted: int) -> None:
    """How a file is opened is seen however long its opener has to wait for a processor: every
    violation is recorded, and what is only written is no use."""
    fill(disk, opens)
    rules = disk.base / "policy"
    rules.write_text("measure func=FILE_CHECK mask=MAY_READ uid=0\n")
    options = ("--watch", str(disk.root / "in"), "--watch-deadline", "60")
    emulator = start(*options, "--policy", str(rules))
    with busy(load):
        for i in range(opens):
            (disk.root / f"in/{i:05}").open("ab").close()
        assert len(names(emulator)) == 1
        violations(disk, wanted)
    part = status(emulator)
    assert part["hidden"] == 0
    assert part["violations"] == wanted
    assert len(names(emulator)) == 1 + 2 * wanted
