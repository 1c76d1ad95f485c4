# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Verdicts on bundles, and the state that a verifier keeps between them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from imafs.attest.evidence import check, judge_bundle
from imafs.attest.firmware import Boot
from imafs.attest.judgement import Judgement
from imafs.attest.kinds import Kind
from imafs.attest.quote import Clock
from imafs.attest.signatures import read_keys
from imafs.attest.state import State, decode
from tests.papertpm import NONCE, PaperTpm
from tests.property.reference import Rec, ng, violation

SCHEMES = [
    (scheme, algorithm)
    for scheme in ("rsassa", "rsapss", "p256", "p384")
    for algorithm in ("sha256", "sha384")
]


@pytest.fixture
def machine() -> PaperTpm:
    made = PaperTpm()
    made.files(b"/a", b"/b", b"/c")
    return made


def learnt(judgement: Judgement, kind: Kind = Kind.OK) -> State:
    """The state, as it comes back from a disk."""
    assert (judgement.kind, judgement.state is None) == (kind, False), judgement.said
    assert judgement.state is not None
    return decode(judgement.state.encode(), "state")


@pytest.mark.parametrize(("scheme", "algorithm"), SCHEMES)
def test_every_scheme(scheme: str, algorithm: str) -> None:
    machine = PaperTpm(scheme, algorithm)
    machine.files(b"/a")
    found = judge_bundle(machine.bundle().encode(), machine.demand())
    assert (found.kind, found.records, found.excess) == (Kind.OK, 2, 0), found.said
    assert found.proven == (("sha1", 10), ("sha256", 10))
    # Of another key of the same kind.
    other = PaperTpm(scheme, algorithm, number=1)
    forged = replace(machine.bundle(), key=other.area)
    assert check(forged, machine.demand()).kind is Kind.SIGNATURE


def test_the_state_goes_on(machine: PaperTpm) -> None:
    state = learnt(check(machine.bundle(), machine.demand()))
    assert (state.index, state.sequence) == (4, 1)
    machine.files(b"/d")
    nonce = machine.demand(nonce=b"2")
    state = learnt(check(machine.bundle(b"2", first=4), nonce, state))
    assert (state.index, state.sequence) == (5, 2)
    # The whole list is taken as well, and no record at all.
    whole = check(machine.bundle(b"2"), nonce, state)
    assert learnt(whole).index == 5
    assert learnt(check(machine.bundle(b"2", first=5), nonce, state)).index == 5


def test_records_behind_the_quote_of_a_bundle_without_a_manifest(machine: PaperTpm) -> None:
    bundle = machine.bundle(manifest=False)
    machine.files(b"/late", b"/later")
    found = check(replace(bundle, records=machine.list()), machine.demand())
    assert (found.kind, found.records, found.excess) == (Kind.OK, 4, 2)
    state = learnt(found)
    assert state.index == 4
    assert state.pcrs["sha256"][10] == machine.after(4)["sha256"][10]


def test_all_records_behind_the_quote(machine: PaperTpm) -> None:
    state = learnt(check(machine.bundle(), machine.demand()))
    bundle = machine.bundle(b"2", first=4)
    machine.files(b"/late")
    assert bundle.manifest is not None
    late = replace(bundle, records=machine.list(4), manifest=replace(bundle.manifest, count=1))
    found = check(late, machine.demand(nonce=b"2"), state)
    assert (found.kind, found.excess) == (Kind.UNPROVEN, 1)


def test_reboot(machine: PaperTpm) -> None:
    state = learnt(check(machine.bundle(), machine.demand()))
    machine.reboot()
    machine.files(b"/other")
    found = check(machine.bundle(b"2"), machine.demand(nonce=b"2"), state)
    assert learnt(found, Kind.REBOOT).index == 2
    part = check(machine.bundle(b"2", first=1), machine.demand(nonce=b"2"), state)
    assert (part.kind, part.state) == (Kind.HEAD, None)


def test_a_hidden_reboot_count_still_tells_a_reboot(machine: PaperTpm) -> None:
    """A key outside of the endorsement hierarchy gets counters with a number added, mod 2^32."""
    machine.clock = Clock(1000, (1 << 32) - 1, 3, True)
    state = learnt(check(machine.bundle(), machine.demand()))
    machine.clock = Clock(1, 0, 3, True)
    machine.boot()
    assert check(machine.bundle(b"2"), machine.demand(nonce=b"2"), state).kind is Kind.REBOOT


