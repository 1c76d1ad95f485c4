# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""With ``--oracle DIR``: the stored answers of the real kernel, asked anew."""

from __future__ import annotations

import pytest

from tests.conformance import policy_oracle, random_questions, recordings
from tests.conformance.oracle import QUESTIONS, Oracle, questions
from tests.conformance.playing import Difference, compare
from tests.watch import uses

SEVEN = recordings.load("7.2.13")
POLICY = recordings.load(policy_oracle.NAME)
STORED = recordings.load("questions-7.2.13")
RANDOM = recordings.load(random_questions.NAME)
CONTENT = "the start script is measured: the first records of a boot are its own"

#: Where the first records of the boot are read: sizes stay, hashes do not.
BOOT_RECORDS = [
    Difference("base", "readall a", "538 0 lines=4 fnv=*", "538 0 lines=4 fnv=*", CONTENT),
    Difference("base", "readall a", "665 0 lines=5 fnv=*", "665 0 lines=5 fnv=*", CONTENT),
    Difference("base", "lines *_sha512_staged", "0 8 lines 700*", "0 * lines 700*", CONTENT),
    Difference("reads", "read a 1000000", "4058 0 fnv=*", "4058 0 fnv=*", CONTENT),
    Difference("reads", "read a 1000000", "4119 0 fnv=*", "4119 0 fnv=*", CONTENT),
]


@pytest.mark.parametrize("script", ["base", "reads", "viol"])
def test_recorded_script(oracle: Oracle, script: str) -> None:
    asked = oracle.play({script: SEVEN.text(f"{script}.script")}, separate=False)
    answers = asked[f"{script}.out"].decode()
    recorded = SEVEN.text(f"{script}.out").splitlines()[: len(answers.splitlines())]
    expected = [d for d in BOOT_RECORDS if d.script == script]
    complaints = compare("\n".join([*recorded, ""]), answers, expected)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("folder", QUESTIONS)
def test_questions(oracle: Oracle, folder: str) -> None:
    """Answers to the byte; lists and PCRs too: the start script is ours."""
    asked = oracle.play(questions(folder), QUESTIONS[folder])
    stored = STORED.below(folder)
    assert asked.keys() == stored.keys()
    complaints = [
        complaint
        for name in sorted(stored)
        if asked[name] != stored[name]
        for complaint in [name, *compare(_text(stored[name]), _text(asked[name]))]
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("kind", random_questions.STORED)
def test_random_scripts(oracle: Oracle, kind: str) -> None:
    """Answers to the byte; lists and PCRs too, but where rules measure what the guest does."""
    boot, stored = random_questions.BOOTS[kind], RANDOM.below(kind)
    scripts = {n.removesuffix(".script"): _text(stored[n]) for n in stored if ".script" in n}
    asked = oracle.play(dict(sorted(scripts.items())), boot.command_line)
    assert asked.keys() == {name for name in stored if ".script" not in name}
    compared = {name for name in asked if name.endswith(".out") or not boot.rules}
    complaints = [
        complaint
        for name in sorted(compared)
        if asked[name] != stored[name]
        for complaint in [name, *compare(_text(stored[name]), _text(asked[name]))]
    ]
    assert not complaints, "\n".join(complaints)


def test_policy(oracle: Oracle) -> None:
    """Everything about the policy, to the byte; of the list, what was measured by the rules."""
    asked, stored = policy_oracle.ask_all(oracle.directory), POLICY.files
    assert asked.keys() == stored.keys()
    different = {name for name in stored if asked[name] != stored[name]}
    assert different <= {"decide.ascii"}
    records = [
        [line.split() for line in _text(files["decide.ascii"]).splitlines() if "/q/" in line]
        for files in (asked, stored)
    ]
    assert records[0] == records[1]


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def test_uses(oracle: Oracle) -> None:
    """The records of tests/watch/uses.sh, with this machine's compiler."""
    assert uses.ask(oracle.directory) == uses.LIST.read_text().splitlines()
