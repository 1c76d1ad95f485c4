# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Close, then open: the count of openers is never behind (RELEASE is asynchronous)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.mount.daemon import BINARY, Daemon
from tests.mount.fixtures import booted as booted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

THREADS = 4
LENGTHS = pytest.mark.parametrize("cycles", [200, pytest.param(10_000, marks=pytest.mark.nightly)])


def cycle(path: Path) -> None:
    """open-write-close, then open-read-close; EBUSY anywhere is what must not come."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, b"1\n")
    finally:
        os.close(descriptor)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def relay(cycles: int, path: Path, errors: list[str]) -> None:
    """Threads in turn: each opens the moment another has closed."""
    batons = [threading.Semaphore(int(i == 0)) for i in range(THREADS)]

    def run_thread(me: int) -> None:
        for number in range(me, cycles, THREADS):
            batons[me].acquire()
            try:
                cycle(path)
            except OSError as error:
                errors.append(f"cycle {number}: {error}")
            finally:
                batons[(me + 1) % THREADS].release()

    threads = [threading.Thread(target=run_thread, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@LENGTHS
def test_close_then_open_in_threads(daemon: Daemon, cycles: int) -> None:
    daemon.call("generate", count=12_000)
    errors: list[str] = []
    relay(cycles, daemon.path(BINARY), errors)
    assert errors == []
    assert daemon.count() == 12_001 - cycles


# What the forked processes run: N cycles in turn, a byte in a pipe is the baton.
RING = """
import os, sys
path, cycles, workers = sys.argv[1], int(sys.argv[2]), 4
pipes = [os.pipe() for _ in range(workers)]
children = []
for me in range(workers):
    pid = os.fork()
    if pid == 0:
        status = 0
        take, give = pipes[me][0], pipes[(me + 1) % workers][1]
        for number in range(me, cycles, workers):
            os.read(take, 1)
            try:
                fd = os.open(path, os.O_WRONLY)
                os.write(fd, b"1\\n")
                os.close(fd)
                fd = os.open(path, os.O_RDONLY)
                os.read(fd, 4096)
                os.close(fd)
            except OSError as error:
                print(f"cycle {number}: {error}", flush=True)
                status = 1
            os.write(give, b"x")
        os._exit(status)
    children.append(pid)
os.write(pipes[0][1], b"x")
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@LENGTHS
def test_close_then_open_in_processes(daemon: Daemon, cycles: int) -> None:
    import sys

    from tests.support import run

    daemon.call("generate", count=12_000)
    command = [sys.executable, "-c", RING, str(daemon.path(BINARY)), str(cycles)]
    result = run(command, deadline=240, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
    assert daemon.count() == 12_001 - cycles


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_the_last_duplicate_in_another_process_gives_the_lock_back(
    daemon: Daemon, times: int
) -> None:
    """A write descriptor inherited by a child that ends last: free at its waitpid().

    A fork of pytest takes up to half a second where its process has grown.
    """
    for _ in range(times):
        descriptor = os.open(daemon.path(BINARY), os.O_WRONLY)
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(ready, 1)
            os._exit(0)
        os.close(ready)
        os.close(descriptor)
        with pytest.raises(OSError, match="busy"):
            os.open(daemon.path(BINARY), os.O_RDONLY)
        os.close(go)
        os.waitpid(child, 0)
        os.close(os.open(daemon.path(BINARY), os.O_WRONLY))
