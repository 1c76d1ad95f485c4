# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Play scripts on an emulator, and compare its answers with a kernel's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import zip_longest
from pathlib import Path

from tests.conformance.measurer import Measurer
from tests.conformance.oracle import build_probe
from tests.mount.daemon import Daemon
from tests.support import require, run

ARROW = " -> "
NEVER = "(no line)"


@dataclass(frozen=True)
class Difference:
    """One call whose answer FUSE cannot copy, or is not meant to.

    ``call`` is the line of the script (without indentation); ``kernel`` and ``emulator``
    are the answers; ``*`` stands for anything.
    """

    script: str
    call: str
    kernel: str
    emulator: str
    reason: str

    def explains(self, call: str, kernel: str, emulator: str) -> bool:
        """Whether this is it."""
        return (
            fnmatchcase(call, self.call)
            and fnmatchcase(kernel, self.kernel)
            and fnmatchcase(emulator, self.emulator)
        )


@cache
def prober() -> Path:
    """probe.c, compiled once for this session."""
    require("gcc")
    program = Path(tempfile.mkdtemp(prefix="probe-")) / "probe"
    program.parent.chmod(0o755)
    build_probe(program)
    return program


def play(emulator: Daemon, script: str, *, deadline: float = 120, algorithm: str = "sha256") -> str:
    """Run a script against the emulator and return its answers.

    Files of the script are made below the emulator's place, and measured under the
    script's own names with the hash ``algorithm``.
    """
    files = emulator.place.base / "files"
    files.mkdir(exist_ok=True)
    with Measurer(emulator.control, algorithm) as measurer:
        command = [str(prober()), str(emulator.dir), str(files), str(measurer.fileno())]
        fds = [measurer.fileno()]
        result = run(command, stdin=script, deadline=deadline, pass_fds=fds, check=False)
    said = f"{result.stderr}{measurer.wrong}"
    assert (result.returncode, said) == (0, ""), said
    return result.stdout


def directory_for(emulator: Daemon, path: str) -> Path:
    """Make a directory of the scripts' files."""
    directory = emulator.place.base / "files" / path.lstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def split(line: str | None) -> tuple[str, str]:
    """Call (without indentation) and answer of a line of answers."""
    if line is None:
        return NEVER, NEVER
    call, arrow, answer = line.partition(ARROW)
    return (call.strip(), answer) if arrow else ("", line)


def compare(kernel: str, emulator: str, differences: Iterable[Difference] = ()) -> list[str]:
    """What is wrong with the emulator's answers, line by line; [] when nothing is.

    Every difference must explain at least one line: what does not occur (any more) has no
    place in the table.
    """
    table = list(differences)
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
