# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A list in blocks: the same records, and the same refusals, as the reader has."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imafs.attest import walking
from imafs.attest.walking import Part, blocks, record
from imafs.errors import FormatError
from imafs.formats.binary import Reader
from tests.property.builders import recs
from tests.property.reference import Rec, binary_list, ng

Row = tuple[int, bytes, bytes]


def by_reader(parts: list[Part], width: int) -> list[Row]:
    return [
        (pcr, digest, template.hash_input(body))
        for part in parts
        for pcr, template, body, digest, _, _ in Reader(
            part.data, width, part.order, opaque=True
        ).walk()
    ]


def by_blocks(parts: list[Part], width: int, *, fields: bool = True) -> list[Row]:
    found: list[Row] = []
    for block in blocks(parts, width, fields=fields):
        assert block.first == len(found)
        assert not block.doubtful
        found += zip(block.pcrs, block.digests, block.messages, strict=True)
    return found


@given(st.lists(recs(), max_size=30), st.integers(0, 30), st.sampled_from([1, 2, 7, 4096]))
def test_the_same_records(some: list[Rec], cut: int, size: int) -> None:
    """Of any templates in any order, in one part or two, in blocks of any size."""
    parts = [Part(binary_list(some[:cut], "sha1")), Part(binary_list(some[cut:], "sha1"))]
    before, walking.BLOCK = walking.BLOCK, size
    try:
        assert by_blocks(parts, 20) == by_reader(parts, 20)
        assert by_blocks(parts, 20, fields=False) == by_reader(parts, 20)
    finally:
        walking.BLOCK = before
    assert [record(parts, 20, n).digest for n in range(len(some))] == [
        digest for _, digest, _ in by_reader(parts, 20)
    ]


def refusal(parts: list[Part]) -> tuple[str, int | None, int | None] | None:
    try:
        for _ in blocks(parts, 20, fields=True):
            pass
    except FormatError as error:
        return error.reason, error.record, error.offset
    return None


def test_the_same_refusals() -> None:
    """A list cut anywhere, or with any byte changed."""
    data = binary_list([ng(10, b"/%d" % number) for number in range(4)], "sha1")
    rng = random.Random(1)
    broken = [data[:size] for size in range(1, len(data))]
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        broken.append(bytes(changed))
    refused = 0
    for one in broken:
        try:
            by_reader([Part(one)], 20)
            expected = None
        except FormatError as error:
            expected = error.reason, error.record, error.offset
            refused += 1
        assert refusal([Part(one)]) == expected
    assert refused > len(data)


def test_a_refusal_in_the_second_part_counts_both() -> None:
    data = binary_list([ng(10, b"/a"), ng(10, b"/b")], "sha1")
    found = refusal([Part(data), Part(data[:-1])])
    assert found is not None
    assert found[1] == 3
    assert found[2] is not None
    assert found[2] > len(data)


@pytest.mark.parametrize("place", [0, 1, 5, 4095, 4096, 5000])
@pytest.mark.parametrize("fmt", ["ima-ng", "ima-sig"])
def test_fields_that_do_not_fit(place: int, fmt: str) -> None:
    """Also where they do at first sight: the second length is that of another."""
    good = Rec(10, fmt, (b"sha1:\0" + bytes(20), b"/a\0", b"")[: 2 + (fmt == "ima-sig")])
    bad = Rec(10, fmt, (b"", b"", b"", b"1234"))
    data = binary_list([good] * place + [bad] + [good] * 9, "sha1")
    doubtful = [
        block.first + at for block in blocks([Part(data)], 20, fields=True) for at in block.doubtful
    ]
    assert doubtful == [place]
