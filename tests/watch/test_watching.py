# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What is watched: paths, names, mounts, policies, boots."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from imafs.errors import Refused
from tests.mount.daemon import IMAFS, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import ROOT, run, wait_for
from tests.watch.disk import Disk, unmount
from tests.watch.looking import measures, names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]


@pytest.fixture
def emulator(start: Starter, disk: Disk) -> Daemon:
    """One that watches ``in`` of the disk."""
    (disk.root / "in").mkdir()
    return start("--watch", str(disk.root / "in"))


def test_before_the_access_goes_on(emulator: Daemon, disk: Disk) -> None:
    program = disk.program("in/program")
    run([program])
    digest = run(["sha256sum", program]).stdout.split()[0]
    text = emulator.read("ascii_runtime_measurements_sha256").decode()
    assert text.splitlines()[-1].endswith(f" ima-ng sha256:{digest} {program}")
    # And it is in the PCR before the program runs.
    records = emulator.group("records")
    assert (records["since_boot"], records["pending"]) == (2, 0)


def test_measured_once(emulator: Daemon, disk: Disk) -> None:
    program = disk.program("in/program")
    # A change time that is newer than a clock's tick proves nothing about the next change.
    changed = program.stat().st_ctime
    wait_for(lambda: time.time() > changed + 0.1, 1, "the file is no longer new")
    before = status(emulator)
    for _ in range(5):
        run([program])
    after = status(emulator)
    assert [after[key] - before[key] for key in ("watched", "hashed", "measured")] == [5, 1, 1]
    assert names(emulator).count(str(program)) == 1


def test_many_at_once(emulator: Daemon, disk: Disk) -> None:
    """Every opener of a large new file waits for the same measurement."""
    large = disk.file("in/large", b"0123456789abcdef" * (1 << 20))

    def listed(_: int) -> bool:
        run(["head", "-c1", large])
        return str(large) in names(emulator)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(listed, range(8)))
    part = status(emulator)
    assert part["hashed"] <= 2
    assert (part["measured"], part["duplicates"]) == (1, 0)


def test_outside_is_ignored(emulator: Daemon, disk: Disk) -> None:
    outside = disk.file("out/file")
    inside = disk.file("in/file")
    disk.file("out/other", b"other\n")

    def quiet() -> bool:
        """The directory is ignored soon after its first use, not before it goes on, and until
        anybody mounts anything on this machine."""
        run(["cat", outside])
        before = status(emulator)["events"]
        for _ in range(20):
            run(["cat", outside])
            run(["cat", disk.root / "out/other"])
        return bool(status(emulator)["events"] == before)

    wait_for(quiet, 60, "what lies outside is ignored")
    before = status(emulator)["events"]
    run(["cat", inside])
    assert status(emulator)["events"] == before + 1
    assert names(emulator)[1:] == [str(inside)]


def test_moved_in(emulator: Daemon, disk: Disk) -> None:
    """What was ignored elsewhere and comes into a watched directory, by every way."""
    for name in ("out/moved", "out/linked", "dir/below/file"):
        run(["cat", disk.file(name, name.encode())])
    (disk.root / "out/moved").rename(disk.root / "in/moved")
    (disk.root / "in/linked").hardlink_to(disk.root / "out/linked")
    (disk.root / "dir").rename(disk.root / "in/dir")
    for name in ("in/moved", "in/linked"):
        run(["cat", disk.root / name])
        assert names(emulator)[-1] == str(disk.root / name)
    # The listener hears of a moved directory at the same time as others do.
    file = disk.root / "in/dir/below/file"

    def seen() -> bool:
        run(["cat", file])
        return str(file) in names(emulator)

    wait_for(seen, 60, "the moved directory is watched")


def test_moved_out(emulator: Daemon, disk: Disk) -> None:
    file = disk.file("in/file")
    file.rename(disk.root / "file")
    run(["cat", disk.root / "file"])
    assert len(names(emulator)) == 1


def test_bind_mount_of_a_watched_directory(emulator: Daemon, disk: Disk) -> None:
    """A use through another name is another name's; it must not make the directory ignored."""
    file = disk.file("in/sub/file")
    other = disk.root / "other"
    other.mkdir()
    run(["mount", "--bind", disk.root / "in/sub", other])
    for _ in range(2):
        run(["cat", other / "file"])
    assert len(names(emulator)) == 1
    run(["cat", file])
    assert names(emulator)[1:] == [str(file)]
    unmount(other)


