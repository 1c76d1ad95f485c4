# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Records collected from binary lists, judged without the code under test."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.crash.racer import BANKS, SIZES


def records(data: bytes, bank: str) -> Iterator[tuple[bytes, bytes]]:
    """(name, template data) of each record of a binary list; template data b"" for a violation.

    Every template digest is compared with the hash of its data, the end with the end.
    """
    size = SIZES[bank]
    at = 0
    while at < len(data):
        digest = data[at + 4 : at + 4 + size]
        at += 4 + size
        (length,) = struct.unpack_from("<I", data, at)
        assert data[at + 4 : at + 4 + length] in (b"ima-ng", b"ima-buf")
        at += 4 + length
        (length,) = struct.unpack_from("<I", data, at)
        content = data[at + 4 : at + 4 + length]
        assert len(content) == length, "the list ends inside a record"
        at += 4 + length
        violation = not any(digest)
        assert violation or digest == hashlib.new(bank, content).digest()
        (first,) = struct.unpack_from("<I", content)
        (length,) = struct.unpack_from("<I", content, 4 + first)
        name = content[4 + first + 4 :][:length].rstrip(b"\0")
        yield name, b"" if violation else content


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
    """The PCR of ``bank`` after these records, from zero; a violation extends ones."""
    value = bytes(SIZES[bank])
    ones = b"\xff" * SIZES[bank]
    for _, content in whole:
        digest = hashlib.new(bank, content).digest() if content else ones
        value = hashlib.new(bank, value + digest).digest()
    return value


def made(number: int) -> bytes:
    """A binary record (SHA-1 form) of template ima-ng for the file /made/NUMBER."""
    name = f"/made/{number:08d}\0".encode()
    digest = b"sha256:\0" + hashlib.sha256(name).digest()
    content = struct.pack("<I", len(digest)) + digest + struct.pack("<I", len(name)) + name
    head = struct.pack("<I", 10) + hashlib.sha1(content).digest()
    return head + struct.pack("<I", 6) + b"ima-ng" + struct.pack("<I", len(content)) + content
