# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The join by hand: what a keeper finds after a crash at each step, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from imafs.keeper import facts
from imafs.keeper.facts import Found, How, Kind, Mode
from imafs.keeper.join import plan
from tests.property.keepermodel import DECIDING, OTHER, Listed, Rec, extended

MODES = {"sha1": Mode.REAL}
CLOCK = facts.Clock(0, 10, 1, 0)


def split(*names: str) -> list[Rec]:
    return [Rec(name, DECIDING, n) for n, name in enumerate(names)]


B = "boot_aggregate"


def frame(stored: Sequence[Rec], batch: Sequence[Rec], n: int = 0) -> facts.Frame:
    listed = Listed(batch)
    sha256 = listed.sha256(0, len(batch))
    return facts.Frame(
        *(n, len(stored) - len(batch), len(batch), "0", 0, 0, sha256, b"", "one"),
        *(len(batch), sha256, 0, How.STAGE, CLOCK, extended({}, stored, MODES), MODES),
    )


def store(stored: Sequence[Rec], batch: Sequence[Rec], *, done: bool = False) -> facts.StoreFacts:
    life = facts.LifeFacts(0, "one", MODES, "little", CLOCK)
    frames = (frame(stored, batch),) if batch else ()
    return facts.StoreFacts(life, Listed(stored), frames, done=0 if done else -1)


def kernel(k: Sequence[Rec], staged: int = 0, boot: str = "one") -> facts.KernelFacts:
    return facts.KernelFacts(boot, MODES, Listed(k), staged, flush=False)


def tpm(truth: Sequence[Rec], clock: facts.Clock = CLOCK) -> facts.TpmFacts:
    return facts.TpmFacts(extended({}, truth, MODES), clock)


def done(found: facts.Plan) -> list[str]:
    return [type(action).__name__ for action in found.actions]


TRUTH = split(B, "a", "b", "c")


def test_staged_and_not_stored() -> None:
    found = plan(store(TRUTH[:2], TRUTH[:2], done=True), kernel(TRUTH[2:], 2), tpm(TRUTH))
    assert (found.found, found.skip, found.verified) == (Found.SAME_LIFE, 0, True)
    assert done(found) == ["Store", "DeleteStaged", "MarkDone"]


def test_stored_and_not_deleted() -> None:
    """The frame was synced, D was not sent: nothing is stored twice."""
    found = plan(store(TRUTH[:3], TRUTH[1:3]), kernel(TRUTH[1:], 2), tpm(TRUTH))
    assert (found.found, found.skip) == (Found.SAME_LIFE, 2)
    assert done(found) == ["DeleteStaged", "MarkDone"]


def test_stored_and_not_deleted_and_others_took_what_follows() -> None:
    """N takes records from behind those that are staged: a gap, and the batch is there."""
    truth = [*TRUTH, *split("taken", "d")]
    k = [*TRUTH[1:3], truth[-1]]
    found = plan(store(TRUTH[:3], TRUTH[1:3]), kernel(k, 2), tpm(truth))
    assert (found.found, found.skip) == (Found.GAP, 2)
    assert done(found) == ["RecordGap", "Alarm", "Store", "TakeAnchor", "DeleteStaged"]
    behind = next(action for action in found.actions if isinstance(action, facts.Store))
    assert (behind.place, behind.count) == (2, 1)
    # It can have come again where the hash table is flushed, and where nobody tells: the next A
    # stages it then.
    for flush in (True, None):
        told = replace(kernel(k, 2), flush=flush)
        assert plan(store(TRUTH[:3], TRUTH[1:3]), told, tpm(truth)).skip == 0


def test_a_lost_batch_that_is_there_again_is_stored_behind_a_gap() -> None:
    """The machine was restored to where it was not deleted: it may be the one that is lost."""
    truth = [*TRUTH, *split("taken", "d")]
    k = kernel([*TRUTH[1:3], truth[-1]], 2)
    there = store(TRUTH[:3], TRUTH[1:3], done=True)
    assert plan(there, k, tpm(truth)).skip == 2
    found = plan(replace(there, damaged=True), k, tpm(truth))
    assert (found.found, found.skip) == (Found.GAP, 0)
    assert done(found).index("Store") < done(found).index("DeleteStaged")


