# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The policy decides over watched files: given at the start, or written through its file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import run, wait_for
from tests.watch.disk import Disk, unmount
from tests.watch.looking import names, status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

Start = Callable[..., Daemon]


@pytest.fixture
def started(start: Starter, disk: Disk) -> Start:
    """An emulator that watches ``disk``, with these rules."""

    def started(*rules: str) -> Daemon:
        file = disk.base / "policy"
        file.write_text("".join(f"{rule}\n" for rule in rules))
        return start("--watch", str(disk.root), "--policy", str(file))

    return started


def as_user(uid: int, *command: str | Path) -> None:
    """Run it with this real and effective uid and gid."""
    run(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command])


def records(emulator: Daemon) -> list[list[str]]:
    """The words of every record of the SHA-256 list, without boot_aggregate's."""
    text = emulator.read("ascii_runtime_measurements_sha256").decode()
    return [line.split(" ") for line in text.splitlines()][1:]


def write_policy(emulator: Daemon, *rules: str) -> None:
    """Load rules as a boot script does; they hold when this returns.

    FUSE releases a file after close() has returned; what ``policy`` shows holds.
    """
    before = emulator.read("policy")
    with (emulator.dir / "policy").open("wb", buffering=0) as file:
        for rule in rules:
            file.write(f"{rule}\n".encode())
    wait_for(lambda: emulator.read("policy") != before, 60, "the policy is active")


def test_who_reads(started: Start, disk: Disk) -> None:
    emulator = started("measure func=FILE_CHECK mask=MAY_READ uid=1000")
    file, other = disk.file("file", b"1"), disk.file("other", b"2")
    run(["cat", file, other])
    assert len(names(emulator)) == 1
    as_user(1000, "cat", file)
    as_user(1001, "cat", other)
    assert names(emulator)[1:] == [str(file)]


def test_whose_file(started: Start, disk: Disk) -> None:
    emulator = started("measure func=FILE_CHECK mask=MAY_READ fowner=1234 fgroup>5")
    mine, his = disk.file("mine", b"1"), disk.file("his", b"2")
    os.chown(his, 1234, 6)
    run(["cat", mine, his])
    assert names(emulator)[1:] == [str(his)]


@pytest.mark.parametrize("condition", ["fsname=ext4", "fsmagic=0xef53", "fsuuid={}"])
def test_which_file_system(started: Start, disk: Disk, condition: str) -> None:
    uuid = run(["findmnt", "--noheadings", "--output", "UUID", disk.root]).stdout.strip()
    if not uuid:  # without udev
        uuid = run(["dumpe2fs", "-h", disk.base / "image"]).stdout
        uuid = uuid.partition("Filesystem UUID:")[2].split()[0]
    place = disk.root / "mnt"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "none", place])
    emulator = started(f"measure func=FILE_CHECK mask=MAY_READ {condition.format(uuid)}")
    file = disk.file("file")
    run(["cat", disk.file("mnt/file"), file])
    assert names(emulator)[1:] == [str(file)]
    unmount(place)


def test_pcr_and_template_of_a_rule(started: Start, disk: Disk) -> None:
    emulator = started(
        "measure func=BPRM_CHECK mask=MAY_EXEC template=ima-sigv2",
        "measure func=FILE_CHECK mask=MAY_READ pcr=11 template=ima-sig",
    )
    program = disk.program("program")
    run([program])
    # By another hook into another PCR: the kernel has a bit of each.
    run(["cat", program])
    run(["cat", program])
    found = [(words[0], words[2], words[4]) for words in records(emulator)]
    assert found == [("10", "ima-sigv2", str(program)), ("11", "ima-sig", str(program))]
    assert {row["pcr"] for row in emulator.assert_replays()} == {10, 11}


def test_the_first_match_counts(started: Start, disk: Disk) -> None:
    emulator = started("dont_measure euid=1000", "measure func=BPRM_CHECK")
    one, two = disk.program("one"), disk.program("two")
    as_user(1000, one)
    run([two])
    assert names(emulator)[1:] == [str(two)]


def test_no_rule_for_files(start: Starter, disk: Disk) -> None:
    """An active policy is the policy: no tcb beside it."""
    emulator = start("--watch", str(disk.root), "--policy", "critical_data")
    before = names(emulator)
    run([disk.program("program")])
    assert names(emulator) == before
    assert status(emulator)["policy"] == "active"


def test_a_kernel_without_a_policy_measures_nothing(start: Starter, disk: Disk) -> None:
    emulator = start("--watch", str(disk.root), "--policy", "none")
    program = disk.program("program")
    run([program])
    emulator.call("measure", paths=[str(program)])
    emulator.call("kexec_load", cmdline="quiet")
    assert names(emulator) == ["boot_aggregate"]
    assert status(emulator)["policy"] == "active"
    assert emulator.read("policy") == b""
    write_policy(emulator, "measure func=BPRM_CHECK uid=0")
    run([program])
    assert names(emulator)[1:] == [str(program)]


def test_written_policy_holds_when_it_is_shown(start: Starter, disk: Disk) -> None:
    emulator = start("--watch", str(disk.root), "--template", "ima")
    file, data = disk.file("file", b"1"), disk.file("data", b"2")
    run(["cat", file])
    assert status(emulator)["policy"] == "tcb"
    for number in range(5):
        write_policy(emulator, f"measure func=FILE_CHECK mask=MAY_READ uid={number + 1}")
        as_user(number + 1, "cat", data)
        assert status(emulator)["policy"] == "active"
        listed = run(["cat", emulator.dir / "ascii_runtime_measurements"]).stdout
        assert listed.endswith(f"{data}\n")
        data = disk.file(f"data{number}", b"more %d" % number)
    # Root is nobody of them.
    run(["cat", data])
    listed = run(["cat", emulator.dir / "ascii_runtime_measurements"]).stdout
    assert not listed.endswith(f"{data}\n")


def test_rules_that_are_not_shown_as_they_were_written(start: Starter, disk: Disk) -> None:
    """Large ids are shown negative, a template format without name: the listener knows better."""
    rules = disk.base / "policy"
    fmt = "d-ng|n-ng|iuid"
    rules.write_bytes(
        b"dont_measure uid=4294967294\n"
        b"dont_measure fsname=a\rb\n"
        b"measure func=FILE_CHECK mask=MAY_READ template=%b\n" % fmt.encode()
    )
    emulator = start("--watch", str(disk.root), "--policy", str(rules), "--template-fmt", fmt)
    file = disk.file("file", b"1")
    run(["cat", file])
    assert names(emulator)[1:] == [f"{file} 0"]  # its iuid
    assert status(emulator)["restarts"] == 0
