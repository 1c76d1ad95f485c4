# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Records collected from binary lists, judged without the code under test."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.crash.racer import BANKS, SIZES
from tests.property import kernellist
from tests.property.reference import extended


def records(data: bytes, bank: str) -> Iterator[tuple[bytes, bytes]]:
    """(name, template data) of each record of a binary list; template data b"" for a violation."""
    for row in kernellist.rows(data, bank):
        assert row.template in (b"ima-ng", b"ima-buf")
        yield row.fields[1].rstrip(b"\0"), b"" if row.violation else row.hashed


Piece = list[tuple[bytes, bytes]]


def pieces(paths: Iterable[Path]) -> Iterator[Piece]:
    """What racers have read and deleted, each deletion by itself."""
    for path in paths:
        data = path.read_bytes()
        at = 0
        while at < len(data):
            number, length = struct.unpack_from("<II", data, at)
            at += 8
            yield list(records(data[at : at + length], BANKS[number]))
            at += length


def joined(parts: Iterable[Piece], expected: Sequence[bytes]) -> Piece:
    """The parts in the order in which their records were added.

    Fails unless each part is a stretch of ``expected`` (names, all different) and
    together they are all of it, none twice. Deletions of N records and of the staged
    list may overtake each other, so the order is that of the records.
    """
    ordinal = {name: number for number, name in enumerate(expected)}
    assert len(ordinal) == len(expected)
    whole: Piece = []
    for part in sorted((p for p in parts if p), key=lambda part: ordinal[part[0][0]]):
        begin = ordinal[part[0][0]]
        assert begin == len(whole), f"at record {len(whole)} comes a part that begins at {begin}"
        names = [name for name, _ in part]
        assert names == list(expected[begin : begin + len(part)]), f"out of order behind {begin}"
        whole += part
    assert len(whole) == len(expected), f"{len(expected) - len(whole)} records at the end are lost"
    return whole


def replayed(whole: Iterable[tuple[bytes, bytes]], bank: str) -> bytes:
    """The PCR of ``bank`` after these records, from zero."""
    zeros = bytes(SIZES[bank])
    return extended((hashlib.new(bank, c).digest() if c else zeros for _, c in whole), bank)


def made(number: int) -> bytes:
    """A binary record (SHA-1 form) of template ima-ng for the file /made/NUMBER."""
    name = f"/made/{number:08d}\0".encode()
    digest = b"sha256:\0" + hashlib.sha256(name).digest()
    content = struct.pack("<I", len(digest)) + digest + struct.pack("<I", len(name)) + name
    head = struct.pack("<I", 10) + hashlib.sha1(content).digest()
    return head + struct.pack("<I", 6) + b"ima-ng" + struct.pack("<I", len(content)) + content
