# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The binary list: written out by hand, cut at every byte, with every bit flipped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from imafs.errors import FormatError
from imafs.formats.algorithms import Bank, bank_for, by_name
from imafs.formats.binary import Parsed, Reader, detect, encode, read
from tests.property.builders import record
from tests.property.reference import WIDTHS, Rec, binary_list, ng, u32, violation

NAMES = ("sha1", "sha256", "sha384", "sha512")
DIGEST = hashlib.sha256(b"content").digest()
#: One of everything: templates without and with lengths, a custom format, a violation,
#: empty fields, another PCR, odd names.
LIST = (
    Rec(10, "ima-ng", (b"sha256:\0" + bytes(32), b"boot_aggregate\0")),
    Rec(10, "ima", (hashlib.sha1(b"x").digest(), b"/bin/x")),
    ng(10, b"/a\nb"),
    violation(10, b"/v"),
    Rec(11, "ima-sig", (b"sha256:\0" + DIGEST, b"/s\0", b"")),
    Rec(10, "d-ng|n-ng|imode", (b"sha1:\0" + bytes(20), b"/m\0", b"\xa4\x81")),
)


def bank(name: str) -> Bank:
    return bank_for(by_name(name))


def starts(algorithm: str, padded: bool = False) -> list[int]:
    ends = [0]
    for rec in LIST:
        ends.append(ends[-1] + len(rec.binary(rec.shown(algorithm, padded=padded))))
    return ends


def refusal(data: bytes, chosen: Bank | None) -> tuple[list[Parsed], FormatError | None]:
    """What :func:`read` gives before it refuses, and the refusal."""
    found: list[Parsed] = []
    walk: Iterator[Parsed] = read(data, chosen)
    try:
        found.extend(walk)
    except FormatError as error:
        return found, error
    return found, None


@pytest.mark.parametrize("name", NAMES)
def test_encode_gives_the_kernels_bytes(name: str) -> None:
    data = b"".join(encode(record(rec), rec.shown(name)) for rec in LIST)
    assert data == binary_list(LIST, name)


def test_one_record_byte_by_byte() -> None:
    rec = ng(10, b"/a", b"content")
    fields = u32(40) + b"sha256:\0" + DIGEST + u32(3) + b"/a\0"
    by_hand = b"\x0a\0\0\0" + hashlib.sha1(fields).digest() + b"\6\0\0\0ima-ng" + u32(51) + fields
    assert encode(record(rec), rec.digest("sha1")) == by_hand


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("named", [True, False])
def test_read_gives_back_every_record(name: str, named: bool) -> None:
    data = binary_list(LIST, name)
    parsed = list(read(data, bank(name) if named else None))
    assert [p.record for p in parsed] == [record(rec) for rec in LIST]
    assert [p.digest for p in parsed] == [rec.shown(name) for rec in LIST]
    assert [p.start for p in parsed] == starts(name)[:-1]
    assert [p.end for p in parsed] == starts(name)[1:]


@pytest.mark.parametrize("name", ["sha384", "sha512"])
def test_padded_banks_are_read_and_found(name: str) -> None:
    data = binary_list(LIST, name, padded=True)
    assert detect(data).name == name
    assert [p.record for p in read(data)] == [record(rec) for rec in LIST]


@pytest.mark.parametrize("name", NAMES)
def test_the_bank_is_found(name: str) -> None:
    assert detect(binary_list(LIST, name)) == bank(name)


@pytest.mark.parametrize("name", NAMES)
def test_violations_in_front_do_not_hide_the_bank(name: str) -> None:
    records = [violation(10, b"/v%d" % number) for number in range(20)] + list(LIST)
    assert detect(binary_list(records, name)).name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_first_record_that_is_cut_is_not_taken_for_another_banks(name: str) -> None:
    """Once the template's name is there, the place told is that of the length behind it."""
    data = binary_list(LIST[:1], name)
    length_at = 4 + WIDTHS[name] + 4 + len(LIST[0].label)
    for size in range(length_at + 4, len(data)):
        with pytest.raises(FormatError) as caught:
            detect(data[:size])
        assert (caught.value.record, caught.value.offset) == (0, length_at)


def test_a_place_that_no_bank_has_anything_for_is_that_of_sha1() -> None:
    data = bytearray(binary_list(LIST, "sha1"))
    data[24:26] = b"\xff\xff"
    with pytest.raises(FormatError, match="of a sha1 list; --bank names another") as caught:
        detect(bytes(data))
    assert (caught.value.record, caught.value.offset) == (0, 24)


def test_the_empty_list_is_a_list() -> None:
    assert detect(b"").name == "sha1"
    assert list(read(b"")) == []


@pytest.mark.parametrize("name", NAMES)
def test_violations_only_say_nothing_about_the_bank(name: str) -> None:
    records = [violation(10, b"/v1"), violation(10, b"/v2")]
    data = binary_list(records, name)
    with pytest.raises(FormatError, match="violations"):
        detect(data)
    assert [p.record for p in read(data, bank(name))] == [record(rec) for rec in records]


