# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What /proc tells of a task, and a lease of a file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imafs.emulator import tasks
from imafs.sources.watch.child import task
from tests.support import ROOT, run, wait_for


def test_own_credentials() -> None:
    found = task.credentials(threading.get_native_id())
    assert found.process == os.getpid()
    assert (found.uid, found.euid, found.suid) == os.getresuid()
    assert (found.gid, found.egid, found.sgid) == os.getresgid()


@pytest.mark.root
def test_credentials_of_another() -> None:
    ids = "os.setresgid(1, 2, 3); os.setresuid(4, 5, 6)"
    code = f"import os, sys; {ids}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = task.credentials(process.pid)
        process.communicate()
    assert found == task.Credentials(4, 5, 6, 1, 2, 3, False, False, process.pid)


@pytest.mark.root
def test_root_may_change_its_ids() -> None:
    found = task.credentials(os.getpid())
    assert found.cap_setuid
    assert found.cap_setgid


def test_nobody() -> None:
    assert task.credentials(0) is task.UNKNOWN
    assert task.way(0) == task.Way()
    assert task.UNKNOWN.uid == 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)", os.O_WRONLY | os.O_APPEND),
        ("os.open(sys.argv[1], os.O_RDONLY)", os.O_RDONLY),
    ],
)
def test_way_of_a_task_that_waits(tmp_path: Path, code: str, expected: int) -> None:
    """An open of a fifo waits for the other end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, "-c", f"import os, sys; {code}", fifo]) as process:
        try:

            def waits() -> bool:
                # Asleep, and not in what Python opens before.
                state = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                found = task.way(process.pid)
                return state == "S" and found is not None and found.flags is not None

            wait_for(waits, 60, "it waits in the open")
            found = task.way(process.pid)
            assert found is not None
            assert found.flags is not None
            assert found.flags & ~os.O_CLOEXEC == expected
        finally:
            process.kill()


@pytest.mark.root
def test_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with file.open("rb") as reader:
        assert task.is_written(reader.fileno()) is False
        with file.open("ab"):
            assert task.is_written(reader.fileno()) is True
        assert task.is_written(reader.fileno()) is False
    with open("/dev/null", "rb") as device:
        assert task.is_written(device.fileno()) is None


@pytest.mark.root
def test_holders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    info = file.stat()
    me, other = os.getpid(), 1
    tids = [me, other, 2**22 + 1]

    def holders(writing: bool) -> set[int]:
        device, inode = info.st_dev, info.st_ino
        return {tid for tid in tids if task.holds(tid, device, inode, writing=writing)}

    assert holders(False) == holders(True) == set()
    with file.open("rb"):
        assert holders(False) == {me}
        assert holders(True) == set()
    with file.open("ab"):
        assert holders(False) == set()
        assert holders(True) == {me}
    with file.open("r+b"):
        assert holders(True) == {me}
    # A thread that has not made the open has the descriptor all the same.
    with file.open("rb"):
        found: list[set[int]] = []

        def look() -> None:
            tids.append(threading.get_native_id())
            found.append(holders(False))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert len(found[0]) == 2


def test_a_lease_is_given_back(tmp_path: Path) -> None:
    """Nobody finds it afterwards: an open for writing does not wait."""
    file = tmp_path / "file"
    file.write_text("x")
    with file.open("rb") as reader:
        task.is_written(reader.fileno())
        run([sys.executable, "-c", "import sys; open(sys.argv[1], 'ab')", file], deadline=10)


def test_the_listener_is_light() -> None:
    """It starts fast, and what it does not import it cannot wait for."""
    code = "import sys, imafs.sources.watch.child.listener; print(*sys.modules)"
    loaded = run([sys.executable, "-c", code], cwd=ROOT).stdout.split()
    assert "imafs.sources.watch.child.pending" in loaded
    heavy = {"trio", "pyfuse3", "tpm2_pytss", "logging", "argparse", "imafs.emulator.emulator"}
    assert not heavy & set(loaded)


def test_a_task_as_an_audit_log_names_it() -> None:
    me = Path(f"/proc/{os.getpid()}")
    found = tasks.of(os.getpid())
    assert (found.pid, found.uid) == (os.getpid(), os.getuid())
    assert found.comm == (me / "comm").read_bytes()[:-1]
    loginuid = me / "loginuid"
    if loginuid.exists():
        assert found.auid == int(loginuid.read_text())
        assert found.ses == int((me / "sessionid").read_text())
    for unknown in (2**22 + 1, 0):  # ended; outside of our pid namespace
        gone = tasks.of(unknown)
        assert (gone.pid, gone.comm) == (unknown, b"")
        assert (gone.uid, gone.auid, gone.ses) == (2**32 - 1,) * 3


def test_a_thread_is_audited_as_its_process() -> None:
    """``task_tgid_nr``; its name is its own."""
    found = []

    def look() -> None:
        Path("/proc/thread-self/comm").write_text("thread")
        found.append(tasks.of(threading.get_native_id()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert (found[0].pid, found[0].comm) == (os.getpid(), b"thread")


@pytest.mark.root
def test_accounts() -> None:
    """User ids and namespaces of somebody's own make nobody of him."""

    def account(*command: str) -> task.Account:
        with subprocess.Popen(
            [*command, "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n", "no user namespaces here"
            try:
                return task.account(process.pid, 4711)
            finally:
                process.kill()

    user = ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups")
    assert account(*user) == 4711  # no namespace: as it was found
    assert account(*user, "unshare", "--user") == 1234
    assert account(*user, "unshare", "-Ur", "unshare", "--user") == 1234
    one, other = account("unshare", "-Ur"), account("unshare", "-Ur")
    assert isinstance(one, tuple)
    assert isinstance(other, tuple)
    assert task.account(2**22 + 1, 5) == 5
