# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""scripts/bench says all it promises and leaves nothing behind. No time is judged here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.support import ROOT, kill_group, run, wait_for

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

BENCH = ROOT / "scripts" / "bench"
#: Lists that --quick --records 2000 reads, and those that it stages and deletes.
READ, REQUESTED = ("200", "2k"), ("20", "200", "2k")
VIEWS = ("sha1 binary", "sha256 binary", "sha1 ascii")
MODES = ("faithful", "large")
WRITES = ("stage (A)", "delete staged (D)", "delete half (N)")
EXTENDS = ("imafs end to end", "device of imafs", "bytes through a TCTI", "ESAPI pcr_extend")
#: scripts/bench, where a list is staged and deleted no oftener than it has to be.
FEW_CYCLES = """
import sys
from scripts.benchlib import __main__, plan
plan.Plan.cycles = lambda self, size: 3
sys.exit(__main__.main())
"""


def promised() -> dict[str, bool]:
    """Every line's name, and whether it has a target."""
    lines = {f"append and extend {mode} {size}": False for mode, size in product(MODES, READ)}
    lines |= {f"memory {mode} 2k": True for mode in MODES}
    for view, mode in product(VIEWS, MODES):
        for buffer in ("128K", "1M"):
            name = f"{view} {mode} {buffer}"
            lines |= {f"read {name} {size}": view == "sha1 binary" for size in READ}
            lines[f"linear {name}"] = view == "sha1 binary"
        if view != "sha1 binary":
            lines[f"linear first read {view} {mode}"] = True
        lines |= {f"last 4 KiB {view} {mode} {size}": False for size in READ}
    lines |= {f"append {size}": False for size in REQUESTED}
    for write in WRITES:
        lines |= {f"{write} {size}": False for size in REQUESTED}
        lines[f"{write} flat"] = True
    lines |= {f"stall {size}": False for size in REQUESTED}
    lines |= {
        f"extend {banks} banks: {kind}": False for banks, kind in product(("two", "four"), EXTENDS)
    }
    return lines


@pytest.mark.long
def test_every_line_is_there(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-P", "-c", FEW_CYCLES, "--quick", "--records", "2000"]
    done = run([*command, "--json", file], deadline=240, env={"PYTHONPATH": str(ROOT)})
    rows = json.loads(file.read_text())["lines"]
    found = {row["name"]: row["verdict"] for row in rows}
    assert len(found) == len(rows)
    assert {name: verdict != "-" for name, verdict in found.items()} == promised()
    assert set(found.values()) <= {"-", "ok", "MISSED"}
    assert all(row["judged"] > 0 for row in rows)
    printed = [line[2:] for line in done.stdout.splitlines() if line.startswith("  ")]
    for row in rows:
        line = next(line for line in printed if line.startswith(row["name"] + "  "))
        assert row["text"] in line
        assert line.endswith(row["verdict"])
    missed = sum(verdict == "MISSED" for verdict in found.values())
    targets = sum(promised().values())
    assert f"{len(rows)} lines, {targets} with a target, {missed} missed" in done.stdout
    assert done.stderr == ""


def test_a_fleet(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run([BENCH, "fleet", "--machines", "12", "--records", "20", "--json", file], deadline=120)
    rows = {row["name"]: row["figures"] for row in json.loads(file.read_text())["lines"]}
    assert list(rows) == [
        *("check, 1 job", "10,000 machines a day", "1,000,000 machines a day", "check, 2 jobs"),
    ]
    assert all(value > 0 for figures in rows.values() for value in figures.values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_in_the_middle(tmp_path: Path, number: signal.Signals) -> None:
    """Its mounts go with it, also when it cannot do anything about it any more."""
    process = subprocess.Popen(
        [BENCH, "--quick", "--records", "2000"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    try:
        wait_for(lambda: f" {tmp_path}/" in _mounts(), 60, "something is mounted")
        process.send_signal(number)
        status = process.wait(60)
        wait_for(lambda: f" {tmp_path}/" not in _mounts(), 60, "all is unmounted")
    finally:
        kill_group(process)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


def _mounts() -> str:
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")


def test_refuses_nonsense() -> None:
    done = run([BENCH, "--records", "5"], check=False)
    assert done.returncode == 2
    assert "--records" in done.stderr
