# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The hash table against a Python set, across resizes."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from imafs.kernel.htable import HashTable

keys = st.tuples(st.integers(0, 5000), st.sampled_from([0, 8, 10, 11, 22, 23]))


def digest(number: int, width: int) -> bytes:
    return hashlib.sha512(b"%d" % number).digest()[:width]


@given(st.sampled_from([16, 20, 32, 64]), st.lists(keys, max_size=300), st.integers(0, 3000))
def test_it_is_a_set(width: int, chosen: list[tuple[int, int]], filling: int) -> None:
    table = HashTable(width)
    model: set[tuple[bytes, int]] = set()

    def add(key: tuple[bytes, int]) -> None:
        assert (key in table) == (key in model)
        assert table.add(*key) == (key not in model)
        model.add(key)
        assert key in table
        assert len(table) == len(model)

    # Fill to some point of a resize first, so that the chosen keys meet tables on the move.
    for number in range(10_000, 10_000 + filling):
        add((digest(number, width), 10))
    for number, pcr in chosen:
        add((digest(number, width), pcr))
    for number in range(10_000, 10_000 + filling, 97):
        assert not table.add(digest(number, width), 10)
    assert all(key in table for key in model)


@given(
    st.integers(0, 9000),
    st.lists(st.tuples(keys, st.booleans()), max_size=300),
    st.integers(1, 50),
)
def test_what_is_discarded_can_be_added_again(
    filling: int, chosen: list[tuple[tuple[int, int], bool]], step: int
) -> None:
    table, model = HashTable(20), set[tuple[bytes, int]]()
    for number in range(filling):
        table.add(digest(number, 20), 10)
        model.add((digest(number, 20), 10))
    for number in range(0, filling, step):
        table.discard(digest(number, 20), 10)
        model.discard((digest(number, 20), 10))
    for (number, pcr), there in chosen:
        key = (digest(number, 20), pcr)
        if there:
            assert table.add(*key) == (key not in model)
            model.add(key)
        else:
            table.discard(*key)
            model.discard(key)
        assert (key in table) == (key in model)
        assert len(table) == len(model)
    assert all(key in table for key in model)
    for number in range(filling):
        assert table.add(digest(number, 20), 10) == ((digest(number, 20), 10) not in model)


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000), st.booleans()), max_size=12),
    st.sampled_from([1, 2, 7]),
)
def test_ranges_come_and_go(ranges: list[tuple[int, int, bool]], step: int) -> None:
    """Moves that leave many behind, begun and interrupted anywhere."""
    table, model = HashTable(20), set[tuple[bytes, int]]()
    for first, last, there in ranges:
        for number in range(first, last, 1 if there else step):
            key = (digest(number, 20), 10)
            if there:
                assert table.add(*key) == (key not in model)
                model.add(key)
            else:
                table.discard(*key)
                model.discard(key)
            assert len(table) == len(model)
        for number in range(0, 3000, 13):
            key = (digest(number, 20), 10)
            assert (key in table) == (key in model)
    assert {k for n in range(3000) if (k := (digest(n, 20), 10)) in table} == model


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.integers(0, 3)), max_size=3000))
def test_many_duplicates(entries: list[tuple[bytes, int]]) -> None:
    table, model = HashTable(1), set()
    for key in entries:
        assert table.add(*key) == (key not in model)
        model.add(key)
    assert len(table) == len(model)