def test_rollback(machine: PaperTpm) -> None:
    demand = machine.demand(nonce=b"2")
    state = learnt(check(machine.bundle(), machine.demand()))
    machine.clock = replace(machine.clock, clock=5)
    assert check(machine.bundle(b"2"), demand, state).kind is Kind.ROLLBACK
    machine.clock = Clock(9999, 6, 0, True)
    assert check(machine.bundle(b"2"), demand, state).kind is Kind.ROLLBACK


def test_pcrs_that_were_reset_without_a_reboot(machine: PaperTpm) -> None:
    demand = machine.demand(nonce=b"2")
    state = learnt(check(machine.bundle(), machine.demand()))
    machine.boot()
    machine.files(b"/x")
    found = check(machine.bundle(b"2"), demand, state)
    assert (found.kind, found.state) == (Kind.RESET, None)
    machine.files(b"/y", b"/z", b"/w")  # more records than before
    assert check(machine.bundle(b"2"), demand, state).kind is Kind.RESET


def test_kexec(machine: PaperTpm) -> None:
    state = learnt(check(machine.bundle(), machine.demand()))
    machine.measure(Rec(10, "ima-ng", (b"sha256:\0" + b"2" * 32, b"boot_aggregate\0")))
    machine.files(b"/d")
    demand = machine.demand(nonce=b"2")
    for first in (0, 4):
        found = check(machine.bundle(b"2", first=first), demand, state)
        assert (found.kind, found.boots) == (Kind.KEXEC, 1)
        # Told once: from then on it is known.
        after = learnt(found, Kind.KEXEC)
        machine.files(b"/e")
        assert check(machine.bundle(b"2"), demand, after).kind is Kind.OK
        machine.records.pop()
        machine.pcrs = {b: {**v, **machine.after(6)[b]} for b, v in machine.pcrs.items()}


def test_a_missing_head(machine: PaperTpm) -> None:
    bundle = machine.bundle()
    assert bundle.manifest is not None
    cut = replace(bundle, records=machine.list(1), manifest=replace(bundle.manifest, count=3))
    assert check(cut, machine.demand()).kind is Kind.HEAD
    # Trimmed after it was verified: what is left leads on from there.
    state = learnt(check(bundle, machine.demand()))
    machine.files(b"/d")
    later = machine.bundle(b"2", manifest=False)
    found = check(replace(later, records=machine.list(4)), machine.demand(nonce=b"2"), state)
    assert (found.kind, "first 4 records" in found.said) == (Kind.HEAD, True)


def test_a_changed_record_among_those_that_were_verified(machine: PaperTpm) -> None:
    """Nothing was measured since, so that the quote is the state's own value: none is missing."""
    state = learnt(check(machine.bundle(), machine.demand()))
    bundle = machine.bundle(b"2")
    machine.records[2] = ng(10, b"/another")
    found = check(replace(bundle, records=machine.list()), machine.demand(nonce=b"2"), state)
    assert (found.kind, found.state) == (Kind.MISMATCH, None)
    assert "missing, which were verified" not in found.said


def test_nonces(machine: PaperTpm) -> None:
    bundle = machine.bundle()
    assert check(bundle, machine.demand(nonce=b"other")).kind is Kind.NONCE
    state = learnt(check(bundle, machine.demand()))
    # The same bundle again, whatever was asked for.
    assert check(bundle, machine.demand(), state).kind is Kind.REPLAYED
    assert check(bundle, machine.demand(nonce=b"2"), state).kind is Kind.REPLAYED
    assert check(machine.bundle(b"3"), machine.demand(nonce=b"2"), state).kind is Kind.NONCE
    old = machine.bundle(b"old")
    state = learnt(check(machine.bundle(b"2"), machine.demand(nonce=b"2"), state))
    assert check(old, machine.demand(nonce=b"4"), state).kind is Kind.REPLAYED


def test_another_machine(machine: PaperTpm) -> None:
    other = PaperTpm(number=1)
    assert check(other.bundle(), machine.demand()).kind is Kind.MACHINE
    state = learnt(check(machine.bundle(), machine.demand()))
    found = check(other.bundle(b"2"), other.demand(nonce=b"2"), state)
    assert (found.kind, found.state) == (Kind.MACHINE, None)


def test_a_key_that_nothing_vouches_for(machine: PaperTpm) -> None:
    nobody = machine.demand(keys=())
    assert check(machine.bundle(), nobody).kind is Kind.KEY
    state = learnt(check(machine.bundle(), replace(nobody, enrol=True)))
    assert state.key == read_keys(machine.public, "")[0].fingerprint
    # From then on the state vouches.
    assert check(machine.bundle(b"2"), replace(nobody, nonce=b"2"), state).kind is Kind.OK
    assert check(replace(machine.bundle(), key=None), nobody).kind is Kind.KEY
    assert check(replace(machine.bundle(), key=None), machine.demand()).kind is Kind.OK


