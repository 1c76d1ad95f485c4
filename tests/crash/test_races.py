# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Many processes read, stage and delete while records are added: none is lost or doubled."""

from __future__ import annotations

import random

import pytest

from tests.crash.collected import Piece, joined
from tests.crash.racing import race
from tests.mount.daemon import Daemon

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def _race(daemon: Daemon, seconds: float) -> None:
    seed = random.SystemRandom().randrange(1 << 20)
    outcome = race(daemon, seconds, seed)
    print(f"seed {seed}: {len(outcome.whole)} records, {outcome.deletions} deletions,", end=" ")
    print(dict(sorted(outcome.counts.items())))
    done = outcome.counts
    for name in ("opening", "read", "stage", "delete", "stage_and_delete", "delete_number"):
        assert done[name] > 0, f"never came to {name}: {done}"
    asked = done["delete"] + done["stage_and_delete"] + done["delete_number"]
    assert 0 < outcome.deletions == asked - done["too few"]


def test_race_of_eight_processes(daemon: Daemon) -> None:
    _race(daemon, 10)


@pytest.mark.nightly
def test_race_of_eight_processes_for_a_minute(daemon: Daemon) -> None:
    _race(daemon, 60)


def _piece(names: str) -> Piece:
    return [(name.encode(), b"content") for name in names]


def test_the_judge_of_races_takes_what_is_whole() -> None:
    parts = [_piece("de"), _piece(""), _piece("abc"), _piece("f")]
    assert [name for name, _ in joined(parts, [b"a", b"b", b"c", b"d", b"e", b"f"])] == [
        *(b"a", b"b", b"c", b"d", b"e", b"f")
    ]


@pytest.mark.parametrize(
    "parts",
    [["abc"], ["ab", "d"], ["abc", "cd"], ["abcd", "d"], ["acbd"], ["abcd", "abcd"], ["b", "acd"]],
    ids=",".join,
)
def test_the_judge_of_races_sees_what_is_lost_doubled_or_misplaced(parts: list[str]) -> None:
    with pytest.raises(AssertionError):
        joined(map(_piece, parts), [b"a", b"b", b"c", b"d"])
