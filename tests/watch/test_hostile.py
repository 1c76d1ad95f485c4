# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Other users of the machine, below a watched path: they delay their own files, nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import run, wait_for
from tests.watch.disk import Disk
from tests.watch.looking import names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

#: Seconds; what is asked for with --watch-deadline.
DEADLINE = 6.0
#: Opens a file, says so, and waits.
_OPEN = "import os, sys; os.open(sys.argv[1], os.O_RDONLY); print(flush=True); sys.stdin.read()"
#: Takes a lease for writing, says so, and never gives it back.
_LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
descriptor = os.open(sys.argv[1], os.O_RDWR)
while True:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        break
    except BlockingIOError:  # the listener has it open still, for a moment
        os.sched_yield()
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def emulator(start: Starter, disk: Disk) -> Daemon:
    """One that measures what anybody reads."""
    rules = disk.base / "policy"
    rules.write_text("measure func=FILE_CHECK mask=MAY_READ\n")
    options = ("--watch", str(disk.root), "--watch-deadline", str(DEADLINE))
    made = start(*options, "--policy", str(rules))
    made.logs.allow("not measured: ")
    return made


@contextmanager
def as_user(uid: int, code: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program of another user, killed at the end."""
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    command += [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"


def test_sparse_files_of_terabytes(emulator: Daemon, disk: Disk) -> None:
    """Nobody else waits for their hashing, and what is not measured is said and counted."""
    sparse = [disk.file(f"sparse{number}", b"%d" % number) for number in range(8)]
    for path in sparse:
        os.truncate(path, 1 << 41)
    large = [disk.file(f"large{number}", b"%d" % number * (1 << 20)) for number in range(4)]
    with ExitStack() as stack:
        openers = [stack.enter_context(as_user(1000, _OPEN, path)) for path in sparse]
        wait_for(lambda: status(emulator)["watched"] >= len(sparse), 60, "they are being opened")
        for path in large:
            run(["head", "-c1", path])
            assert names(emulator)[-1] == str(path)
        # Their openers go on, too.
        for opener in openers:
            heard(opener)
    part = status(emulator)
    assert (part["unmeasured"], part["late"]) == (len(sparse), len(sparse))
    assert "used by uid 1000: hashing it takes longer than 6 s" in emulator.log()
    assert emulator.log().count("not measured:") <= 3
    # No thread is left behind, nor a descriptor.
    listener = Path(f"/proc/{part['listener']}/fd")
    wait_for(lambda: not any("sparse" in file for file in opened(listener)), 60, "closed")
    run(["head", "-c1", disk.file("after", b"after" * 100_000)])
    assert names(emulator)[-1] == str(disk.root / "after")


def opened(folder: Path) -> list[str]:
    """What a process has open."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(path))
    return found


def test_an_opener_that_is_killed(emulator: Daemon, disk: Disk) -> None:
    """Nobody hashes for him any more, and nobody has used the file."""
    sparse = disk.file("sparse")
    os.truncate(sparse, 1 << 41)
    with as_user(1000, _OPEN, sparse) as process:
        wait_for(lambda: status(emulator)["watched"], 60, "it is being opened")
    assert process.returncode
    listener = Path(f"/proc/{status(emulator)['listener']}/fd")
    wait_for(lambda: not any("sparse" in file for file in opened(listener)), 60, "closed")
    part = status(emulator)
    assert (part["late"], part["unmeasured"]) == (0, 0)


def test_a_file_that_grows_while_it_is_hashed(emulator: Daemon, disk: Disk) -> None:
    log = disk.file("log", b"line\n" * 100_000)
    code = (
        "import sys; file = open(sys.argv[1], 'ab', 0); print(flush=True)\n"
        "for _ in range(30_000): file.write(b'more' * 1000)"
    )
    with as_user(0, code, log) as writer:
        heard(writer)
        run(["head", "-c1", log], deadline=60)
        run(["head", "-c1", disk.file("other", b"other" * 100_000)])
        assert names(emulator)[-1] == str(disk.root / "other")


def test_a_lease_that_is_not_given_back(emulator: Daemon, disk: Disk) -> None:
    """The kernel opens a file for the listener too: that waits for the lease, 45 seconds."""
    leased, other = disk.file("leased"), disk.file("other", b"other")
    os.chown(leased, 1000, 1000)
    with as_user(1000, _LEASE, leased) as holder:
        heard(holder)
        with as_user(1000, _OPEN, leased) as opener:
            for number in range(5):
                other = disk.file(f"other{number}", b"%d" % number)
                run(["cat", other])
                assert names(emulator)[-1] == str(other)
            # As without imafs, it waits for whoever has the lease; then it is measured.
            assert opener.poll() is None
            holder.kill()
            heard(opener)
    assert names(emulator)[-1] == str(leased)
    part = status(emulator)
    assert (part["restarts"], part["unmeasured"]) == (0, 0)


def write_policy(emulator: Daemon, text: str) -> None:
    """Active when this returns: FUSE releases a file after close() has returned."""
    before = emulator.read("policy")
    (emulator.dir / "policy").write_text(text)
    wait_for(lambda: emulator.read("policy") != before, 60, "the policy is active")


@pytest.mark.parametrize(
    "kib", [200, 300, *(pytest.param(kib, marks=pytest.mark.nightly) for kib in (600, 1536))]
)
def test_a_long_policy(start: Starter, disk: Disk, kib: int) -> None:
    """It holds for the very next open after it was written, however long it is."""
    emulator = start("--watch", str(disk.root))
    line = "dont_measure func=FILE_CHECK fowner=%d fsuuid=11111111-1111-1111-1111-%012d\n"
    text, number = "", 0
    while len(text) < kib << 10:
        text += "".join(line % (1000 + i, i) for i in range(number, number + 100))
        number += 100
    rules = disk.base / "long"
    rules.write_text(f"{text}measure func=FILE_CHECK mask=MAY_READ uid=1234\n")
    before = disk.file("before", b"before")
    write_policy(emulator, f"{rules}\n")
    run(["setpriv", "--reuid=1234", "cat", before])
    assert names(emulator)[-1] == str(before)
    # As tcb has it root would be measured.
    run(["cat", disk.file("root", b"root")])
    assert names(emulator)[-1] == str(before)
    # And what is written behind it is the end of it.
    write_policy(emulator, "measure func=FILE_CHECK mask=MAY_READ uid=1235\n")
    run(["setpriv", "--reuid=1235", "cat", disk.file("after", b"after")])
    assert names(emulator)[-1] == str(disk.root / "after")
    part = status(emulator)
    assert (part["restarts"], part["lost"], part["errors"], part["unmeasured"]) == (0, 0, 0, 0)
