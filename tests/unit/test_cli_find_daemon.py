# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which daemon a command asks where others have put something at a socket's usual name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from imafs.cli import find_daemon
from imafs.control import paths
from imafs.errors import ControlError
from imafs.host import mounts


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mounts.Mount:
    """One whose daemon has a socket of another name."""
    monkeypatch.setattr(paths, "default_socket", lambda mountpoint: tmp_path / "none.sock")
    monkeypatch.setattr(find_daemon, "_death", lambda path: None)
    kind = f"fuse.{mounts.SUBTYPE}"
    return mounts.Mount(1, str(tmp_path / "m"), kind, mounts.FSNAME, 1, os.geteuid())


def plant(place: Path, kind: str) -> None:
    """Beside the mount, as anybody can in /tmp."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place if kind == "dead" else place.with_name("elsewhere")))
    if kind == "link":
        place.symlink_to("elsewhere")


@pytest.mark.parametrize("kind", ["dead", "link"])
def test_what_is_planted_hides_no_daemon(
    tmp_path: Path, mount: mounts.Mount, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "m.sock", kind)
    monkeypatch.setattr(find_daemon, "_of_process", lambda mount: tmp_path / "own.sock")
    assert find_daemon.of_mount(mount) == tmp_path / "own.sock"


def test_the_reason_is_told_where_no_daemon_is_found(
    tmp_path: Path, mount: mounts.Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "m.sock", "link")
    monkeypatch.setattr(find_daemon, "_of_process", lambda mount: None)
    monkeypatch.setattr(find_daemon, "_holder", lambda mount: None)
    with pytest.raises(ControlError, match="exists and is not a socket; name it with --control"):
        find_daemon.of_mount(mount)
