# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Quotes as bytes: those of tpm2-tools, and bytes that are none."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest

from imafs.attest.quote import (
    Clock,
    Selected,
    encode_pcrs,
    parse_pcrs,
    parse_public,
    parse_quote,
    parse_signature,
    selected,
    selection_of,
)
from imafs.attest.signatures import read_key, verify
from imafs.errors import FormatError
from tests.papertpm import PaperTpm

# tpm2_quote 5.4 on swtpm 0.7: -l sha256:10,11+sha1:10 -q abcdef12 -g sha256, all PCRs zero,
# with the key of tpm2_createak -G ecc -g sha256 -s ecdsa -f tss.
MESSAGE = bytes.fromhex(
    "ff54434780180022000b5f05f147afaf92c305125972f1a7bb322e99e065c8383642bc125886a5b762760004"
    "abcdef120000000000000049000000010000000001201910230016363600000002000b03000c000004030004"
    "0000204fea5e6a3ec5f5474a26d858bc77b6d7bd3ab864ea02d988683fdc648602b248"
)
SIGNATURE = bytes.fromhex(
    "0018000b002010ae1892ddd2a586543b2f745da90a4c079cbd7ffc5b93caf434ccb2276b45f50020aa67b679"
    "342e414cdbb6184e342bdf21c6dd4db594bccff6da6446da0e37ce03"
)
PUBLIC = bytes.fromhex(
    "00580023000b00050072000000100018000b00030010002090ceefe0bdb8e8c6c0273d5fa15a456ab04cf84d"
    "6ff79666025e354785f0e74d00201359172b883ce4766b9d38aae2f2f18cd894aa64bf60bc50454650ad15b8"
    "bf3f"
)
SELECTION = ((0x000B, (10, 11)), (0x0004, (10,)))

Parser = Callable[[bytes], object]


def test_a_quote_of_tpm2_tools() -> None:
    found = parse_quote(MESSAGE)
    assert found.nonce == bytes.fromhex("abcdef12")
    assert found.clock == Clock(73, 1, 0, True)
    assert found.selection == SELECTION
    values = Selected(SELECTION, (bytes(32), bytes(32), bytes(20)))
    signature = parse_signature(SIGNATURE)
    assert found.digest == values.digest(signature.algorithm)
    key = read_key(PUBLIC, "ak.pub")
    assert key.area is not None
    assert key.area.is_attestation_key
    assert key.area.name.hex().startswith("000b06ffe32a1658a128937df4ed54d486e0b7")
    assert verify(key, signature, MESSAGE) is None
    assert verify(key, signature, MESSAGE[:-1] + b"x") is not None
    # Without its size, as PEM, and as DER it is the same key.
    for form in (PUBLIC[2:], key.pem, key.der):
        assert read_key(form, "ak.pub").fingerprint == key.fingerprint


def test_the_file_of_values() -> None:
    machine = PaperTpm(banks=("sha1", "sha256", "sha384"))
    machine.files(b"/a")
    for pcrs in ((10,), (10, 11), tuple(range(11)), tuple(range(24))):
        chosen = machine.selection(*pcrs)
        data = machine.values(chosen)
        found = parse_pcrs(data)
        assert found.by_bank() == {
            bank: {n: machine.pcrs[bank][n] for n in pcrs} for bank in machine.banks
        }
        assert encode_pcrs(found) == data
        assert selected(selection_of(chosen), machine.pcrs) == found


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (parse_quote, MESSAGE),
        (parse_signature, SIGNATURE),
        (parse_public, PUBLIC),
        (parse_public, PUBLIC[2:]),
        (parse_pcrs, PaperTpm().values({"sha1": (10,), "sha256": (10,)})),
        (parse_public, PaperTpm("rsapss").area),
        (parse_signature, PaperTpm("rsapss").sign(b"")),
    ],
)
def test_bytes_that_are_cut_added_or_changed(parse: Parser, data: bytes) -> None:
    parse(data)
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            parse(data[:cut])
    with pytest.raises(FormatError):
        parse(data + b"\0")
    chance = random.Random(16)
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with suppress(FormatError):
            parse(bytes(changed))


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"\xfe", "no TPM made this"),
        (5, b"\x17", "attests something else"),  # a certification of a key
        (6, b"\xff\xff", "more than 66"),
        (76, b"\0\0\0\x11", "17 banks"),
        (68, b"\x02", "neither 0 nor 1"),
    ],
)
def test_where_a_message_is_wrong(at: int, value: bytes, why: str) -> None:
    # 6 front, 36 signer, 6 nonce, 17 clock, 8 firmware, then the selection
    if at == 76:
        at = 6 + 36 + 6 + 17 + 8
    elif at == 68:
        at = 6 + 36 + 6 + 16
    changed = MESSAGE[:at] + value + MESSAGE[at + len(value) :]
    with pytest.raises(FormatError, match=why):
        parse_quote(changed)


def test_a_bank_twice() -> None:
    at = 6 + 36 + 6 + 17 + 8 + 4 + 6
    assert MESSAGE[at : at + 2] == b"\0\x04"
    with pytest.raises(FormatError, match="twice"):
        parse_quote(MESSAGE[:at] + b"\0\x0b" + MESSAGE[at + 2 :])
    rows = struct.pack("<HB4sx", 0x0B, 3, b"\0\4\0\0") * 2
    data = struct.pack("<I", 2) + rows.ljust(128, b"\0") + bytes(4)
    with pytest.raises(FormatError, match="twice"):
        parse_pcrs(data)


def test_plain_values_are_told_what_to_do() -> None:
    with pytest.raises(FormatError, match="--pcrs_format=serialized"):
        parse_pcrs(bytes(84))  # tpm2_quote --pcrs_format=values


def test_sha1_signs_nothing() -> None:
    signature = parse_signature(b"\0\x18\0\x04" + SIGNATURE[4:])
    why = verify(read_key(PUBLIC, "ak.pub"), signature, MESSAGE)
    assert why == "a signature over sha1 proves nothing"


@pytest.mark.parametrize("scheme", ["rsassa", "p256"])
def test_a_signature_of_another_kind_of_key(scheme: str) -> None:
    other = PaperTpm("p384" if scheme == "rsassa" else "rsassa")
    signature = parse_signature(PaperTpm(scheme).sign(MESSAGE))
    assert verify(read_key(other.area, "ak.pub"), signature, MESSAGE) is not None


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n", b"\x30\x00"]
)
def test_files_that_hold_no_key(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_key(data, "ak.pub")


def test_a_point_that_is_not_on_the_curve() -> None:
    with pytest.raises(FormatError, match="no public key"):
        read_key(PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1]), "ak.pub")
