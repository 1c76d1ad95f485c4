# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Paths on a file system that takes requests and answers none: it holds up nobody else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.control import wire
from imafs.errors import Refused
from imafs.host import bounded_thread
from imafs.verbs.client import ControlClient
from tests.crash.hanging import hanging
from tests.mount.daemon import Daemon, imafs, patched
from tests.mount.fixtures import Starter
from tests.support import run, wait_for

pytestmark = [pytest.mark.root, pytest.mark.mount]

#: Seconds; the daemon's own are more than a test's patience.
SILENCE, WAIT = 5, 3
IMPATIENT = patched(
    "from imafs.host import bounded_thread as threads",
    f"threads.SILENCE, threads.WAIT = {SILENCE}, {WAIT}",
)

#: More than there are threads of any kind.
MANY = bounded_thread.MOST + 5


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    with hanging(tmp_path / "dead") as file:
        yield file


def ask(daemon: Daemon, stack: ExitStack, **request: object) -> socket.socket:
    """A request on a connection of its own, which nobody waits for."""
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.connect(str(daemon.control))
    connection.sendall(wire.encode(request))
    return connection


def hung(daemon: Daemon) -> int:
    """Threads of the daemon that wait for FUSE."""
    count = 0
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        try:
            count += "request_wait_answer" in (task / "stack").read_text()
        except OSError:
            continue
    return count


def test_measure_requests_hold_up_neither_others_nor_the_end(
    start: Starter, tmp_path: Path
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    daemon = start("--tpm", "none", "--watch", str(watched), prefix=IMPATIENT)
    daemon.logs.allow("has ended")
    with ExitStack() as stack, ControlClient(daemon.control) as client:
        dead = stack.enter_context(hanging(tmp_path / "dead"))
        for _ in range(MANY):
            ask(daemon, stack, op="measure", paths=[str(dead)])
        wait_for(lambda: hung(daemon) >= bounded_thread.MOST, 60, "all threads hang")
        with pytest.raises(Refused, match=r"all threads are held up|does not answer"):
            client.measure("/etc/passwd", deadline=60)
        watch = client.status()["watch"]
        assert isinstance(watch, dict)
        assert isinstance(watch["listener"], int)
        os.kill(watch["listener"], signal.SIGKILL)

        def restarted() -> bool:
            now = client.status()["watch"]
            assert isinstance(now, dict)
            return now["listener"] not in (None, watch["listener"])

        wait_for(restarted, 60, "the listener is back")
        done = imafs("umount", daemon.dir)
        assert "threads inside a file system that does not answer" in done.stderr
    assert daemon.wait() == 0, "it ends with the file system that held its threads"


def test_a_policy_path_is_eagain(start: Starter, dead: Path) -> None:
    """Its writer is in the kernel, uninterruptible, until it has this answer."""
    options = ("--tpm", "none", "--profile", "mainline", "--policy", "tcb")
    daemon = start(*options, prefix=IMPATIENT)
    words = str(daemon.dir / "policy"), os.fsencode(dead)
    program = "import os; os.write(os.open({!r}, os.O_WRONLY), {!r})".format(*words)
    done = run([sys.executable, "-c", program], check=False, deadline=SILENCE + 60)
    assert "BlockingIOError" in done.stderr
    assert "EAGAIN" in daemon.log()
    assert "does not answer" in daemon.log()


def test_a_request_is_told_and_its_thread_is_free_with_its_file_system(
    start: Starter, tmp_path: Path
) -> None:
    assert (bounded_thread.SILENCE, bounded_thread.WAIT) > (SILENCE, WAIT)
    daemon = start("--tpm", "none", prefix=IMPATIENT)
    with ControlClient(daemon.control) as client:
        with hanging(tmp_path / "dead") as file, ExitStack() as stack:
            # All at once: each is told after the same silence.
            asked = [
                ask(daemon, stack, op=op, **options)
                for op, options in (
                    ("measure", {"paths": [str(file)]}),
                    ("critical_data", {"label": "l", "name": "n", "file": str(file)}),
                    ("scenario", {"file": str(file)}),
                    ("kexec_buffer", {"file": str(file.parent / "new")}),
                )
            ]
            for connection in asked:
                connection.settimeout(SILENCE + 60)
                answer = json.loads(connection.makefile("rb").readline())
                assert answer["errno"] == "EAGAIN"
                assert "does not answer" in answer["error"]
            assert hung(daemon) == 4
        wait_for(lambda: not hung(daemon), 60, "the threads are back")
        assert client.measure("/etc/passwd")["measured"]


def test_an_export_is_eagain_and_keeps_the_list(start: Starter, tmp_path: Path) -> None:
    """All stands still while a list is exported, as in the draft; but not for ever."""
    with hanging(tmp_path / "dead") as file:
        daemon = start(
            *("--tpm", "none", "--profile", "export-2020", "--export-root", str(file.parent))
        )
        for _ in range(2):
            done = subprocess.run(
                ["sh", "-c", f"echo {file.parent}/list > {daemon.dir}/list_name"],
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode, done
        with ControlClient(daemon.control) as client:
            records = client.status()["records"]
            assert isinstance(records, dict)
            assert records["current"] == 1
            assert records["deleted"] == 0


def test_work_ends_with_its_client(start: Starter, tmp_path: Path) -> None:
    """A file of 8 TB would be hashed for hours."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(8 << 40)
    daemon = start("--tpm", "none")
    with ExitStack() as stack:
        ask(daemon, stack, op="measure", paths=[str(big)])
        wait_for(lambda: reads(daemon, big), 60, "it is read")
    wait_for(lambda: not reads(daemon, big), 60, "nobody reads on")
    with ControlClient(daemon.control) as client:
        assert client.status()["pid"]


def reads(daemon: Daemon, path: Path) -> bool:
    """Whether the daemon has the file open."""
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            if os.readlink(entry) == str(path):
                return True
        except OSError:
            continue
    return False
