# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What `imafs mount --background` leaves: nothing after an orderly end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imafs.control import paths
from imafs.verbs.client import ControlClient
from tests.mount.daemon import imafs

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.mark.parametrize("named", [False, True])
def test_its_log_goes_with_an_orderly_end(tmp_path: Path, named: bool) -> None:
    place = tmp_path / "ima"
    place.mkdir()
    control = tmp_path / "control" if named else paths.default_socket(place)
    log = paths.default_socket(place).with_suffix(".log")
    options = ["--control", str(control)] if named else []
    imafs("mount", place, "--tpm", "none", "--background", *options)
    with ControlClient(control) as client:
        pid = client.status()["pid"]
    assert log.exists()
    # Nothing that it would write from now on lies where nobody can read or remove it.
    assert os.readlink(f"/proc/{pid}/fd/2") == os.devnull
    imafs("umount", place)
    assert not log.exists()


def test_a_refused_start_leaves_none(tmp_path: Path) -> None:
    place = tmp_path / "ima"
    place.mkdir()
    (place / "full").touch()
    done = imafs("mount", place, "--tpm", "none", "--background", check=False)
    assert done.returncode == 5
    assert "imafs: " in done.stderr
    assert not paths.default_socket(place).with_suffix(".log").exists()
