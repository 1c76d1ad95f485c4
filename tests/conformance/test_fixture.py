# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The emulator fixture itself: what it must notice, and that it cleans up then too."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.emulator import Emulator, Refused
from tests.support import wait_for

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]


def gone(emulator: Emulator) -> bool:
    """Nothing of it is left."""
    return not (emulator.alive or emulator.is_mounted() or emulator.home.exists())


def test_a_start_that_fails_says_why_and_leaves_nothing() -> None:
    emulator = Emulator("--load", "/nonexistent/list", "--tpm", "none")
    with pytest.raises(AssertionError, match="/nonexistent/list"):
        emulator.start()
    assert gone(emulator)


def log_line(emulator: Emulator, line: str) -> None:
    """Put a line into its log, as if it had written it."""
    with emulator.log_file.open("a") as log:
        log.write(f"imafs: {line}\n")


def test_a_warning_fails_the_test_unless_allowed() -> None:
    emulator = Emulator("--tpm", "none").start()
    log_line(emulator, "WARNING: something odd")
    with pytest.raises(AssertionError, match="WARNING: something odd"):
        emulator.stop()
    assert gone(emulator)
    with Emulator("--tpm", "none") as emulator:
        emulator.allow("something (odd|even)")
        log_line(emulator, "WARNING: something odd")
    assert gone(emulator)


def test_an_emulator_that_ends_by_itself_is_noticed() -> None:
    emulator = Emulator("--tpm", "none").start()
    emulator.call("stop")
    wait_for(lambda: not emulator.alive, 60, "the emulator has ended")
    with pytest.raises(AssertionError, match="it ended by itself"):
        emulator.stop()
    assert gone(emulator)


def test_a_killed_emulator_is_no_complaint_and_its_dead_mount_goes() -> None:
    with Emulator("--tpm", "none") as emulator:
        os.kill(emulator.pid, signal.SIGKILL)
        assert emulator.wait() == -signal.SIGKILL
        assert emulator.is_mounted()
    assert gone(emulator)


def break_in(emulator: Emulator) -> None:
    """A test that fails while the emulator, too, has something to complain about."""
    with emulator:
        log_line(emulator, "ERROR: something odd")
        raise ZeroDivisionError


def test_the_first_error_counts_and_the_complaint_is_a_note() -> None:
    emulator = Emulator("--tpm", "none")
    with pytest.raises(ZeroDivisionError) as caught:
        break_in(emulator)
    assert any("something odd" in note for note in caught.value.__notes__)
    assert gone(emulator)


def test_asking() -> None:
    with Emulator("--no-boot-aggregate", "--layout", "securityfs") as emulator:
        assert emulator.ima == emulator.dir / "integrity" / "ima"
        emulator.call("measure", digest="sha256:" + "5a" * 32, name="/x")
        assert emulator.read("runtime_measurements_count") == b"1\n"
        with pytest.raises(Refused) as refused:
            emulator.call("measure", digest="sha256:5a", name="/x")
        assert refused.value.errno == "EINVAL"
        assert len(emulator.pcr("sha384")) == 48
        assert any(emulator.pcr("sha256"))
        emulator.write("ascii_runtime_measurements_staged", b"A\n")
        assert emulator.read("runtime_measurements_count") == b"0\n"


def test_other_users_reach_the_mount_but_not_the_socket(tmp_path: Path) -> None:
    with Emulator("--tpm", "none") as emulator:
        for directory in (emulator.dir, *emulator.dir.parents):
            assert directory.stat().st_mode & 0o005 == 0o005, directory
        assert Path(emulator.control).parent.stat().st_mode & 0o077 == 0