def test_of_damaged_records_the_pcrs_alone_tell_what_is_stored() -> None:
    """Others stand in their place, in the last batch, too."""
    there = store(TRUTH[:3], TRUTH[1:3])
    hurt = replace(there, records=Listed(split("lost", "lost", "lost")))
    assert plan(hurt, kernel(TRUTH[1:], 2), tpm(TRUTH)).found is Found.GAP
    found = plan(replace(hurt, damaged=True), kernel(TRUTH[1:], 2), tpm(TRUTH))
    assert (found.found, found.skip, done(found)) == (
        *(Found.SAME_LIFE, 2, ["DeleteStaged", "MarkDone"]),
    )


def test_deleted_and_not_confirmed() -> None:
    found = plan(store(TRUTH[:3], TRUTH[1:3]), kernel(TRUTH[3:]), tpm(TRUTH))
    assert (found.found, found.skip) == (Found.SAME_LIFE, 0)
    assert done(found) == ["MarkDone"]


def test_violations_that_only_look_stored() -> None:
    """The pending batch is one violation, and another such violation is staged now."""
    stored, later = split(B, "V"), split("V")
    found = plan(store(stored, stored[1:]), kernel(later, 1), tpm([*stored, *later]))
    assert found.skip == 0
    assert done(found) == ["MarkDone", "Store", "DeleteStaged", "MarkDone"]


def test_a_carry_that_was_cut_and_lost_only_stored_records() -> None:
    k = split(B, "a", B, "d")
    truth = [*TRUTH, *k[2:]]
    found = plan(store(TRUTH, TRUTH), kernel(k, boot="two"), tpm(truth))
    assert (found.found, found.skip, found.refuse) == (Found.SAME_LIFE, 2, None)
    assert Kind.HEALED in [a.kind for a in found.actions if isinstance(a, facts.Alarm)]


def test_a_carry_that_lost_what_was_not_stored() -> None:
    k = split(B, "a", B, "d")
    truth = [*TRUTH, *split("lost"), *k[2:]]
    found = plan(store(TRUTH, TRUTH), kernel(k, boot="two"), tpm(truth))
    assert found.found is Found.GAP
    assert found.refuse is not None
    assert "RecordGap" in done(found)
    assert "TakeAnchor" in done(found)


def test_without_the_clock_a_list_tells_itself_whose_life_it_goes_on() -> None:
    """One that has its kernel's boot_aggregate, and does not lead from zero: a kexec's."""
    k = split(B, "d")
    lost = replace(tpm([*TRUTH, *split("lost"), *k]), clock=None)
    before = store(TRUTH, TRUTH, done=True)
    assert before.life is not None
    before = replace(before, life=replace(before.life, clock=None))
    found = plan(before, kernel(k, boot="two"), lost)
    assert (found.found, "OpenLife" in done(found)) == (Found.GAP, False)
    assert [a.gap.index for a in found.actions if isinstance(a, facts.RecordGap)] == [4]
    trimmed = plan(before, kernel(k[1:], boot="two"), lost)
    assert (trimmed.found, "OpenLife" in done(trimmed)) == (Found.GAP, True)


def test_a_stored_record_whose_extend_failed_is_no_other_life() -> None:
    """Its carry was cut in front of it: what is left leads from zero to the PCRs without it."""
    k = split(B, B, "c")
    before = store(TRUTH[:2], TRUTH[:2])
    found = plan(before, kernel(k, boot="two"), tpm(k))
    assert (found.found, "OpenLife" in done(found)) == (Found.GAP, False)
    later = plan(before, kernel(k, boot="two"), tpm(k, facts.Clock(0, 20, 2, 0)))
    assert (later.found, later.refuse) == (Found.NEW_LIFE, None)


def test_the_next_kernels_own_boot_aggregate_is_not_the_stored_one() -> None:
    """Hibernation, and a kexec: the list and the PCR are those of the first boot, byte by byte."""
    first = split(B)
    found = plan(store(first, first), kernel(first, boot="two"), tpm(first))
    assert found.skip == 0
    assert "DeleteStaged" not in done(found)


def test_the_same_boot_twice_is_another_life() -> None:
    after = facts.Clock(0, 5, 2, 0)
    found = plan(store(TRUTH, TRUTH, done=True), kernel(TRUTH, boot="two"), tpm(TRUTH, after))
    assert (found.found, found.skip) == (Found.NEW_LIFE, 0)


