# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""From which place on does the kernel's list lead to the PCRs?

A PCR is a chain of hashes. With the start p and the end P fixed, at most one place j has
``replay(p, K[j:]) == P``: two of them, j1 < j2, would mean ``replay(p, K[j1:j2]) == p``, a circle
of hashes. So the first place that fits is the one, but for records beside it that extend no PCR
that decides.

There is no short way from one place to the next: each costs a walk to the end of K, and all of
them n * n / 2 hashes. But few places can be right, and bytes tell which (:class:`Stored`). Bytes
are needed, too: PCRs do not tell one violation from another, nor a record whose extend failed from
one that was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, by_name
from imafs.keeper.facts import Frame, Mode, Modes, PcrValues, Records

#: Values of the PCRs that are compared, in their order.
State = tuple[bytes, ...]

#: Records of which the digests are kept between two walks.
_KEPT = 200_000
#: Stored records in which pieces of a batch are looked for.
_TAIL = 100_000
#: Kernels in one list whose modes are tried separately; those before share one.
_KERNELS = 6
_ALL_ONES = b"\xff"


@dataclass(slots=True)
class Budget:
    """How many hashes may still be computed for what is not likely."""

    left: int

    def take(self, count: int) -> bool:
        """Whether ``count`` more may be computed; they are then taken."""
        if count > self.left:
            return False
        self.left -= count
        return True


def extend(
    state: State,
    pcrs: tuple[int, ...],
    make: Callable[..., Any],
    extends: Iterable[tuple[int, bytes]],
) -> State:
    """``state`` after the extends that go to its PCRs."""
    if len(pcrs) == 1:
        (value,), (only,) = state, pcrs
        for pcr, digest in extends:
            if pcr == only:
                value = make(value + digest).digest()
        return (value,)
    values = dict(zip(pcrs, state, strict=True))
    for pcr, digest in extends:
        if pcr in values:
            values[pcr] = make(values[pcr] + digest).digest()
    return tuple(values[pcr] for pcr in pcrs)


