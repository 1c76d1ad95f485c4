# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Questions that no recorded script asks: what Linux 7.2.13 answered, and what we answer.

One emulator plays all of a folder in the order in which the kernel played them, beginning
with the kernel's list; after each question PCR 10 is compared too, so that also records
that were deleted unread are known to be the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import differences, recordings
from tests.conformance.oracle import QUESTIONS, questions
from tests.conformance.playing import compare
from tests.conformance.runs import Run, play_all

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

RECORDED = recordings.load("questions-7.2.13")
OPTIONS = {"": [], "ima_flush_htable": ["--flush-htable"]}
ASKED = [(folder, name) for folder in QUESTIONS for name in questions(folder)]


Runs = Callable[[str], Run]


def play_folder(folder: str, directory: Path) -> Run:
    """Play every question of ``folder`` on one emulator."""
    start = RECORDED.files[f"{folder}/start.binary.sha1"]
    return play_all(questions(folder), start, directory, OPTIONS[QUESTIONS[folder]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each run is made once, when the first of its tests wants it."""
    made: dict[str, Run] = {}

    def get(folder: str) -> Run:
        if folder not in made:
            made[folder] = play_folder(folder, tmp_path_factory.mktemp(folder))
        return made[folder]

    return get


@pytest.mark.parametrize(("folder", "name"), ASKED, ids=map("-".join, ASKED))
def test_question(runs: Runs, folder: str, name: str) -> None:
    run = runs(folder)
    assert name in run.pcr10, run.broken
    complaints = compare(
        RECORDED.text(f"{folder}/{name}.out"),
        run.answers[name],
        differences.for_script(name),
    )
    assert not complaints, "\n".join(complaints)
    assert run.pcr10[name].hex().upper() == RECORDED.text(f"{folder}/{name}.pcr10").strip()


@pytest.mark.parametrize("folder", QUESTIONS)
def test_end_state(runs: Runs, folder: str) -> None:
    """After all questions every list and PCR 10 of every bank are the kernel's."""
    run = runs(folder)
    assert not run.broken, run.broken
    for name, content in run.end.items():
        recorded = RECORDED.files[f"{folder}/end.{name}"]
        if name.startswith("pcr10"):
            recorded = bytes.fromhex(recorded.decode())
        assert content == recorded, name


def test_every_difference_belongs_to_a_script() -> None:
    known = {name for _, name in ASKED} | {"base", "reads", "mem"}
    table = (*differences.BASE, *differences.READS, *differences.MEM, *differences.QUESTIONS)
    assert {d.script for d in table} <= known


def test_every_question_was_answered() -> None:
    """A new script is no test before a kernel has answered it."""
    for folder, name in ASKED:
        assert f"{folder}/{name}.out" in RECORDED.files