def test_a_first_start_on_a_list_that_was_trimmed() -> None:
    found = plan(facts.StoreFacts(), kernel(TRUTH[2:]), tpm(TRUTH))
    assert found.found is Found.GAP
    assert done(found)[:2] == ["OpenLife", "RecordGap"]


def test_a_failed_extend_under_the_lock_is_no_gap() -> None:
    held = replace(kernel(TRUTH[1:]), known=0)
    found = plan(store(TRUTH[:1], TRUTH[:1], done=True), held, tpm([*TRUTH[:2], TRUTH[3]]))
    assert (found.found, found.refuse) == (Found.DIVERGED, None)
    assert "TakeAnchor" in done(found)


def test_a_record_whose_extend_failed_is_not_taken_for_a_stored_one() -> None:
    """PCRs alone say that K[:1] is stored; its bytes are nowhere."""
    found = plan(store(TRUTH[:2], TRUTH[1:2]), kernel(TRUTH[2:]), tpm([*TRUTH[:2], TRUTH[3]]))
    assert found.skip == 0
    assert found.found is Found.DIVERGED


def test_a_restored_machine_goes_on_from_where_it_was() -> None:
    now = split("x")
    early = facts.Clock(0, 3, 1, 0)
    found = plan(store(TRUTH, TRUTH, done=True), kernel(now), tpm([*TRUTH[:2], *now], early))
    assert found.found is Found.ROLLED_BACK
    assert [a.index for a in found.actions if isinstance(a, facts.ForkLife)] == [2]


def test_an_end_that_is_not_exact_decides_nothing() -> None:
    loose = replace(kernel(TRUTH[2:], 2), pinned=False)
    found = plan(store(TRUTH[:2], TRUTH[:2], done=True), loose, tpm(TRUTH))
    assert (found.found, found.skip) == (Found.UNDECIDED, None)
    assert done(found) == ["WaitForKernel", "Alarm"]


def test_a_list_that_was_taken_in_pieces_is_looked_at_until_it_is_confirmed() -> None:
    """Nothing of it is served before, and nobody looks once it is known what is stored."""
    before = store(TRUTH[:2], TRUTH[1:2])
    assert before.life is not None
    before = replace(before, life=replace(before.life, whole=False))
    held = replace(kernel(TRUTH[1:]), known=1, pinned=False)
    assert plan(before, held, tpm(TRUTH)).found is Found.UNDECIDED
    found = plan(before, replace(held, known=None, pinned=True), tpm(TRUTH))
    assert (found.found, found.skip, found.verified, found.refuse) == (
        *(Found.SAME_LIFE, 1, True, None),
    )
    piece = plan(before, replace(held, part=True), tpm(TRUTH))
    assert (piece.found, piece.skip) == (Found.SAME_LIFE, 1)


def growing(k: Sequence[Rec], extended: int) -> facts.KernelFacts:
    return replace(kernel(k, 1), pinned=False, extended=extended)


def test_the_pcrs_tell_how_much_of_a_growing_list_they_have() -> None:
    later = [*TRUTH, *split("d", "e")]
    before = store(TRUTH[:2], TRUTH[1:2])
    for then in (3, 4, 5, 6):
        found = plan(before, growing(later[1:], 2), tpm(later[:then]))
        assert (found.found, found.skip, found.verified, found.later) == (
            *(Found.SAME_LIFE, 1, True, 6 - then),
        )
    # As they were before all of them were read: that cannot be.
    assert plan(before, growing(later[1:], 3), tpm(later[:3])).found is Found.UNDECIDED


def test_banks_that_were_read_one_behind_the_other_tell_the_first_end() -> None:
    later = [*TRUTH, *split("d", "e")]
    modes = {"sha1": Mode.REAL, "sha256": Mode.REAL}
    first, behind = (extended({}, later[:end], modes) for end in (4, 5))
    values = {"sha1": behind["sha1"], "sha256": first["sha256"]}
    k = replace(growing(later, 2), modes=modes)
    life = facts.LifeFacts(0, "one", modes, "little", CLOCK, whole=False)
    begun = facts.StoreFacts(life, Listed([]))
    found = plan(begun, k, facts.TpmFacts(values, CLOCK))
    (anchor,) = [a.anchor for a in found.actions if isinstance(a, facts.TakeAnchor)]
    assert (found.found, found.later) == (Found.SAME_LIFE, 2)
    assert (anchor.index, anchor.pcrs) == (4, first)


