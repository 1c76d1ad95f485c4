# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Why a list does not lead to its PCRs, where the bytes tell.

Each supposition is an order of the list's records, some left out, some moved, and perhaps
another value to begin with. It is told only where the replay of that order leads to every PCR
of ``pcr`` that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, permutations
from typing import Any

from imafs.attest.lanes import HASHES, Lane, extended
from imafs.attest.verify import Choice, Value, Verdict, first_common
from imafs.attest.walking import Part, proven_name
from imafs.formats.algorithms import SHA1, Bank
from imafs.formats.binary import Parsed, Reader, Record
from imafs.formats.list_file import name_of
from imafs.lists.replay import PcrValues
from imafs.text import shown

#: Hashes that are spent on suppositions: so many, and so many for each record and bank.
#: A list of boot_aggregates alone, or one in many pieces, would take for ever.
EFFORT = 3_000_000
_PER_RECORD = 8
#: A longer list is not searched: a million records took 40 s and 700 MB (measured).
MOST_RECORDS = 200_000
#: Lists of which every order is tried, and places at which a repetition is looked for.
_MOST_LISTS = 5
_MOST_PLACES = 16
#: Records that a sentence names.
_NAMED = 10
BOOT = b"boot_aggregate"

#: Numbers of records in the order of a supposition.
Order = Sequence[int]


@dataclass(frozen=True, slots=True)
class Explanation:
    """``kind`` is one word for programs, ``said`` a sentence for people."""

    kind: str
    said: str


@dataclass(slots=True)
class _Track:
    """One bank of the PCR: what each record extends it by; None for records of other PCRs."""

    make: Callable[..., Any]
    target: bytes
    start: bytes
    given: bytes | None
    digests: list[bytes | None]

    def lane(self, order: Order, start: bytes) -> Lane:
        """The replay in this order."""
        lane = Lane(self.target, start)
        for place, number in enumerate(order, 1):
            digest = self.digests[number]
            if digest is not None:
                lane.moved(place, self.make(lane.value + digest).digest())
        return lane


def records(parts: Sequence[Part], width: int) -> Iterator[Parsed]:
    """Every record of lists that are known to be sound."""
    return chain.from_iterable(Reader(part.data, width, part.order, opaque=True) for part in parts)


def boots(parts: Sequence[Part], width: int) -> list[int]:
    """Numbers of the records that are a boot_aggregate."""
    if not any(BOOT in part.data for part in parts):
        return []
    return [n for n, parsed in enumerate(records(parts, width)) if is_boot(parsed.record)]


def is_boot(record: Record) -> bool:
    """Whether a record is proven to be called boot_aggregate: of a violation no name is."""
    return not record.violation and proven_name(record) == BOOT


def remark(parts: Sequence[Part], own: Bank, verdict: Verdict) -> Explanation | None:
    """What a list shows that leads to its PCRs: kernels that followed each other in it."""
    if sum(part.data.count(BOOT) for part in parts) < 2 or not verdict.matched:
        return None
    found, width = boots(parts, own.digest_size), own.digest_size
    if verdict.excess and verdict.matched in found:
        again = [(p.record, p.digest) for p in records(parts, width)]
        if again[: verdict.excess] == again[verdict.matched :]:
            return Explanation(
                "twice", f"the {verdict.excess} records in excess are the first ones again"
            )
        return Explanation(
            "reboot",
            f"record {verdict.matched} is a boot_aggregate again: the records in excess are of "
            "a later boot, the PCRs are not",
        )
    later = [n for n in found if 0 < n < verdict.matched]
    if not later:
        return None
    return Explanation(
        "kexec",
        f"{_numbers(later)} boot_aggregate again, and the PCRs go on: the kernel was replaced by "
        "kexec, which kept the list",
    )


