# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Whatever is stopped, hung or killed: who opens a watched file goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from imafs.errors import Refused
from imafs.testing.mounted import children
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import run, stopped, wait_for
from tests.watch.disk import Disk
from tests.watch.looking import measures, names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

#: Seconds; what is asked for with --watch-deadline where it has to pass.
DEADLINE = 4.0
#: And where nobody waits for it: more than anything takes here.
NEVER = 60.0
#: What an open may take at most: deadline, watchdog, and a busy machine; less than NEVER.
AT_LAST = 45.0

Start = Callable[..., Daemon]


@pytest.fixture
def watched(start: Starter, disk: Disk) -> Start:
    """An emulator that watches ``disk``."""

    def watched(deadline: float = NEVER) -> Daemon:
        return start("--watch", str(disk.root), "--watch-deadline", str(deadline))

    return watched


def read(path: Path) -> float:
    """How long another process takes to read a file; within AT_LAST."""
    began = time.monotonic()
    run(["cat", path], deadline=AT_LAST)
    return time.monotonic() - began


def processes(emulator: Daemon) -> tuple[int, int]:
    """The listener and its watchdog."""
    listener = status(emulator)["listener"]
    parent = Path(f"/proc/{listener}/stat").read_text().rsplit(")", 1)[1].split()[1]
    return listener, int(parent)


def restarted(emulator: Daemon) -> dict[str, Any]:
    """Waits until another listener answers."""

    def look() -> dict[str, Any] | None:
        part = status(emulator)
        return part if part["restarts"] and part["listener"] else None

    part = wait_for(look, 60, "the listener is back")
    assert part is not None
    return part


def test_daemon_stopped(watched: Start, disk: Disk) -> None:
    emulator = watched(DEADLINE)
    files = [disk.file(f"f{i}", b"%d" % i) for i in range(4)]
    with stopped(emulator.pid):
        # The first one waits for the deadline, nobody after it.
        assert read(files[0]) > DEADLINE * 0.9
        assert sum(map(read, files[1:])) < DEADLINE * len(files[1:])
    emulator.call("wait", extended=True)
    wait_for(lambda: set(map(str, files)) <= set(names(emulator)), 60, "late, but measured")
    part = status(emulator)
    assert part["late"] == 1
    assert part["unasked"] >= 3
    measures(emulator, disk, "after")


def test_daemon_killed(watched: Start, disk: Disk) -> None:
    emulator = watched()
    listener, watchdog = processes(emulator)
    file = disk.file("file")
    with stopped(emulator.pid):
        reader = subprocess.Popen(["cat", file], stdout=subprocess.PIPE)
        emulator.kill()
        assert reader.communicate(timeout=AT_LAST)[0] == b"content\n"
    wait_for(lambda: not any(map(_there, (listener, watchdog))), 60, "the listener has ended")
    read(file)


def _there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("which", ["listener", "watchdog"])
def test_listener_killed(watched: Start, disk: Disk, which: str) -> None:
    emulator = watched()
    emulator.logs.allow(r"the listener of watched files has ended \(killed by SIGKILL\)")
    pid = processes(emulator)[which == "watchdog"]
    os.kill(pid, signal.SIGKILL)
    read(disk.file("file"))
    assert restarted(emulator)["restarts"] == 1
    measures(emulator, disk, "after")


def test_listener_stopped(watched: Start, disk: Disk) -> None:
    emulator = watched(DEADLINE)
    emulator.logs.allow(r"the listener of watched files has ended \(it hung and was killed\)")
    file = disk.file("file")
    with stopped(processes(emulator)[0]):
        read(file)
    restarted(emulator)
    measures(emulator, disk, "after")


def test_listener_and_watchdog_stopped(watched: Start, disk: Disk) -> None:
    """Then it is the daemon that kills them."""
    emulator = watched(DEADLINE)
    emulator.logs.allow(r"the listener of watched files has ended \(killed by SIGKILL\)")
    file = disk.file("file")
    with stopped(*processes(emulator)):
        read(file)
    restarted(emulator)
    measures(emulator, disk, "after")