@pytest.mark.parametrize(
    ("more", "flush"), [(("V", "V"), False), (("d", "V"), False), (("d", "d"), True)]
)
def test_what_is_alike_does_not_tell_how_much_of_it_they_have(
    more: tuple[str, ...], flush: bool
) -> None:
    """From violations that followed each other the same PCRs come as from those before them."""
    later = [*TRUTH, *split(*more)]
    k = replace(growing(later[1:], 3), flush=flush)
    found = plan(store(TRUTH[:2], TRUTH[1:2]), k, tpm(later))
    assert found.found is Found.UNDECIDED


def test_what_is_staged_was_extended_for_certain() -> None:
    """Without a barrier the last record read may not be; but A was one, whoever wrote it. These
    PCRs are of an extend that failed, not of an end within what D deletes."""
    k = replace(growing(split("a", "b", "c"), 1), staged=2)
    found = plan(store(TRUTH[:1], TRUTH[:1], done=True), k, tpm(TRUTH[:2]))
    assert (found.found, done(found)) == (Found.UNDECIDED, ["WaitForKernel", "Alarm"])


def test_an_anchor_has_no_value_that_may_be_of_another_end() -> None:
    """That of a bank which this machine cannot hash was read when there were more records."""
    before = store(TRUTH[:2], TRUTH[1:2], done=True)
    assert before.life is not None
    before = replace(before, life=replace(before.life, whole=False))
    k = replace(growing(TRUTH[2:], 1), modes={"sha1": Mode.REAL, "a-hash": Mode.REAL})
    values = {**extended({}, TRUTH[:3], MODES), "a-hash": {DECIDING: b"of the end"}}
    found = plan(before, k, facts.TpmFacts(values, CLOCK))
    (anchor,) = [a.anchor for a in found.actions if isinstance(a, facts.TakeAnchor)]
    assert (anchor.index, anchor.pcrs) == (3, extended({}, TRUTH[:3], MODES))


def test_a_growing_list_that_leads_nowhere_costs_few_walks() -> None:
    """Each violation of the last batch may be the last that was deleted."""
    stored = [Rec(B, DECIDING, 0), *split(*["V"] * 300)]
    k = Listed([*stored[1:], *split(*(f"r{n}" for n in range(700)))])
    grown = replace(growing(k.recs, 900), records=k)
    found = plan(store(stored, stored[1:]), grown, tpm([*stored, *split("lost")]))
    assert found.found is Found.UNDECIDED
    assert k.extended < 20 * len(k)


def test_another_pcr_does_not_tell_it_either() -> None:
    later = [*TRUTH, Rec("d", OTHER, 9)]
    found = plan(store(TRUTH[:2], TRUTH[1:2]), growing(later[1:], 3), tpm(later))
    assert found.found is Found.UNDECIDED


def test_a_kernel_that_ends_is_asked_for_nothing() -> None:
    ends = replace(kernel(TRUTH[2:], 2), suspended=13)
    found = plan(store(TRUTH[:2], TRUTH[:2], done=True), ends, tpm(TRUTH))
    assert (found.found, found.skip, found.refuse) == (Found.SUSPENDED, 0, None)
    assert done(found) == ["WaitForKernel", "Alarm"]
    begins = plan(facts.StoreFacts(), replace(kernel(TRUTH), suspended=13), tpm(TRUTH))
    assert (begins.found, begins.skip, done(begins)) == (Found.SUSPENDED, None, done(found))
    assert begins.refuse is not None


@pytest.mark.parametrize("violations", [False, True])
def test_a_long_list_that_leads_nowhere_is_decided_in_bounded_work(violations: bool) -> None:
    """Digests drawn, not seconds: of 20,000 records, n * n / 2 would be 200 million."""
    names = ["V" if violations else f"r{n}" for n in range(20_000)]
    k = Listed(split(*names))
    stored = split(B, *names[:5_000])
    facts_ = replace(kernel(()), records=k)
    lost = [*stored, *split("lost"), *k.recs[5_000:]]
    found = plan(store(stored, stored[1:]), facts_, tpm(lost))
    # Of records that come once the head of the list proves that none was taken behind it.
    assert found.found is (Found.GAP if violations else Found.DIVERGED)
    assert k.extended < 20 * len(k) + 5_000_000


