# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Questions that no recorded script asks: what Linux 7.2.13 answered, and what we answer.

One emulator plays all of a folder in the order in which the kernel played them, beginning
with the kernel's list; after each question PCR 10 is compared too, so that also records
that were deleted unread are known to be the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conformance import differences, recordings
from tests.conformance.oracle import BANKS, EMPTY, QUESTIONS, questions
from tests.conformance.playing import compare, directory_for, play
from tests.emulator import Emulator
from tests.support import unmet

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

RECORDED = recordings.load("questions-7.2.13")
OPTIONS = {"": [], "ima_flush_htable": ["--flush-htable"]}
SESSIONS = [(folder, sizes) for folder in QUESTIONS for sizes in ("zero", "actual")]
ASKED = [(folder, sizes, name) for folder, sizes in SESSIONS for name in questions(folder)]


@dataclass
class Run:
    """One emulator's way through a folder: by question its answers and then PCR 10 (sha256);
    all lists and PCRs at the end. ``broken`` says why it ended early, ``readahead`` that
    the emulator could not switch it off.
    """

    answers: dict[str, str] = field(default_factory=dict)
    pcr10: dict[str, bytes] = field(default_factory=dict)
    end: dict[str, bytes] = field(default_factory=dict)
    broken: str = ""
    readahead: bool = False


Runs = Callable[[str, str], Run]


def play_all(folder: str, sizes: str, directory: Path) -> Run:
    """Play every question of ``folder`` on one emulator with this ``--st-size``."""
    start = directory / "start.binary"
    start.write_bytes(RECORDED.files[f"{folder}/start.binary.sha1"])
    options = ["--load", str(start), "--st-size", sizes, *OPTIONS[QUESTIONS[folder]]]
    run = Run()
    try:
        with Emulator(*options) as emulator:
            for name, script in questions(folder).items():
                directory_for(emulator, f"/q/{name}")
                play(emulator, EMPTY)
                run.answers[name] = play(emulator, script)
                run.pcr10[name] = emulator.pcr("sha256")
            for bank in BANKS:
                for kind in ("ascii", "binary"):
                    content = emulator.read(f"{kind}_runtime_measurements_{bank}")
                    run.end[f"{kind}.{bank}"] = content
                run.end[f"pcr10.{bank}"] = emulator.pcr(bank)
            run.readahead = "read_ahead_kb" in emulator.log()
    except (AssertionError, OSError) as error:
        # What was answered until then is compared; the rest and the end fail with this.
        run.broken = f"the run ended here: {error}"
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each run is made once, when the first of its tests wants it."""
    made: dict[tuple[str, str], Run] = {}

    def get(folder: str, sizes: str) -> Run:
        if (folder, sizes) not in made:
            made[folder, sizes] = play_all(folder, sizes, tmp_path_factory.mktemp(folder))
        return made[folder, sizes]

    return get


@pytest.mark.parametrize(("folder", "sizes", "name"), ASKED, ids=map("-".join, ASKED))
def test_question(runs: Runs, folder: str, sizes: str, name: str) -> None:
    run = runs(folder, sizes)
    assert name in run.pcr10, run.broken
    if run.readahead and name in differences.SEVERAL_PAGES:
        unmet(["read_ahead_kb of a FUSE mount cannot be written here"])
    complaints = compare(
        RECORDED.text(f"{folder}/{name}.out"),
        run.answers[name],
        differences.for_script(name),
        sizes=sizes,
    )
    assert not complaints, "\n".join(complaints)
    assert run.pcr10[name].hex().upper() == RECORDED.text(f"{folder}/{name}.pcr10").strip()


@pytest.mark.parametrize(("folder", "sizes"), SESSIONS, ids=map("-".join, SESSIONS))
def test_end_state(runs: Runs, folder: str, sizes: str) -> None:
    """After all questions every list and PCR 10 of every bank are the kernel's."""
    run = runs(folder, sizes)
    assert not run.broken, run.broken
    for name, content in run.end.items():
        recorded = RECORDED.files[f"{folder}/end.{name}"]
        if name.startswith("pcr10"):
            recorded = bytes.fromhex(recorded.decode())
        assert content == recorded, name


def test_every_difference_belongs_to_a_script() -> None:
    known = {name for _, _, name in ASKED} | {"base", "reads", "mem"}
    table = (*differences.BASE, *differences.READS, *differences.MEM, *differences.QUESTIONS)
    assert {d.script for d in table} <= known


def test_every_question_was_answered() -> None:
    """A new script is no test before a kernel has answered it."""
    for folder, _, name in ASKED:
        assert f"{folder}/{name}.out" in RECORDED.files