class Head:
    """The first ``count`` of other records."""

    def __init__(self, records: Records, count: int) -> None:
        self._records, self._count = records, count

    def __len__(self) -> int:
        return self._count

    def record(self, at: int) -> bytes:
        """See :class:`imafs.keeper.facts.Records`, as of the others."""
        return self._records.record(at)

    def sha256(self, first: int, last: int) -> bytes:
        """See there."""
        return self._records.sha256(first, last)

    def extends(self, bank: str, mode: Mode, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """See there."""
        return self._records.extends(bank, mode, first, last)

    def is_boot_aggregate(self, at: int) -> bool:
        """See there."""
        return self._records.is_boot_aggregate(at)


@dataclass(slots=True)
class Chain:
    """One bank's way through K to the values that its PCRs have.

    ``starts`` are the places in K at which a kernel begins. Records behind the last one were
    extended in mode ``now``; an older kernel may have had the other one.
    """

    bank: str
    pcrs: tuple[int, ...]
    records: Records
    now: Mode
    starts: tuple[int, ...]
    target: State
    _walks: int = 0
    _digests: dict[Mode, list[tuple[int, bytes]]] = field(default_factory=dict)
    _heads: dict[int, Chain] = field(default_factory=dict)

    @property
    def zero(self) -> State:
        """The values at a reset."""
        return (bytes(by_name(self.bank).digest_size),) * len(self.pcrs)

    def state(self, values: PcrValues) -> State | None:
        """The values of this bank's PCRs, where all of them are there."""
        own = values.get(self.bank, {})
        found = tuple(own[pcr] for pcr in self.pcrs if pcr in own)
        return found if len(found) == len(self.pcrs) else None

    def ends(self, state: State, place: int = 0) -> set[State]:
        """To which values K[place:] leads, in every mode that may have been."""
        states = {state}
        for first, last, modes in self._stretches(place):
            states = {self.walk(one, mode, first, last) for one in states for mode in modes}
        return states

    def fits(self, state: State, place: int = 0) -> bool:
        """Whether K[place:] leads from ``state`` to the PCRs."""
        return self.target in self.ends(state, place)

    def until(self, end: int) -> Chain:
        """The same way through K[:end]; the kernel that runs begins in front of that.

        One for each end: it keeps its digests, too.
        """
        if end not in self._heads:
            starts = tuple(start for start in self.starts if start < end)
            head = Head(self.records, end)
            self._heads[end] = Chain(self.bank, self.pcrs, head, self.now, starts, self.target)
        return self._heads[end]

    def arrives(self, state: State, place: int, least: int) -> int | None:
        """The end, behind ``least`` records or more, up to which K[place:] leads to the PCRs."""
        states = self.until(least).ends(state, place)
        for at in range(least, len(self.records)):
            if self.target in states:
                return at
            states = {self.walk(one, self.now, at, at + 1) for one in states}
        return len(self.records) if self.target in states else None

    def path(self, state: State, place: int) -> list[tuple[int, int, Mode]]:
        """The stretches of K[place:] with the modes that led to the PCRs; empty: none did."""
        ways = {state: list[tuple[int, int, Mode]]()}
        for first, last, modes in self._stretches(place):
            ways = {
                self.walk(one, mode, first, last): [*way, (first, last, mode)]
                for one, way in ways.items()
                for mode in modes
            }
        return ways.get(self.target, [])

    def _stretches(self, place: int) -> Iterator[tuple[int, int, Sequence[Mode]]]:
        total = len(self.records)
        edges = [start for start in self.starts if start > place][-_KERNELS:]
        if self.bank == SHA1.name:
            edges = []
        for first, last in zip([place, *edges], [*edges, total], strict=True):
            yield first, last, (self.now,) if last == total else tuple(Mode)

    def walk(self, state: State, mode: Mode, first: int, last: int) -> State:
        """``state`` extended by a range of K."""
        return extend(state, self.pcrs, self._make(), self.extends(mode, first, last))

    def over(self, state: State, records: Records, first: int, last: int, mode: Mode) -> State:
        """``state`` extended by a range of other records."""
        extends = records.extends(self.bank, mode, first, last)
        return extend(state, self.pcrs, self._make(), extends)

    def _make(self) -> Callable[..., Any]:
        return by_name(self.bank).constructor()

    def extends(self, mode: Mode, first: int, last: int) -> Iterable[tuple[int, bytes]]:
        """What a range of K extends; kept from the second walk on."""
        self._walks += 1
        total = len(self.records)
        if self._walks == 1 or total > _KEPT:
            return self.records.extends(self.bank, mode, first, last)
        if mode not in self._digests:
            self._digests[mode] = list(self.records.extends(self.bank, mode, 0, total))
        kept = self._digests[mode]
        return kept if first == 0 and last == total else kept[first:last]

    def without_one(self, state: State, place: int, budget: Budget) -> int | None:
        """The record of K[place:] without which the others lead to the PCRs."""
        total = len(self.records)
        count = total - place
        if not budget.take(count * (count + 1) // 2):
            return None
        make, extends = self._make(), list(self.extends(self.now, place, total))
        for at, (pcr, _) in enumerate(extends):
            rest = extends[at + 1 :]
            if pcr in self.pcrs and extend(state, self.pcrs, make, rest) == self.target:
                return place + at
            state = extend(state, self.pcrs, make, extends[at : at + 1])
        return None


def kernels(records: Records) -> tuple[int, ...]:
    """The places at which a kernel begins."""
    return tuple(at for at in range(len(records)) if records.is_boot_aggregate(at))


def hashable(bank: str) -> bool:
    """Whether this machine computes the bank's hash; others cannot be compared."""
    try:
        return by_name(bank).available
    except FormatError:
        return False


def chains(
    records: Records,
    starts: tuple[int, ...],
    modes: Modes,
    pcrs: tuple[int, ...],
    values: PcrValues,
) -> list[Chain]:
    """The banks that can be compared, narrowest first: the first is the cheapest.

    A bank is compared when all of ``pcrs`` were read and its mode under this kernel is known.
    """
    found = []
    banks = [bank for bank in modes if hashable(bank)]
    for bank in sorted(banks, key=lambda name: (by_name(name).digest_size, name)):
        chain = Chain(bank, pcrs, records, modes[bank], starts, ())
        target = chain.state(values)
        if target:
            chain.target = target
            found.append(chain)
    return found


def is_violation(records: Records, at: int) -> bool:
    """Whether the record is a violation: it may come again, byte by byte."""
    ((_, digest),) = records.extends(SHA1.name, Mode.REAL, at, at + 1)
    return digest == _ALL_ONES * len(digest)


class Stored:
    """Which heads of K may be stored already, told by their bytes.

    The last batch stood at the head of the kernel's list when it was committed, and nothing behind
    it was ever stored. Since then records were taken from the front, or from behind those that
    are staged (N), and kexecs may have cut some off the end and added others, first of all their
    boot_aggregate. So K[:j] is stored only if it is nothing, or an end of that batch, or what is
    staged of it and an end, or any part of it behind which another kernel begins.
    """

    def __init__(
        self,
        records: Records,
        kernels: tuple[int, ...],
        stored: Records,
        batch: Frame,
        longest: int,
        staged: int | None = None,
    ) -> None:
        """``staged``: how many records of K are, under the kernel that had the batch."""
        self._k, self._kernels, self._s = records, kernels, stored
        self._longest, self._end = min(batch.g_count, longest), len(stored)
        self._first = self._end - batch.g_count
        #: Whether the batch is the end of S; a join behind a carry that was cut stores a part.
        self._whole = self._first >= 0 and stored.sha256(self._first, self._end) == batch.g_sha256
        #: How many records are staged that the batch begins with; 0: others are.
        self._staged = 0
        if self._whole and staged and staged <= self._longest:
            self._staged = staged if self._is_at(self._first, 0, staged) else 0

    def places(self) -> Iterator[int]:
        """The places other than 0 that may be right, the last ones first."""
        last = self._s.record(self._end - 1) if self._end else b""
        edges = {*self._kernels, self._staged}
        for place in range(self._longest, 0, -1):
            ends = place in edges or self._k.record(place - 1) == last
            if ends and self.may_be(place):
                yield place

    def may_be(self, place: int) -> bool:
        """Whether K[:place] may be stored."""
        if not 0 < place <= self._longest:
            return not place
        if not self._whole:
            return self._in_pieces(place)
        if self._is_at(self._end - place, 0, place):
            return True
        rest = place - self._staged
        if self._staged and rest >= 0 and self._is_at(self._end - rest, self._staged, place):
            return True
        return place in self._kernels and any(
            self._is_at(at, 0, place) for at in self._beginnings(place)
        )

    def _is_at(self, index: int, first: int, last: int) -> bool:
        """Whether K[first:last] stands in S from ``index`` on."""
        end = index + last - first
        return self._s.sha256(index, end) == self._k.sha256(first, last)

    def _beginnings(self, place: int) -> Iterator[int]:
        head = self._k.record(0)
        for at in range(self._first, self._end - place):
            if self._s.record(at) == head:
                yield at

    def _in_pieces(self, place: int) -> bool:
        """Whether K[:place] is stored with holes, which carries left behind kernels."""
        start = max([at for at in self._kernels if at < place], default=0)
        end = self._end
        if place not in self._kernels:
            run = place - start
            if run > end or self._s.sha256(end - run, end) != self._k.sha256(start, place):
                return False
            place, end = start, end - run
        least = max(0, end - _TAIL)
        while place:
            wanted = self._k.record(place - 1)
            while end > least and self._s.record(end - 1) != wanted:
                end -= 1
            if end == least:
                return False
            place, end = place - 1, end - 1
        return True
