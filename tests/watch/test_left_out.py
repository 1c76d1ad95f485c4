# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Watched paths that cannot be watched any more: the others are, and they again later."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imafs.errors import Refused
from tests.mount.daemon import Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import run, stopped, wait_for
from tests.watch.disk import Disk, unmount
from tests.watch.looking import measures, names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]


@pytest.fixture
def emulator(start: Starter, disk: Disk) -> Daemon:
    """One that watches ``a`` and ``b`` of the disk."""
    for name in ("a", "b", "c"):
        (disk.root / name).mkdir()
    return start("--watch", str(disk.root / "a"), str(disk.root / "b"))


@contextmanager
def covered(point: Path) -> Iterator[None]:
    """fanotify refuses proc, as other file systems that user space may mount."""
    run(["mount", "-t", "proc", "proc", point])
    try:
        yield
    finally:
        unmount(point)


def left_out(emulator: Daemon) -> list[str]:
    """What the status says of it."""
    found: list[str] = status(emulator)["left_out"]
    return found


def is_watched_again(emulator: Daemon, disk: Disk) -> None:
    """``a`` is, and the listener has never ended by itself."""
    wait_for(lambda: not left_out(emulator), 60, "nothing is left out")
    measures(emulator, disk, "a/after")


def test_covered_while_watched(emulator: Daemon, disk: Disk) -> None:
    emulator.logs.allow(r"not watched: .*/a is on proc")
    with covered(disk.root / "a"):
        why = f"{disk.root}/a is on proc, which cannot be watched"
        wait_for(lambda: left_out(emulator) == [why], 60, "it is left out")
        measures(emulator, disk, "b/meanwhile")
        text = imafs("ctl", "--control", emulator.control, "status").stdout
        assert f"  left out  {why}\n" in text
        # Told once, however often the table of mounts changes.
        with covered(disk.root / "c"):
            measures(emulator, disk, "b/more")
        emulator.call("watch", paths=[str(disk.root / "b")])
    is_watched_again(emulator, disk)
    assert status(emulator)["restarts"] == 0
    assert emulator.log().count("not watched: ") == 1


def test_refused_by_the_kernel(disk: Disk, start: Starter) -> None:
    """Another emulator's mount: there it is fanotify that refuses."""
    other = start("--tpm", "none")
    for name in ("a", "b"):
        (disk.root / name).mkdir()
    emulator = start("--watch", str(disk.root / "a"), str(disk.root / "b"))
    emulator.logs.allow(r"not watched: .*/a: fanotify cannot watch there")
    run(["mount", "--bind", other.dir, disk.root / "a"])
    found = wait_for(lambda: left_out(emulator), 60, "it is left out")
    assert found[0].startswith(f"{disk.root}/a: fanotify cannot watch there: ")
    measures(emulator, disk, "b/meanwhile")
    # Who asks for that very path is refused, and nothing changes.
    with pytest.raises(Refused, match=f"{disk.root}/a: fanotify cannot watch there"):
        emulator.call("watch", paths=[str(disk.root / "a"), str(disk.root)])
    assert status(emulator)["paths"] == [f"{disk.root}/a", f"{disk.root}/b"]
    measures(emulator, disk, "b/afterwards")
    unmount(disk.root / "a")
    is_watched_again(emulator, disk)
    assert status(emulator)["restarts"] == 0


def test_at_a_restart(emulator: Daemon, disk: Disk) -> None:
    emulator.logs.allow(r"not watched: .*/a is on proc")
    emulator.logs.allow(r"the listener of watched files has ended \(killed by SIGKILL\)")
    with covered(disk.root / "a"):
        os.kill(status(emulator)["listener"], signal.SIGKILL)

        def back() -> bool:
            part = status(emulator)
            return bool(part["restarts"] and part["listener"])

        wait_for(back, 60, "the listener is back")
        measures(emulator, disk, "b/meanwhile")
        assert len(left_out(emulator)) == 1
    is_watched_again(emulator, disk)
    assert status(emulator)["restarts"] == 1


def test_taken_from_what_is_watched(emulator: Daemon, disk: Disk) -> None:
    """And others may be added beside it."""
    emulator.logs.allow(r"not watched: .*/a is on proc")
    with covered(disk.root / "a"):
        emulator.call("watch", paths=[str(disk.root / "c")])
        measures(emulator, disk, "c/file")
        emulator.call("unwatch", paths=[str(disk.root / "a")])
        assert left_out(emulator) == []
        measures(emulator, disk, "b/file")
    before = names(emulator)
    run(["cat", disk.file("a/file")])
    assert names(emulator) == before


def test_a_file_system_that_does_not_answer(emulator: Daemon, start: Starter, disk: Disk) -> None:
    """Others are watched, and it is found when it answers again, without any mount."""
    emulator.logs.allow(r"not watched: .*/a: (fanotify cannot watch|its file system does not)")
    other = start("--tpm", "none")
    (disk.root / "d").mkdir()
    run(["mount", "--bind", other.dir, disk.root / "a"])
    # One that stands still in its very first look has the listener killed, and started again.
    wait_for(lambda: left_out(emulator), 60, "it was looked at")
    with stopped(other.pid):
        # At every change of the table of mounts the listener looks for itself as well.
        for number in range(3):
            with covered(disk.root / "c"):
                measures(emulator, disk, f"b/file{number}")
        silent = [f"{disk.root}/a: its file system does not answer"]
        wait_for(lambda: left_out(emulator) == silent, 60, "it is left out")
        emulator.call("watch", paths=[str(disk.root / "d")])
        measures(emulator, disk, "d/file")
    refused = f"{disk.root}/a: fanotify cannot watch there: "

    def looked_again() -> bool:
        return any(why.startswith(refused) for why in left_out(emulator))

    wait_for(looked_again, 60, "it was looked at again")
    with stopped(other.pid):
        emulator.call("unwatch", paths=[str(disk.root / "a")])
        measures(emulator, disk, "d/more")
    assert status(emulator)["restarts"] == 0
