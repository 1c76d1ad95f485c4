# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The replay of one bank over a whole list, and where its PCRs have the values looked for.

A violation extends 0xff over the whole width (Linux 7.3 ima_queue.c,
``ima_add_digest_entry`` callers).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imafs.attest.parallel import Progress
from imafs.attest.walking import BLOCK, Block, Part, Stretch, record, stretch_blocks, whole
from imafs.formats.algorithms import ALGORITHMS, SHA1, Bank
from imafs.formats.binary import check_fields, wrong_digest

#: Banks that this machine can hash.
HASHES = {a.name: a for a in ALGORITHMS if a.available}


@dataclass(slots=True)
class Lane:
    """One bank of one PCR: its value, and after which numbers of records it is the target's.

    ``hits`` are half-open runs (first, end) of record numbers; the end of the last may
    be open (-1).
    """

    target: bytes
    value: bytes
    hits: list[tuple[int, int]] = field(default_factory=list)
    records: int = 0

    def __post_init__(self) -> None:
        if self.value == self.target:
            self.hits.append((0, -1))

    def moved(self, number: int, value: bytes) -> None:
        """Its value after record ``number`` (the first is 1)."""
        self.value = value
        self.records += 1
        if self.hits and self.hits[-1][1] < 0:
            self.hits[-1] = (self.hits[-1][0], number)
        if value == self.target:
            self.hits.append((number, -1))

    @property
    def first(self) -> int | None:
        """The first number of records after which it has its value, but for none."""
        ends = (max(first, 1) for first, end in self.hits if end < 0 or end > 1)
        return next(ends, None)

    def holds(self, number: int) -> bool:
        """Whether it has its value after ``number`` records."""
        return any(first <= number and (end < 0 or number < end) for first, end in self.hits)


@dataclass(frozen=True, slots=True)
class Task:
    """What one bank is replayed with: ``starts`` are PCRs' values before the first record."""

    name: str
    targets: Mapping[int, bytes]
    padded: bool = False
    starts: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Bytes of a value."""
        return HASHES[self.name].digest_size


@dataclass(slots=True)
class Digests:
    """What records extend PCRs by: the PCR of each, a byte, and the digests of every bank, back
    to back."""

    pcrs: bytes
    packed: dict[str, bytes]
    violations: int

    @classmethod
    def joined(cls, some: Sequence[Digests]) -> Digests:
        """Those of records that follow each other."""
        if len(some) == 1:
            return some[0]
        packed = {name: b"".join(each.packed[name] for each in some) for name in some[0].packed}
        pcrs = b"".join(each.pcrs for each in some)
        return cls(pcrs, packed, sum(each.violations for each in some))


def digests(
    stretches: Sequence[Stretch],
    own: Bank,
    tasks: Sequence[Task],
    progress: Progress,
    *,
    checked: bool = True,
) -> Digests:
    """Those of every record, in the banks of ``tasks``.

    ``checked``: the first of these is the list's own bank. Raises :class:`FormatError` where a
    record is malformed, or its fields or its template digest are not its own: with its number
    and byte, where the stretches are whole parts.
    """
    hashers = [_Hasher(own, task) for task in tasks]
    packed: dict[str, list[bytes]] = {task.name: [] for task in tasks}
    pcrs, violations = bytearray(), 0
    total = sum(each.stop - each.start for each in stretches)
    for block in stretch_blocks(stretches, own.digest_size, fields=checked):
        zero = hashers[0].zero
        places: list[int] = []
        if zero in block.digests:
            places = [n for n, digest in enumerate(block.digests) if digest == zero]
        violations += len(places)
        for hasher in hashers:
            made = hasher.of(block, places)
            if checked and hasher is hashers[0]:
                _check(stretches, own, block, made)
            packed[hasher.name].append(b"".join(made))
        pcrs += bytes(block.pcrs)
        progress(block.end, total)
    return Digests(
        bytes(pcrs), {name: b"".join(pieces) for name, pieces in packed.items()}, violations
    )


def extended(parts: Sequence[Part], own: Bank, name: str, padded: bool) -> list[tuple[int, bytes]]:
    """(PCR, digest) of what every record extends the bank ``name`` by; nothing is checked."""
    task = Task(name, {}, padded)
    found = digests(whole(parts), own, [task], lambda done, total: None, checked=False)
    packed, width = found.packed[name], task.width
    return [(pcr, packed[at * width : (at + 1) * width]) for at, pcr in enumerate(found.pcrs)]


def replay(
    found: Digests,
    task: Task,
    progress: Progress,
    lanes: dict[int, Lane] | None = None,
    before: int = 0,
) -> dict[int, Lane]:
    """The lane of every PCR that records went to, in one bank.

    Those of ``lanes`` go on, behind ``before`` records.
    """
    lanes = {} if lanes is None else lanes
    packed, width, total = found.packed[task.name], task.width, len(found.pcrs)
    for first in range(0, total, BLOCK):
        pcrs = found.pcrs[first : first + BLOCK]
        piece = packed[first * width : (first + len(pcrs)) * width]
        made = struct.unpack(f"{width}s" * len(pcrs), piece)
        if pcrs.count(pcrs[0]) == len(pcrs):
            _extend_one(_lane(lanes, task, pcrs[0]), task, before + first, made)
        else:
            _extend(lanes, task, before + first, pcrs, made)
        progress(first + len(pcrs), total)
    return lanes


class _Hasher:
    """One bank of the records of blocks."""

    def __init__(self, own: Bank, task: Task) -> None:
        algorithm = SHA1 if task.padded else HASHES[task.name]
        self.name = task.name
        self.zero = bytes(own.digest_size)
        self._hash = algorithm.constructor()
        self._padding = bytes(task.width - algorithm.digest_size)
        self._ones = b"\xff" * task.width

    def of(self, block: Block, violations: Sequence[int]) -> list[bytes]:
        """What each record extends the PCR by; those at the places ``violations`` by ones."""
        made = [found.digest() for found in map(self._hash, block.messages)]
        if self._padding:
            made = [digest + self._padding for digest in made]
        for place in violations:
            made[place] = self._ones
        return made


def _extend(
    lanes: dict[int, Lane], task: Task, first: int, pcrs: bytes, made: Sequence[bytes]
) -> None:
    """Extends every record's PCR."""
    make = HASHES[task.name].constructor()
    for number, (pcr, digest) in enumerate(zip(pcrs, made, strict=True), first + 1):
        lane = _lane(lanes, task, pcr)
        lane.moved(number, make(lane.value + digest).digest())