def explain(
    parts: Sequence[Part],
    names: Sequence[tuple[str, int]],
    own: Bank,
    actual: PcrValues,
    verdict: Verdict,
    choice: Choice,
) -> Explanation | None:
    """What happened to a list whose verdict has no match; None where nothing tells.

    ``names`` are the lists that were given, in order, with their numbers of records; ``choice``
    has values that the replay may begin with.
    """
    differs = any(f.value is Value.DIFFERS and f.pcr == choice.pcr for f in verdict.findings)
    if not differs or not verdict.records:
        return None
    alone = _other_banks(verdict, choice)
    if alone is not None:
        return alone
    if verdict.records > MOST_RECORDS:
        return of_the_first(parts, own, actual)
    search = _Search(parts, names, own, verdict, choice)
    for look in (search.twice, search.after_reboot, search.from_value, search.moved, search.one):
        found = look()
        if found is not None:
            return found
    return of_the_first(parts, own, actual, search.later)


def _other_banks(verdict: Verdict, choice: Choice) -> Explanation | None:
    """What it means that banks of the PCR match: no record is missing, changed or in excess."""
    mine = [f for f in verdict.findings if f.pcr == choice.pcr]
    matching = [f.bank for f in mine if f.value is Value.MATCHES]
    differing = [f.bank for f in mine if f.value is Value.DIFFERS]
    if not matching:
        return None
    leave = f"--banks {','.join(matching)} leaves {'it' if len(differing) == 1 else 'them'} out"
    begun = [bank for bank in matching if choice.pcr in choice.starts.get(bank, {})]
    missing = [b for b in differing if choice.pcr not in choice.starts.get(b, {})]
    if begun and missing:
        return Explanation(
            "from",
            f"--from was given for {', '.join(begun)} and not for {', '.join(missing)}: give "
            f"the value of each bank ({' '.join(f'--from {b}:VALUE' for b in missing)}), or "
            f"{leave}",
        )
    return Explanation(
        "bank",
        f"the list leads to {', '.join(matching)}, so no record is missing: something else "
        f"extended {', '.join(differing)} or set it; {leave}",
    )


