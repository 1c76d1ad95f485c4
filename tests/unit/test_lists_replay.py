# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Replay against hashlib, and against the PCRs of recorded kernels."""

from __future__ import annotations

import hashlib

import pytest

from imafs.formats.algorithms import Bank
from imafs.lists.replay import Replay
from tests.property.builders import banks
from tests.property.reference import Rec, ng, u32, violation

RECS = [ng(10, b"/a"), ng(11, b"/a"), violation(10, b"/v"), ng(10, b"/b"), ng(10, b"/c")]
TPM = banks("sha1", "sha256")


def entry(rec: Rec) -> bytes:
    if rec.violation:
        return u32(rec.pcr) + b"\xff" * 52
    return u32(rec.pcr) + rec.digest("sha1") + rec.digest("sha256")


PACKED = b"".join(map(entry, RECS))


def values(
    recs: list[Rec], base: dict[str, dict[int, bytes]] | None = None
) -> dict[str, dict[int, bytes]]:
    """PCR 10 and 11 after these records, by hand."""
    pcrs = base or {
        "sha1": {10: bytes(20), 11: bytes(20)},
        "sha256": {10: bytes(32), 11: bytes(32)},
    }
    out = {name: dict(held) for name, held in pcrs.items()}
    for rec in recs:
        for name in ("sha1", "sha256"):
            size = len(out[name][10])
            digest = b"\xff" * size if rec.violation else rec.digest(name)
            out[name][rec.pcr] = hashlib.new(name, out[name][rec.pcr] + digest).digest()
    return out


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_against_hashlib(kind: type[bytes] | type[memoryview]) -> None:
    replay = Replay(TPM)
    replay.extend(kind(PACKED[:56]))
    replay.extend(kind(PACKED[56:]))
    expected = values(RECS)
    for bank in TPM:
        for pcr in (10, 11):
            assert replay.value(bank, pcr) == expected[bank.name][pcr]
    assert replay.pcrs == {10, 11}
    assert replay.equals(expected)
    assert replay.differences(expected) == []


def test_what_nobody_extended_is_zero() -> None:
    replay = Replay(TPM)
    assert replay.value(TPM[0], 10) == bytes(20)
    assert replay.value(TPM[1], 23) == bytes(32)
    assert replay.pcrs == set()
    assert replay.equals(values([]))


def test_from_a_base() -> None:
    base = values([ng(10, b"/before")])
    replay = Replay(TPM, base)
    assert replay.equals(base)
    replay.extend(PACKED)
    assert replay.equals(values(RECS, base))


@pytest.mark.parametrize("bank", [0, 1])
@pytest.mark.parametrize("pcr", [10, 11])
def test_a_difference_is_named(bank: int, pcr: int) -> None:
    replay = Replay(TPM)
    replay.extend(PACKED)
    actual = values(RECS)
    name = TPM[bank].name
    actual[name][pcr] = bytes(len(actual[name][pcr]))
    assert not replay.equals(actual)
    assert replay.differences(actual) == [(name, pcr)]


@pytest.mark.parametrize("count", range(len(RECS) + 1))
def test_advance_finds_every_place(count: int) -> None:
    replay = Replay(TPM)
    assert replay.advance(PACKED, values(RECS[:count])) == count
    # It stands there now.
    assert replay.equals(values(RECS[:count]))
    assert replay.advance(PACKED[count * 56 :], values(RECS)) == len(RECS) - count


def test_advance_without_a_place_changes_nothing() -> None:
    replay = Replay(TPM)
    replay.extend(PACKED[:56])
    before = values(RECS[:1])
    assert replay.advance(PACKED[56:], values([RECS[3]])) is None
    assert replay.equals(before)
    # A place in one bank only is none.
    mixed = {"sha1": values(RECS[:2])["sha1"], "sha256": values(RECS[:3])["sha256"]}
    assert replay.advance(PACKED[56:], mixed) is None
    assert replay.equals(before)


def test_advance_over_nothing() -> None:
    assert Replay(TPM).advance(b"", values([])) == 0
    assert Replay(TPM).advance(b"", values(RECS)) is None


def test_banks_that_cannot_be_hashed_stay_out() -> None:
    unknown = Bank(0x27, 32, None)
    replay = Replay((TPM[0], unknown, TPM[1]))
    assert replay.banks == TPM
    rec = RECS[0]
    sha1 = rec.digest("sha1")
    replay.extend(u32(10) + sha1 + sha1 + bytes(12) + rec.digest("sha256"))
    assert replay.equals(values([rec]))


def test_padded_banks_are_extended_in_their_own_hash() -> None:
    (bank,) = banks("sha512", padded=("sha512",))
    replay = Replay((bank,))
    digest = RECS[0].digest("sha1").ljust(64, b"\0")
    replay.extend(u32(10) + digest)
    assert replay.value(bank, 10) == hashlib.sha512(bytes(64) + digest).digest()
