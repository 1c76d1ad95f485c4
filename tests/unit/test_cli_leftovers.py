# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs umount --stale`` beside other users: their locks, their sockets, their places."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imafs.cli import leftovers
from imafs.control import paths
from imafs.errors import MountError
from imafs.host import caller, locks
from imafs.host import mounts as mountinfo


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    held = os.open(directory, os.O_RDONLY)
    # Who blocks in it fails the test, and does not hang it.
    timer = threading.Timer(20, fcntl.flock, [held, fcntl.LOCK_UN])
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        timer.start()
        yield
        assert timer.is_alive(), "somebody waited for the lock"
    finally:
        timer.cancel()
        timer.join()
        os.close(held)


def dead(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SECONDS", 0.05)


def test_a_locked_directory_is_left_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dead(tmp_path / "x.sock")
    with locked(tmp_path):
        assert leftovers.remove_dead_socket(path) == []
    assert path.exists()
    said = f"imafs: {tmp_path}: locked by another process: dead sockets stay there\n"
    assert capsys.readouterr() == ("", said)
    assert leftovers.remove_dead_socket(path) == [path]
    assert capsys.readouterr() == ("", "")


def test_the_others_are_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory of sockets, and the parents of mounts, each of which is tried once."""
    places = {name: tmp_path / name for name in ("sockets", "open", "shut")}
    for place in places.values():
        place.mkdir()
    monkeypatch.setattr(paths, "socket_directory", lambda: places["sockets"])
    points = [places[name] / point for name in ("shut", "open") for point in ("a", "b")]
    kind = f"fuse.{mountinfo.SUBTYPE}"
    mounts = [
        mountinfo.Mount(number, os.fspath(point), kind, mountinfo.FSNAME, 1, os.geteuid())
        for number, point in enumerate(points)
    ]
    monkeypatch.setattr(mountinfo, "mounts", lambda: mounts)
    for point in points:
        dead(paths.beside(os.fspath(point)))
    one = dead(places["sockets"] / "1.sock")
    with locked(places["shut"]):
        removed = set(leftovers.remove_dead_sockets())
    assert removed == {one, *(paths.beside(os.fspath(point)) for point in points[2:])}
    assert capsys.readouterr().err.count("locked by another process") == 1


def state(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state that no swtpm ever used, old enough to be nobody's."""
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(place))
    found = place / "imafs-tpm-x"
    found.mkdir()
    os.utime(found, (1, 1))
    return found


def test_a_state_that_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other ones are removed all the same, and a mount begins."""
    broken = state(tmp_path, monkeypatch)
    (broken / "imafs.lock").mkdir()
    (broken / "swtpm.log").touch()
    other = tmp_path / "imafs-tpm-y"
    other.mkdir()
    os.utime(other, (1, 1))
    assert list(leftovers.remove_dead_states()) == [other]
    assert capsys.readouterr() == ("", f"imafs: {broken} stays: Is a directory\n")


@pytest.mark.root
def test_a_file_system_with_the_name_of_a_state_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anybody can mount a FUSE of his own in /tmp; it refuses root, or never answers."""
    place = state(tmp_path, monkeypatch)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        os.utime(place, (1, 1))
        fstat, number = os.fstat, place.lstat().st_ino

        def asked(descriptor: int) -> os.stat_result:
            info = fstat(descriptor)
            assert info.st_ino != number, "the file system was asked"
            return info

        monkeypatch.setattr(os, "fstat", asked)
        assert list(leftovers.remove_dead_states()) == []
        assert capsys.readouterr() == ("", "")
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_sockets_where_others_can_change_the_path_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between a look and the removal another directory may take the place of theirs."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    path = dead(theirs / "x.sock")
    os.chown(theirs, 12345, 12345)
    assert leftovers.remove_dead_socket(path) == []
    assert path.exists()
    assert f"imafs: {theirs}: dead sockets stay there: " in capsys.readouterr().err
    through = tmp_path / "through"
    through.symlink_to(theirs)
    assert leftovers.remove_dead_socket(through / "x.sock") == []
    os.chown(theirs, 0, 0)
    assert leftovers.remove_dead_socket(path) == [path]


@pytest.mark.root
def test_sockets_of_other_users_in_a_sticky_directory_stay(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    path = dead(tmp_path / "x.sock")
    os.chown(path, 12345, 12345)
    assert leftovers.remove_dead_socket(path) == []
    link = tmp_path / "y.sock"
    link.symlink_to(path)
    assert leftovers.remove_dead_socket(link) == []
    os.chown(path, 0, 0)
    assert leftovers.remove_dead_socket(path) == [path]


@pytest.mark.root
def test_states_where_others_can_change_the_path_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state = tmp_path / "imafs-tpm-old"
    state.mkdir()
    os.utime(state, (1, 1))
    os.chown(tmp_path, 12345, 12345)
    assert list(leftovers.remove_dead_states()) == []
    assert "imafs: dead TPM states stay: TMPDIR " in capsys.readouterr().err
    os.chown(tmp_path, 0, 0)
    assert list(leftovers.remove_dead_states()) == [state]


def test_a_planted_fusermount3_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "executed"
    planted = tmp_path / "fusermount3"
    planted.write_text(f"#!/bin/sh\n: >{note}\n")
    planted.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".::")
    monkeypatch.setattr(caller, "can_mount", lambda: False)
    mount = mountinfo.Mount(1, "/x", f"fuse.{mountinfo.SUBTYPE}", mountinfo.FSNAME, 1, 1000)
    with pytest.raises(MountError, match="fusermount3 is missing"):
        mountinfo.detach(mount)
    assert not note.exists()
