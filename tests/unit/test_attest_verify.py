# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which prefix of a list explains PCR values: by examples (any list: tests/property)."""

from __future__ import annotations

import hashlib

import pytest

from imafs.attest.verify import verify
from imafs.errors import FormatError
from tests.conformance.recordings import Moment, load, names
from tests.property.builders import BANKS, banks
from tests.property.reference import WIDTHS, Rec, binary_list, ng, violation

Values = dict[str, dict[int, bytes]]
RECS = [ng(10, b"boot_aggregate"), ng(10, b"/a"), violation(10, b"/v"), ng(10, b"/b")]


def pcrs(recs: list[Rec], tpm: tuple[str, ...] = ("sha1", "sha256")) -> Values:
    """PCR 10 and 11 after these records, by hand."""
    out = {name: {pcr: bytes(WIDTHS[name]) for pcr in (10, 11)} for name in tpm}
    for rec in recs:
        for name in tpm:
            digest = b"\xff" * WIDTHS[name] if rec.violation else rec.digest(name)
            out[name][rec.pcr] = hashlib.new(name, out[name][rec.pcr] + digest).digest()
    return out


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("count", range(1, len(RECS) + 1))
def test_every_prefix_is_found(name: str, count: int) -> None:
    found = verify(binary_list(RECS, name), pcrs(RECS[:count]))
    assert (found.bank, found.records, found.violations) == (name, 4, 1)
    assert (found.matched, found.excess) == (count, 4 - count)
    assert found.compared == (("sha1", 10), ("sha256", 10))
    assert found.mismatches == ()


def test_a_pcr_that_nothing_leads_to_is_named() -> None:
    actual = pcrs(RECS)
    actual["sha256"][10] = b"\x01" * 32
    found = verify(binary_list(RECS, "sha1"), actual)
    assert (found.matched, found.excess) == (None, 0)
    (wrong,) = found.mismatches
    assert (wrong.bank, wrong.pcr, wrong.actual) == ("sha256", 10, b"\x01" * 32)
    assert wrong.replayed == pcrs(RECS)["sha256"][10]


def test_banks_must_match_at_the_same_record() -> None:
    actual = {"sha1": pcrs(RECS[:2])["sha1"], "sha256": pcrs(RECS[:3])["sha256"]}
    assert verify(binary_list(RECS, "sha1"), actual).matched is None


def test_the_empty_list() -> None:
    assert verify(b"", pcrs([])).matched == 0
    assert verify(b"", pcrs(RECS)).matched is None


def test_a_list_with_a_wrong_digest_is_refused() -> None:
    data = bytearray(binary_list(RECS, "sha256"))
    start = len(binary_list(RECS[:1], "sha256"))
    data[start + 4] ^= 1
    with pytest.raises(FormatError) as caught:
        verify(bytes(data), pcrs(RECS))
    assert (caught.value.record, caught.value.offset) == (1, start + 4)


def test_padded_banks() -> None:
    sha1 = RECS[0].digest("sha1")
    actual = {"sha512": {10: hashlib.sha512(bytes(64) + sha1 + bytes(44)).digest()}}
    data = binary_list(RECS[:1], "sha512", padded=True)
    assert verify(data, actual, bank=banks("sha512")[0], padded=("sha512",)).matched == 1


# Several PCRs

OTHER = ng(11, b"/other")


def test_a_pcr_that_begins_after_the_quote() -> None:
    # Quoted after the first record; PCR 11 was still zero.
    recs = [RECS[0], OTHER]
    found = verify(binary_list(recs, "sha1"), pcrs(recs[:1]))
    assert (found.matched, found.excess) == (1, 1)


def test_a_pcr_that_begins_after_the_quote_and_excess_records() -> None:
    recs = [RECS[0], RECS[1], OTHER]
    found = verify(binary_list(recs, "sha1"), pcrs(recs[:1]))
    assert (found.matched, found.excess) == (1, 2)


def test_pcrs_to_which_nothing_was_extended_confirm_no_record() -> None:
    found = verify(binary_list(RECS, "sha1"), pcrs([]))
    assert found.matched is None
    assert all(not any(wrong.actual) for wrong in found.mismatches)
    assert {wrong.pcr for wrong in found.mismatches} == {10}
    assert verify(b"", pcrs([])).matched == 0


def test_a_list_without_all_records_of_a_pcr_is_none() -> None:
    """D or N has deleted all that went to PCR 10: what is left of PCR 11 is not the list."""
    recs = [RECS[0], RECS[1], OTHER]
    assert verify(binary_list(recs, "sha1"), pcrs(recs)).matched == 3
    found = verify(binary_list([OTHER], "sha1"), pcrs(recs))
    assert found.matched is None
    assert {wrong.pcr for wrong in found.mismatches} == {10}
    # On a kernel whose records go to PCR 11, what others do with PCR 10 is nobody's business.
    assert verify(binary_list([OTHER], "sha1"), pcrs(recs), pcr=11).matched == 1


def test_only_pcrs_that_never_got_their_value_are_named() -> None:
    recs = [RECS[0], RECS[1], OTHER]
    actual = pcrs(recs[:1])
    for name in actual:
        actual[name][11] = b"\x01" * WIDTHS[name]
    found = verify(binary_list(recs, "sha1"), actual)
    assert found.matched is None
    assert {(wrong.bank, wrong.pcr) for wrong in found.mismatches} == {
        ("sha1", 11),
        ("sha256", 11),
    }


# Recorded kernels

RECORDED = [
    moment
    for name in names()
    for moment in load(name).moments()
    if moment.pcrs and not str(moment).endswith("after-kexec-D")
]


@pytest.mark.parametrize("moment", RECORDED, ids=str)
def test_recorded_lists_explain_the_recorded_pcrs(moment: Moment) -> None:
    name = "binary_runtime_measurements"
    data = moment.files.get(f"{name}_staged", b"") + moment.files.get(name, b"")
    if not data:
        assert moment.recording == "7.3.4-gen5000"  # only checksums were kept
        return
    old = moment.recording.startswith("6.1")
    padded = ("sha384", "sha512") if old else ()
    found = verify(data, moment.pcrs, padded=padded)
    assert found.matched == found.records
    assert {bank for bank, _ in found.compared} == set(moment.pcrs)
