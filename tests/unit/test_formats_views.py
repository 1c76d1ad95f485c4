# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The views of a run of records against lists written by hand."""

from __future__ import annotations

import hashlib
from itertools import accumulate

import pytest

from imafs.formats.templates import TEMPLATES
from imafs.formats.views import padded_digests, record_text, render_ascii, render_binary
from tests.property.reference import WIDTHS, Rec, ascii_list, binary_list, ng, violation

SIG = b"\x03\x02" + bytes(70)
RECORDS = (
    ng(10, b"boot_aggregate"),
    ng(9, b"/two digits of PCR".replace(b" ", b"_")),
    Rec(10, "ima", (b"\x11" * 20, b"/ima")),
    Rec(10, "ima", (b"\x22" * 16, b"")),
    violation(10, b"/v"),
    ng(10, b"/a\nb\tc\xff" + "ß".encode()),
    ng(10, b"/" + b"x" * 300),
    Rec(11, "ima-sig", (b"sha1:\0" + bytes(20), b"/s\0", b"")),
    Rec(11, "ima-sig", (b"sha1:\0" + bytes(20), b"/s\0", SIG)),
    Rec(23, "ima-modsig", (b"sha1:\0" + bytes(20), b"/s\0", b"", b"", b"")),
    Rec(0, "d-ng|n-ng|iuid|igid|imode", (b"md5:\0" + bytes(16), b"/c\0", b"", b"", b"\1\0")),
)


def run() -> tuple[bytes, list[int]]:
    offsets = [0, *accumulate(len(rec.binary(rec.shown("sha1"))) for rec in RECORDS)]
    return binary_list(RECORDS, "sha1"), offsets


def split(data: bytes, ends: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_both_forms(name: str, kind: type[bytes] | type[bytearray]) -> None:
    data, offsets = run()
    digests = kind(b"".join(rec.shown(name) for rec in RECORDS))
    text, ends = render_ascii(kind(data), offsets, digests, WIDTHS[name])
    assert text == ascii_list(RECORDS, name)
    assert split(text, ends) == [rec.ascii(rec.shown(name)) for rec in RECORDS]
    binary, ends = render_binary(kind(data), offsets, digests, WIDTHS[name])
    assert binary == binary_list(RECORDS, name)
    assert split(binary, ends) == [rec.binary(rec.shown(name)) for rec in RECORDS]


def test_a_part_of_a_run() -> None:
    data, offsets = run()
    digests = b"".join(rec.shown("sha256") for rec in RECORDS[3:6])
    text, ends = render_ascii(data, offsets[3:7], digests, 32)
    assert text == ascii_list(RECORDS[3:6], "sha256")
    assert ends[-1] == len(text)
    assert len(ends) == 3


def test_the_sha1_digests_padded_with_zeros() -> None:
    data, offsets = run()
    expected = b"".join(rec.shown("sha512", padded=True) for rec in RECORDS)
    assert padded_digests(data, offsets, 64) == expected
    assert padded_digests(data, offsets[2:4], 20) == RECORDS[2].digest("sha1")


@pytest.mark.parametrize(
    "digest",
    [
        b"sha256:\0" + bytes(32),
        b"sha1:\0" + b"::\0:" * 5,
        b"verity:sha256:\0" + bytes(32),
        b":\0ab",
        b"sha1:\0",
        b"no colon",
        b"",
        b"\0",
    ],
)
def test_the_short_way_for_ima_ng_is_the_long_way(digest: bytes) -> None:
    rec = Rec(10, "ima-ng", (digest, b"/a\0"))
    template = TEMPLATES["ima-ng"]
    assert record_text(template, rec.data) == f" ima-ng{template.text(rec.data)}\n"


def test_a_line_of_the_recorded_kernel_list() -> None:
    # "10 <sha1> ima-ng sha256:<...> boot_aggregate": Linux 7.2.13, start of a list.
    digest = bytes.fromhex("00" * 32)
    rec = Rec(10, "ima-ng", (b"sha256:\0" + digest, b"boot_aggregate\0"))
    sha1 = hashlib.sha1(b"\x28\0\0\0sha256:\0" + digest + b"\x0f\0\0\0boot_aggregate\0").hexdigest()
    line = f"10 {sha1} ima-ng sha256:{digest.hex()} boot_aggregate\n".encode()
    data = rec.binary(rec.digest("sha1"))
    assert render_ascii(data, [0, len(data)], rec.digest("sha1"), 20) == (line, [len(line)])