def test_other_mount_namespace(emulator: Daemon, disk: Disk) -> None:
    """``unshare -m`` copies every mount: a mark on a mount would be left behind."""
    file = disk.file("in/file")
    run(["unshare", "--mount", "cat", file])
    assert names(emulator)[1:] == [str(file)]


def test_mount_below(disk: Disk, start: Starter) -> None:
    place = disk.root / "mnt"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "none", place])
    emulator = start("--watch", str(disk.root))
    program = disk.program("mnt/program")
    run([program])
    assert names(emulator)[-1] == str(program)
    # tcb leaves reading from tmpfs out.
    run(["cat", disk.file("mnt/data")])
    assert names(emulator)[-1] == str(program)
    unmount(place)
    measures(emulator, disk, "after")


def test_fuse_below(disk: Disk, start: Starter) -> None:
    """What fanotify cannot watch is left out; the rest is watched."""
    below = disk.root / "fuse"
    below.mkdir()
    other = start("--tpm", "none")
    run(["mount", "--bind", other.dir, below])
    try:
        emulator = start("--watch", str(disk.root))
        run(["cat", below / "ascii_runtime_measurements"])
        measures(emulator, disk, "beside")
    finally:
        unmount(below)


def test_mounted_below_later(emulator: Daemon, disk: Disk) -> None:
    place = disk.root / "in/mnt"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "none", place])
    number = 0

    def seen() -> bool:
        nonlocal number
        number += 1
        program = disk.program(f"in/mnt/program{number}")
        run([program])
        return str(program) in names(emulator)

    wait_for(seen, 60, "the new file system is watched")
    unmount(place)


def test_a_watched_path_is_removed(emulator: Daemon, disk: Disk) -> None:
    """The rest stays watched, also by the next listener."""
    other = disk.file("other/file").parent
    emulator.call("watch", paths=[str(other)])
    (disk.root / "in").rmdir()
    emulator.logs.allow(r"the listener of watched files has ended \(killed by SIGKILL\)")
    killed = status(emulator)["listener"]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: status(emulator)["listener"] not in (None, killed), 60, "the next listener")
    measures(emulator, disk, "other/new")
    # And what comes again under its name is watched again.
    measures(emulator, disk, "in/new")


def test_watch_and_unwatch(disk: Disk, start: Starter) -> None:
    emulator = start()
    one, two = disk.file("one/file", b"1"), disk.file("two/file", b"2")
    assert status(emulator)["listener"] is None
    run(["cat", one])
    answer = imafs("ctl", "--control", emulator.control, "watch", one.parent)
    assert answer.stdout == f"watched: {one.parent}\n"
    run(["cat", one, two])
    assert names(emulator)[1:] == [str(one)]
    emulator.call("watch", paths=[str(two)])
    emulator.call("watch", paths=[str(two)])
    run(["cat", two])
    assert names(emulator)[1:] == [str(one), str(two)]
    assert emulator.call("unwatch", paths=[str(one.parent)])["watched"] == [str(two)]
    measured = disk.file("one/more", b"more")
    run(["cat", measured])
    assert len(names(emulator)) == 3
    with pytest.raises(Refused, match=f"{measured} is not watched"):
        emulator.call("unwatch", paths=[str(measured)])
    assert emulator.call("unwatch", paths=[str(two)])["watched"] == []
    two.write_bytes(b"two again")
    run(["cat", two])
    assert len(names(emulator)) == 3
    assert status(emulator)["listener"] is None
    emulator.call("watch", paths=[str(two)])
    run(["cat", two])
    assert len(names(emulator)) == 4


def test_two_emulators(disk: Disk, start: Starter) -> None:
    """Each has its own listener; an open waits for both."""
    first, second = (start("--watch", str(disk.root)) for _ in range(2))
    for name in ("one", "two"):
        measures(first, disk, name)
        assert names(second)[-1] == str(disk.root / name)
    assert all(status(emulator)["late"] == 0 for emulator in (first, second))


def test_a_link_is_resolved(disk: Disk, start: Starter) -> None:
    file = disk.file("real/file")
    (disk.root / "link").symlink_to("real")
    emulator = start("--watch", str(disk.root / "link"))
    assert status(emulator)["paths"] == [str(file.parent)]
    run(["cat", file])
    assert names(emulator)[-1] == str(file)