class _Search:
    def __init__(
        self,
        parts: Sequence[Part],
        names: Sequence[tuple[str, int]],
        own: Bank,
        verdict: Verdict,
        choice: Choice,
    ) -> None:
        self._names = [name for name, _ in names]
        ends = list(accumulate(size for _, size in names))
        self._ranges = [range(end - size, end) for end, (_, size) in zip(ends, names, strict=True)]
        self._count = verdict.records
        self._own, self._parts, self._choice = own, parts, choice
        self._tracks = list(self._followed(verdict))
        self._keys = [(p.record.pcr, p.digest, p.record.data) for p in self._all()]
        self._boots = boots(parts, own.digest_size)
        #: Boots behind the first record.
        self.later = [number for number in self._boots if number]
        self._effort = EFFORT + _PER_RECORD * self._count * len(self._tracks)

    def _all(self) -> Iterator[Parsed]:
        return records(self._parts, self._own.digest_size)

    def _followed(self, verdict: Verdict) -> Iterator[_Track]:
        """The banks of the PCR; one that differs first, which drops most suppositions."""
        pcr, choice = self._choice.pcr, self._choice
        mine = [f for f in verdict.findings if f.pcr == pcr and any(f.actual)]
        for found in sorted(mine, key=lambda f: f.value is not Value.DIFFERS):
            if found.value not in (Value.DIFFERS, Value.MATCHES):
                continue
            padded = choice.is_padded(found.bank)
            pairs = extended(self._parts, self._own, found.bank, padded)
            digests = [digest if number == pcr else None for number, digest in pairs]
            algorithm = HASHES[found.bank]
            given = choice.starts.get(found.bank, {}).get(pcr)
            yield _Track(
                *(algorithm.constructor(), found.actual, bytes(algorithm.digest_size), given),
                digests,
            )

    def _leads(self, order: Order, *, given: bool = False) -> int | None:
        """After how many records of this order the PCR has its value in every bank."""
        lanes = []
        for track in self._tracks:
            start = track.start if not given else track.given
            if start is None:
                continue
            if not self._spend(len(order)):
                return None
            lanes.append(track.lane(order, start))
            if lanes[-1].first is None:
                return None
        return first_common(lanes, len(order)) if lanes else None

    def after_reboot(self) -> Explanation | None:
        """Records of an earlier boot in front."""
        for boot in self._boots:
            found = self._leads(range(boot, self._count)) if boot else None
            if found is not None:
                return Explanation(
                    "reboot",
                    f"record {boot} is a boot_aggregate again, and a replay that begins there "
                    f"matches after record {boot + found}: the machine was booted again, and the "
                    f"{boot} records before are of an earlier boot",
                )
        return None

    def from_value(self) -> Explanation | None:
        """Records that are missing in front of one, where the value before it is given."""
        if all(track.given is None for track in self._tracks):
            return None
        begins = [r.start for r in self._ranges]
        for place in dict.fromkeys([*begins, *self._boots, *range(self._count)]):
            found = self._leads(range(place, self._count), given=True)
            if self._effort < 0:
                break
            if found is not None:
                return Explanation(
                    "missing",
                    f"from the value that was given, the records from {place} on match after "
                    f"record {place + found}: records that lead to that value are missing in "
                    f"front of record {place}",
                )
        return None

    def twice(self) -> Explanation | None:
        """Records that stand in the list a second time."""
        first: dict[object, list[int]] = {}
        for number, key in enumerate(self._keys):
            first.setdefault(key, []).append(number)
        joints = {r.start for r in self._ranges}
        begins = joints | set(self._boots)
        for begin in sorted(begins - {0, self._count}):
            for place in first[self._keys[begin]][:_MOST_PLACES]:
                if self._effort < 0:
                    return None
                length = self._same(place, begin)
                # One boot_aggregate alone is rather that of another boot.
                if place >= begin or length < (1 if begin in joints else 2):
                    continue
                order = [*range(begin), *range(begin + length, self._count)]
                found = self._leads(order)
                if found is not None:
                    return Explanation(
                        "twice",
                        f"{_again(begin, place, length)}: {self._given_twice(begin)}; without "
                        f"that it matches after record {found}",
                    )
        return None

    def _given_twice(self, begin: int) -> str:
        for name, numbers in zip(self._names[1:], self._ranges[1:], strict=True):
            if numbers.start == begin:
                return f"{name} has them too"
        return "the list stands in it twice"

    def _same(self, place: int, begin: int) -> int:
        """How many records from ``begin`` on are those from ``place`` on, up to ``begin``."""
        length = 0
        while (
            place + length < begin
            and begin + length < self._count
            and self._keys[place + length] == self._keys[begin + length]
        ):
            length += 1
        self._spend(length)
        return length

    def moved(self) -> Explanation | None:
        """Lists in another order, the end in front, or all of it turned round."""
        if 1 < len(self._ranges) <= _MOST_LISTS:
            names = dict(zip(map(tuple, self._ranges), self._names, strict=True))
            for some in islice(permutations(names), 1, None):
                if self._effort < 0:
                    break
                found = self._leads(list(chain.from_iterable(some)))
                if found is not None:
                    said = ", ".join(names[one] for one in some)
                    return Explanation("order", f"in this order the lists match: {said}")
        for boot in self._boots:
            if self._effort < 0:
                break
            order = [*range(boot, self._count), *range(boot)]
            if boot and self._leads(order) is not None:
                return Explanation(
                    "order",
                    f"the records from {boot} on, which begin with boot_aggregate, come first: "
                    "in that order the list matches",
                )
        if self._leads(range(self._count - 1, -1, -1)) is not None:
            return Explanation("order", "the list is in reverse order: turned round it matches")
        return None

    def one(self) -> Explanation | None:
        """One record that the PCR does not know of, or two neighbours that changed places.

        From the end on, where a try costs least.
        """
        track, values = self._tracks[0], [self._tracks[0].start]
        for digest in track.digests:
            values.append(
                values[-1] if digest is None else track.make(values[-1] + digest).digest()
            )
        for number in range(self._count - 1, -1, -1):
            if not self._spend(2 * (self._count - number)):
                return None
            if track.digests[number] is None:
                continue
            begun, rest = values[number], range(number + 1, self._count)
            if self._fits(begun, rest) and self._leads([*range(number), *rest]) is not None:
                return Explanation(
                    "extra",
                    f"without record {number} ({self._name(number)}) the list matches: it was "
                    "added to the list, or never extended",
                )
            swapped = [*rest[:1], number, *rest[1:]]
            if self._fits(begun, swapped) and self._leads([*range(number), *swapped]) is not None:
                return Explanation(
                    "order",
                    f"records {number} and {number + 1} ({self._name(number)}, "
                    f"{self._name(number + 1)}) changed places: in the other order the list "
                    "matches",
                )
        return None

    def _fits(self, begun: bytes, rest: Order) -> bool:
        """Whether the first bank may get its value after these records: a look at one alone."""
        track = self._tracks[0]
        return begun == track.target or track.lane(rest, begun).first is not None

    def _name(self, number: int) -> str:
        parsed = next(islice(self._all(), number, None))
        return shown(name_of(parsed.record) or b"-", 60)

    def _spend(self, hashes: int) -> bool:
        self._effort -= hashes
        return self._effort >= 0


