# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs umount``: whose mount it is, and what becomes of those who read from it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from tests.crash.test_faults import USER, as_user, one_line
from tests.mount.daemon import BINARY, IMAFS, Daemon, close_dead, imafs, layers
from tests.mount.fixtures import Starter
from tests.support import ROOT, require, run
from tests.unit.test_control_peers import STRANGER, Planted

__all__ = ["as_user"]

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def test_another_users_mount_is_not_unmounted(start: Starter, as_user: tuple[str, ...]) -> None:
    """Nor is its socket asked: the message says whose it is."""
    daemon = start("--tpm", "none")
    result = run([*as_user, *IMAFS, "umount", str(daemon.dir)], check=False, cwd=ROOT)
    assert result.returncode == 5
    one_line(result.stderr, f"{daemon.dir}: belongs to uid 0; only its owner or root can unmount")
    assert daemon.count() == 1


def test_root_unmounts_a_users_mount(start: Starter, as_user: tuple[str, ...]) -> None:
    """By the socket beside the mount, which a user without XDG_RUNTIME_DIR has; and only where
    it is said that this user is meant."""
    place = start.place()
    os.chown(place.dir, 1000, 1000)
    place.base.chmod(0o1777)
    prefix = ("env", "--unset=XDG_RUNTIME_DIR", *as_user)
    daemon = start("--tpm", "none", place=place, prefix=prefix, control=False)
    assert daemon.control == f"{place.dir}.sock"
    refused = imafs("umount", place.dir, check=False)
    assert refused.returncode == 6
    one_line(refused.stderr, f"{daemon.control}: uid 1000 listens there, not root: not asked")
    assert layers(place.dir) == 1
    words = ("--control", daemon.control, "--uid", "1000")
    assert imafs("umount", place.dir, *words).stdout == ""
    assert daemon.wait() == 0
    assert layers(place.dir) == 0
    assert not Path(daemon.control).exists()


def test_a_user_unmounts_the_own_mount(start: Starter, as_user: tuple[str, ...]) -> None:
    require("fusermount3")
    place = start.place()
    os.chown(place.dir, 1000, 1000)
    place.base.chmod(0o1777)
    prefix = ("env", "--unset=XDG_RUNTIME_DIR", *as_user)
    daemon = start("--tpm", "none", place=place, prefix=prefix, control=False)
    # The socket beside the mount is found without --control as well.
    told = run([*prefix, *IMAFS, "ctl", "status"], cwd=ROOT).stdout
    assert f" on {place.dir}, profile mainline" in told
    run([*prefix, *IMAFS, "umount", str(place.dir)], cwd=ROOT)
    assert daemon.wait() == 0
    assert layers(place.dir) == 0


def test_open_files_are_named_and_end_with_enotconn(daemon: Daemon) -> None:
    """What was read stays read; the next read says that the kernel is gone."""
    reader = os.open(daemon.path(BINARY), os.O_RDONLY)
    try:
        first = os.read(reader, 50)
        result = imafs("umount", daemon.dir, "--control", daemon.control)
        name = Path("/proc/self/comm").read_text().strip()
        assert result.stdout == (
            f"imafs: {daemon.dir}: was open in {name}[{os.getpid()}]: ENOTCONN there from now on\n"
        )
        assert layers(daemon.dir) == 0
        assert daemon.wait() == 0
        assert first
        with pytest.raises(OSError, match=r"not connected|connection abort") as caught:
            os.read(reader, 50)
        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    finally:
        close_dead(reader)


def test_nothing_is_said_where_nothing_was_open(daemon: Daemon) -> None:
    result = imafs("umount", daemon.dir, "--control", daemon.control)
    assert (result.stdout, result.stderr) == ("", "")
    assert daemon.wait() == 0


def test_a_daemon_that_listens_elsewhere(daemon: Daemon) -> None:
    """It is alive, so its mount is not torn from it; the message says where it was looked for."""
    wrong = daemon.place.base / "wrong"
    result = imafs("umount", daemon.dir, "--control", wrong, check=False)
    assert result.returncode == 5
    one_line(result.stderr, "alive but not at", str(wrong))
    assert daemon.count() == 1


def test_help_says_what_happens_to_readers() -> None:
    text = " ".join(
        run([sys.executable, "-P", "-m", "imafs", "umount", "--help"], cwd=ROOT).stdout.split()
    )
    assert "Files that are open do not hold it up" in text
    assert "ENOTCONN" in text


def test_user_is_another_one() -> None:
    """The prefix of these tests does what they need it for."""
    require("setpriv")
    assert run([*USER, "id", "-u"]).stdout == "1000\n"


def test_a_planted_socket_beside_the_mount_is_not_asked(start: Starter) -> None:
    """The daemon's own is found by its process; where it has none, nothing is stopped."""
    require("root")
    daemon = start("--tpm", "none")
    planted = Planted(Path(f"{daemon.dir}.sock"))
    try:
        assert f" on {daemon.dir}, " in imafs("status", daemon.dir).stdout
        Path(daemon.control).unlink()
        for command in ("status", "umount"):
            result = imafs(command, daemon.dir, check=False)
            assert result.returncode == 6
            one_line(result.stderr, f"uid {STRANGER} listens there, not root")
        assert daemon.count() == 1
    finally:
        planted.close()
    assert planted.heard == b"end"
