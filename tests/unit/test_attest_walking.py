# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A list in blocks: the same records, and the same refusals, as the reader has."""

from __future__ import annotations

import random
from collections import deque

import pytest

from imafs.attest.walking import Part, blocks
from imafs.errors import FormatError
from imafs.formats.binary import Reader
from tests.property.reference import Rec, binary_list, ng


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
            deque(Reader(one, 20, opaque=True), maxlen=0)
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