def _extend_one(lane: Lane, task: Task, first: int, made: Sequence[bytes]) -> None:
    """As :func:`_extend`, of records that went to one PCR: nearly all of every list."""
    make, value = HASHES[task.name].constructor(), lane.value
    values = [value := make(value + digest).digest() for digest in made]
    if lane.target in values or (lane.hits and lane.hits[-1][1] < 0):
        for number, value in enumerate(values, first + 1):
            lane.moved(number, value)
    else:
        lane.value = value
        lane.records += len(values)


def _lane(lanes: dict[int, Lane], task: Task, pcr: int) -> Lane:
    """That of a PCR; a new one where nothing went to it yet."""
    known = lanes.get(pcr)
    if known is None:
        known = lanes[pcr] = new_lane(task, pcr)
    return known


def new_lane(task: Task, pcr: int) -> Lane:
    """Of a PCR to which no record went yet."""
    return Lane(task.targets.get(pcr, b""), task.starts.get(pcr, bytes(task.width)))


def _check(stretches: Sequence[Stretch], own: Bank, block: Block, made: list[bytes]) -> None:
    """Raises :class:`FormatError` at the first record that is not sound."""
    if not block.doubtful and made == block.digests:
        return
    zero = bytes(own.digest_size)
    wrong = (
        place
        for place, (mine, digest) in enumerate(zip(made, block.digests, strict=True))
        if mine != digest != zero and not _is_of(digest, block.messages[place], own)
    )
    for place in sorted({*block.doubtful, *wrong}):
        number = block.first + place
        parsed = record([each.part for each in stretches], own.digest_size, number)
        check_fields(parsed, number)
        raise wrong_digest(parsed, own, number)


def _is_of(digest: bytes, message: bytes, own: Bank) -> bool:
    """Whether a list of bank ``own`` has this digest: its own, or zero-padded SHA-1."""
    assert own.algorithm is not None
    if digest == own.algorithm.digest(message):
        return True
    return digest == SHA1.digest(message).ljust(own.digest_size, b"\0")
