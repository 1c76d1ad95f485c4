# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Random scripts that Linux 7.2.13 answered, played on the emulator; ``scripts/ask`` asks more."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from tests.conformance import random_questions, recordings
from tests.conformance.explaining import RULES, Explainer
from tests.conformance.random_questions import BOOTS, NAME, STORED, Verdict, judge, ours
from tests.conformance.random_scripts import script


@cache
def verdict(kind: str) -> Verdict:
    """One emulator plays all scripts of a boot, in the kernel's order."""
    kernel = recordings.load(NAME).below(kind)
    names = sorted(name for name in kernel if name.endswith(".script"))
    asked = {name.removesuffix(".script"): kernel[name].decode() for name in names}
    assert len(asked) == len(STORED[kind])
    run = ours(asked, kernel["start.binary.sha1"], BOOTS[kind])
    return judge(BOOTS[kind], kernel, run)


@pytest.mark.root
@pytest.mark.mount
@pytest.mark.swtpm
@pytest.mark.parametrize("kind", STORED)
def test_random_scripts(kind: str) -> None:
    """Every line, PCR 10 after each script, all lists and PCRs at the end."""
    complaints = verdict(kind).complaints
    lines = [line for name, said in complaints.items() for line in (f"== {name}", *said)]
    assert not lines, "\n".join(lines)


@pytest.mark.root
@pytest.mark.mount
@pytest.mark.swtpm
def test_every_rule_explains_something() -> None:
    reasons: Counter[str] = Counter()
    for kind in STORED:
        reasons += verdict(kind).reasons
    assert reasons.keys() == RULES


def test_a_seed_is_a_script() -> None:
    assert script(7, "x", 50) == script(7, "x", 50) != script(8, "x", 50)
    assert set(random_questions.scripts(BOOTS["plain"], range(9, 12))) == {"r9", "r10", "r11"}


START = "open a ascii_runtime_measurements_staged rw -> ok\n"
AT_TWO = START + 'write a "A\\n" -> 2 0\n'


@pytest.mark.parametrize(
    ("before", "kernel", "emulator"),
    [
        ("", "count -> 0 3", "count -> 0 4"),
        ("", "count -> 0 3", ""),
        (START, "read a 9 -> 9 0 fnv=00000001", "read a 9 -> 9 0 fnv=00000002"),
        (START, 'write a "A\\n" -> 2 0', 'write a "A\\n" -> -1 ENOENT'),
        (START, "lseek a 0 cur -> 0 0", "lseek a 0 cur -> 2 0"),
        (AT_TWO, "lseek a 0 cur -> 0 0", "lseek a 0 cur -> 4 0"),
        (AT_TWO + "lseek a 5 set -> 5 0\n", "lseek a 0 cur -> 5 0", "lseek a 0 cur -> 7 0"),
        (AT_TWO + "close a -> 0\n" + START, "lseek a 0 cur -> 0 0", "lseek a 0 cur -> 2 0"),
        (START, "lseek a -1 cur -> -1 EINVAL", "lseek a -1 cur -> 1 0"),
        (AT_TWO, "pread a 1 5 -> 5 0 fnv=00000001", "pread a 1 5 -> 5 0 fnv=00000002"),
        (
            START + "lseek a 9 set -> 9 0\n",
            "read a 9 -> 9 0 fnv=00000001",
            "read a 9 -> 9 0 fnv=00000002",
        ),
        (
            START,
            "chunks a 4096 -> sizes=5 calls=1 total=5 0 fnv=00000001",
            "chunks a 4096 -> sizes=5 calls=1 total=5 0 fnv=00000002",
        ),
        ("", "stat x -> mode=100 uid=0 size=3 nlink=1", "stat x -> mode=100 uid=1 size=4 nlink=1"),
    ],
)
def test_the_rules_explain_no_more_than_they_say(before: str, kernel: str, emulator: str) -> None:
    explainer = Explainer()
    assert len(explainer.compare(before + kernel, before + emulator)) == 1
    assert not explainer.reasons


@pytest.mark.parametrize(
    ("before", "kernel", "emulator"),
    [
        (AT_TWO, "lseek a 0 cur -> 0 0", "lseek a 0 cur -> 2 0"),
        (AT_TWO, "lseek a -1 cur -> -1 EINVAL", "lseek a -1 cur -> 1 0"),
        (
            START + "lseek a 9 set -> 9 0\nmeasure /q/x y -> 0\n",
            "read a 9 -> 9 0 fnv=00000001",
            "read a 9 -> 9 0 fnv=00000002",
        ),
        (
            AT_TWO + "lseek a 2 set -> 2 0\n",
            "read a 9 -> 9 0 fnv=00000001",
            "read a 9 -> 9 0 fnv=00000002",
        ),
        (
            START + "dup a b -> ok\nfork { -> child\n" + '  write b "A\\n" -> 2 0\nendfork\n',
            "lseek a 0 cur -> 0 0",
            "lseek a 0 cur -> 2 0",
        ),
    ],
)
def test_the_rules_follow_positions(before: str, kernel: str, emulator: str) -> None:
    explainer = Explainer()
    assert not explainer.compare(before + kernel, before + emulator)
    assert explainer.reasons.total() == 1
