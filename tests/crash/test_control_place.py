# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A control socket that cannot be made: found before the mount, with what to do about it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from imafs.control.paths import SUN_PATH_MAX
from imafs.testing.mounted import Home
from tests.crash.test_faults import as_user, one_line
from tests.mount.daemon import imafs, layers
from tests.mount.fixtures import Starter
from tests.support import run

__all__ = ["as_user"]

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def refused(start: Starter, place: Home, control: Path | None, prefix: tuple[str, ...] = ()) -> str:
    """stderr of a start that must end with 6 before a TPM or a mount is tried: one line."""
    # The mount would fail for its own reason if it were tried.
    words = [] if control is None else ["--control", str(control)]
    daemon = start.launch(*words, "--tpm", "no-tcti:", place=place, prefix=prefix, control=False)
    daemon.logs.allow("")
    assert daemon.wait() == 6, daemon.log()
    assert layers(place.dir) == 0
    one_line(daemon.log(), "--control SOCKET")
    return daemon.log()


def test_its_directory_is_missing(start: Starter) -> None:
    place = start.place()
    control = place.base / "missing" / "control"
    assert f"{control.parent}: No such file or directory" in refused(start, place, control)


def test_its_directory_is_a_file(start: Starter) -> None:
    place = start.place()
    (place.base / "file").touch()
    log = refused(start, place, place.base / "file" / "control")
    assert f"{place.base / 'file'} is not a directory" in log


def test_its_path_is_too_long(start: Starter) -> None:
    place = start.place()
    control = place.base / ("x" * SUN_PATH_MAX)
    assert f"too long for a socket ({SUN_PATH_MAX} bytes at most)" in refused(start, place, control)


def test_its_directory_is_read_only(start: Starter) -> None:
    place = start.place()
    directory = place.base / "ro"
    directory.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(directory)])
    assert f"no socket can be made in {directory}" in refused(start, place, directory / "control")


def test_somebody_else_listens_there(start: Starter) -> None:
    """A living socket of another program is not touched."""
    place = start.place()
    control = place.base / "foreign"
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(control))
        foreign.listen()
        log = refused(start, place, control)
        assert f"process {os.getpid()} of uid 0 listens there already" in log
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as foreign:
        control.unlink()
        foreign.bind(str(control))
        assert "Protocol wrong type" in refused(start, place, control)
    assert control.is_socket()


def test_a_user_may_not_write_there(start: Starter, as_user: tuple[str, ...]) -> None:
    """As is so beside a mountpoint in somebody else's directory, the place without --control."""
    place = start.place()
    os.chown(place.dir, 1000, 1000)
    prefix = ("env", "--unset=XDG_RUNTIME_DIR", *as_user)
    for control in (place.base / "control", None):
        log = refused(start, place, control, prefix)
        assert f"no socket can be made in {place.base}" in log
        assert "or set XDG_RUNTIME_DIR" in log


def test_a_runtime_directory_that_is_not_the_users(
    start: Starter, as_user: tuple[str, ...]
) -> None:
    place = start.place()
    os.chown(place.dir, 1000, 1000)
    prefix = ("env", f"XDG_RUNTIME_DIR={place.base}", *as_user)
    log = refused(start, place, None, prefix)
    assert f"{place.base}/imafs: Permission denied" in log
    assert "or set XDG_RUNTIME_DIR" in log


def test_in_the_background_too(start: Starter) -> None:
    place = start.place()
    control = place.base / "missing" / "control"
    result = imafs("mount", place.dir, "--background", "--control", control, check=False)
    assert (result.returncode, result.stdout) == (6, "")
    one_line(result.stderr, "--control SOCKET")
