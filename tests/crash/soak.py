# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""scripts/soak: one daemon for a long time under everything at once.

Rounds of a race (tests/crash/racing.py) with measuring, while readers are killed in the
middle of their reads and the status is asked; between rounds the emulator is reset.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imafs.errors import ImafsError
from tests.crash.racing import race
from tests.mount.daemon import ASCII, Daemon
from tests.support import kill_group, wait_for

#: Seconds of a round: what it collects is judged in memory.
ROUND = 60.0
#: Seconds that a status may take; a TPM that is busy extending is asked for its PCRs too.
STATUS = 15.0
#: How much the daemon may grow from the end of the first round to the end of the last.
GROWTH = 1.5
GROWTH_BYTES = 64 << 20


class Disturbance:
    """Two threads: one kills readers, one asks for the status. Counts, and what was wrong."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self._daemon = daemon
        self._chance = random.Random(seed)
        self._ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.wrong: list[str] = []

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Both threads run inside."""
        threads = [threading.Thread(target=work) for work in (self._killing, self._asking)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(STATUS * 2)
            if any(thread.is_alive() for thread in threads):
                self.wrong.append("a client hangs")

    def _killing(self) -> None:
        script = 'while :; do cat "$1"; done'
        while not self._ended.is_set():
            reader = subprocess.Popen(
                ["sh", "-c", script, "sh", str(self._daemon.path(ASCII))],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._ended.wait(0.3 * self._chance.random())
            kill_group(reader)
            reader.wait()
            self.counts["readers killed"] += 1
            self._ended.wait(0.3)  # else hardly a writer gets its turn

    def _asking(self) -> None:
        while not self._ended.wait(0.5):
            began = time.monotonic()
            try:
                failures = self._daemon.call("status")["failures"]
            except ImafsError as error:
                self.wrong.append(f"status: {error}")
                return
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.counts["status"] += 1
            if failures != {
                "extend": 0,
                "last": None,
                "mismatch": None,
                "skipped": 0,
                "refused": 0,
            }:
                self.wrong.append(f"failures: {failures}")
                return
        if self.slowest > STATUS:
            self.wrong.append(f"a status took {self.slowest:.1f} s")


def _resident(daemon: Daemon) -> int:
    pages = Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def _descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def soak(seconds: float, seed: int) -> str:
    """The summary. Raises AssertionError, with the round and its seed, for what was wrong."""
    counts: Counter[str] = Counter()
    memory: list[int] = []
    slowest = 0.0
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon())
        descriptors = _descriptors(daemon)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            number = counts["rounds"]
            if number:
                daemon.call("reset")
            disturbance = Disturbance(daemon, seed + number)
            prefix = f"/soak-{number}/"
            with disturbance.going_on():
                outcome = race(
                    daemon, min(left, ROUND), seed + number, prefix=prefix, measuring=True
                )
            assert not disturbance.wrong, f"round {number}: {disturbance.wrong}"
            counts.update(disturbance.counts)
            counts.update(rounds=1, records=len(outcome.whole), deletions=outcome.deletions)
            slowest = max(slowest, disturbance.slowest)
            memory.append(_resident(daemon))
        # The daemon closes the connections of those who have hung up in its own time.
        most = descriptors + 2
        wait_for(lambda: _descriptors(daemon) <= most, 60, "no descriptors are left")
        assert memory[-1] < GROWTH * memory[0] + GROWTH_BYTES, f"it grows: {memory}"
        assert daemon.stop() == 0
    told = ", ".join(f"{number} {name}" for name, number in counts.items())
    grown = f"{memory[0] >> 20} to {memory[-1] >> 20} MiB"
    return f"{told}; slowest status {slowest:.2f} s; memory {grown}"


def main() -> int:
    """Status 0 where all was well, 1 where not, 2 for a usage error."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("minutes", type=float, metavar="MINUTES")
    parser.add_argument("--seed", type=int, help="as an earlier run printed it")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 20) if args.seed is None else args.seed
    began = time.monotonic()
    try:
        summary = soak(args.minutes * 60, seed)
    except (AssertionError, ImafsError, OSError, subprocess.SubprocessError) as error:
        minutes = (time.monotonic() - began) / 60
        print(f"soak: FAILED after {minutes:.1f} minutes, seed {seed}: {error}", file=sys.stderr)
        return 1
    print(f"soak: well, {args.minutes:g} minutes, seed {seed}: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
