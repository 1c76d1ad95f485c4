# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Questions that no recorded script asks: what Linux 7.2.13 answered, and what we answer.

One emulator plays all of a folder in the order in which the kernel played them, beginning
with the kernel's list; after each question PCR 10 is compared too, so that also records
that were deleted unread are known to be the kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance import differences, recordings
from tests.conformance.oracle import BANKS, EMPTY, QUESTIONS, questions
from tests.conformance.playing import compare, directory_for, play
from tests.emulator import Emulator

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

RECORDED = recordings.load("questions-7.2.13")
OPTIONS = {"": [], "ima_flush_htable": ["--flush-htable"]}
SIZES = ("zero", "actual")


@dataclass
class Session:
    """One emulator's run through a folder: its answers and PCR 10 (sha256), by question."""

    emulator: Emulator
    answers: dict[str, str]
    pcr10: dict[str, bytes]
    broken: str = ""


SESSIONS = [(folder, sizes) for folder in QUESTIONS for sizes in SIZES]


@pytest.fixture(scope="module")
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Session]]:
    """(folder, --st-size, its run)."""
    folder, sizes = request.param
    start = tmp_path_factory.mktemp("start") / "binary"
    start.write_bytes(RECORDED.files[f"{folder}/start.binary.sha1"])
    options = ["--load", str(start), "--st-size", sizes, *OPTIONS[QUESTIONS[folder]]]
    with Emulator(*options) as emulator:
        run = Session(emulator, {}, {})
        try:
            for name, script in questions(folder).items():
                directory_for(emulator, f"/q/{name}")
                play(emulator, EMPTY)
                run.answers[name] = play(emulator, script)
                run.pcr10[name] = emulator.pcr("sha256")
        except (AssertionError, OSError) as error:
            run.broken = f"the run ended here: {error}"  # what was answered is compared
        yield folder, sizes, run


ASKED = [(pair, name) for pair in SESSIONS for name in questions(pair[0])]


@pytest.mark.parametrize(
    ("session", "name"),
    ASKED,
    ids=[f"{folder}-{sizes}-{name}" for (folder, sizes), name in ASKED],
    indirect=["session"],
    scope="module",
)
def test_question(session: tuple[str, str, Session], name: str) -> None:
    folder, sizes, run = session
    assert name in run.answers, run.broken
    complaints = compare(
        RECORDED.text(f"{folder}/{name}.out"),
        run.answers[name],
        differences.for_script(name),
        sizes=sizes,
    )
    assert not complaints, "\n".join(complaints)
    assert run.pcr10[name].hex().upper() == RECORDED.text(f"{folder}/{name}.pcr10").strip()


@pytest.mark.parametrize(
    "session", SESSIONS, ids=["-".join(pair) for pair in SESSIONS], indirect=True, scope="module"
)
def test_end_state(session: tuple[str, str, Session]) -> None:
    """After all questions every list and PCR 10 of every bank are the kernel's."""
    folder, _, run = session
    assert not run.broken, run.broken
    for bank in BANKS:
        for kind in ("ascii", "binary"):
            content = run.emulator.read(f"{kind}_runtime_measurements_{bank}")
            assert content == RECORDED.files[f"{folder}/end.{kind}.{bank}"]
        pcr = RECORDED.text(f"{folder}/end.pcr10.{bank}").strip()
        assert run.emulator.pcr(bank).hex().upper() == pcr


def test_every_difference_belongs_to_a_script() -> None:
    known = {name for _, name in ASKED} | {"base", "reads", "mem"}
    table = (*differences.BASE, *differences.READS, *differences.MEM, *differences.QUESTIONS)
    assert {d.script for d in table} <= known


def test_every_question_was_answered() -> None:
    """A new script without an answer of the kernel is no test."""
    for (folder, _), name in ASKED:
        assert f"{folder}/{name}.out" in RECORDED.files
