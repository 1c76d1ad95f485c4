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


def test_an_insertion_moves_a_bounded_number_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = 0
    place = HashTable._place

    def counted(table: object, key: int, number: int) -> None:
        nonlocal moves
        moves += 1
        place(table, key, number)  # type: ignore[arg-type]

    monkeypatch.setattr(HashTable, "_place", staticmethod(counted))
    table = HashTable(20)
    worst = 0
    for digest in digests(20_000, 20):
        before = moves
        table.add(digest, 10)
        worst = max(worst, moves - before)
    assert worst <= 17
