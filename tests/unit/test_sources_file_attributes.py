# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Facts about real files."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.errors import Refused
from imafs.kernel.policy.rules import MAY_READ
from imafs.sources import file_attributes
from tests.support import require, run

TMPFS, PROC = 0x01021994, 0x9FA0


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of its own."""
    require("root")
    place = tmp_path / "tmpfs"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "none", str(place)])
    try:
        yield place
    finally:
        run(["umount", "-l", str(place)])


@pytest.mark.root
def test_a_file_on_tmpfs(tmpfs: Path) -> None:
    file = tmpfs / "a file"
    file.write_text("x")
    os.chown(file, 1234, 56)
    found = file_attributes.of_path(str(file))
    assert (found.fowner, found.fgroup) == (1234, 56)
    assert (found.fsmagic, found.fsname, found.fs_subtype) == (TMPFS, "tmpfs", "")


def test_proc() -> None:
    found = file_attributes.of_path("/proc/cpuinfo")
    assert (found.fsmagic, found.fsname, found.fsuuid) == (PROC, "proc", None)


def test_as_other_tools_say(tmp_path: Path) -> None:
    """stat and findmnt, on whatever file system the tests are."""
    file = tmp_path / "f"
    file.write_text("x")
    found = file_attributes.of_path(str(file))
    magic = subprocess.check_output(["stat", "-f", "-c", "%t", str(file)], text=True)
    kind = subprocess.check_output(["findmnt", "-n", "-o", "FSTYPE", "-T", str(file)], text=True)
    assert found.fsmagic == int(magic, 16)
    assert found.fsname == kind.strip().partition(".")[0]
    assert found.fowner == file.stat().st_uid


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        file_attributes.of_path(str(tmp_path / "none"))
    assert caught.value.errno == errno.ENOENT


def test_a_use_of_a_file() -> None:
    user = file_attributes.User.of(uid=1000, euid=0, gid=3, egid=4)
    access = file_attributes.access(
        "FILE_CHECK", MAY_READ, user, file_attributes.Facts(fowner=7, fsname="ext4")
    )
    assert (access.uid, access.euid, access.gid, access.egid) == (1000, 0, 3, 4)
    assert (access.fowner, access.fsname, access.mask) == (7, "ext4", MAY_READ)
    assert access.cap_setuid
    assert not file_attributes.access(
        "FILE_CHECK", 0, file_attributes.User.of(euid=5), file_attributes.Facts()
    ).cap_setuid
