# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Another user who wants files to go unmeasured, or everybody's opens to stand still."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.emulator import Emulator, StartEmulator
from tests.support import run
from tests.watch.disk import Disk
from tests.watch.looking import names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

USER = 12345

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
sys.stdin.read()
"""


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
def emulator(emulators: StartEmulator, disk: Disk) -> Emulator:
    """One that watches ``in`` alone, on a disk where somebody else may write as well."""
    rules = disk.base / "policy"
    rules.write_text("measure func=FILE_CHECK mask=MAY_READ\n")
    for name in ("in", "in/his", "out"):
        (disk.root / name).mkdir()
        (disk.root / name).chmod(0o1777)
    return emulators("--watch", str(disk.root / "in"), "--policy", str(rules))


def test_a_link_in_place_of_a_directory(emulator: Emulator, disk: Disk) -> None:
    """The directory of an unwatched file is left out, never what its name leads to by now."""
    victim = disk.file("in/victim/file", b"first")
    with playing(_REPLACE, disk.root / "out", victim.parent) as process:
        assert process.wait(20) == 0
    run(["cat", victim])
    assert names(emulator)[-1] == str(victim)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY], ids=["reading", "writing"])
@pytest.mark.parametrize("close", [False, True], ids=["held", "closed"])
def test_processes_with_many_descriptors(
    emulator: Emulator, disk: Disk, flags: int, close: bool
) -> None:
    """Looking through them takes its time once, and not everybody's."""
    path = disk.file("in/his/file", b"his")
    os.chown(path, USER, USER)
    number = 200
    with playing(_MANY, path, flags, number, int(close)) as process:
        heard(process, number)
        before = busy(emulator)
        for i in range(5):
            run(["sh", "-c", f": >> {path}"])
            run(["cat", disk.file(f"in/other{i}", b"%d" % i)])
            assert names(emulator)[-1] == str(disk.root / f"in/other{i}")
        assert busy(emulator) - before < 1.0
    part = status(emulator)
    assert (part["restarts"], part["unmeasured"], part["late"]) == (0, 0, 0)


def busy(emulator: Emulator) -> float:
    """Seconds that the listener has spent on a processor."""
    listener = status(emulator)["listener"]
    words = Path(f"/proc/{listener}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