@pytest.mark.parametrize("attributes", [0x00040072, 0x00050070, 0x00070072, 0x00010072])
def test_a_key_that_signs_anything(machine: PaperTpm, attributes: int) -> None:
    area = machine.public_area(attributes)
    assert check(replace(machine.bundle(), key=area), machine.demand()).kind is Kind.KEY
    known = machine.demand(keys=tuple(read_keys(area, "ak.pub")))
    assert check(replace(machine.bundle(), key=machine.public), known).kind is Kind.KEY


def test_states_that_do_not_fit(machine: PaperTpm) -> None:
    demand = machine.demand(nonce=b"2")
    machine.files(b"/d")
    old = learnt(check(machine.bundle(), machine.demand()))  # 5 records
    machine.files(b"/e", b"/f")
    found = check(machine.bundle(b"2", first=6), demand, old)
    assert (found.kind, "--since 5" in found.said) == (Kind.STALE, True)
    assert check(machine.bundle(b"2", first=3), demand, old).kind is Kind.START
    assert check(machine.bundle(b"2", first=5), demand).kind is Kind.STALE


def test_start_values_are_the_verifiers_own(machine: PaperTpm) -> None:
    demand = machine.demand(nonce=b"2")
    state = learnt(check(machine.bundle(), machine.demand()))
    machine.files(b"/d")
    bundle = machine.bundle(b"2", first=4)
    assert bundle.manifest is not None
    start = {"sha256": {10: b"\x01" * 32}}
    forged = replace(bundle, manifest=replace(bundle.manifest, start=start))
    assert check(forged, demand, state).kind is Kind.START
    # Without the claim it is the state that counts: another history leads elsewhere.
    other = PaperTpm()
    other.files(b"/x", b"/b", b"/c", b"/d")
    silent = replace(other.bundle(b"2", first=4, manifest=True))
    assert silent.manifest is not None
    silent = replace(silent, manifest=replace(silent.manifest, start={}))
    found = check(silent, demand, state)
    assert (found.kind, found.state) == (Kind.MISMATCH, None)


def test_other_banks_than_the_state_has(machine: PaperTpm) -> None:
    state = learnt(check(machine.bundle(selection={"sha1": (10,)}), machine.demand()))
    machine.files(b"/d")
    demand = machine.demand(nonce=b"2")
    part = machine.bundle(b"2", first=4, selection={"sha256": (10,)})
    assert check(part, demand, state).kind is Kind.START
    both = machine.bundle(b"2", first=4)
    assert check(both, demand, state).proven == (("sha1", 10),)
    assert check(machine.bundle(b"2"), demand, state).kind is Kind.OK


def test_records_of_pcrs_that_were_not_quoted(machine: PaperTpm) -> None:
    machine.measure(ng(11, b"/other"))
    found = check(machine.bundle(), machine.demand())
    assert (found.kind, "--pcrs 10,11" in found.said) == (Kind.UNPROVEN, True)
    both = check(machine.bundle(selection=machine.selection(10, 11)), machine.demand())
    assert (both.kind, len(both.proven)) == (Kind.OK, 4)
    # Not even the one that must be there.
    machine.records.clear()
    alone = check(machine.bundle(selection={"sha256": (16,)}), machine.demand())
    assert alone.kind is Kind.UNPROVEN


def test_a_pcr_whose_only_record_was_left_out(machine: PaperTpm) -> None:
    before = machine.list()
    machine.measure(ng(11, b"/other"))
    both = machine.bundle(selection=machine.selection(10, 11), manifest=False)
    assert check(both, machine.demand()).kind is Kind.OK
    found = check(replace(both, records=before), machine.demand())
    assert (found.kind, "sha1:11 was extended" in found.said) == (Kind.UNPROVEN, True)
    # Left out together with its PCR: a verifier that knows the policy demands it.
    alone = replace(machine.bundle(manifest=False), records=before)
    assert check(alone, machine.demand()).kind is Kind.OK
    assert check(alone, machine.demand(pcrs=(10, 11))).kind is Kind.UNPROVEN
    # What was verified before explains it: no new record is needed.
    state = learnt(check(both, machine.demand()))
    machine.files(b"/e")
    later = machine.bundle(b"2", first=5, selection=machine.selection(10, 11))
    assert check(later, machine.demand(nonce=b"2"), state).kind is Kind.OK


