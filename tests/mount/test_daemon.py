# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The daemon under test itself: what it must notice, and that it cleans up then too."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from imafs.errors import MountError
from tests.mount.daemon import Daemon, layers

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]


def gone(daemon: Daemon) -> bool:
    """Nothing of it is left."""
    ended = daemon.process.poll() is not None
    return ended and not layers(daemon.mountpoint) and not daemon.place.base.exists()


def test_a_start_that_fails_says_why_and_leaves_nothing() -> None:
    daemon = Daemon("--load", "/nonexistent/list", "--tpm", "none")
    with pytest.raises(MountError, match=r"did not start: .*/nonexistent/list"):
        daemon.start()
    assert gone(daemon)


def log_line(daemon: Daemon, line: str) -> None:
    """Puts a line into its log, as if it had written it."""
    (file,) = daemon.place.base.glob("stderr-*")
    with file.open("a") as log:
        log.write(f"imafs: {line}\n")


def test_a_warning_fails_the_test_unless_allowed() -> None:
    daemon = Daemon("--tpm", "none").start()
    log_line(daemon, "WARNING: something odd")
    with pytest.raises(AssertionError, match="WARNING: something odd"):
        daemon.close()
    assert gone(daemon)
    with Daemon("--tpm", "none") as daemon:
        daemon.logs.allow("something (odd|even)")
        log_line(daemon, "WARNING: something odd")
    assert gone(daemon)


def test_one_that_ends_by_itself_is_noticed() -> None:
    daemon = Daemon("--tpm", "none").start()
    daemon.call("stop")
    daemon.process.wait(60)
    with pytest.raises(AssertionError, match="the emulator had ended"):
        daemon.close()
    assert gone(daemon)


def test_a_killed_one_is_no_complaint_and_its_dead_mount_goes() -> None:
    with Daemon("--tpm", "none") as daemon:
        os.kill(daemon.pid, signal.SIGKILL)
        assert daemon.wait() == -signal.SIGKILL
        assert layers(daemon.mountpoint) == 1
    assert gone(daemon)


def break_in(daemon: Daemon) -> None:
    """A test that fails while the daemon, too, has something to complain about."""
    with daemon:
        log_line(daemon, "ERROR: something odd")
        raise ZeroDivisionError


def test_the_first_error_counts_and_the_complaint_is_a_note() -> None:
    daemon = Daemon("--tpm", "none")
    with pytest.raises(ZeroDivisionError) as caught:
        break_in(daemon)
    assert any("something odd" in note for note in caught.value.__notes__)
    assert gone(daemon)


def test_other_users_reach_the_mount_but_not_the_socket() -> None:
    with Daemon("--tpm", "none") as daemon:
        for directory in (daemon.dir, *daemon.dir.parents):
            assert directory.stat().st_mode & 0o005 == 0o005, directory
        for private in (Path(daemon.control), *daemon.place.base.glob("stderr-*")):
            assert private.stat().st_mode & 0o077 == 0, private
