# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The program: options, order, cleaning up."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from imafs.errors import ImafsError
from scripts.benchlib import extending, fleet, keeping, reading, requests
from scripts.benchlib.plan import Plan
from scripts.benchlib.processes import BenchError
from scripts.benchlib.report import Report


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the emulator next to a bare pyfuse3 and raw TPM commands; prints "
        "ratios and verdicts. Status 0 whatever the verdicts: the machine may be busy.",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("emulator", "fleet", "keeper"),
        default="emulator",
        help="the emulator, a keeper of one (`imafs keep`), or a verifier of a fleet "
        "(`imafs check`: needs neither root nor FUSE)",
    )
    parser.add_argument(
        "--machines", type=int, metavar="N", default=1000, help="of the fleet (1000)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="10k and 100k records only, fewer rounds"
    )
    parser.add_argument(
        "--records",
        type=int,
        metavar="N",
        help="size of the largest list (1000000, with --quick 100000); the others are tenths of "
        "it. Of a fleet: records of each machine (1000). Of a keeper: the list that is read; its "
        "largest store has ten times as many",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures into FILE")
    return parser.parse_args()


def _end(number: int, frame: FrameType | None) -> None:
    # The stack unwinds, which ends every process and mount of the run.
    sys.exit(128 + number)


def _fleet(machines: int, records: int, file: Path | None) -> int:
    report = Report()
    with tempfile.TemporaryDirectory(prefix="imafs-bench-") as place:
        try:
            fleet.run(machines, records, report, Path(place))
        except (BenchError, ImafsError, OSError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    report.end(file)
    return 0


def main() -> int:
    """Runs everything; the exit code."""
    arguments = _arguments()
    if arguments.what == "fleet":
        return _fleet(arguments.machines, arguments.records or 1000, arguments.json)
    largest = arguments.records or (100_000 if arguments.quick else 1_000_000)
    if largest < 100:
        print("bench: --records: at least 100", file=sys.stderr)
        return 2
    if os.geteuid():
        print("bench: staging needs CAP_SYS_ADMIN: run it as root", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    plan = Plan(largest, arguments.quick)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="imafs-bench-") as place:
        try:
            if arguments.what == "keeper":
                rounds = 3 if arguments.quick else 10
                keeping.run(largest, 10 * largest, rounds, report, Path(place))
            else:
                reading.run(plan, report, Path(place))
                requests.run(plan, report, Path(place))
                extending.run(plan, report)
        except (BenchError, ImafsError, OSError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    report.end(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