def test_a_long_list_costs_few_walks() -> None:
    truth = split(B, *(f"r{n}" for n in range(100_000)))
    k = Listed(truth[1:])
    found = plan(store(truth[:1001], truth[1:1001]), replace(kernel(()), records=k), tpm(truth))
    assert (found.found, found.skip) == (Found.SAME_LIFE, 1000)
    assert k.extended <= 4 * len(k)


def anchored(facts_: facts.StoreFacts, index: int, clock: facts.Clock) -> facts.StoreFacts:
    """The PCRs were zero behind record ``index``."""
    anchor = facts.Anchor(index, extended({}, (), MODES), "the PCR began anew", clock)
    return replace(facts_, anchors=(anchor,))


def test_a_violation_that_came_again_behind_a_hibernation_is_not_taken_for_the_stored_one() -> None:
    """S led to zero, and so does K: whether K is stored or new the PCRs do not tell."""
    stored = split(B, "V")
    before = anchored(store(stored, stored[1:]), 2, CLOCK)
    after = replace(CLOCK, restart=1)
    found = plan(before, kernel(split("V"), 1), facts.TpmFacts(extended({}, (), MODES), after))
    assert (found.found, found.skip) == (Found.GAP, 0)
    assert done(found).index("Store") < done(found).index("DeleteStaged")


def test_all_records_since_a_reset_came_again_behind_another_one() -> None:
    stored, again = split(B, "a", "V"), split("V")
    one = store(stored, stored[2:])
    anchored_ = anchored(one, 2, CLOCK)
    frames = [replace(one.frames[0], pcrs=extended({}, again, MODES))]
    before = replace(anchored_, frames=frames)
    after = replace(CLOCK, restart=1)
    truth = [*again, *split("b")]
    found = plan(before, kernel([*again, *split("b")], 1), tpm(truth, after))
    assert (found.found, found.skip) == (Found.GAP, 0)
    steady = plan(before, kernel([*again, *split("b")], 1), tpm(truth))
    assert (steady.found, steady.skip) == (Found.SAME_LIFE, 1)


def test_sleep_makes_no_gap_of_a_crash() -> None:
    """S3 counts as a restart too: the batch is told from a new one by a record that comes once."""
    after = replace(CLOCK, restart=1)
    found = plan(store(TRUTH, TRUTH), kernel(TRUTH, 4), tpm(TRUTH, after))
    assert (found.found, found.skip, found.refuse) == (Found.SAME_LIFE, 4, None)
    flushing = replace(kernel(TRUTH, 4), flush=True)
    found = plan(store(TRUTH, TRUTH), flushing, tpm(TRUTH, after))
    assert (found.found, found.skip, found.refuse) == (Found.SAME_LIFE, 4, None)


def test_a_reset_inside_with_two_explanations_is_a_gap() -> None:
    """From zero, S[1:] ++ K[1:] leads to the PCRs, and K does: the first of K may be new."""
    stored, k = split(B, "V"), split("V", "V")
    found = plan(store(stored, stored[1:]), kernel(k, 2), tpm(k, replace(CLOCK, restart=1)))
    assert (found.found, found.skip) == (Found.GAP, 0)


def test_a_batch_goes_as_one() -> None:
    """The piece that was read of a long list is shorter than what of it is stored."""
    part = replace(kernel(TRUTH[:2]), staged=None, part=True, pinned=False, known=4)
    found = plan(store(TRUTH, TRUTH), part, tpm(TRUTH))
    assert [a for a in found.actions if isinstance(a, facts.DeleteFirst)] == [facts.DeleteFirst(4)]


def test_without_a_tpm_a_gap_settles_what_was_pending() -> None:
    """Nothing is staged over a batch that is unconfirmed. A crash and a kexec behind it do not make
    a new life of what may be a part of the old one; a reboot does."""
    k = split(B, "V", "V", B, "d")
    stored = split(B, "V", "V", "V")
    before = store(stored, stored)
    found = plan(before, kernel(k, boot="two"), facts.TpmFacts(None, None))
    assert found.found is Found.GAP
    assert "MarkDone" in done(found)
    settled = replace(before, gaps=[facts.Gap(4, "a gap")], done=0)
    for boot, records in (("two", k), ("three", [*k, *split(B)])):
        again = plan(settled, kernel(records, boot=boot), facts.TpmFacts(None, None))
        assert (again.found, again.skip) == (Found.SAME_LIFE, 0)
        assert again.refuse is not None
    reboot = plan(settled, kernel(split(B, "d"), boot="three"), facts.TpmFacts(None, None))
    assert (reboot.found, reboot.refuse) == (Found.NEW_LIFE, None)


