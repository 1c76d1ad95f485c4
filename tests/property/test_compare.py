# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The comparison of two lists against counting and trying."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from imafs.attest.compare import compare

keys = st.lists(st.sampled_from("abcdef"), max_size=12)


@given(keys, keys)
def test_what_is_only_in_one(one: list[str], other: list[str]) -> None:
    found = compare(one, other)
    assert found.same == (one == other)
    mine, theirs = Counter(one), Counter(other)
    assert Counter(one[n] for n in found.only[0]) == mine - theirs
    assert Counter(other[n] for n in found.only[1]) == theirs - mine
    if found.first is not None:
        assert one[: found.first] == other[: found.first]
        assert one[found.first : found.first + 1] != other[found.first : found.first + 1]


@given(st.permutations(range(7)))
def test_as_few_as_possible_have_moved(order: list[int]) -> None:
    """Without the moved ones both have one order; no smaller set does that."""
    found = compare(range(7), order)
    moved = {here for here, _ in found.moved}
    rest = [n for n in order if n not in moved]
    assert rest == sorted(rest)
    longest = max(
        bits.bit_count()
        for bits in range(1 << 7)
        if _rises([order[n] for n in range(7) if bits >> n & 1])
    )
    assert len(moved) == 7 - longest


def _rises(numbers: list[int]) -> bool:
    return numbers == sorted(numbers)
