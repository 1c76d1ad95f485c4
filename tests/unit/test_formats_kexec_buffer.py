# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The kexec buffer, against bytes that are laid out by hand."""

from __future__ import annotations

import struct

import pytest

from imafs.errors import FormatError
from imafs.formats import kexec_buffer
from tests.property.builders import record
from tests.property.reference import Rec, ng, violation

LIST = [ng(10, b"boot_aggregate"), violation(10, b"/v"), ng(11, b"/a")]
IMA = Rec(10, "ima", (bytes(20), b"/old\0"))


def body(recs: list[Rec]) -> bytes:
    return b"".join(rec.binary(rec.shown("sha1")) for rec in recs)


def head(size: int, count: int, version: int = 1) -> bytes:
    return struct.pack("<HHIQQ", version, 0, 0, size, count)


def buffer(recs: list[Rec], padding: int = 0) -> bytes:
    data = body(recs)
    return head(24 + len(data), len(recs)) + data + bytes(padding)


def test_encoding_is_the_kernels_struct() -> None:
    assert kexec_buffer.encode(body(LIST), 3) == buffer(LIST)
    assert kexec_buffer.encode(b"", 0) == bytes.fromhex("01000000000000001800000000000000") + bytes(
        8
    )


@pytest.mark.parametrize("padding", [0, 1, 4096])
def test_decoding(padding: int) -> None:
    found = list(kexec_buffer.decode(buffer(LIST, padding)))
    assert [parsed.record for parsed in found] == [record(rec) for rec in LIST]
    assert found[0].start == 24
    assert [p.end for p in found[:-1]] == [p.start for p in found[1:]]
    assert found[-1].end == len(buffer(LIST))
    assert list(kexec_buffer.decode(buffer([], padding))) == []


def test_a_digest_is_not_compared() -> None:
    """The next kernel computes it anew from the template data."""
    data = bytearray(buffer(LIST))
    data[24 + 4] ^= 1
    assert [p.record for p in kexec_buffer.decode(bytes(data))] == [record(rec) for rec in LIST]


WHOLE = buffer(LIST)
FIRST = len(body(LIST[:1]))
END = len(WHOLE)
LONG = "|".join(["d-ng", "n-ng"] * 8)


@pytest.mark.parametrize(
    ("data", "number", "offset", "reason"),
    [
        (b"", None, 0, "header of 24 bytes is missing"),
        (WHOLE[:23], None, 23, "header of 24 bytes is missing"),
        (head(END, 3, version=2) + body(LIST), None, 0, "version 2, not 1"),
        (head(23, 0), None, 8, "buffer size of 23"),
        (head(END + 1, 3) + body(LIST), None, 8, f"buffer size of {END + 1} where there are {END}"),
        (head(2**64 - 1, 3) + body(LIST), None, 8, "buffer size of 18446744073709551615"),
        (head(END, 4) + body(LIST), 3, END, "ends after 3 of 4 records"),
        (head(END, 2) + body(LIST), 1, 24 + len(body(LIST[:2])), "goes on behind 2 records"),
        (head(END, 0) + body(LIST), 0, 24 + FIRST, "goes on behind 0 records"),
        (head(END - 1, 3) + body(LIST), 2, 24 + len(body(LIST[:2])) + 34, "template data of"),
        (head(24 + FIRST + 3, 2) + body(LIST), 1, 24 + FIRST, "inside the PCR number"),
        (buffer([*LIST, IMA]), 3, END, "template ima, which no kernel restores"),
        (buffer([IMA]), 0, 24, "template ima, which no kernel restores"),
        (buffer([Rec(10, LONG, (b"",) * 16)]), 0, 48, "template name of 79 bytes"),
        (buffer([Rec(10, "nonsense", (b"",))]), 0, 52, "unknown template 'nonsense'"),
        (buffer([Rec(10, "ima-ng", (b"sha1:\0" + bytes(20),))]), 0, None, ""),
        (buffer([Rec(64, "ima-ng", LIST[0].parts)]), 0, 24, "PCR 64 is out of range"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(
    data: bytes, number: int | None, offset: int | None, reason: str
) -> None:
    with pytest.raises(FormatError) as caught:
        list(kexec_buffer.decode(data))
    assert caught.value.record == number
    if offset is not None:
        assert caught.value.offset == offset
    assert reason in caught.value.reason


def test_what_stands_before_the_fault_is_restored() -> None:
    """As in a kernel, which stops there."""
    reading = kexec_buffer.decode(buffer([*LIST, IMA, *LIST]))
    assert [next(reading).record for _ in LIST] == [record(rec) for rec in LIST]
    with pytest.raises(FormatError):
        next(reading)
