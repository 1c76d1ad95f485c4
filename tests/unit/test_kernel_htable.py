# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The hash table of seen digests: examples and limits (against a set: tests/property)."""

from __future__ import annotations

import hashlib

import pytest

from imafs.kernel.htable import HashTable


def digests(count: int, width: int) -> list[bytes]:
    return [hashlib.sha512(b"%d" % number).digest()[:width] for number in range(count)]


@pytest.mark.parametrize("width", [16, 20, 32, 64])
def test_a_digest_is_added_once(width: int) -> None:
    table = HashTable(width)
    digest = b"\x11" * width
    assert (digest, 10) not in table
    assert table.add(digest, 10)
    assert not table.add(digest, 10)
    assert (digest, 10) in table
    assert len(table) == 1


def test_the_pcr_is_part_of_the_key() -> None:
    table = HashTable(32)
    assert table.add(bytes(32), 10)
    assert (bytes(32), 11) not in table
    assert table.add(bytes(32), 11)
    assert not table.add(bytes(32), 10)
    assert len(table) == 2


def test_the_whole_digest_counts() -> None:
    # A kernel bucket is chosen by two bytes; equality is over all of them.
    table = HashTable(32)
    for last in range(256):
        assert table.add(b"\xab\xcd" + bytes(29) + bytes((last,)), 10)
    assert len(table) == 256


def test_several_resizes_lose_nothing() -> None:
    count = 60_000  # 1024 slots grow seven times; entries fill fifteen chunks
    table = HashTable(20)
    known = digests(count, 20)
    for number, digest in enumerate(known):
        assert table.add(digest, 10)
        assert len(table) == number + 1
        # In the middle of a move both tables must be asked.
        assert (known[number // 2], 10) in table
        if not number % 16:
            assert not table.add(known[number - number // 3], 10)
    assert all((digest, 10) in table for digest in known)
    assert not any((digest, 11) in table for digest in known[::100])
    unknown = hashlib.sha512(b"unknown").digest()[:20]
    assert (unknown, 10) not in table


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every slot that is filled."""
    filled: list[int] = []
    place = HashTable._place

    def counted(table: object, key: int, number: int) -> None:
        filled.append(number)
        place(table, key, number)  # type: ignore[arg-type]

    monkeypatch.setattr(HashTable, "_place", staticmethod(counted))
    return filled


def test_an_insertion_moves_a_bounded_number_of_entries(places: list[int]) -> None:
    table = HashTable(20)
    worst = 0
    for digest in digests(20_000, 20):
        before = len(places)
        table.add(digest, 10)
        worst = max(worst, len(places) - before)
    assert worst <= 17


def test_what_was_removed_is_given_back(places: list[int]) -> None:
    """A list that is trimmed again and again holds what is live, and somewhat more."""
    table = HashTable(20)
    kept = digests(300, 20)
    for digest in kept:
        table.add(digest, 10)
    worst = most = 0
    for number, digest in enumerate(digests(60_300, 20)[300:]):
        before = len(places)
        assert table.add(digest, 11)
        worst = max(worst, len(places) - before)
        table.discard(digest, 11)
        most = max(most, table.held)
        if not number % 1000:
            assert all((digest, 10) in table for digest in kept)
            assert (digest, 11) not in table
    assert len(table) == 300
    assert most < 3000
    assert worst <= 17


def test_a_large_table_shrinks_again() -> None:
    table = HashTable(20)
    known = digests(40_000, 20)
    for digest in known:
        table.add(digest, 10)
    for digest in known[100:]:
        table.discard(digest, 10)
    assert table.held == 40_000
    for digest in known[100:3000]:
        assert table.add(digest, 10)
    assert len(table) == 3000
    assert table.held < 5000
    assert all((digest, 10) in table for digest in known[:3000])
    assert not any((digest, 10) in table for digest in known[3000:])


def test_what_has_moved_may_be_removed_and_added_again() -> None:
    """In the middle of a move it stands in both tables."""
    table = HashTable(20)
    known = digests(2000, 20)
    for count in (600, 683, 690, 700, 720):
        for digest in known[:count]:
            table.add(digest, 10)
        for digest in (known[0], known[count - 1]):
            table.discard(digest, 10)
            assert (digest, 10) not in table
            table.discard(digest, 10)
            assert len(table) == count - 1
            assert table.add(digest, 10)
            assert not table.add(digest, 10)
