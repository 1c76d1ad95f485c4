# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which calls fail, and when steps of a scenario are due."""

from __future__ import annotations

import errno
from dataclasses import fields

import pytest

from imafs.errors import NotThereError, Refused, UsageError
from imafs.scenarios.events import EVENTS, Condition, Triggers
from imafs.scenarios.faults import MOST, OPTIONS, Faults, Rule, name_of, number_of
from imafs.verbs.table import TABLE

STAGED = ["binary_runtime_measurements_sha1_staged", "binary_runtime_measurements_staged"]
COUNT = ["runtime_measurements_count"]


def outcome(
    faults: Faults, operation: str, names: list[str], *, writing: bool | None = None
) -> int:
    """The errno, 0 where the call goes through."""
    try:
        faults.check(operation, names, writing=writing)
    except Refused as refused:
        return refused.errno
    return 0


def outcomes(rule: Rule, calls: int, names: list[str] = STAGED) -> list[bool]:
    faults = Faults()
    faults.add(rule)
    return [outcome(faults, rule.operation, names) == rule.errno for _ in range(calls)]


def test_without_rules_nothing_fails() -> None:
    faults = Faults()
    assert not faults
    assert outcome(faults, "open", STAGED) == 0


@pytest.mark.parametrize(
    ("rule", "failing"),
    [
        (Rule("read", errno.EIO), [1, 2, 3, 4, 5, 6]),
        (Rule("read", errno.EIO, next=2), [1, 2]),
        (Rule("read", errno.EIO, every=3), [3, 6]),
        (Rule("read", errno.EIO, every=2, next=2), [2, 4]),
        (Rule("read", errno.EIO, percent=100), [1, 2, 3, 4, 5, 6]),
        (Rule("read", errno.EIO, files="*_staged"), [1, 2, 3, 4, 5, 6]),
        (Rule("read", errno.EIO, files="binary_runtime_measurements_staged", next=1), [1]),
        (Rule("read", errno.EIO, files="ascii_*"), []),
    ],
)
def test_which_calls_fail(rule: Rule, failing: list[int]) -> None:
    assert [at for at, hit in enumerate(outcomes(rule, 6), 1) if hit] == failing


def test_other_calls_and_files_neither_fail_nor_count() -> None:
    faults = Faults()
    faults.add(Rule("read", errno.EIO, files="*_staged", every=2))
    assert outcome(faults, "open", STAGED) == 0
    assert outcome(faults, "read", COUNT) == 0
    assert outcome(faults, "read", STAGED) == 0
    assert outcome(faults, "read", STAGED) == errno.EIO


def test_chance_is_seeded() -> None:
    some = Rule("open", errno.ENOMEM, percent=30, seed=7)
    hits = outcomes(some, 2000)
    assert hits == outcomes(some, 2000)
    assert 500 < sum(hits) < 700
    assert hits != outcomes(Rule("open", errno.ENOMEM, percent=30, seed=8), 2000)


def test_opens_for_writing_or_reading_only() -> None:
    faults = Faults()
    faults.add(Rule("open", errno.EBUSY, writing=True))
    assert outcome(faults, "open", STAGED, writing=False) == 0
    assert outcome(faults, "open", STAGED, writing=True) == errno.EBUSY


def test_the_oldest_rule_that_hits_gives_the_errno_and_all_count() -> None:
    faults = Faults()
    faults.add(Rule("open", errno.EBUSY, next=1))
    faults.add(Rule("open", errno.EIO, every=2))
    assert [outcome(faults, "open", STAGED) for _ in range(4)] == [
        *(errno.EBUSY, errno.EIO, 0, errno.EIO)
    ]
    assert faults.describe() == [
        {
            **{"fault": 1, "operation": "open", "errno": "EBUSY", "files": "*", "next": 1},
            **{"seen": 1, "failed": 1},
        },
        {
            **{"fault": 2, "operation": "open", "errno": "EIO", "files": "*", "every": 2},
            **{"seen": 4, "failed": 2},
        },
    ]


