# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The replay of one bank over a whole list, and where its PCRs have the values looked for.

A violation extends 0xff over the whole width (Linux 7.3 ima_queue.c,
``ima_add_digest_entry`` callers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imafs.attest.parallel import Progress
from imafs.attest.walking import Block, Part, blocks, record
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
    """What one bank is replayed with: ``starts`` are PCRs' values before the first record.

    ``unchecked`` is a replay that only tries something out.
    """

    name: str
    targets: Mapping[int, bytes]
    padded: bool = False
    starts: Mapping[int, bytes] = field(default_factory=dict)
    unchecked: bool = False


@dataclass(slots=True)
class Pass:
    """The replay of one bank over the whole list."""

    records: int
    violations: int
    lanes: dict[int, Lane]


def extended(parts: Sequence[Part], own: Bank, name: str, padded: bool) -> list[tuple[int, bytes]]:
    """(PCR, digest) of what every record extends the bank ``name`` by; nothing is checked."""
    replay = _Replay(own, Task(name, {}, padded))
    return [
        pair
        for block in blocks(parts, own.digest_size, fields=False)
        for pair in zip(block.pcrs, replay.digests(block)[0], strict=True)
    ]


def replay(parts: Sequence[Part], own: Bank, task: Task, progress: Progress) -> Pass:
    """One bank's pass; that of the list's own bank checks fields and template digests.

    Raises :class:`FormatError` (record, byte of all parts as one).
    """
    one = _Replay(own, task)
    total = sum(len(part.data) for part in parts)
    out = Pass(0, 0, {})
    for block in blocks(parts, own.digest_size, fields=one.checked):
        digests, violations = one.digests(block)
        if one.checked:
            _check(parts, own, block, digests)
        one.extend(out.lanes, block, digests)
        out.violations += violations
        out.records += len(block.pcrs)
        if block.end < total:
            progress(block.end, total)
    progress(total, total)
    return out


class _Replay:
    def __init__(self, own: Bank, task: Task) -> None:
        algorithm = HASHES[task.name]
        self._hash = algorithm.constructor()
        self._template_hash = SHA1.constructor() if task.padded else self._hash
        self._width = algorithm.digest_size
        self._task = task
        self._zero = bytes(own.digest_size)
        self.checked = task.name == own.name and not task.unchecked

    def digests(self, block: Block) -> tuple[list[bytes], int]:
        """What each record extends the PCR by, and how many of them are violations."""
        out = [found.digest() for found in map(self._template_hash, block.messages)]
        if self._task.padded:
            out = [digest.ljust(self._width, b"\0") for digest in out]
        violations = block.digests.count(self._zero)
        if violations:
            ones = b"\xff" * self._width
            for place, digest in enumerate(block.digests):
                if digest == self._zero:
                    out[place] = ones
        return out, violations

    def extend(self, lanes: dict[int, Lane], block: Block, digests: list[bytes]) -> None:
        """Extends every record's PCR."""
        first = block.pcrs[0]
        if block.pcrs.count(first) == len(block.pcrs):
            self._extend_one(self.lane(lanes, first), block.first, digests)
            return
        make = self._hash
        for number, (pcr, digest) in enumerate(
            zip(block.pcrs, digests, strict=True), block.first + 1
        ):
            lane = self.lane(lanes, pcr)
            lane.moved(number, make(lane.value + digest).digest())

    def _extend_one(self, lane: Lane, first: int, digests: list[bytes]) -> None:
        """As :meth:`extend`, of a block whose records went to one PCR: nearly every one."""
        # A copy of a fresh hash takes a tenth less than a new one (OpenSSL 3 looks it up).
        fresh, value = self._hash().copy, lane.value
        values: list[bytes] = []
        add = values.append
        for digest in digests:
            made = fresh()
            made.update(value)
            made.update(digest)
            value = made.digest()
            add(value)
        if lane.target in values or (lane.hits and lane.hits[-1][1] < 0):
            for number, value in enumerate(values, first + 1):
                lane.moved(number, value)
        else:
            lane.value = value
            lane.records += len(values)

    def lane(self, lanes: dict[int, Lane], pcr: int) -> Lane:
        """That of a PCR; a new one where nothing went to it yet."""
        known = lanes.get(pcr)
        if known is None:
            known = lanes[pcr] = new_lane(self._task, pcr)
        return known


def new_lane(task: Task, pcr: int) -> Lane:
    """Of a PCR to which no record went yet."""
    width = HASHES[task.name].digest_size
    return Lane(task.targets.get(pcr, b""), task.starts.get(pcr, bytes(width)))


def _check(parts: Sequence[Part], own: Bank, block: Block, digests: list[bytes]) -> None:
    """Raises :class:`FormatError` at the first record that is not sound."""
    if not block.doubtful and digests == block.digests:
        return
    zero = bytes(own.digest_size)
    wrong = (
        place
        for place, (made, digest) in enumerate(zip(digests, block.digests, strict=True))
        if made != digest != zero and not _is_of(digest, block.messages[place], own)
    )
    for place in sorted({*block.doubtful, *wrong}):
        number = block.first + place
        parsed = record(parts, own.digest_size, number)
        check_fields(parsed, number)
        raise wrong_digest(parsed, own, number)


def _is_of(digest: bytes, message: bytes, own: Bank) -> bool:
    """Whether a list of bank ``own`` has this digest: its own, or zero-padded SHA-1."""
    assert own.algorithm is not None
    if digest == own.algorithm.digest(message):
        return True
    return digest == SHA1.digest(message).ljust(own.digest_size, b"\0")
