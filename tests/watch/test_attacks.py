# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Another user who wants files to go unmeasured, or everybody's opens to stand still."""

from __future__ import annotations

import ctypes
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from imafs.sources.watch.child.hashing import THREADS
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import run, wait_for
from tests.watch.disk import Disk
from tests.watch.looking import names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

#: Who mounts needs a name.
USER = pwd.getpwnam("nobody").pw_uid

#: Seconds; whoever waits so long is late. More than an answer takes on a busy machine.
DEADLINE = 30.0
#: Opens a file by its descriptor when it and its directory have gone, and a link is there.
_REPLACE = """
import os, sys
own, victim = sys.argv[1:]
directory = own + "/directory"
os.mkdir(directory)
os.close(os.open(directory + "/file", os.O_CREAT | os.O_RDONLY))
held = os.open(directory + "/file", os.O_PATH)
os.unlink(directory + "/file")
os.rmdir(directory)
os.symlink(victim, directory)
os.close(os.open(f"/proc/self/fd/{held}", os.O_RDONLY))
"""
#: Has many descriptors and opens a file in a way; says so, and waits.
_MANY = """
import os, sys
path, flags, number, close = sys.argv[1], *map(int, sys.argv[2:])
null = os.open("/dev/null", os.O_RDONLY)
for _ in range(1000):
    os.dup(null)
for _ in range(number):
    if not os.fork():
        descriptor = os.open(path, flags)
        if close:
            os.close(descriptor)
        os.write(1, b"\\n")
        sys.stdin.read()
        os._exit(0)
os.close(1)  # where an open fails, whoever listens is told by the end
sys.stdin.read()
"""
#: Opens a file in so many processes at once, says so, and waits.
_OPEN = """
import os, sys
path, number = sys.argv[1], int(sys.argv[2])
for _ in range(number):
    if not os.fork():
        os.open(path, os.O_RDONLY)
        os._exit(0)
os.write(1, b"\\n")
sys.stdin.read()
"""
#: Takes a lease for writing, and never gives it back.
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
os.write(1, b"\\n")
sys.stdin.read()
"""
_HANGING = (Path(__file__).parent / "hanging.py").read_text()


@contextmanager
def playing(code: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program of another user; its input ends at the end."""
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    command += [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def heard(process: subprocess.Popen[bytes], times: int = 1) -> None:
    assert process.stdout is not None
    for _ in range(times):
        assert process.stdout.readline() == b"\n"


@pytest.fixture
def emulator(start: Starter, disk: Disk) -> Daemon:
    """One that watches ``in`` alone, on a disk where somebody else may write as well."""
    rules = disk.base / "policy"
    rules.write_text("measure func=FILE_CHECK mask=MAY_READ\n")
    for name in ("in", "in/his", "out"):
        (disk.root / name).mkdir()
        (disk.root / name).chmod(0o1777)
    options = ("--watch", str(disk.root / "in"), "--watch-deadline", str(DEADLINE))
    return start(*options, "--policy", str(rules))


def test_a_link_in_place_of_a_directory(emulator: Daemon, disk: Disk) -> None:
    """The directory of an unwatched file is left out, never what its name leads to by now."""
    victim = disk.file("in/victim/file", b"first")
    with playing(_REPLACE, disk.root / "out", victim.parent) as process:
        assert process.wait(60) == 0
    run(["cat", victim])
    assert names(emulator)[-1] == str(victim)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY], ids=["reading", "writing"])
@pytest.mark.parametrize("close", [False, True], ids=["held", "closed"])
def test_processes_with_many_descriptors(
    emulator: Daemon, disk: Disk, flags: int, close: bool
) -> None:
    """Looking through them takes its time once, and not everybody's."""
    path = disk.file("in/his/file", b"his")
    os.chown(path, USER, USER)
    number = 200
    with playing(_MANY, path, flags, number, int(close)) as process:
        heard(process, number)
        before = busy(emulator)
        for i in range(5):
            # Without O_CREAT, which fs.protected_regular refuses in such a directory.
            run(["truncate", "--no-create", "--size=+0", path])
            run(["cat", disk.file(f"in/other{i}", b"%d" % i)])
            assert names(emulator)[-1] == str(disk.root / f"in/other{i}")
        assert busy(emulator) - before < 1.0
    part = status(emulator)
    assert (part["restarts"], part["unmeasured"], part["late"]) == (0, 0, 0)


def busy(emulator: Daemon) -> float:
    """Seconds that the listener has spent on a processor."""
    listener = status(emulator)["listener"]
    words = Path(f"/proc/{listener}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def threads(emulator: Daemon) -> int:
    """How many the listener has."""
    return len(list(Path(f"/proc/{status(emulator)['listener']}/task").iterdir()))


@contextmanager
def served(point: Path, what: str) -> Iterator[None]:
    """A file system of his, as fusermount3 makes it where /etc/fuse.conf has user_allow_other."""
    point.mkdir()
    os.chown(point, USER, USER)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={USER},group_id={USER},allow_other"
    kind = b"fuse.hanging"
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"hanging", os.fsencode(point), kind, 0, options.encode()) == 0
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", sys.executable]
    command += ["-c", _HANGING, f"/dev/fd/{device}", what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(device,)) as server:
        os.close(device)
        try:
            heard(server)
            yield
        finally:
            server.kill()


def test_a_file_system_of_his_own_that_hangs(emulator: Daemon, disk: Disk) -> None:
    """Nothing is asked of it, and the log says whose it is."""
    point = disk.root / "in/his/point"
    with served(point, "open"):
        # Whatever is going to be marked is marked.
        emulator.call("watch", paths=[str(disk.root / "in")])
        before = threads(emulator)
        with playing(_OPEN, point / "file", 50) as process:
            heard(process)
            path = disk.file("in/other", b"other")
            run(["cat", path])
            assert names(emulator)[-1] == str(path)
            # The pool's own, which start as they are needed; none for any of the 50.
            assert threads(emulator) <= before + THREADS
            process.kill()
    left_out = f"not watched: {point} is on a file system of uid {USER}"
    wait_for(lambda: left_out in emulator.log(), 60, "it is told")


def test_many_file_systems_that_do_not_answer(emulator: Daemon, disk: Disk) -> None:
    """So many that nobody would look at others' any more."""
    with ExitStack() as stack:
        for i in range(9):
            stack.enter_context(served(disk.root / f"in/his/point{i}", "getattr"))
        for name in ("in", "out"):
            emulator.call("watch", paths=[str(disk.root / name)])
        path = disk.file("out/file", b"out")
        run(["cat", path])
        assert names(emulator)[-1] == str(path)


def test_many_opens_of_a_leased_file(emulator: Daemon, disk: Disk) -> None:
    """Each of them has a thread of the listener wait; the next one is there soon."""
    path = disk.file("in/his/leased", b"his")
    os.chown(path, USER, USER)
    with playing(_LEASE, path) as holder:
        heard(holder)
        with playing(_OPEN, path, 400) as process:
            heard(process)
            for i in range(5):
                other = disk.file(f"in/other{i}", b"%d" % i)
                run(["cat", other])
                assert names(emulator)[-1] == str(other)
            holder.kill()
            process.kill()
    part = status(emulator)
    assert (part["restarts"], part["unmeasured"], part["late"]) == (0, 0, 0)
