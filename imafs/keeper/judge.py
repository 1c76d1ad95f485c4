# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which of the kernel's records are stored, and which life is this?

S is what is stored, K what the kernel has (see :mod:`imafs.keeper.facts`). The PCRs decide, in this
order: S ++ K[j:] leads to them: the same life. K alone does, from zero: a new life. The end of S
and K do, from zero: the PCR began anew inside the life. The beginning of S and K do: a virtual
machine was restored. Where nothing does, and it can be shown in another way that no record is
missing, the PCR has diverged. Where that cannot be shown, there is a gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from imafs.formats.algorithms import SHA1
from imafs.keeper import reach
from imafs.keeper.evidence import Evidence, Fork
from imafs.keeper.facts import (
    BEGAN_ANEW,
    BEHIND_A_GAP,
    CONFIRMED,
    Alarm,
    Found,
    Frame,
    How,
    Kind,
    Mode,
    Modes,
    PcrValues,
    diverged_alarm,
    reset_alarm,
)
from imafs.keeper.reach import Chain


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found, before it is known what is to be done about it."""

    found: Found
    skip: int | None
    why: str = ""
    verified: bool = False
    alarms: tuple[Alarm, ...] = ()
    #: Begin a new life, or fork this one behind so many records.
    opens: bool = False
    forks: Fork | None = None
    #: Index behind which records may be missing.
    gap: int | None = None
    #: Why replays cannot go on from before: an anchor is taken at the end of K.
    anchor: str | None = None
    #: Places of K from which on banks were extended in other modes.
    parts: tuple[tuple[int, Modes], ...] = ()


class Judge(Evidence):
    """Says what was found."""

    # --- the answer ---------------------------------------------------------------------------

    def answer(self) -> Answer:
        """What was found."""
        if self.store.life is None:
            return self._first_start()
        if self.kernel.known is not None:
            return self._held(self.kernel.known)
        if self.chains:
            return self._by_pcrs()
        if self.without_pcrs and not self.kernel.part:
            return self._by_intent()
        return self._by_bytes()

    def _first_start(self) -> Answer:
        new = Answer(Found.NEW_LIFE, 0, opens=True)
        if self.kernel.part:
            return new
        if not self.without_pcrs and not self.chains:
            return self._undecided("the end of the list was not exact")
        if not self.chains:
            if self.total and self.k.is_boot_aggregate(0):
                return replace(new, alarms=(self._unverified(),))
            return replace(new, found=Found.GAP, gap=0, why="the first record is gone")
        fit = self.from_zero()
        if fit:
            return self._new_life(fit)
        why = "the list does not lead from zero to the PCRs: it was trimmed before the first start"
        return replace(new, found=Found.GAP, gap=0, why=why, anchor=BEHIND_A_GAP)

    def _held(self, known: int) -> Answer:
        """The descriptor was ours all the time: nothing can be missing, whatever the PCRs say."""
        same = Answer(Found.SAME_LIFE, known)
        if not self.without_pcrs and not self.chains and max(self.kernels, default=0) > known:
            return self._undecided("another kernel extended a part: in which modes, the PCRs say")
        if not (self.without_pcrs or self.chains or self.kernel.part or self.store.begun):
            # No look follows one that has decided, and its view would be refused for good.
            return self._undecided("the end of the list was not exact")
        if not self.chains:
            absent = self.kernel.pinned and not self.kernel.part
            return replace(same, alarms=(self._unverified(),)) if absent else same
        fit = self.fit(known, self.chains)
        if fit and self.began_anew_at_zero():
            return self._was_reset(known)
        if fit:
            return self._fitting(known, fit)
        if not self.store.begun:
            why = "the list does not lead from zero to the PCRs"
            return self._gap(why, new=False, known=known)
        if self.reset_at(known) is not None:
            return self._was_reset(known)
        return self._diverged(known, "nobody else could delete records")

    def arrived(self, least: int) -> tuple[int, PcrValues] | None:
        """The end of K, behind ``least`` records or more, up to which it leads to the PCRs, and
        their values there: where these tell it. See :func:`imafs.keeper.join.plan`."""
        later = self.k.extends(SHA1.name, Mode.REAL, least, self.total)
        if not self.chains or any(pcr not in self.deciding for pcr, _ in later):
            return None
        known = self.kernel.known
        places = [known] if known is not None else [*self.likely(), *self.unlikely()]
        starts = [self.start(chain) or chain.zero for chain in self.chains]
        ways = [(starts, place) for place in dict.fromkeys(places) if place <= least]
        if known is None and 0 in self.kernels:
            ways.append(([chain.zero for chain in self.chains], 0))
        for states, place in ways:
            if not self.budget.take(self.total - place):
                return None
            if self.chains[0].arrives(states[0], place, least) is not None:
                return self._at_their_end(states, place, least)
        return None

    def _at_their_end(
        self, states: list[reach.State], place: int, least: int
    ) -> tuple[int, PcrValues] | None:
        """Banks are read one behind the other: all of them as they were at the first one's end."""
        ways = list(zip(self.chains, states, strict=True))
        ends = [chain.arrives(state, place, least) for chain, state in ways]
        found = [end for end in ends if end is not None and self._is_last(end)]
        if len(found) < len(ways):
            return None
        first = min(found)
        values = {}
        for (chain, state), end in zip(ways, found, strict=True):
            on_the_way = chain.until(first).ends(state, place)
            value = next(
                s for s in on_the_way if chain.walk(s, chain.now, first, end) == chain.target
            )
            values[chain.bank] = dict(zip(chain.pcrs, value, strict=True))
        return first, values

    def _is_last(self, end: int) -> bool:
        """Whether what the PCRs were extended with last stands in front of ``end`` alone.

        Then no other way can lead to them from another end of K, as it would from violations, which
        are all alike.
        """
        extends = [*self.k.extends(SHA1.name, Mode.REAL, 0, self.total)]
        last = extends[end - 1] if end else None
        usual = last is not None and last[0] in self.deciding and extends.count(last) == 1
        return usual and not reach.is_violation(self.k, end - 1)

    def _by_pcrs(self) -> Answer:
        found = self.search()
        # Two boots may make the same records: then only the TPM's counter tells them apart.
        zero = [] if self.same_boot else self.from_zero()
        begins = bool(zero) and (self.another_life() or not self.store.end)
        if found is not None and (self.was_reset() or self.is_of_before(found)):
            found = None
        if found is not None and not begins:
            places = self.beside(found)
            if len(places) > 1:
                return self._undecided("records that came twice stand where the stored ones end")
            if self.has_lost_its_beginning():
                return self._gap("this kernel's first record was deleted", new=False)
            if self.comes_again(places[0]):
                return self._gap(
                    "the TPM began anew: did the same records, too, or not?", new=False
                )
            return self._fitting(places[0], self.fit(found, self.chains))
        if zero and self.lacks_stored_records():
            return self._gap("the PCRs are without stored records: their extends failed", new=False)
        if zero:
            return self._new_life(zero)
        fork = None if self.was_reset() else self.rolled_back()
        if fork is not None and self.store.damaged:
            why = f"the PCRs are those behind record {fork.index}; of those in front some are lost"
            return self._gap(why, new=False)
        if fork is not None:
            return self._forked(fork)
        inside = self._reset_inside()
        return self._unreached() if inside is None else self._was_reset(inside)

    def _reset_inside(self) -> int | None:
        """The place of K from which it goes on from S, where the PCR began anew inside S."""
        places = self.likely() if self.same_boot else []
        resets = [(place, at) for place in places if (at := self.reset_at(place)) is not None]
        if not resets:
            return None
        (place, at), *others = resets
        if at >= self.store.end or (others and not self.came_once(place)):
            return None
        return place if self.is_reset_stored(at) else None

    def _unreached(self) -> Answer:
        """No place leads to the PCRs: is it shown otherwise that nothing is missing?"""
        if self.store.begun:
            for place in self.likely():
                failed = self._failed_extend(place)
                if failed is not None:
                    text = f"the extend of record {self._index(failed, place)} failed"
                    return self._diverged(place, text)
            if self.bytes_are_proof(self.staged) and self.store.last is not None:
                return self._diverged(self.store.last.g_count, "the same records are there")
        why = "stored records and the kernel's do not lead to the PCRs"
        return self._gap(why, new=self.is_another_life())

    def _failed_extend(self, place: int) -> int | None:
        """The record of K[place:] without which the others lead to the PCRs.

        All others were extended, and none is missing: if none of them may come twice.
        """
        chain = self.chains[0]
        if not self.same_boot or self.kernel.flush is not False or max(self.kernels, default=0):
            return None
        if any(reach.is_violation(self.k, at) for at in range(place, self.total)):
            return None
        if self.began_anew():
            return None
        failed = chain.without_one(self.start(chain) or chain.zero, place, self.budget)
        return None if failed is not None and self.repeats(place) else failed

    def _by_bytes(self) -> Answer:
        """The end of K is not exact: where nothing is served yet, bytes tell what is stored."""
        frame = self.store.last
        if frame is not None and not self.store.begun and self.bytes_are_proof(0):
            return Answer(Found.SAME_LIFE, frame.g_count)
        if not self.store.end and self.same_boot and self.kernel.part and not self.store.begun:
            return Answer(Found.SAME_LIFE, 0)
        return self._undecided("the end of the list was not exact")

    def _by_intent(self) -> Answer:
        """Without a TPM the store's own word decides: the last batch is there, or deleted."""
        pending = self.store.pending
        same = Answer(Found.SAME_LIFE, 0, alarms=(self._unverified(),))
        if self.has_lost_its_beginning():
            return self._gap("this kernel's first record was deleted", new=False)
        carried = [] if pending is None else self._carried(pending)
        came = pending is not None and self.batch_is_here
        begins = 0 in self.kernels and not came and not carried
        if self.store.gaps:
            # What was pending at a gap may have come along through a kexec: a first kernel's
            # list alone is for certain not stored.
            begins = begins and len(self.kernels) == 1
        if not self.same_boot and self.another_life() and begins:
            return Answer(Found.NEW_LIFE, 0, opens=True, alarms=(self._unverified(),))
        if pending is None:
            return self._settled(same)
        if self._may_be_another_boot(pending, carried):
            why = "a kexec brought stored records along, or the machine was rebooted, and made such"
            return self._gap(why, new=False)
        if self.batch_is_here and self._tells_apart(pending):
            return replace(same, skip=pending.g_count)
        if self._is_own_stage(pending):
            return same
        if self.batch_is_here:
            why = "the last batch is there, or such records again: was it deleted, or not?"
            return self._gap(why, new=False)
        if pending.boot == self.kernel.boot:
            return same
        if len(carried) > 1 or (carried and not self.made_once(carried[0])):
            return self._gap("a part of the last batch came along, it is not known which", False)
        return replace(same, skip=carried[0]) if carried else same

    def _settled(self, same: Answer) -> Answer:
        """Without a TPM, where the last batch was deleted."""
        if self.store.last is not None and self.is_restored():
            alarms = (*same.alarms, self._restored_alarm())
            return replace(same, skip=self.store.last.g_count, alarms=alarms)
        if self.repeats(0):
            return self._gap("stored records are there again: the machine was restored", new=False)
        return same

    def _may_be_another_boot(self, pending: Frame, carried: list[int]) -> bool:
        """Whether the head of K, which is the beginning of a kernel's list, may be stored, or else
        of a boot since then: many boots begin alike.

        Where the batch is all that is stored, and all of it is there, both give the same list.
        """
        if pending.boot == self.kernel.boot or 0 not in self.kernels:
            return False
        if self.batch_is_here:
            return pending.g_count < self.store.end or len(carried) > 1
        return bool(carried)

    def _tells_apart(self, pending: Frame) -> bool:
        """Whether the batch at the head of K is the one that was not deleted."""
        if self._is_own_stage(pending):
            return self.staged > 0
        if pending.boot == self.kernel.boot or 0 in self.kernels:
            return self.once(pending.g_count)
        return self.made_once(pending.g_count)

    def _is_own_stage(self, pending: Frame) -> bool:
        """Whether the batch was staged under this kernel: then it is staged, or was deleted."""
        return pending.boot == self.kernel.boot and pending.how is not How.PARTIAL

    def _carried(self, pending: Frame) -> list[int]:
        """How many records of the last batch a carry may have brought along that was cut."""
        if self.stored is None or pending.boot == self.kernel.boot:
            return []
        return [place for place in self.kernels if place and self.stored.may_be(place)]

    # --- kinds of answers ---------------------------------------------------------------------

    def _fitting(self, place: int, fit: list[Chain]) -> Answer:
        if not self.store.begun and not self.begins_with_a_kernel():
            # What went to other PCRs may stand in front of it, and nothing tells what else did.
            return self._gap("the first record is gone", new=False)
        if len(fit) < len(self.chains):
            return self._partly(place, fit)
        alarms = [*self._healed(place), *self._other_pcrs(place)]
        if place and self.is_restored():
            alarms.append(self._restored_alarm())
        anchor = None if self.store.begun else CONFIRMED
        return Answer(
            *(Found.SAME_LIFE, place, "", True, tuple(alarms)),
            anchor=anchor,
            parts=self.parts(place, [self.start(c) or c.zero for c in self.chains]),
        )

    def _new_life(self, fit: list[Chain]) -> Answer:
        new = Answer(Found.NEW_LIFE, 0, verified=True, opens=True)
        alarms = tuple(
            self._other_pcr(chain) for chain in self.other_chains() if not chain.fits(chain.zero)
        )
        if len(fit) == len(self.chains):
            parts = self.parts(0, [chain.zero for chain in self.chains])
            return replace(new, alarms=alarms, parts=parts)
        diverged = self._partly(0, fit)
        return replace(new, alarms=(*diverged.alarms, *alarms), anchor=diverged.anchor)

    def _partly(self, place: int, fit: list[Chain]) -> Answer:
        others = ", ".join(c.bank for c in self.chains if c not in fit)
        answer = self._diverged(place, f"bank {fit[0].bank} confirms it, {others} does not")
        return replace(answer, verified=True)

    def _healed(self, place: int) -> Iterator[Alarm]:
        stored, pending = self.store.records, self.store.pending
        if self.same_boot or stored is None or not self.store.end:
            return
        lost = self.k.record(place - 1) != stored.record(self.store.end - 1) if place else False
        if lost or (pending is not None and not place):
            yield Alarm(Kind.HEALED, "the kexec did not bring all records along; all are stored")

    def _other_pcrs(self, place: int) -> Iterator[Alarm]:
        for chain in self.other_chains():
            if not chain.fits(self.start(chain) or chain.zero, place):
                yield self._other_pcr(chain)

    def _other_pcr(self, chain: Chain) -> Alarm:
        text = f"PCR {chain.pcrs[0]}, which does not decide, is not what the list gives"
        return Alarm(Kind.OTHER_PCR, text)

    def _forked(self, fork: Fork) -> Answer:
        index = fork.index
        if not self.clock_went_back():
            why = f"the PCRs are without the records behind {index}: their extends failed, or not"
            return self._gap(why, new=False)
        text = f"the PCRs are those behind record {index} and not of what followed"
        alarm = Alarm(Kind.ROLLED_BACK, text)
        starts = [self.state(c, index, fork.anchors) or c.zero for c in self.chains]
        parts = self.parts(0, starts)
        return Answer(*(Found.ROLLED_BACK, 0, "", True, (alarm,)), forks=fork, parts=parts)

    def _diverged(self, place: int, why: str) -> Answer:
        alarm = diverged_alarm(why)
        return Answer(Found.DIVERGED, place, why=why, alarms=(alarm,), anchor=why)

    def _was_reset(self, place: int) -> Answer:
        why = BEGAN_ANEW
        return Answer(Found.PCR_RESET, place, why=why, alarms=(reset_alarm(),), anchor=why)

    def _gap(self, why: str, new: bool, known: int = 0) -> Answer:
        """``known``: so many records of K are stored all the same."""
        index = 0 if new or not self.store.begun else self.store.end
        last = self.store.last
        there = self.store.pending is not None or not self.store.damaged  # as it was stored
        if not new and there and last is not None and self.bytes_are_proof(0):
            # Others are gone behind the last batch; that one was not deleted.
            known = max(known, last.g_count)
        return Answer(Found.GAP, known, why=why, opens=new, gap=index, anchor=BEHIND_A_GAP)

    def _undecided(self, why: str) -> Answer:
        return Answer(Found.UNDECIDED, None, why=why)

    def _unverified(self) -> Alarm:
        return Alarm(Kind.UNVERIFIED, "no PCRs can be compared: the store's own word alone counts")

    def _restored_alarm(self) -> Alarm:
        text = "the last batch is there again, though it was deleted"
        return Alarm(Kind.ROLLED_BACK, text)

    def _index(self, at: int, place: int) -> int:
        return self.store.end + at - place