def test_clear_one_and_all() -> None:
    faults = Faults()
    first = faults.add(Rule("open", errno.EBUSY))
    second = faults.add(Rule("read", errno.EIO))
    assert faults.clear(first) == 1
    with pytest.raises(NotThereError, match=f"no fault {first}") as caught:
        faults.clear(first)
    assert caught.value.errno == errno.ENOENT
    assert outcome(faults, "open", STAGED) == 0
    third = faults.add(Rule("write", errno.EACCES))
    assert len({first, second, third}) == 3
    assert faults.clear() == 2
    assert not faults
    assert faults.clear() == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"operation": "stat"}, "fault: operation: 'stat' cannot fail: open, read, write can"),
        ({"errno": "EBUSE"}, "fault: errno: 'EBUSE' is no errno"),
        ({"errno": "ENOSYS"}, "fault: open cannot fail with ENOSYS"),
        ({"operation": "read", "writing": True}, "fault: only an open"),
        ({"writing": True, "reading": True}, "fault: of writing and reading give one"),
        ({"next": 0}, "fault: next: not within 1"),
        ({"every": -1}, "fault: every: not within 1"),
        ({"percent": 101}, "fault: percent: not within 1 and 100"),
        ({"files": "nope*"}, "fault: files: 'nope\\*' matches no file"),
    ],
)
def test_rules_that_make_no_sense(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        TABLE.validate("fault", {"operation": "open", "errno": "EBUSY", **options})


def test_a_read_may_fail_with_enosys() -> None:
    options = TABLE.validate("fault", {"operation": "read", "errno": "ENOSYS"})
    assert Rule.of(options) == Rule("read", errno.ENOSYS)


@pytest.mark.parametrize(
    ("way", "writing"), [({}, None), ({"writing": True}, True), ({"reading": True}, False)]
)
def test_a_rule_of_its_options(way: dict[str, object], writing: bool | None) -> None:
    given = {"files": "*_staged", "next": 2, "every": 3, "percent": 50, "seed": 7}
    call = {"operation": "open", "errno": "EBUSY", **given, **way}
    rule = Rule.of(TABLE.validate("fault", call))
    assert rule == Rule("open", errno.EBUSY, "*_staged", 2, 3, 50, 7, writing)
    told = {**call, "operation": "open", "writing": writing}
    left_out = {"reading"} if way else {"reading", "writing"}
    assert rule.describe() == {name: told[name] for name in told.keys() - left_out}
    assert {option.name for option in OPTIONS} == {f.name for f in fields(Rule)} | {"reading"}


def test_errnos_by_name() -> None:
    assert number_of("EBUSY") == errno.EBUSY
    assert name_of(errno.EBUSY) == "EBUSY"
    for wrong in ("EBUSE", "ebusy", "16", "", "errorcode", "E", "__name__"):
        with pytest.raises(UsageError, match="no errno"):
            number_of(wrong)


# Triggers


def test_a_step_is_due_at_its_nth_event_once() -> None:
    triggers = Triggers([Condition("before open", "*_staged", nth=2)])
    assert [triggers.happened("before open", STAGED) for _ in range(4)] == [[], [0], [], []]
    assert triggers.happened("after open", STAGED) == []


def test_every_comes_again() -> None:
    triggers = Triggers([Condition("after read", nth=2, every=3)])
    due = [bool(triggers.happened("after read", STAGED)) for _ in range(9)]
    assert [at for at, yes in enumerate(due, 1) if yes] == [2, 5, 8]


def test_files_and_ways_of_opening_choose() -> None:
    triggers = Triggers(
        [
            Condition("before open", "binary_runtime_measurements_staged", writing=True),
            Condition("before open", "*count"),
            Condition("before open", writing=False),
        ]
    )
    assert triggers.happened("before open", COUNT, writing=False) == [1, 2]
    assert triggers.happened("before open", STAGED, writing=True) == [0]
    assert triggers.seen == [1, 1, 1]


def test_steps_of_one_event_keep_their_order() -> None:
    triggers = Triggers([Condition("after stage"), Condition("start"), Condition("after stage")])
    assert triggers.happened("start") == [1]
    assert triggers.happened("after stage", STAGED) == [0, 2]


def test_a_number_of_records_is_reached_once() -> None:
    triggers = Triggers([Condition("records", records=5), Condition("records", records=3)])
    assert [triggers.added(total) for total in (1, 3, 4, 9, 10)] == [[], [1], [], [0], []]


def test_events_are_told_once() -> None:
    assert len(set(EVENTS)) == len(EVENTS)


def test_so_many_rules_at_a_time() -> None:
    """A step of a scenario may add one at every open."""
    faults = Faults()
    for _ in range(MOST):
        faults.add(Rule("open", errno.EIO, next=1))
    with pytest.raises(Refused, match="clear some first") as caught:
        faults.add(Rule("open", errno.EIO))
    assert caught.value.errno == errno.ENOSPC
    faults.clear(1)
    faults.add(Rule("open", errno.EIO))