def test_after_a_reset_everything_is_new(emulator: Daemon, disk: Disk) -> None:
    program = disk.program("in/program")
    for _ in range(2):
        run([program])
        assert names(emulator) == ["boot_aggregate", str(program)]
        emulator.call("reset")
        assert names(emulator) == ["boot_aggregate"]


def test_after_a_kexec_everything_is_new(emulator: Daemon, disk: Disk) -> None:
    """Carried records are not in the next kernel's hash table."""
    program = disk.program("in/program")
    run([program])
    emulator.call("kexec_load")
    emulator.call("kexec_execute")
    run([program])
    run([program])
    assert names(emulator).count(str(program)) == 2
    assert names(emulator)[-1] == str(program)


def test_in_imafs_run(disk: Disk) -> None:
    """The command's own uses, in the list where it looks for it, and in the PCR."""
    program = disk.program("in/program")
    script = f"{program}; cd /sys/kernel/security/ima; cat ascii_runtime_measurements_sha256; "
    script += f"{sys.executable} -P -m imafs verify binary_runtime_measurements >&2"
    result = imafs("run", "--watch", program.parent, "--", "sh", "-c", script)
    digest = run(["sha256sum", program]).stdout.split()[0]
    assert result.stdout.splitlines()[-1].endswith(f" ima-ng sha256:{digest} {program}")
    assert "PCR" in result.stderr


def test_suspended(emulator: Daemon, disk: Disk) -> None:
    """No record, and nobody is kept from his file; it is measured later."""
    emulator.logs.allow("not measured: .*/in/file: measurements are suspended")
    file = disk.file("in/file")
    emulator.call("suspend")
    run(["cat", file])
    assert status(emulator)["refused"] == 1
    emulator.call("resume")
    assert len(names(emulator)) == 1
    run(["cat", file])
    assert names(emulator)[1:] == [str(file)]


def test_a_file_that_cannot_be_read(emulator: Daemon, disk: Disk) -> None:
    """Fifos and devices are no files for IMA."""
    fifo = disk.root / "in/fifo"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.close(descriptor)
    run(["ls", disk.root / "in"])
    assert len(names(emulator)) == 1
    assert status(emulator)["errors"] == 0


def test_status_is_readable(emulator: Daemon, disk: Disk) -> None:
    run(["cat", disk.file("in/file")])
    text = imafs("ctl", "--control", emulator.control, "status").stdout
    assert f"watched     {disk.root}/in, as tcb says: no policy is active\n" in text
    # To write it was a use as well.
    assert "listener    2 uses, 1 measured, 0 violations\n" in text


def test_paths_that_cannot_be_watched(disk: Disk, start: Starter) -> None:
    emulator = start()
    with pytest.raises(Refused, match=f"{disk.root}/none: No such file"):
        emulator.call("watch", paths=[f"{disk.root}/none"])
    with pytest.raises(Refused, match="/proc/self is on proc, which cannot be watched"):
        emulator.call("watch", paths=["/proc/self"])
    assert status(emulator)["listener"] is None


def test_watch_of_no_path_is_a_usage_error(disk: Disk) -> None:
    place = disk.root / "mnt"
    place.mkdir()
    result = imafs("mount", place, "--watch", disk.root / "none", check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"imafs: --watch {disk.root}/none: No such file or directory\n"


def test_the_directory_may_come_last(disk: Disk) -> None:
    """As with --measure."""
    watched = disk.file("in/file").parent
    place = disk.root / "mnt"
    place.mkdir()
    control = disk.base / "control"
    imafs("mount", "--tpm", "none", "--control", control, "--watch", watched, place, "--background")
    try:
        run(["cat", watched / "file"])
        status = imafs("ctl", "--control", control, "status", "--json").stdout
        assert json.loads(status)["watch"]["measured"] == 1
    finally:
        imafs("ctl", "--control", control, "stop")


def test_without_the_capability(disk: Disk) -> None:
    """Root of another user namespace: one line that says what is missing."""
    place = disk.root / "mnt"
    place.mkdir()
    command: list[str | os.PathLike[str]] = ["unshare", "--user", "--map-root-user", "--mount"]
    command += [
        *IMAFS,
        "mount",
        place,
        "--tpm",
        "none",
        "--watch",
        disk.root,
        "--control",
        disk.base / "control",
    ]
    result = run(command, check=False, cwd=ROOT)
    assert (result.returncode, result.stdout) == (7, "")
    needed = "watching needs CAP_SYS_ADMIN in the initial user namespace (fanotify)"
    assert result.stderr == f"imafs: {needed}\n"
