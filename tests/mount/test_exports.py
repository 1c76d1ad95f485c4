# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Profiles that write the list to files, and trimming by PCR values, through a mount."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.daemon import ASCII, Daemon
from tests.mount.fixtures import Starter
from tests.property.reference import replay
from tests.support import run

pytestmark = [pytest.mark.mount, pytest.mark.root]


def name(daemon: Daemon, path: Path | str) -> str:
    """Writes a path to list_name: ok or the errno."""
    return daemon.write("list_name", os.fsencode(path) + b"\n")


@pytest.fixture
def exporting(start: Starter, tmp_path: Path) -> Daemon:
    daemon = start("--profile", "export-2020", "--export-root", tmp_path, "--tpm", "none")
    daemon.call("generate", count=9)
    return daemon


def test_the_list_goes_to_the_file_and_leaves(exporting: Daemon, tmp_path: Path) -> None:
    target = tmp_path / "list"
    first = exporting.read(ASCII)
    assert name(exporting, target) == "ok"
    assert target.read_bytes() == first
    assert target.stat().st_mode & 0o7777 == 0o600
    assert exporting.read(ASCII) == b""
    exporting.call("generate", count=3)
    second = exporting.read(ASCII)
    assert name(exporting, target) == "ok"
    assert target.read_bytes() == first + second, "further lists are appended"
    assert name(exporting, tmp_path / "another") == "ok"
    assert (tmp_path / "another").read_bytes() == b"", "nothing was left to write"


def test_the_first_export_replaces_what_was_there(exporting: Daemon, tmp_path: Path) -> None:
    target = tmp_path / "list"
    target.write_bytes(b"of an earlier boot\n")
    first = exporting.read(ASCII)
    assert name(exporting, target) == "ok"
    assert target.read_bytes() == first
    exporting.call("reset")
    assert name(exporting, target) == "ok"
    assert target.read_bytes().count(b"\n") == 1, "a boot later it is replaced again"


@pytest.mark.parametrize(
    "way", ["/etc/passwd", "{root}/../x", "{root}", "{root}/link/x", "{root}x/y"]
)
def test_only_below_the_root(exporting: Daemon, tmp_path: Path, way: str) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}x"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    assert name(exporting, way.replace("{root}", str(tmp_path))) in ("EACCES", "EISDIR", "ENOTDIR")
    assert exporting.count() == 10
    assert not list(outside.iterdir())


def test_the_target_may_not_be_a_link_or_a_pipe(exporting: Daemon, tmp_path: Path) -> None:
    assert name(exporting, tmp_path / "first") == "ok"
    exporting.call("generate", count=2)
    (tmp_path / "link").symlink_to(tmp_path / "first")
    os.mkfifo(tmp_path / "pipe")
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert name(exporting, tmp_path / "link") == "ELOOP"
    assert name(exporting, tmp_path / "pipe") == "EINVAL"
    os.close(reader)
    assert name(exporting, tmp_path / "pipe") == "ENXIO"
    assert exporting.count() == 2


