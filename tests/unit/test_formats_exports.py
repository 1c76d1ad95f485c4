# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Exports for other verifiers, read back with readers of their own and compared."""

from __future__ import annotations

import hashlib
import json
import struct
from base64 import b64decode
from collections.abc import Iterator

import pytest

from imafs.errors import FormatError
from imafs.formats import exports
from imafs.formats.algorithms import by_name
from imafs.formats.exports import Row
from imafs.formats.list_file import parse
from tests.property.reference import Rec, binary_list, ng, u32, violation

RECS = [
    ng(10, b"boot_aggregate"),
    Rec(10, "ima", (hashlib.sha1(b"x").digest(), b"/bin/x")),
    Rec(11, "ima-sig", (b"sha512:\0" + bytes(64), b"/s\0", b"\3\2\4\xaa")),
    Rec(10, "ima-ngv2", (b"ima:sha256:\0" + b"\xaa" * 32, "/größe\n".encode() + b"\0")),
    ng(10, b"/\xff"),
    ng(10, b"/\x1b[0m"),
    violation(10, b"/v"),
    Rec(10, "ima-buf", (b"sha256:\0" + b"\xbb" * 32, b"label\0", b"\0\1")),
]
TPM_NUMBERS = {"sha1": 4, "sha256": 11, "sha384": 12, "sha512": 13}
BANKS = tuple(TPM_NUMBERS)


def rows(recs: list[Rec], bank: str) -> Iterator[Row]:
    for number, parsed in enumerate(parse(binary_list(recs, bank)).records()):
        yield Row(number, parsed, parsed.digest, by_name(bank))


def extended(rec: Rec, bank: str) -> bytes:
    digest = rec.digest(bank)
    return b"\xff" * len(digest) if rec.violation else digest


@pytest.mark.parametrize("bank", BANKS)
def test_cel_as_json(bank: str) -> None:
    events = json.loads(b"".join(exports.cel_json(rows(RECS, bank))))
    assert events == [
        {
            "recnum": number,
            "pcr": rec.pcr,
            "digests": [{"hashAlg": bank, "digest": extended(rec, bank).hex()}],
            "content_type": "ima_template",
            "content": {"template_name": rec.label, "template_data": rec.hashed.hex()},
        }
        for number, rec in enumerate(RECS)
    ]


def tlvs(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from(">BI", data, at)
        assert at + 5 + length <= len(data)
        yield kind, data[at + 5 : at + 5 + length]
        at += 5 + length


@pytest.mark.parametrize("bank", BANKS)
def test_cel_as_tlv(bank: str) -> None:
    fields = list(tlvs(b"".join(exports.cel_tlv(rows(RECS, bank)))))
    assert len(fields) == 4 * len(RECS)
    for number, rec in enumerate(RECS):
        recnum, pcr, digests, content = fields[4 * number : 4 * number + 4]
        assert recnum == (0, struct.pack(">Q", number))
        assert pcr == (1, bytes((rec.pcr,)))
        assert digests[0] == 3
        assert list(tlvs(digests[1])) == [(TPM_NUMBERS[bank], extended(rec, bank))]
        assert content[0] == 7
        assert list(tlvs(content[1])) == [(0, rec.label.encode()), (1, rec.hashed)]


@pytest.mark.parametrize("bank", BANKS)
def test_rfc9684(bank: str) -> None:
    document = json.loads(b"".join(exports.rfc9684(rows(RECS, bank))))
    (entries,) = document["ietf-tpm-remote-attestation:ima-event-logs"].values()
    assert list(document["ietf-tpm-remote-attestation:ima-event-logs"]) == ["ima-event-entry"]
    for number, (rec, entry) in enumerate(zip(RECS, entries, strict=True)):
        assert entry["event-number"] == str(number + 1)
        assert entry["ima-template"] == rec.label
        assert entry["pcr-index"] == rec.pcr
        assert entry["template-hash-algorithm"] == bank
        assert b64decode(entry["template-hash"]) == rec.shown(bank)
    assert entries[0]["filename-hint"] == "boot_aggregate"
    assert entries[1]["filedata-hash-algorithm"] == "sha1"
    assert b64decode(entries[1]["filedata-hash"]) == RECS[1].parts[0]
    assert b64decode(entries[2]["signature"]) == RECS[2].parts[2]
    assert entries[2]["filedata-hash-algorithm"] == "sha512"
    assert entries[3]["filedata-hash-algorithm"] == "sha256"
    assert b64decode(entries[3]["filedata-hash"]) == b"\xaa" * 32
    assert entries[3]["filename-hint"] == "/größe\n"
    # What YANG's strings do not have is left out: it is a hint.
    assert "filename-hint" not in entries[4]
    assert "filename-hint" not in entries[5]
    assert {key for entry in entries for key in entry} == {
        *("event-number", "ima-template", "filename-hint", "filedata-hash", "signature"),
        *("filedata-hash-algorithm", "template-hash-algorithm", "template-hash", "pcr-index"),
    }


def test_no_records() -> None:
    assert json.loads(b"".join(exports.cel_json(iter(())))) == []
    assert b"".join(exports.cel_tlv(iter(()))) == b""
    empty = json.loads(b"".join(exports.rfc9684(iter(()))))
    assert empty == {"ietf-tpm-remote-attestation:ima-event-logs": {"ima-event-entry": []}}


def test_what_a_form_cannot_say_is_refused() -> None:
    (row,) = rows([ng(32, b"/a")], "sha1")
    with pytest.raises(FormatError, match="no PCR 32"):
        list(exports.rfc9684([row]))
    md5 = Row(0, row.parsed, bytes(16), by_name("md5"))
    with pytest.raises(FormatError, match="no number for md5: give --to"):
        list(exports.cel_tlv([md5]))


def test_hashes_have_the_names_of_the_tools() -> None:
    (row,) = rows([ng(10, b"/a")], "sha1")
    sm3 = Row(0, row.parsed, bytes(32), by_name("sm3"))
    (event,) = json.loads(b"".join(exports.cel_json([sm3])))
    assert event["digests"][0]["hashAlg"] == "sm3_256"


def test_template_data_of_a_big_endian_list_is_what_was_hashed() -> None:
    part = struct.pack(">I", 5) + b"sha1:" + struct.pack(">I", 3) + b"/a\0"
    data = struct.pack(">I", 10) + hashlib.sha1(part).digest() + struct.pack(">I", 6) + b"ima-ng"
    (parsed,) = parse(data + struct.pack(">I", len(part)) + part).records()
    row = Row(0, parsed, parsed.digest, by_name("sha1"))
    (event,) = json.loads(b"".join(exports.cel_json([row])))
    assert bytes.fromhex(event["content"]["template_data"]) == part
    assert u32(5) not in part