@pytest.mark.parametrize(
    ("name", "padded"), [*((name, False) for name in NAMES), ("sha384", True), ("sha512", True)]
)
def test_cut_at_every_byte(name: str, padded: bool) -> None:
    data, ends = binary_list(LIST, name, padded=padded), starts(name)
    for size in range(len(data)):
        whole = max(number for number, end in enumerate(ends) if end <= size)
        found, error = refusal(data[:size], bank(name))
        assert len(found) == whole, size
        if size in ends:
            assert error is None, size
            continue
        assert error is not None, size
        assert error.record == whole, size
        assert error.offset is not None
        assert error.offset >= ends[whole], size


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_list_is_refused_at_a_place_inside_it(name: str) -> None:
    data, ends = binary_list(LIST, name), starts(name)
    for size in range(len(data)):
        if size not in ends:
            _, error = refusal(data[:size], bank(name))
            assert error is not None
            assert error.offset is not None
            assert error.offset <= size, size


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_every_byte_with_the_bank_unknown(name: str) -> None:
    data, ends = binary_list(LIST, name), starts(name)
    for size in range(1, len(data)):
        found, error = refusal(data[:size], None)
        if size in ends:
            assert error is None, size
            assert len(found) == ends.index(size)
        else:
            assert error is not None, size
            assert error.record is not None, size


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_is_refused_in_its_own_record(name: str) -> None:
    data, ends = binary_list(LIST, name), starts(name)
    for at in range(len(data)):
        number = max(n for n, end in enumerate(ends) if end <= at)
        inside = at - ends[number]
        if LIST[number].violation and inside >= 4 + bank(name).digest_size:
            continue  # a violation's zero digest covers nothing
        for bit in range(8):
            if inside == 0 and data[at] ^ 1 << bit < 64:
                continue  # another PCR: no digest covers it
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            found, error = refusal(bytes(broken), bank(name))
            assert error is not None, (at, bit)
            assert error.record == number, (at, bit, str(error))
            assert error.offset is not None
            assert error.offset >= ends[number]
            assert len(found) == number


REGIONS = {
    "pcr": (1, "PCR"),
    "digest": (4 + 3, "digest"),
    "name length": (4 + 20 + 1, "template name"),
    "name": (4 + 20 + 4, "unknown template"),
    "data length": (4 + 20 + 4 + 6, ""),
    "field length": (4 + 20 + 4 + 6 + 4, "field 0"),
    "field data": (4 + 20 + 4 + 6 + 4 + 4, "digest"),
}


@pytest.mark.parametrize("region", REGIONS)
def test_the_refusal_says_what_is_wrong(region: str) -> None:
    inside, reason = REGIONS[region]
    data = bytearray(binary_list(LIST, "sha1"))
    start = starts("sha1")[2]
    data[start + inside] ^= 0x40
    _, error = refusal(bytes(data), bank("sha1"))
    assert error is not None
    assert error.record == 2
    assert reason in error.reason
    assert str(error).startswith(f"record 2, byte {error.offset}: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_digest_of_the_first_record_is_named_with_the_bank_unknown(name: str) -> None:
    # All widths are tried: a later record tells the true one, or the furthest attempt.
    for recs in (LIST, LIST[:1]):
        data = bytearray(binary_list(recs, name))
        data[4] ^= 1
        found, error = refusal(bytes(data), None)
        assert error is not None
        assert (len(found), error.record) == (0, 0)
        assert f"the {name} template digest" in error.reason


def test_digests_of_two_banks_in_one_list_are_refused() -> None:
    first, second = LIST[0], LIST[2]
    data = first.binary(first.digest("sha256")) + second.binary(second.digest("sha1").ljust(32))
    found, error = refusal(data, None)
    assert len(found) == 1
    assert error is not None
    assert error.record == 1


@pytest.mark.parametrize("pcr", [64, 255, 0xFFFFFFFF])
def test_a_pcr_that_no_rule_can_name_is_refused(pcr: int) -> None:
    rec = ng(10, b"/a")
    data = u32(pcr) + rec.binary(rec.digest("sha1"))[4:]
    _, error = refusal(data, bank("sha1"))
    assert error is not None
    assert (error.record, error.offset) == (0, 0)
    assert f"PCR {pcr}" in error.reason


def test_huge_lengths_are_refused_without_reading_on() -> None:
    rec = ng(10, b"/a")
    data = bytearray(rec.binary(rec.digest("sha1")))
    data[34:38] = b"\xff\xff\xff\xff"
    _, error = refusal(bytes(data), bank("sha1"))
    assert error is not None
    assert error.offset == 34
    assert "4294967295" in error.reason


def ima(pcr: int, digest: bytes, name: bytes) -> Rec:
    return Rec(pcr, "ima", (digest, name))


def test_template_ima_with_md5_between_longer_ones() -> None:
    # boot_aggregate keeps 20 bytes even with ima_hash=md5 (observed on 7.3.4).
    records = [
        ima(10, bytes(20), b"boot_aggregate"),
        ima(10, b"\x11" * 16, b"/bin/one"),
        ima(10, b"\x22" * 16, b""),
        ima(10, b"\x33" * 16, b"ab"),
        ima(10, b"\x44" * 20, b"/sha1"),
    ]
    for name in NAMES:
        parsed = list(read(binary_list(records, name), bank(name)))
        assert [p.record for p in parsed] == [record(rec) for rec in records]


def test_a_violation_of_template_ima() -> None:
    records = [
        ima(10, b"\x11" * 20, b"/a"),
        Rec(10, "ima", (bytes(20), b"/v"), violation=True),
        ima(10, b"\x22" * 20, b"/b"),
    ]
    for name in NAMES:
        parsed = list(read(binary_list(records, name)))
        assert [p.record for p in parsed] == [record(rec) for rec in records]


def test_reader_checks_no_digest() -> None:
    rec = ng(10, b"/a")
    assert next(iter(Reader(rec.binary(b"\x99" * 20), 20))).record == record(rec)