def of_the_first(
    parts: Sequence[Part], own: Bank, actual: PcrValues, later: Sequence[int] = ()
) -> Explanation | None:
    """What the first record of a boot tells: every kernel's list begins with boot_aggregate.

    ``later`` are the numbers of those that are not the list's first record.
    """
    found = next(records(parts, own.digest_size)).record
    if name_of(found) is None:
        return None
    if name_of(found) != BOOT:
        return Explanation(
            "head",
            "the list does not begin with boot_aggregate: the records before its first one are "
            "missing. Give them first, or the PCR's value after them (--from VALUE)",
        )
    which = "boot_aggregate"
    if later:
        found = next(islice(records(parts, own.digest_size), later[-1], None)).record
        which = f"boot_aggregate of record {later[-1]}"
    fields = {f.name: part for f, part in found.template.parts(found.data)}
    field = fields.get("d-ng", b"")
    algorithm, _, digest = field.partition(b":\0")
    made = boot_aggregate(algorithm.decode("latin-1"), actual)
    if made is None or not any(digest):
        return _incomplete(later)
    if made == digest:
        return Explanation(
            "boot_aggregate",
            f"{which} is that of the PCRs 0 to 9: list and PCRs are of one machine; "
            "records behind it were deleted, added or changed, or are missing at the end (were the "
            "PCRs read after the list?)",
        )
    return Explanation(
        "boot_aggregate",
        f"{which} is not that of the PCRs 0 to 9: are list and PCRs of different "
        "machines or boots?",
    )


def _incomplete(later: Sequence[int]) -> Explanation:
    """No record is missing in front, and nothing else is known."""
    what = (
        "records are missing at the end (were the PCRs read after the list?) or in between, or "
        "the PCRs are of another boot or machine"
    )
    if not later:
        return Explanation(
            "incomplete",
            f"the list begins with boot_aggregate, so none is missing in front of it: {what}",
        )
    return Explanation(
        "incomplete",
        f"{_numbers(later)} boot_aggregate again, and neither the whole list nor what begins there "
        f"leads to the PCRs: {what}",
    )


def boot_aggregate(name: str, actual: PcrValues) -> bytes | None:
    """The digest of PCR 0 to 9, in SHA-1 of 0 to 7 (Linux 5.8 on); None without their values."""
    if name not in HASHES:
        return None
    values = actual.get(name, {})
    wanted = [values.get(pcr) for pcr in range(8 if name == SHA1.name else 10)]
    known = [value for value in wanted if value is not None]
    return HASHES[name].digest(b"".join(known)) if len(known) == len(wanted) else None


def _again(begin: int, place: int, length: int) -> str:
    if length == 1:
        return f"record {begin} is record {place} again"
    return f"records {begin} to {begin + length - 1} are those from {place} on again"


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"record {numbers[0]} is a"
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"records {', '.join(map(str, numbers[:_NAMED]))}{more} are a"