def test_no_way_leads_through_a_mount(start: Starter, tmp_path: Path) -> None:
    """Behind one may be the daemon itself, which would wait for its own answer."""
    place = start.place()
    daemon = start("--profile", "export-2020", "--export-root", place.base, place=place)
    assert name(daemon, place.base / "list") == "ok"
    daemon.call("generate", count=3)
    (place.base / "file").write_bytes(b"")
    run(["mount", "--bind", daemon.path(ASCII), place.base / "file"])
    try:
        script = 'echo "$1" > "$2"'
        for way in ("ima/x", "file"):
            words = ["bash", "-c", script, "sh", f"{place.base}/{way}", f"{daemon.dir}/list_name"]
            assert "cross-device" in run(words, check=False, deadline=60).stderr.lower()
    finally:
        run(["umount", place.base / "file"])
    assert daemon.count() == 3
    assert name(daemon, place.base / "list") == "ok"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that a few hundred records fill."""
    place = tmp_path / "small"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place])
    yield place
    run(["umount", place])


@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk_leaves_file_and_list_as_they_were(
    start: Starter, small: Path, first: bool
) -> None:
    daemon = start("--profile", "export-2020", "--export-root", small, "--tpm", "none")
    target = small / "list"
    if first:
        target.write_bytes(b"what was there\n")
    else:
        assert name(daemon, target) == "ok"
    before = target.read_bytes()
    daemon.call("generate", count=1000)
    kept = daemon.read(ASCII)
    assert name(daemon, target) == "ENOSPC"
    assert target.read_bytes() == before
    assert os.listdir(small) == ["list"]
    assert daemon.read(ASCII) == kept
    # The next one, with room again.
    run(["mount", "-o", "remount,size=1m", small])
    assert name(daemon, target) == "ok"
    assert target.read_bytes().endswith(kept)
    assert daemon.count() == 0


def test_2019_waits_for_the_limit_and_goes_on_by_itself(start: Starter, tmp_path: Path) -> None:
    options = ("--export-root", tmp_path, "--export-limit", "20", "--tpm", "none")
    daemon = start("--profile", "export-2019", *options)
    target = tmp_path / "list"
    assert name(daemon, target) == "ok"
    assert not target.exists()
    daemon.call("generate", count=45)
    # boot_aggregate and 20, 21, and 4 that are left.
    assert target.read_bytes().count(b"\n") == 42
    assert daemon.count() == 4
    assert target.stat().st_mode & 0o7777 == 0o400


def test_an_automatic_export_that_fails_is_told_once(start: Starter, tmp_path: Path) -> None:
    options = ("--export-root", tmp_path, "--export-limit", "20", "--tpm", "none")
    daemon = start("--profile", "export-2019", *options)
    daemon.logs.expect("was not exported: No such file or directory")
    assert name(daemon, tmp_path / "not" / "there") == "ok", "nothing to write yet"
    daemon.call("generate", count=45)
    assert daemon.count() == 46
    assert daemon.log().count("was not exported") == 1
    assert name(daemon, tmp_path / "not" / "there") == "EPERM"
    assert name(daemon, tmp_path / "list") == "ok"
    assert daemon.count() == 0


def test_the_rfc_keeps_its_first_name_and_wants_a_new_file(start: Starter, tmp_path: Path) -> None:
    options = ("--export-root", tmp_path, "--export-limit", "5", "--tpm", "none")
    daemon = start("--profile", "export-rfc", *options)
    (tmp_path / "one").write_bytes(b"unlinked before the first export")
    assert name(daemon, tmp_path / "one") == "ok"
    daemon.call("generate", count=9)
    daemon.logs.expect("was not exported: File exists")
    assert (tmp_path / "one").read_bytes().count(b"\n") == 6
    assert daemon.count() == 4
    assert name(daemon, tmp_path / "two") == "ok"
    daemon.call("generate", count=9)
    assert not (tmp_path / "two").exists()
    assert daemon.count() == 13


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--profile", "export-2020"], "--export-root"),
        (["--profile", "export-2020", "--export-root", "/nowhere"], "not a directory"),
        (["--export-limit", "5"], "--export-root, which is not given"),
        (["--profile", "v4", "--draft-bugs"], "no bug of profile v4"),
        (["--profile", "rfc-v2", "--no-staging"], "no staged files to leave out"),
        (["--profile", "export-2020", "--export-root", "/tmp", "--export-limit", "3"], "no limit"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    start: Starter, options: list[str], reason: str
) -> None:
    status, said = start.refused(*options, "--tpm", "none")
    assert status == 2
    assert reason in said


def test_the_root_may_not_be_inside_of_the_mount(start: Starter) -> None:
    place = start.place()
    status, said = start.refused(
        "--profile", "export-2020", "--export-root", place.dir, "--tpm", "none", place=place
    )
    assert (status, "inside of the mount" in said) == (2, True)


def test_a_later_kernel_may_be_the_one_that_exports(start: Starter, tmp_path: Path) -> None:
    daemon = start("--export-root", tmp_path, "--export-limit", "5", "--tpm", "none")
    daemon.call("generate", count=9)
    daemon.call("kexec_execute", profile="export-2019")
    carried = daemon.read(ASCII)
    assert name(daemon, tmp_path / "list") == "ok"
    assert (tmp_path / "list").read_bytes() == carried
    assert daemon.count() == 0


# PCR values


@pytest.fixture
def pcrs(start: Starter) -> Daemon:
    return start("--profile", "pcrs-2025", "--banks", "sha1,sha256")


def set_pcrs(daemon: Daemon, value: bytes) -> None:
    descriptor = os.open(daemon.path("config/ima/pcrs"), os.O_WRONLY)
    try:
        assert os.write(descriptor, value) == len(value)
    finally:
        os.close(descriptor)


@pytest.mark.swtpm
def test_a_quoted_value_trims_what_led_to_it(pcrs: Daemon) -> None:
    zero = f"pcr10:sha1:{'00' * 20}\npcr10:sha256:{'00' * 32}\n".encode()
    assert pcrs.read("config/ima/pcrs_ascii") == zero
    pcrs.generate(9)
    quoted = pcrs.pcr("sha256")
    pcrs.generate(3)
    kept = pcrs.read(f"{ASCII}_sha256").splitlines()[10:]
    value = b"pcr10:sha256:" + quoted
    set_pcrs(pcrs, value)
    assert pcrs.read(f"{ASCII}_sha256").splitlines() == kept
    shown = pcrs.read("config/ima/pcrs_ascii").decode().splitlines()
    assert shown[1] == f"pcr10:sha256:{quoted.hex()}"
    assert pcrs.read("config/ima/pcrs").endswith(value)
    set_pcrs(pcrs, value)
    assert pcrs.count() == 3, "already there: nothing is deleted"
    set_pcrs(pcrs, b"pcr10:sha256:" + hashlib.sha256(b"never").digest())
    set_pcrs(pcrs, b"pcr10:sha512:" + bytes(64))
    assert pcrs.count() == 3, "no match and no bank: success, and nothing is deleted"
    set_pcrs(pcrs, b"pcr10:sha1:" + pcrs.pcr("sha1"))
    assert pcrs.count() == 0, "the other bank's start point went along"
    pcrs.assert_replays()


@pytest.mark.swtpm
def test_violations_are_replayed_as_ones(pcrs: Daemon) -> None:
    pcrs.generate(2)
    pcrs.call("violation", name="/v")
    pcrs.generate(2)
    quoted = replay(pcrs.read(f"{ASCII}_sha1"), "sha1")
    pcrs.generate(1)
    set_pcrs(pcrs, b"pcr10:sha1:" + quoted)
    assert pcrs.count() == 1


def test_without_a_tpm_there_is_no_such_file(start: Starter) -> None:
    daemon = start("--profile", "pcrs-2025", "--tpm", "none")
    assert "config" not in os.listdir(daemon.dir)


@pytest.mark.swtpm
def test_configfs_is_beside_the_securityfs_layout(start: Starter) -> None:
    daemon = start("--profile", "pcrs-2025", "--layout", "securityfs")
    assert sorted(os.listdir(daemon.mountpoint)) == ["config", "ima", "integrity"]
    assert sorted(os.listdir(daemon.mountpoint / "config" / "ima")) == ["pcrs", "pcrs_ascii"]
