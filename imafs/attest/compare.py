# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Two lists record by record: what is only in one, what stands elsewhere.

Records are told by what they measure (PCR, template, template data as a little-endian kernel
writes it), so that lists of different banks, byte orders and forms can be compared. A
record whose template digest is not its own is another record.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from imafs.errors import FormatError
from imafs.formats.binary import Parsed
from imafs.formats.list_file import Fault, MeasurementList


@dataclass(frozen=True, slots=True)
class Side:
    """Records of one list, and what is wrong with it."""

    records: Sequence[Parsed]
    keys: Sequence[Hashable]
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class Difference:
    """``first`` is the number of the first record that differs, None where none does.

    ``only`` are the numbers of records that the other list has not (so often). ``moved`` pairs
    (number in the first list, in the second) are as few as explain the order of the rest.
    """

    first: int | None
    only: tuple[tuple[int, ...], tuple[int, ...]]
    moved: tuple[tuple[int, int], ...]

    @property
    def same(self) -> bool:
        """Whether both have the same records in the same order."""
        return self.first is None


def side(found: MeasurementList) -> Side:
    """Every record that can be read of a list, sound or damaged."""
    records: list[Parsed] = []
    keys: list[Hashable] = []
    faults: list[Fault] = []
    for item in found.items():
        parsed = item.parsed if isinstance(item, Fault) else item
        if isinstance(item, Fault):
            faults.append(item)
        if parsed is not None:
            records.append(parsed)
            keys.append((*_key(parsed), parsed.digest if isinstance(item, Fault) else None))
    return Side(records, keys, faults)


def _key(parsed: Parsed) -> tuple[Hashable, ...]:
    record = parsed.record
    template, data = record.template, record.data
    with suppress(FormatError):  # of an unknown template: as it is
        template, data = template.little(data)
    return record.pcr, template.label, data, record.violation


def compare(one: Sequence[Hashable], other: Sequence[Hashable]) -> Difference:
    """The difference of two lists by the keys of their records."""
    places: defaultdict[Hashable, deque[int]] = defaultdict(deque)
    for number, key in enumerate(other):
        places[key].append(number)
    pairs: list[tuple[int, int]] = []
    only: list[int] = []
    for number, key in enumerate(one):
        if places[key]:
            pairs.append((number, places[key].popleft()))
        else:
            only.append(number)
    rest = sorted(number for numbers in places.values() for number in numbers)
    shorter = min(len(one), len(other))
    first = next((n for n in range(shorter) if one[n] != other[n]), None)
    if first is None and len(one) != len(other):
        first = shorter
    return Difference(first, (tuple(only), tuple(rest)), tuple(_moved(pairs)))


def _moved(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those pairs that are outside of a longest run which both lists have in the same order."""
    ends: list[int] = []  # the least last place of a run of each length
    lengths: list[int] = []
    for _, place in pairs:
        at = bisect_left(ends, place)
        ends[at : at + 1] = [place]
        lengths.append(at + 1)
    wanted, moved = len(ends), []
    for pair, length in zip(reversed(pairs), reversed(lengths), strict=True):
        if length == wanted:
            wanted -= 1
        else:
            moved.append(pair)
    return moved[::-1]
