# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What bytes, PCRs, boot_id and clock tell of one join; :mod:`imafs.keeper.judge` weighs it.

S is what is stored, K what the kernel has (see :mod:`imafs.keeper.facts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from imafs.formats.algorithms import SHA1
from imafs.keeper import reach
from imafs.keeper.facts import (
    CONFIRMED,
    Clock,
    Frame,
    KernelFacts,
    Mode,
    Modes,
    PcrValues,
    Records,
    StoreFacts,
    TpmFacts,
)
from imafs.keeper.reach import Budget, Chain

#: More records than these are not believed to have come again one by one, in the same order.
_AGAIN = 100


@dataclass(frozen=True, slots=True)
class Choice:
    """Limits of one join."""

    #: Records of one N.
    chunk: int = 1000
    #: Hashes computed for what is not likely: some seconds.
    hashes: int = 5_000_000
    #: Stored records that are looked at for another past.
    tail: int = 100_000
    #: ``on_gap = "serve"``.
    serve_gaps: bool = False


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a restored machine left the stored past: behind ``index`` records, of which the first
    ``anchors`` anchors tell."""

    index: int
    anchors: int


class Evidence:
    """The facts of one join, and what they tell; computed once where several ask."""

    def __init__(
        self, store: StoreFacts, kernel: KernelFacts, tpm: TpmFacts, choice: Choice
    ) -> None:
        self.store, self.kernel, self.tpm, self.choice = store, kernel, tpm, choice
        self.k = kernel.records
        self.total = len(kernel.records)
        self.staged = kernel.staged or 0
        self.budget = Budget(choice.hashes)
        self.kernels = reach.kernels(self.k)
        self.deciding = store.life.deciding if store.life is not None else deciding(self.k)
        self.chains = self._comparable() if kernel.pinned and not kernel.part else []
        #: Whether PCRs are of no use here, now and later.
        self.without_pcrs = tpm.pcrs is None or (kernel.pinned and not self.chains)
        frame = store.last
        #: The last frame's batch stands at the head of K.
        self.batch_is_here = (
            frame is not None
            and 0 < frame.g_count <= self.longest(frame)
            and self.k.sha256(0, frame.g_count) == frame.g_sha256
        )
        self.same_boot = store.boot == kernel.boot
        #: None: stored bytes are damaged, and tell nothing.
        self.stored = None
        pending = store.pending
        if pending is not None and store.records is not None and not store.damaged:
            longest = self.longest(pending)
            staged = self.staged if pending.boot == kernel.boot else None
            self.stored = reach.Stored(
                self.k, self.kernels, store.records, pending, longest, staged
            )

    def longest(self, batch: Frame) -> int:
        """How many records of K may be stored, after a batch: not this kernel's own
        boot_aggregate, if the batch is another kernel's."""
        own = self.kernels and batch.boot != self.kernel.boot
        return self.kernels[-1] if own else self.total

    def _comparable(self) -> list[Chain]:
        values = self.tpm.pcrs or {}
        found = reach.chains(self.k, self.kernels, self.kernel.modes, self.deciding, values)
        found = [chain for chain in found if self.start(chain) is not None]
        return [] if self._extends_none(found) else found

    def _extends_none(self, found: list[Chain]) -> bool:
        """Whether this kernel extends no TPM: IMA found none when it began, and so no banks."""
        never = self.store.life is None or not self.store.begun
        return (
            set(self.kernel.modes) == {SHA1.name}
            and never
            and self.total > 0
            and not any(any(b"".join(c.target)) for c in found)
        )

    # --- where S leads ------------------------------------------------------------------------

    def _floor(self, anchors: int | None = None) -> tuple[int, PcrValues]:
        """Where replays begin: at the last anchor (of the first so many), or with the life."""
        known = self.store.anchors[:anchors]
        return (known[-1].index, known[-1].pcrs) if known else (0, {})

    def _points(self, anchors: int | None = None) -> Iterator[tuple[int, PcrValues]]:
        """Known values at indexes, newest first, back to the last anchor (of the first so many),
        and no further than to the one behind it."""
        least, start = self._floor(anchors)
        most = self._most(anchors)
        points = [(frame.first + frame.count, frame.pcrs) for frame in self.store.frames]
        points += [(seal.index, seal.pcrs) for seal in self.store.seals]
        points = [(index, pcrs) for index, pcrs in points if least < index <= most and pcrs]
        yield from sorted(points, key=lambda point: -point[0])
        yield least, start

    def _most(self, anchors: int | None) -> int:
        """Index up to which values that go on from that anchor are known."""
        known = self.store.anchors
        if anchors is None or anchors >= len(known):
            return self.store.end
        return known[anchors].index

    def start(self, chain: Chain) -> reach.State | None:
        """The chain's values behind the last stored record; None: they cannot be known."""
        return chain.zero if self.store.life is None else self.state(chain, self.store.end)

    def state(self, chain: Chain, end: int, anchors: int | None = None) -> reach.State | None:
        """The chain's values behind ``end`` stored records."""
        for index, values in self._points(anchors):
            state = chain.zero if not index and not values else chain.state(values)
            if state is not None and index <= end:
                return self._over(chain, state, index, end)
        return None

    def _over(self, chain: Chain, state: reach.State, first: int, end: int) -> reach.State:
        """``state`` after stored records, each in the mode in which it was extended."""
        stored, at = self.store.records, first
        while stored is not None and at < end:
            frame = self._frame_at(at)
            last = end if frame is None else min(end, frame.first + frame.count)
            state = chain.over(state, stored, at, last, self._mode(chain, frame))
            at = last
        return state

    def _frame_at(self, index: int) -> Frame | None:
        return next((f for f in self.store.frames if 0 <= index - f.first < f.count), None)

    def _mode(self, chain: Chain, frame: Frame | None) -> Mode:
        modes = {} if self.store.life is None else self.store.life.modes
        return (modes if frame is None else frame.modes).get(chain.bank, chain.now)

    def fit(self, place: int, chains: Iterable[Chain]) -> list[Chain]:
        """The banks in which S ++ K[place:] leads to the PCRs."""
        return [c for c in chains if c.fits(self.start(c) or c.zero, place)]

    def once(self, place: int, behind: int = 0) -> bool:
        """Whether K[behind:place] has a record that does not come twice: no violation, no
        boot_aggregate, and the hash table is kept."""
        return self.kernel.flush is False and any(
            at not in self.kernels and not reach.is_violation(self.k, at)
            for at in range(behind, place)
        )

    def came_once(self, place: int) -> bool:
        """Whether K[:place] has a record that cannot come twice under this kernel."""
        return self.same_boot and (self.once(place) or any(at < place for at in self.kernels))

    def made_once(self, place: int) -> bool:
        """Of a batch under another kernel: whether K[:place] has a record of it that cannot have
        come again under the kernel that had it.

        That kernel made it, so it was stored behind the last boot_aggregate; and no other kernel
        made the one in K, for none begins before it. What a kexec brought along it would measure
        again. Many records do not come again in the same order.
        """
        stored, first = self.store.records, min([place, *self.kernels])
        if place > _AGAIN:
            return True
        if stored is None or self.kernel.flush is not False:
            return False
        return self._is_stored_here(self._usual(0, first))

    def _is_stored_here(self, records: set[bytes]) -> bool:
        """Whether one of them is stored behind the last boot_aggregate: the last kernel made it."""
        stored = self.store.records
        for at in range(self.store.end - 1, max(-1, self.store.end - self.choice.tail - 1), -1):
            if stored is None or not records or stored.is_boot_aggregate(at):
                return False
            if stored.record(at) in records:
                return True
        return False

    # --- places -------------------------------------------------------------------------------

    def likely(self) -> list[int]:
        """The places that a start mostly finds: the last batch is there, or it was deleted."""
        pending = self.store.pending
        if pending is None:
            # All that was stored is known to be deleted: what is there again was restored.
            last = self.store.last
            return [last.g_count, 0] if last is not None and self.is_restored() else [0]
        first = [pending.g_count] if self.batch_is_here else []
        found = dict.fromkeys([*first, 0, self.staged, self.longest(pending)])
        return [place for place in found if self._may_be(place)]

    def is_restored(self) -> bool:
        """Whether the machine is one of before the last batch was deleted."""
        return self.store.pending is None and self.bytes_are_proof(0)

    def repeats(self, place: int) -> bool:
        """Whether a record of K[place:] is one of this kernel's that is stored, and cannot have
        come again: the machine was restored."""
        ours = self.same_boot and not self.kernels and self.kernel.flush is False
        if not ours or not self.budget.take(self.total - place):
            return False
        return self._is_stored_here(self._usual(place, self.total))

    def _usual(self, first: int, last: int) -> set[bytes]:
        """The records of a range of K that come once per kernel that keeps its hash table."""
        usual = [at for at in range(first, last) if not reach.is_violation(self.k, at)]
        return {self.k.record(at) for at in usual}

    def _may_be(self, place: int) -> bool:
        """Whether records that are equal byte by byte are stored for all of K[:place].

        PCRs do not tell violations from each other, nor a record whose extend failed from one
        that was stored: bytes do.
        """
        return not place or self.stored is None or self.stored.may_be(place)

    def search(self) -> int | None:
        """A place from which K leads on from S to the PCRs, in one bank at least."""
        likely = self.likely()
        for place in likely:
            if self.fit(place, self.chains):
                return place
        chain = self.chains[0]
        start = self.start(chain) or chain.zero
        for place in self.unlikely():
            if place in likely:
                continue
            if not self.budget.take(self.total - place):
                return None
            if chain.fits(start, place) and self._may_be(place):
                return place
        return None

    def unlikely(self) -> Iterable[int]:
        """All places that may be right; of a damaged store all there are."""
        if self.store.pending is None:
            return ()
        return range(self.total, -1, -1) if self.stored is None else self.stored.places()

    def beside(self, found: int) -> list[int]:
        """The places that fit as well: records beside it went to PCRs that do not decide."""
        low = high = found
        while low and not self._decides(low - 1):
            low -= 1
        while high < self.total and not self._decides(high):
            high += 1
        places = list(range(low, high + 1))
        if len(places) == 1 or self.store.pending is None:
            return [found]
        places = [place for place in places if self._may_be(place)]
        # A PCR that began anew since may fit by chance: nothing tells when it did.
        for chain in self.other_chains() if self._steady(self._floor()[0]) else []:
            start = self.start(chain) or chain.zero
            fitting = [place for place in places if chain.fits(start, place)]
            places = fitting or places
        frame = self.store.last
        if len(places) > 1 and frame is not None and self.bytes_are_proof(0):
            places = [frame.g_count] if frame.g_count in places else places
        return places

    def _decides(self, at: int) -> bool:
        ((pcr, _),) = self.k.extends(SHA1.name, Mode.REAL, at, at + 1)
        return pcr in self.deciding

    def other_chains(self) -> list[Chain]:
        """One chain for each PCR of K that does not decide, in the first bank."""
        values = self.tpm.pcrs or {}
        used = {pcr for pcr, _ in self.k.extends(SHA1.name, Mode.REAL, 0, self.total)}
        found: list[Chain] = []
        for pcr in sorted(used - set(self.deciding)):
            found += reach.chains(self.k, self.kernels, self.kernel.modes, (pcr,), values)[:1]
        return [chain for chain in found if self.start(chain) is not None]

    def bytes_are_proof(self, behind: int) -> bool:
        """Whether the last batch stands at the head of K for certain, and what follows it too.

        A record that is no violation comes once per kernel, unless the hash table is flushed. N
        takes records from the front of the current list: one of the batch that stands there,
        behind ``behind`` records, was not taken, nor was any that follows it.
        """
        frame = self.store.last
        return (
            frame is not None
            and self.batch_is_here
            and frame.boot == self.kernel.boot
            and self.once(frame.g_count, max([behind, *self.kernels]))
        )

    # --- other pasts --------------------------------------------------------------------------

    def from_zero(self) -> list[Chain]:
        """The banks in which K, from its boot_aggregate on, leads from zero to the PCRs."""
        return [c for c in self.chains if c.fits(c.zero)] if 0 in self.kernels else []

    def reset_at(self, place: int) -> int | None:
        """The index at which the PCR began anew: S[r:] ++ K[place:] leads there from zero."""
        chain, stored, end = self.chains[0], self.store.records, self.store.end
        for at in range(self.total, place - 1, -1):
            if not self.budget.take(self.total - at):
                return None
            if chain.fits(chain.zero, at):
                return end + at - place
        anchor = self.store.anchors[-1].index if self.store.anchors else 0
        for index in range(end - 1, max(anchor, end - self.choice.tail), -1):
            if stored is None or not self.budget.take(end - index + self.total - place):
                return None
            if chain.fits(self._over(chain, chain.zero, index, end), place):
                return index
        return None

    def is_reset_stored(self, at: int) -> bool:
        """Whether the PCR began anew in front of stored record ``at``, as its value says, and not
        behind all that is stored, in front of others that extended the same and are gone.

        A record since then tells that cannot come twice, or else the TPM's clock.
        """
        stored = self.store.records
        for index in range(self.store.end - 1, max(at, self.store.end - self.choice.tail) - 1, -1):
            if stored is None or stored.is_boot_aggregate(index):
                break
            ((pcr, _),) = stored.extends(SHA1.name, Mode.REAL, index, index + 1)
            usual = pcr in self.deciding and not reach.is_violation(stored, index)
            if usual and self.kernel.flush is False:
                break
        else:
            return self._clock_shows_reset(at)
        return stored is not None

    def _clock_shows_reset(self, at: int) -> bool:
        """Whether the TPM began anew between the frames around ``at``, and not since."""
        now, life = self.tpm.clock, self.store.life
        frames = self.store.frames
        before = [frame.clock for frame in frames if frame.first + frame.count <= at]
        behind = [frame.clock for frame in frames if frame.first + frame.count > at]
        first = before[-1] if before else None if life is None or self.store.seals else life.clock
        if now is None or first is None or not behind or behind[0] is None:
            return False
        return counters(first) != counters(behind[0]) == counters(now)

    def _steady(self, since: int) -> bool:
        """Whether the TPM has not begun anew since the last anchor, or frames from an index on.

        True where its clock is not known: then nobody says that it has.
        """
        now = self.tpm.clock
        return now is None or self._counters(since) <= {counters(now)}

    def _counters(self, since: int) -> set[tuple[int, int]]:
        """How often the TPM had begun anew when the last anchor was written, and frames."""
        clocks = [frame.clock for frame in self.store.frames if frame.first >= since]
        clocks += [anchor.clock for anchor in self.store.anchors[-1:]]
        return {counters(clock) for clock in clocks if clock is not None}

    def was_reset(self) -> bool:
        """Whether the TPM was reset since the last line of the store, and its PCRs with it.

        Reboots, power cuts and hibernations that shut the TPM down are counted upwards; sleep and
        kexecs are not. A lower count tells nothing: TPM2_Clear, or a restored machine.
        """
        now, written = self.tpm.clock, self._counters(0)
        return now is not None and bool(written) and now.reset > max(written)[0]

    def began_anew(self) -> bool:
        """Whether the TPM began anew since the last line of the store, as it does in sleep too."""
        now, written = self.tpm.clock, self._counters(0)
        return now is not None and bool(written) and counters(now) != max(written)

    def comes_again(self, place: int) -> bool:
        """Whether the PCR may have begun anew since the last line of the store, and all that is
        stored since it was zero have come again: then S ++ K[place:] leads to it as well.

        What came again is K[:place], or an end of it, or it was lost by a carry or deleted by
        others. The TPM must have begun anew, as it does in sleep. A record that cannot come twice
        under one kernel rules it out, and so do many records.
        """
        stored = self.store.records
        if stored is None or not self.began_anew() or (place and self.came_once(place)):
            return False
        index, values = self._floor()
        if self.store.anchors and self.store.anchors[-1].why == CONFIRMED:
            index, values = 0, {}
        chain = self.chains[0]
        for at in range(place):
            if not self.budget.take(self.total - at) or chain.fits(chain.zero, at):
                return True
        if values and chain.state(values) != chain.zero:
            return False
        if not place or not self.same_boot:
            return self._may_come_again(stored, index)
        again = sum(1 for _ in self._extends(self.k, 0, place))
        since = self._extends(stored, index, self.store.end)
        later = islice(self._extends(stored, index, self.store.end), again, None)
        return all(one == other for one, other in zip(later, since, strict=False))

    def began_anew_at_zero(self) -> bool:
        """Whether the PCR has been zero since the last anchor, and the TPM began anew since: any
        list leads on from there, so the anchor is of no use to a start."""
        chain = self.chains[0]
        return bool(self.store.anchors) and self.start(chain) == chain.zero and self.began_anew()

    def _may_come_again(self, stored: Records, index: int) -> bool:
        """Whether S[index:] may have come again, record by record, since the last line of the
        store: behind a kexec all may, but not many in the same order."""
        if self.store.end - index > _AGAIN:
            return False
        return not self.same_boot or not any(
            stored.is_boot_aggregate(at)
            or (self.kernel.flush is False and not reach.is_violation(stored, at))
            for at in range(index, self.store.end)
        )

    def _extends(self, records: Records, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """What a range extends PCRs with that decide."""
        extends = records.extends(SHA1.name, Mode.REAL, first, last)
        return (extend for extend in extends if extend[0] in self.deciding)

    def lacks_stored_records(self) -> bool:
        """Of a K that leads from zero to the PCRs: whether S is of the same reset, for certain.
        Then the extends of stored records failed, and their carry was cut.

        Both begin alike, and the TPM has not begun anew since the last line of the store, nor
        gone back.
        """
        stored, now, written = self.store.records, self.tpm.clock, self._counters(0)
        if stored is None or not len(stored) or stored.record(0) != self.k.record(0):
            return False
        known = now is not None and counters(now) in written and counters(now) == max(written)
        return known and not self.clock_went_back()

    def begins_with_a_kernel(self) -> bool:
        """Whether the life's first record is a boot_aggregate."""
        stored = self.store.records
        return (
            stored.is_boot_aggregate(0) if stored is not None and len(stored) else 0 in self.kernels
        )

    def has_lost_its_beginning(self) -> bool:
        """Whether this kernel's boot_aggregate is gone, and was never seen: others deleted it, and
        with it what came before."""
        boots = {frame.boot for frame in self.store.frames}
        if self.store.life is not None:
            boots.add(self.store.life.boot)
        return not self.kernels and self.kernel.boot not in boots

    def clock_went_back(self) -> bool:
        """A restored TPM has an earlier clock; without that, extends of stored records failed."""
        clocks = [frame.clock for frame in self.store.frames[-1:]]
        clocks += [anchor.clock for anchor in self.store.anchors[-1:]]
        return any(self._is_before(clock) for clock in clocks)

    def _is_before(self, then: Clock | None) -> bool:
        """Whether the TPM's clock now is one that it had before ``then``."""
        now = self.tpm.clock
        if now is None or then is None:
            return False
        return (now.reset, now.restart, now.clock) < (then.reset, then.restart, then.clock)

    def is_of_before(self, place: int) -> bool:
        """Whether K[place:] leads on from the last anchor only because the PCR was zero there.

        From zero on any list leads to its own PCR. K is one of an earlier time, to which the
        machine was restored, where the TPM's clock is before the anchor's, or where K[place:] has a
        boot_aggregate though this kernel's was stored before the anchor.
        """
        index, values = self._floor()
        chain, anchors = self.chains[0], self.store.anchors
        if not anchors or chain.state(values) != chain.zero:
            return False
        own = [f for f in self.store.frames if f.boot == self.kernel.boot]
        known = self.same_boot and any(f.count and f.first + f.count <= index for f in own)
        came = known and any(at >= place for at in self.kernels)
        return came or self._is_before(anchors[-1].clock)

    def rolled_back(self) -> Fork | None:
        """The index i for which S[:i] ++ K leads to the PCRs; newest anchors first."""
        for anchors in range(len(self.store.anchors), -1, -1):
            found = self._rolled_back(anchors)
            if found is not None:
                return Fork(found, anchors)
        return None

    def _rolled_back(self, anchors: int) -> int | None:
        """The same between one anchor and the next, or the end of S."""
        chain, stored = self.chains[0], self.store.records
        if stored is None:
            return None
        head = self.k.record(0) if self.total else None
        least, upper = self.store.end - self.choice.tail, self._most(anchors)
        if anchors < len(self.store.anchors):
            upper += 1  # behind so many records the chain of the next anchor began
        found = None
        for index, values in self._points(anchors):
            state = chain.zero if not index and not values else chain.state(values)
            if state is None or upper < least:
                break
            for at in range(index, upper):
                right = (at or 0 in self.kernels) and self.budget.take(self.total + 1)
                if right and state == chain.zero and anchors and not self._is_since(anchors):
                    right = False  # any list leads on from there
                if right and chain.fits(state):
                    if head is not None and at < self.store.end and stored.record(at) == head:
                        return at
                    found = at if found is None else found
                if at + 1 < upper:
                    state = self._over(chain, state, at, at + 1)
            upper = index
        return found

    def _is_since(self, anchors: int) -> bool:
        """Whether the TPM has not begun anew since that anchor; True where its clock is not
        known."""
        now, then = self.tpm.clock, self.store.anchors[anchors - 1].clock
        return now is None or then is None or counters(now) == counters(then)

    def another_life(self) -> bool:
        """Of a list that nothing explains: did the TPM begin anew? Counters name it only."""
        life, clock = self.store.life, self.tpm.clock
        if life is None:
            return True
        if self.same_boot:
            return False
        if clock is None or life.clock is None:
            return True
        # One that hibernates by a shutdown resets the TPM inside the life.
        clocks = [frame.clock for frame in self.store.frames[-1:]]
        clocks += [anchor.clock for anchor in self.store.anchors[-1:]]
        resets = [then.reset for then in clocks if then is not None]
        return clock.reset not in (life.clock.reset, *resets)

    def is_another_life(self) -> bool:
        """Of a list that neither the store explains nor a reset: is it one of another life?

        The TPM's counter tells, or where it is not known the list: one that has this kernel's
        boot_aggregate is whole from there on. As it does not lead from zero, the PCR was not zero
        when this kernel began: it came by kexec, and the kernel before it was of this life.
        """
        clock = self.tpm.clock
        told = self.store.life is not None and self.store.life.clock is not None
        if told and clock is not None:
            return self.another_life()
        return self.another_life() and not self.kernels

    def parts(self, place: int, starts: list[reach.State]) -> tuple[tuple[int, Modes], ...]:
        """From which places of K on the banks were extended in which modes."""
        if not any(start > place for start in self.kernels):
            return ()
        changes: dict[int, dict[str, Mode]] = {}
        for chain, start in zip(self.chains, starts, strict=True):
            for first, _, mode in chain.path(start, place):
                changes.setdefault(first, {})[chain.bank] = mode
        parts: list[tuple[int, Modes]] = []
        modes = dict(self.kernel.modes)
        for first in sorted(changes):
            modes |= changes[first]
            if not parts or parts[-1][1] != modes:
                parts.append((first, dict(modes)))
        return tuple(parts)


def counters(clock: Clock) -> tuple[int, int]:
    """How often a TPM has begun anew."""
    return clock.reset, clock.restart


def deciding(records: Records) -> tuple[int, ...]:
    """The PCRs that decide in a life to come: that of the first boot_aggregate."""
    for at in range(len(records)):
        if records.is_boot_aggregate(at):
            return (next(iter(records.extends(SHA1.name, Mode.REAL, at, at + 1)))[0],)
    return (10,)
