# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Lines of the report: a figure, its yardstick, their ratio, and a verdict."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from imafs import __version__

#: What the emulator is held to: (least, most) of a line's ratio or value.
READ_SHARE = {"faithful": 1.0, "large": 0.8}  # sha1 binary, of a bare pyfuse3's speed, by mode
READ_LINEAR = 1.3  # time per byte, largest list over smallest
DELETE_FLAT = 2.0  # time of a request, largest list over smallest
RECORD_BYTES = 260.0  # per record with two banks, names of 60 characters
COLD_SHARE, WARM_SHARE = 0.6, 0.8  # a keeper's view, of a bare pyfuse3's speed
KEEPER_START = 2.0  # seconds to ready, whatever is stored
KEEPER_ANONYMOUS = 128.0  # MiB: 64 and a full cache


@dataclass(frozen=True, slots=True)
class Line:
    """One line. ``name`` is unique in a report; ``judged`` is what the target is about.

    ``least``/``most``: the target, None where there is none.
    """

    name: str
    text: str
    judged: float
    least: float | None = None
    most: float | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``ok``, ``MISSED`` or ``-`` (no target)."""
        if self.least is None and self.most is None:
            return "-"
        low = self.least is not None and self.judged < self.least
        high = self.most is not None and self.judged > self.most
        return "MISSED" if low or high else "ok"

    @property
    def target(self) -> str:
        """``>= 0.80`` and the like; empty where there is none."""
        if self.least is not None:
            return f">= {self.least:.2f}"
        return "" if self.most is None else f"<= {self.most:.2f}"


class Report:
    """Prints lines as they come and keeps them for --json."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.machine: dict[str, object] = {
            "kernel": platform.release(),
            "python": platform.python_version(),
            "pyfuse3": version("pyfuse3"),
            "imafs": __version__,
            "processors": os.cpu_count(),
            "load_before": os.getloadavg()[0],
        }
        print(", ".join(f"{key} {value}" for key, value in self.machine.items()), flush=True)

    def section(self, title: str) -> None:
        """A headline."""
        print(f"\n{title}", flush=True)

    def add(self, line: Line) -> None:
        """Prints one line."""
        assert all(line.name != other.name for other in self.lines), line.name
        self.lines.append(line)
        verdict = f"{line.target:>9}  {line.verdict}".rstrip()
        print(f"  {line.name:<42} {line.text:<58} {verdict}", flush=True)

    def end(self, path: Path | None) -> None:
        """The summary; all figures as JSON into ``path``."""
        self.machine["load_after"] = os.getloadavg()[0]
        judged = [line for line in self.lines if line.verdict != "-"]
        missed = [line.name for line in judged if line.verdict == "MISSED"]
        print(f"\n{len(self.lines)} lines, {len(judged)} with a target, {len(missed)} missed")
        for name in missed:
            print(f"  missed: {name}")
        if path is not None:
            rows = [{**asdict(line), "verdict": line.verdict} for line in self.lines]
            text = json.dumps({"machine": self.machine, "lines": rows}, indent=1)
            path.write_text(text + "\n")
