# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The race: several racers on one mount while records are added as fast as they can be."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from imafs.verbs.client import ControlClient
from tests.crash.collected import Piece, joined, pieces, records, replayed
from tests.crash.racer import BANKS
from tests.mount.daemon import BINARY, Daemon
from tests.support import ROOT, kill_group, wait_for

#: Seconds beyond its own time that a racer may take: more is a hang.
PATIENCE = 60.0
_PREFIX = "/race/"


@dataclass
class Outcome:
    """Counts of what the racers did, and every record since boot in order."""

    counts: Counter[str] = field(default_factory=Counter)
    deletions: int = 0
    whole: Piece = field(default_factory=list)


def race(
    daemon: Daemon,
    seconds: float,
    seed: int,
    *,
    racers: int = 8,
    prefix: str = _PREFIX,
    measuring: bool = False,
) -> Outcome:
    """Runs it and judges it; the daemon must have no record but boot_aggregate before.

    Names begin with ``prefix``, which no race on this daemon may have used before;
    ``measuring`` adds files of the daemon's place as well.
    Raises AssertionError for a lost, doubled or misplaced record, a hang, a racer that
    failed, a PCR that is not the replay, an open that is refused after all have gone.
    """
    outcome = Outcome()
    base = daemon.place.base
    files = [base / f"racer-{number}" for number in range(racers)]
    processes = [_racer(daemon.dir, seed * 1000 + n, seconds, files[n]) for n in range(racers)]
    try:
        added = [b"boot_aggregate", *_add(daemon, seconds, processes, prefix, measuring)]
        for number, process in enumerate(processes):
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, f"racer {number}, seed {seed}: {err}"
            outcome.counts.update(json.loads(out))
    finally:
        for process in processes:
            kill_group(process)
            process.communicate()
    deleted = list(pieces(files))
    outcome.deletions = len(deleted)
    outcome.whole = joined([*deleted, *_left(daemon)], added)
    for bank in BANKS:
        assert daemon.pcr(bank) == replayed(outcome.whole, bank), f"{bank}, seed {seed}"
    daemon.assert_replays()
    return outcome


def _racer(directory: Path, seed: int, seconds: float, file: Path) -> subprocess.Popen[str]:
    script = ROOT / "tests/crash/racer.py"
    return subprocess.Popen(
        [sys.executable, "-S", str(script), str(directory), str(seed), str(seconds), str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _add(
    daemon: Daemon,
    seconds: float,
    racers: Sequence[subprocess.Popen[str]],
    prefix: str,
    measuring: bool,
) -> list[bytes]:
    """Names of the records that were added while anybody races, in order; a violation now and
    then."""
    names: list[bytes] = []
    end = time.monotonic() + seconds + PATIENCE
    turn = 0
    file = daemon.place.base / "measured"
    with ControlClient(daemon.control) as client:
        while any(racer.poll() is None for racer in racers) and time.monotonic() < end:
            count = 1000
            client.call("generate", {"count": count, "name": prefix}, deadline=PATIENCE)
            first = turn * count
            names += [f"{prefix}{n:08d}".encode() for n in range(first, first + count)]
            name = f"/violation{prefix}{turn}"
            client.call("violation", {"name": name}, deadline=PATIENCE)
            names.append(name.encode())
            if measuring and turn % 20 == 0:
                name = f"/measured{prefix}{turn}"
                file.write_text(name)
                request = {"paths": [str(file)], "name": name}
                client.call("measure", request, deadline=PATIENCE)
                names.append(name.encode())
            turn += 1
    return names


def _left(daemon: Daemon) -> list[Piece]:
    """What is staged and what is current; that a writer gets in proves that all have gone."""
    left = []
    for name in (f"{BINARY}_staged", BINARY):
        # Not at once: a soak has readers that come and go all the time.
        wait_for(partial(_writable, daemon.path(name)), 60, f"{name} is free again")
        left.append(list(records(daemon.read(name), "sha1")))
    # The release of what was just closed and the question come on two ways.
    wait_for(lambda: _nobody(daemon.call("status")), 60, "nobody who is gone counts still")
    return left


def _writable(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _nobody(status: Mapping[str, object]) -> bool:
    return status["readers"] == [] and status["writer"] is None
