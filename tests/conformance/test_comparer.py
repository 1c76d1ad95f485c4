# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The comparer of reader cases: what it lets pass and what it does not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.conformance import readercases
from tests.conformance.readercases import DIFFERENCES, SPLICING, Answer, Difference
from tests.conformance.readers.play import cases, complaint, plain

KERNEL = {
    "cat": Answer("cat", "0|5|aaaaaaaa", ""),
    "dd": Answer("dd", "1|0|bbbbbbbb", "dd: refused"),
    "c-splice": Answer("c-splice", "0|9|cccccccc", ""),
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readercases, "kernel", lambda: KERNEL)


def wrong(
    changes: Mapping[str, Answer], rows: Mapping[str, Difference], monkeypatch: pytest.MonkeyPatch,
    *, stderr: bool = True, splice: bool = True,
) -> list[str]:  # fmt: skip
    monkeypatch.setattr(readercases, "DIFFERENCES", rows)
    return readercases.complaints(list(KERNEL), {**KERNEL, **changes}, stderr=stderr, splice=splice)


def test_the_kernels_own_answers_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong({}, {}, monkeypatch) == []
    assert readercases.figure(KERNEL, stderr=True) == (3, 3)


def test_what_differs_needs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"cat": Answer("cat", "0|4|dddddddd", "")}
    assert len(wrong(other, {}, monkeypatch)) == 1
    assert wrong(other, {"cat": Difference("0|4|dddddddd", "why")}, monkeypatch) == []
    assert len(wrong(other, {"cat": Difference("0|4|eeeeeeee", "why")}, monkeypatch)) == 1


def test_a_row_that_is_not_needed_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = wrong({}, {"cat": Difference("0|4|dddddddd", "why")}, monkeypatch)
    assert line == "cat: equal to the kernel, so its row in DIFFERENCES goes"


def test_stderr_counts_with_the_same_tools_only(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"dd": Answer("dd", "1|0|bbbbbbbb", "dd: another word")}
    assert len(wrong(other, {}, monkeypatch)) == 1
    assert wrong(other, {}, monkeypatch, stderr=False) == []


def test_a_case_that_was_not_played_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readercases, "DIFFERENCES", {})
    assert readercases.complaints(["cat"], {}, stderr=True, splice=True) == ["cat: not played"]


def test_splicing_is_judged_where_the_machine_refuses_it_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = {"c-splice": Answer("c-splice", "0|7|ffffffff", "")}
    assert len(wrong(other, {}, monkeypatch)) == 1
    assert wrong(other, {}, monkeypatch, splice=False) == []


def test_the_table_names_cases_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    listed = [name for _, name, _ in cases(readercases.CASES.read_text())]
    grouped = [name for group in readercases.groups().values() for name in group.cases]
    assert listed == grouped
    assert len(set(listed)) == len(listed) == 196
    assert set(listed) == set(readercases.kernel())
    assert set(DIFFERENCES) | SPLICING <= set(listed)


def test_paths_and_numbers_do_not_count() -> None:
    text = b"cat: /a/b/list: bad\n\nat 0x12ab, line 7\nls: list in /a/b and /tmp/w\nmore\n"
    assert plain(text, "/a/b/list", "/tmp/w").startswith(b"cat: LIST: bad\n")
    assert complaint(plain(text, "/a/b/list", "/tmp/w")) == (
        "cat: LIST: bad at N, N ls: LIST in DIR and WORK"
    )