def test_tpm_stopped(watched: Start, disk: Disk) -> None:
    """The list has the record at once; the opener waits for its extend a second at most."""
    emulator = watched()
    emulator.logs.allow("extending failed")
    swtpm = next(
        pid for pid in children(emulator.pid) if "swtpm" in Path(f"/proc/{pid}/comm").read_text()
    )
    with stopped(swtpm):
        read(disk.file("file"))
        assert names(emulator)[-1] == str(disk.root / "file")
        assert status(emulator)["late"] == 0
    emulator.call("wait", extended=True)


def test_hashing_takes_long(start: Starter, disk: Disk) -> None:
    """Who opens goes on, nobody hashes any more, and it is said."""
    emulator = start("--watch", str(disk.root), "--watch-deadline", "3")
    emulator.logs.allow("not measured: .*/large, used by uid 0: hashing it takes longer than 3 s")
    large = disk.file("large")
    os.truncate(large, 1 << 41)
    small = disk.file("small", b"small")
    with ExitStack() as stack:
        reader = subprocess.Popen(["head", "-c1", large], stdout=subprocess.PIPE)
        stack.enter_context(reader)
        # It is hashed in a thread: nobody else waits for that.
        read(small)
        assert reader.communicate(timeout=AT_LAST)[0] == b"c"
    part = status(emulator)
    assert (part["late"], part["unmeasured"]) == (1, 1)
    assert names(emulator)[-1] == str(small)


def test_imafs_itself_below(disk: Disk) -> None:
    """Every module that the daemon or the listener could still import is below the path."""
    code = disk.root / "code"
    shutil.copytree(Path(__file__).parents[2] / "imafs", code / "imafs")
    options = ("--watch", str(disk.root), "--watch-deadline", str(NEVER))
    emulator = Daemon(*options, env={"PYTHONPATH": str(code)}, cwd=code)
    with emulator:
        listener = processes(emulator)[0]
        assert str(code) in Path(f"/proc/{listener}/environ").read_text()
        measures(emulator, disk, "file")
        emulator.call("reset")
        emulator.call("generate", count=10)
        measures(emulator, disk, "again")
        assert status(emulator)["late"] == 0


def test_swtpm_below(disk: Disk, start: Starter) -> None:
    real = shutil.which("swtpm")
    assert real is not None
    disk.file("bin/swtpm", Path(real).read_bytes(), 0o755)
    state = disk.root / "state"
    state.mkdir()
    path = f"{disk.root}/bin:{os.environ['PATH']}"
    options = ("--watch", str(disk.root), "--watch-deadline", str(NEVER))
    emulator = start(*options, "--tpm-state", str(state), env={"PATH": path})
    swtpm = [Path(f"/proc/{pid}/exe").resolve() for pid in children(emulator.pid)]
    assert disk.root / "bin/swtpm" in swtpm
    measures(emulator, disk, "file")
    emulator.call("reset")
    measures(emulator, disk, "again")
    assert status(emulator)["late"] == 0
    # What it writes and reads there is its own business.
    assert not [name for name in names(emulator) if "state" in name]


def test_mount_below(disk: Disk, start: Starter) -> None:
    """The emulator's own directory below a watched path: reading the list adds nothing."""
    emulator = start("--watch-deadline", str(NEVER))
    place = disk.root / "mnt"
    place.mkdir()
    run(["mount", "--rbind", emulator.place.base, place])
    emulator.call("watch", paths=[str(disk.root)])
    measures(emulator, disk, "file")
    before = names(emulator)
    read(place / "ima/ascii_runtime_measurements")
    assert names(emulator) == before
    assert status(emulator)["late"] == 0
    with pytest.raises(Refused, match="the emulator's own mount"):
        emulator.call("watch", paths=[str(emulator.dir)])
    run(["umount", "--lazy", "--recursive", place])