def test_without_a_tpm_a_head_that_was_stored_before_the_batch_is_compared_too() -> None:
    """The last batch stored one record behind two that were stored already; K has two others."""
    before = store(TRUTH, TRUTH[1:])
    frames = [replace(before.frames[0], first=3, count=1, skip=2)]
    k = split("x", "y", B, "d")
    found = plan(
        replace(before, frames=frames), kernel(k, 4, boot="two"), facts.TpmFacts(None, None)
    )
    assert (found.found, found.skip) == (Found.SAME_LIFE, 0)


NO_TPM = facts.TpmFacts(None, None)


def carried(stored: Sequence[Rec], batch: Sequence[Rec], k: Sequence[Rec]) -> facts.Plan:
    """The plan without a TPM, behind a kexec and a crash: was the batch deleted, or not?"""
    return plan(store(stored, batch), kernel(k, boot="two"), NO_TPM)


def test_without_a_tpm_a_record_that_a_kexec_brought_along_may_come_again() -> None:
    """The kernel of the batch had ``a`` from the one before, so it may have measured it again, too;
    ``b`` it had measured itself."""
    stored = split(B, "a", B, "b")
    again = carried(stored, stored, split("a", B))
    assert again.found is Found.GAP
    assert again.refuse is not None
    once = carried(stored, stored, split("b", B))
    assert (once.found, once.skip) == (Found.SAME_LIFE, 1)


def test_without_a_tpm_a_whole_batch_of_such_records_may_have_come_again_too() -> None:
    stored, batch = split(B, "x", "a", B), split("a", B)
    again = carried(stored, batch, split("a", B, "c", B))
    assert again.found is Found.GAP
    own, ours = split(B, "x", "a", "b"), split("a", "b")
    once = carried(own, ours, split("a", "b", "c", B))
    assert (once.found, once.skip) == (Found.SAME_LIFE, 2)


def test_without_a_tpm_many_records_do_not_come_again_in_the_same_order() -> None:
    many = [f"f{n}" for n in range(120)]
    stored, batch = split(B, *many, B), split(*many, B)
    again = carried(stored, batch, split(*many, B, "c", B))
    assert (again.found, again.skip, again.refuse) == (Found.SAME_LIFE, 121, None)


def test_a_reboot_that_begins_as_the_boot_before_goes_not_on_from_it() -> None:
    """Others deleted its boot_aggregate: S ++ K[1:] leads to the PCR, but the TPM was reset."""
    stored, k = split(B, "a"), split("a", "b", B)
    before = store(stored, stored)
    kexec = plan(before, kernel(k, boot="two"), tpm([*stored, *k[1:]]))
    assert (kexec.found, kexec.skip) == (Found.SAME_LIFE, 1)
    after = facts.Clock(0, 20, 2, 0)
    reboot = plan(before, kernel(k, boot="two"), tpm([*stored, *k[1:]], after))
    assert (reboot.found, reboot.skip) == (Found.GAP, 0)
    assert "OpenLife" in done(reboot)


def test_a_lower_count_of_resets_is_no_reset() -> None:
    """TPM2_Clear sets it to 0, and leaves the PCRs as they are."""
    stored = [*TRUTH, *[Rec(f"f{n}", DECIDING, n) for n in range(120)]]
    k = split("d", B)
    clock = facts.Clock(0, 20, 0, 0)
    found = plan(store(stored, stored, done=True), kernel(k, boot="two"), tpm([*stored, *k], clock))
    assert (found.found, found.refuse) == (Found.SAME_LIFE, None)


@pytest.mark.parametrize("with_tpm", [True, False])
def test_a_batch_that_is_there_again_was_restored(with_tpm: bool) -> None:
    """It was deleted, as the journal says: the machine is one of before that."""
    before = store(TRUTH[:3], TRUTH[1:3], done=True)
    found = plan(before, kernel(TRUTH[1:], 3), tpm(TRUTH) if with_tpm else NO_TPM)
    assert (found.found, found.skip, found.refuse) == (Found.SAME_LIFE, 2, None)
    kinds = [a.kind for a in found.actions if isinstance(a, facts.Alarm)]
    assert Kind.ROLLED_BACK in kinds
    assert [a.count for a in found.actions if isinstance(a, facts.Store)] == [1]


