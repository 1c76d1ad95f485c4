# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Play scripts on an emulator, and compare its answers with a kernel's."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path

from tests.emulator import Emulator
from tests.support import ROOT, run

ARROW = " -> "
NEVER = "(no line)"
_SIZE = re.compile(r"\bsize=\d+ ")


@dataclass(frozen=True)
class Difference:
    """One call whose answer FUSE cannot copy, or is not meant to.

    ``call`` is the line of the script (without indentation); ``kernel`` and ``emulator``
    are the answers; ``*`` stands for anything. ``sizes`` is the ``--st-size`` with
    which it differs, "" for both. With ``size_only`` the answers differ in ``size=``
    alone.
    """

    script: str
    call: str
    kernel: str
    emulator: str
    reason: str
    sizes: str = ""
    size_only: bool = False

    def explains(self, call: str, kernel: str, emulator: str) -> bool:
        """Whether this is it."""
        if self.size_only and _SIZE.sub("", kernel) != _SIZE.sub("", emulator):
            return False
        return (
            fnmatchcase(call, self.call)
            and fnmatchcase(kernel, self.kernel)
            and fnmatchcase(emulator, self.emulator)
        )


def play(
    emulator: Emulator, script: str, *, deadline: float = 120, algorithm: str = "sha256"
) -> str:
    """Run a script against the emulator and return its answers.

    Files of the script are made below the emulator's home, and measured under the
    script's own names with the hash ``algorithm``.
    """
    files = emulator.home / "files"
    files.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "tests.conformance.probe", str(emulator.ima)]
    command += ["--control", emulator.control, "--files", str(files)]
    command += ["--hash", algorithm]
    result = run(command, stdin=script, deadline=deadline, cwd=ROOT)
    assert not result.stderr, f"probe wrote on stderr: {result.stderr}"
    return result.stdout


def directory_for(emulator: Emulator, path: str) -> Path:
    """Make a directory of the scripts' files."""
    directory = emulator.home / "files" / path.lstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def split(line: str | None) -> tuple[str, str]:
    """Call (without indentation) and answer of a line of answers."""
    if line is None:
        return NEVER, NEVER
    call, arrow, answer = line.partition(ARROW)
    return (call.strip(), answer) if arrow else ("", line)


def compare(
    kernel: str, emulator: str, differences: Iterable[Difference] = (), *, sizes: str = ""
) -> list[str]:
    """What is wrong with the emulator's answers, line by line; [] when nothing is.

    Every difference that applies to ``sizes`` must explain at least one line: what does
    not occur (any more) has no place in the table.
    """
    table = [d for d in differences if d.sizes in ("", sizes)]
    used: set[Difference] = set()
    complaints = []
    lines = zip_longest(kernel.splitlines(), emulator.splitlines())
    for number, (theirs, ours) in enumerate(lines, 1):
        if theirs == ours:
            continue
        call, their_answer = split(theirs)
        our_call, our_answer = split(ours)
        known = [d for d in table if d.explains(call, their_answer, our_answer)]
        if call == our_call and known:
            used.update(known)
            continue
        complaints.append(f"line {number}: {call}\n  kernel:   {theirs}\n  emulator: {ours}")
    complaints += [f"not needed (any more): {d}" for d in table if d not in used]
    return complaints