@pytest.mark.parametrize("since", [True, False])
def test_a_pcr_that_had_records_is_quoted_again(machine: PaperTpm, since: bool) -> None:
    """The verifier knows where this machine's policy sends records, without having been told."""
    machine.measure(ng(11, b"/eleven"))
    both = machine.selection(10, 11)
    first = check(machine.bundle(selection=both), machine.demand())
    assert (first.kind, first.state is None) == (Kind.OK, False)
    known = len(machine.records)
    machine.files(b"/ten")
    kept = list(machine.records)
    machine.measure(ng(11, b"/evil"))
    machine.records = kept  # without the last one, and without its PCR
    later = machine.demand(nonce=b"2")
    bundle = machine.bundle(b"2", first=known if since else 0, selection=machine.selection(10))
    found = check(bundle, later, first.state)
    assert (found.kind, found.state) == (Kind.UNPROVEN, None)
    assert "records went to PCR 11 before" in found.said
    bundle = machine.bundle(b"2", first=known if since else 0, selection=both)
    assert not check(bundle, later, first.state).kind.accepted
    machine.reboot()  # perhaps with another policy
    assert check(machine.bundle(b"2"), later, first.state).kind is Kind.REBOOT


def test_violations_are_told(machine: PaperTpm) -> None:
    machine.measure(violation(10, b"/log"))
    found = check(machine.bundle(), machine.demand())
    assert (found.kind, found.violations, len(found.notes)) == (Kind.OK, 1, 1)
    assert learnt(found).violations == 1
    strict = check(machine.bundle(), machine.demand(no_violations=True))
    assert (strict.kind, strict.kind.accepted) == (Kind.VIOLATIONS, True)


def test_a_violation_that_was_turned(machine: PaperTpm) -> None:
    machine.measure(violation(10, b"/log"))
    bundle = machine.bundle()
    machine.records[-1] = replace(machine.records[-1], violation=False)
    assert check(replace(bundle, records=machine.list()), machine.demand()).kind is Kind.MISMATCH
    machine.records[1] = violation(10, b"/a")
    machine.records[-1] = violation(10, b"/log")
    assert check(replace(bundle, records=machine.list()), machine.demand()).kind is Kind.MISMATCH


def test_only_sha1(machine: PaperTpm) -> None:
    found = check(machine.bundle(selection={"sha1": (10,)}), machine.demand())
    assert (found.kind, any("SHA-1" in note for note in found.notes)) == (Kind.OK, True)


def test_boot_aggregate_and_the_quoted_pcrs(machine: PaperTpm) -> None:
    whole = machine.selection(*range(11))
    assert check(machine.bundle(selection=whole), machine.demand()).kind is Kind.BOOT
    machine.boot_only()
    digest = hashlib.sha256(bytes(320)).digest()
    machine.measure(Rec(10, "ima-ng", (b"sha256:\0" + digest, b"boot_aggregate\0")))
    found = check(machine.bundle(selection=whole), machine.demand())
    assert (found.kind, found.boot) == (Kind.OK, Boot.MATCHES)
    assert check(machine.bundle(), machine.demand()).boot is Boot.UNKNOWN


def test_padded_banks_are_taken_on_demand_alone() -> None:
    machine = PaperTpm(banks=("sha384",))
    machine.pcrs["sha384"][10] = bytes(48)
    for rec in machine.records:
        padded = rec.digest("sha1").ljust(48, b"\0")
        machine.pcrs["sha384"][10] = hashlib.sha384(machine.pcrs["sha384"][10] + padded).digest()
    found = check(machine.bundle(), machine.demand())
    assert (found.kind, "--padded-banks sha384" in found.said) == (Kind.UNPROVEN, True)
    assert check(machine.bundle(), machine.demand(padded=("sha384",))).kind is Kind.OK
    bundle = machine.bundle()
    assert bundle.manifest is not None
    claimed = replace(bundle, manifest=replace(bundle.manifest, padded=("sha384",)))
    assert check(claimed, machine.demand()).kind is Kind.UNPROVEN


def test_a_mutated_list_that_is_empty(machine: PaperTpm) -> None:
    assert check(replace(machine.bundle(), records=b""), machine.demand()).kind is Kind.MISMATCH


def test_what_the_kinds_say() -> None:
    assert len({kind.code for kind in Kind}) == len({kind.word for kind in Kind}) == len(Kind)
    assert NONCE


@pytest.mark.parametrize("known", [True, False])
def test_a_boot_of_which_nothing_was_measured(known: bool) -> None:
    """Of a kernel without IMA there is no record, and its PCR is zero: that proves nothing."""
    machine = PaperTpm()
    first = check(machine.bundle(), machine.demand())
    assert first.kind is Kind.OK
    machine.reboot()
    machine.boot_only()
    found = check(
        machine.bundle(b"\1"), machine.demand(nonce=b"\1"), first.state if known else None
    )
    assert (found.kind, found.state) == (Kind.UNPROVEN, None)
