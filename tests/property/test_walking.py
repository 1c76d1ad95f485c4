# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A list in blocks has the records that the reader has, of any templates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imafs.attest import walking
from imafs.attest.walking import Part, blocks, record
from imafs.errors import FormatError
from imafs.formats.binary import Reader
from tests.property.builders import recs
from tests.property.reference import Rec, binary_list

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


@given(st.data())
def test_the_same_records_are_doubtful(data: st.DataObject) -> None:
    """Whose fields do not fill their template data, whatever the lengths of the fields say."""
    listed = bytearray(binary_list(data.draw(st.lists(recs(), min_size=1, max_size=12)), "sha1"))
    for _ in range(data.draw(st.integers(1, 6))):
        # A length, more often than not: the bytes around one that is small.
        at = data.draw(st.integers(0, len(listed) - 1))
        listed[at] = data.draw(st.sampled_from([0, 1, 2, 4, 5, 20, 26, 40, 255]))
    part = Part(bytes(listed))
    try:
        rows = list(Reader(part.data, 20, opaque=True).walk())
    except FormatError:
        return
    doubtful = [
        number
        for number, (_, template, body, *_rest) in enumerate(rows)
        if not template.is_ima and not template.fits(body)
    ]
    found = [b.first + place for b in blocks([part], 20, fields=True) for place in b.doubtful]
    assert found == doubtful
    assert by_reader([part], 20) == [
        row
        for b in blocks([part], 20, fields=True)
        for row in zip(b.pcrs, b.digests, b.messages, strict=True)
    ]
