# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""SIGTERM and SIGINT in every phase: status 0, nothing left. See also tests/mount/test_lifetime."""

from __future__ import annotations

import os
import random
import signal
import threading
from functools import partial
from pathlib import Path

import pytest

from imafs.testing.mounted import children
from tests.crash.collected import made
from tests.mount.daemon import BINARY, Daemon, close_dead, layers
from tests.mount.fixtures import Starter
from tests.support import stop, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: Records of the list whose load is interrupted.
MANY = 100_000


def _states() -> set[Path]:
    return set(Path(os.environ["TMPDIR"]).glob("imafs-tpm-*"))


def _takes_signals(daemon: Daemon) -> bool:
    """Whether Python code handles SIGTERM there already (SigCgt, proc(5))."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _ends(daemon: Daemon, number: int, what: str) -> None:
    """Signalled now, it ends with status 0 and leaves nothing."""
    swtpms = children(daemon.process.pid)
    os.kill(daemon.process.pid, number)
    assert daemon.wait() == 0, f"{what}: {daemon.log()}"
    assert layers(daemon.dir) == 0, what
    assert not Path(daemon.control).exists(), what
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in swtpms), 60, f"{what}: swtpm")
    assert "Traceback" not in daemon.log(), what


def test_signals_at_any_moment_of_the_start(start: Starter) -> None:
    seed = random.SystemRandom().randrange(1 << 20)
    chance = random.Random(seed)
    before = _states()
    place = start.place()
    for turn in range(12):
        daemon = start.launch(place=place)
        wait_for(partial(_takes_signals, daemon), 60, "handlers", interval=0.001)
        # The moment is the experiment: from the first handler to the mount are 0.3 s.
        threading.Event().wait(0.4 * chance.random())
        number = chance.choice((signal.SIGTERM, signal.SIGINT))
        _ends(daemon, number, f"seed {seed}, turn {turn}")
        daemon.close()
        assert _states() == before, f"seed {seed}, turn {turn}: the state of swtpm is left"


def _write_list(path: Path, records: int) -> Path:
    with path.open("wb") as file:
        for number in range(records):
            file.write(made(number))
    return path


def _interrupted(start: Starter, saved: Path, phase: str, seconds: float) -> None:
    """A load that is ended by SIGTERM in ``phase``; ``seconds`` is the patience for a phase."""
    before = _states()
    daemon = start.launch("--load", saved)
    if phase == "extended":
        daemon.start(seconds)
        assert daemon.group("records")["pending"] != 0
    else:
        wait_for(lambda: _takes_signals(daemon), 60, "it has begun")
        if phase == "queued":
            # swtpm is started behind the parsing and before the queueing.
            wait_for(lambda: children(daemon.process.pid), seconds, "the list is parsed")
    _ends(daemon, signal.SIGTERM, phase)
    assert _states() == before


PHASES = ["parsed", "queued", "extended"]


@pytest.mark.parametrize("phase", PHASES)
def test_signals_while_a_long_list_is_loaded(start: Starter, tmp_path: Path, phase: str) -> None:
    _interrupted(start, _write_list(tmp_path / "list", MANY), phase, 60)


@pytest.mark.nightly
@pytest.mark.parametrize("phase", PHASES)
def test_signals_while_a_million_records_are_loaded(
    start: Starter, tmp_path: Path, phase: str
) -> None:
    _interrupted(start, _write_list(tmp_path / "list", 10 * MANY), phase, 120)


def test_signals_during_the_unmount_with_open_files(daemon: Daemon) -> None:
    """The impatient: several in a row, readers and a socket's client still there."""
    daemon.generate(100)
    files = [os.open(daemon.path(BINARY), os.O_RDONLY) for _ in range(5)]
    swtpm = daemon.swtpm()
    stop(swtpm)  # makes the end take two seconds
    daemon.call("generate", count=10)
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            if daemon.process.poll() is None:
                os.kill(daemon.process.pid, number)
            threading.Event().wait(0.2)
        assert daemon.wait() == 0
    finally:
        for descriptor in files:
            close_dead(descriptor)
    assert layers(daemon.dir) == 0
    assert "Traceback" not in daemon.log()
    wait_for(lambda: not Path(f"/proc/{swtpm}").exists(), 60, "swtpm is gone")