@pytest.mark.parametrize("with_tpm", [True, False])
def test_a_stored_record_that_is_there_again_is_no_failed_extend(with_tpm: bool) -> None:
    """Without ``a``, which was stored before the last batch, the list leads to the PCRs."""
    stored, k = split(B, "a", "b"), split("a", "c")
    before = store(stored, stored[2:], done=True)
    found = plan(before, kernel(k, 2), tpm([*stored, *k[1:]]) if with_tpm else NO_TPM)
    assert found.found is Found.GAP
    assert found.refuse is not None


def test_a_crash_between_a_new_life_and_its_gap_leaves_the_gap() -> None:
    """What is left of the list leads from zero to the PCR that decides: ``x`` goes to another."""
    k = [Rec("x", 11, 0), *split(B, "a")]
    life = facts.LifeFacts(0, "one", MODES, "little", CLOCK, whole=False)
    for known in (None, 0):
        begun = facts.StoreFacts(life, Listed(()))
        found = plan(begun, replace(kernel(k, 3), known=known), tpm(k))
        assert (found.found, found.skip) == (Found.GAP, 0)
        assert found.refuse is not None


def test_no_extend_failed_where_the_tpm_began_anew() -> None:
    """A PCR that is zero again looks as if nothing had been extended since it was zero before."""
    stored, k = split(B, "V"), split("V", "b")
    before = anchored(store(stored, stored[1:]), 2, CLOCK)
    empty = replace(before, frames=[replace(before.frames[0], pcrs=extended({}, (), MODES))])
    after = replace(CLOCK, restart=1)
    found = plan(empty, kernel(k, 1), facts.TpmFacts(extended({}, (), MODES), after))
    assert (found.found, found.skip) == (Found.GAP, 0)


def test_all_that_is_stored_came_again_behind_a_hibernation_and_a_carry_lost_it() -> None:
    """S ++ K leads to the PCR; so does what a kernel in between made from zero, and lost."""
    stored, k = split(B), split(B, "b")
    before, after = store(stored, stored, done=True), replace(CLOCK, restart=1)
    found = plan(before, kernel(k, boot="two"), tpm([*stored, *k], after))
    assert found.found is Found.GAP
    steady = plan(before, kernel(k, boot="two"), tpm([*stored, *k]))
    assert (steady.found, steady.refuse) == (Found.SAME_LIFE, None)


def test_many_records_do_not_come_again_behind_a_sleep_and_a_kexec() -> None:
    stored = [*TRUTH, *[Rec(f"f{n}", DECIDING, n) for n in range(120)]]
    k, after = split("d", B), replace(CLOCK, restart=1)
    found = plan(store(stored, stored, done=True), kernel(k, boot="two"), tpm([*stored, *k], after))
    assert (found.found, found.refuse) == (Found.SAME_LIFE, None)


def test_an_anchor_at_zero_is_taken_again_when_the_tpm_began_anew() -> None:
    """Any list leads on from zero: a start could not tell what was lost in between."""
    before = anchored(store(TRUTH, TRUTH, done=True), 4, CLOCK)
    k, after = split("d"), replace(CLOCK, restart=1)
    unheld = plan(before, kernel(k), tpm(k, after))
    assert unheld.found is Found.GAP
    held = plan(before, replace(kernel(k), known=0), tpm(k, after))
    assert (held.found, held.refuse) == (Found.PCR_RESET, None)
    assert [a.anchor.clock for a in held.actions if isinstance(a, facts.TakeAnchor)] == [after]


def test_a_kexec_behind_a_hibernation_that_reset_the_tpm_is_of_the_same_life() -> None:
    """The keeper had noticed it: the anchor has the TPM's new count."""
    after = facts.Clock(0, 20, 2, 0)
    before = anchored(store(TRUTH, TRUTH, done=True), 4, after)
    k = split(B, "d")
    found = plan(before, kernel(k, boot="two"), tpm(k, replace(after, clock=30)))
    assert (found.found, found.skip, found.refuse) == (Found.SAME_LIFE, 0, None)
