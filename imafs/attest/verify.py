# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Does a list explain PCR values, and up to which record?

Every record's template digest is checked, every bank's digest is computed from the
template data, and the replay is compared with the PCRs after each record: a list that
was read after the quote has records in excess, which is no error. A violation extends
0xff over the whole width (Linux 7.3 ima_queue.c, ``ima_add_digest_entry`` callers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imafs.attest.parallel import Progress, in_processes
from imafs.attest.replay import PcrValues
from imafs.formats.algorithms import ALGORITHMS, SHA1, Bank
from imafs.formats.binary import (
    Parsed,
    Reader,
    Record,
    check_fields,
    detect,
    digest_matches,
    wrong_digest,
)
from imafs.formats.templates import TEMPLATES, Template

_EVERY = 8192
#: CONFIG_IMA_MEASURE_PCR_IDX of nearly every kernel.
DEFAULT_PCR = 10


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A PCR that no prefix of the list leads to: what it holds, what the whole list gives."""

    bank: str
    pcr: int
    actual: bytes
    replayed: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """``matched``: the number of records after which every compared PCR has its value.

    None where there is no such number but 0, of a list that has records: PCRs to which
    nothing was extended confirm none of them. ``mismatches`` then says which PCRs never got
    their value. ``records`` and ``violations`` count the whole list.
    """

    bank: str
    records: int
    violations: int
    matched: int | None
    compared: tuple[tuple[str, int], ...]
    mismatches: tuple[Mismatch, ...]

    @property
    def excess(self) -> int:
        """Records behind the match: they came after the PCRs were read."""
        return self.records - self.matched if self.matched is not None else 0


@dataclass(slots=True)
class _Lane:
    """One bank of one PCR: its value, and after which numbers of records it is the target's.

    ``hits`` are half-open runs (first, end) of record numbers; the end of the last may
    be open (-1).
    """

    target: bytes
    value: bytes
    hits: list[tuple[int, int]]


@dataclass(slots=True)
class _Pass:
    """The replay of one bank over the whole list."""

    records: int
    violations: int
    lanes: dict[int, _Lane]


def verify(
    data: bytes,
    actual: PcrValues,
    *,
    bank: Bank | None = None,
    padded: Sequence[str] = (),
    pcr: int = DEFAULT_PCR,
    progress: Progress = lambda done, total: None,
) -> Verdict:
    """Replays the binary list ``data`` against ``actual``.

    ``bank`` is the list's (found by its digests otherwise); ``padded`` names banks that
    hold zero-padded SHA-1. Compared are the PCRs that records of the list went to, and
    ``pcr``, that of records without a rule's own: a list from which all of these were
    deleted is none. Banks that this machine cannot hash are left out. Raises
    :class:`FormatError` (record, byte, reason) where a record is malformed or its
    template digest wrong. A long list is replayed in one process per bank.
    """
    chosen = bank if bank is not None else detect(data)
    names = [name for name in actual if name in _HASHES]
    own = chosen.name

    def replay(name: str, report: Progress) -> _Pass:
        return _replay(data, chosen, actual.get(name, {}), name, name in padded, report)

    banks = [own, *(name for name in names if name != own)]
    passes = dict(zip(banks, in_processes(replay, banks, progress, len(data)), strict=True))
    first = passes[own]
    lanes = {
        (name, number): lane
        for number in sorted({*first.lanes, pcr})
        for name in names
        if (lane := _lane(passes[name].lanes, number, name, actual)).target
    }
    if first.records:
        matched = _first_common([lane.hits for lane in lanes.values()])
    else:
        matched = 0 if not any(any(v.get(pcr, b"")) for v in actual.values()) else None
    wrong = tuple(
        Mismatch(name, number, lane.target, lane.value)
        for (name, number), lane in lanes.items()
        if matched is None and first.records and not _after_a_record(lane.hits)
    )
    return Verdict(own, first.records, first.violations, matched, tuple(lanes), wrong)


#: Banks that this machine can hash.
_HASHES = {a.name: a for a in ALGORITHMS if a.available}


def _replay(
    data: bytes,
    chosen: Bank,
    targets: Mapping[int, bytes],
    name: str,
    padded: bool,
    progress: Progress,
) -> _Pass:
    """One bank's pass; that of the list's own bank checks fields and template digests."""
    algorithm = _HASHES[name]
    make = algorithm.constructor()
    template_hash = SHA1.constructor() if padded else make
    width = algorithm.digest_size
    checked = name == chosen.name
    violation = b"\xff" * width
    zero = bytes(chosen.digest_size)
    ima = TEMPLATES["ima"]
    lanes: dict[int, _Lane] = {}
    number = violations = 0
    for pcr, template, body, digest, start, end in Reader(data, chosen.digest_size).walk():
        lane = lanes.get(pcr)
        if lane is None:
            lane = lanes[pcr] = _new_lane(targets.get(pcr, b""), width)
        if digest == zero:
            violations += 1
            extended = violation
        else:
            message = template.hash_input(body) if template is ima else body
            own = template_hash(message).digest()
            extended = own.ljust(width, b"\0") if padded else own
            if checked:
                if template is not ima and not template.fits(body):
                    check_fields(_parsed(pcr, template, body, digest, start, end), number)
                if own != digest and extended != digest:
                    _check_digest(_parsed(pcr, template, body, digest, start, end), chosen, number)
        lane.value = value = make(lane.value + extended).digest()
        number += 1
        hits = lane.hits
        if hits and hits[-1][1] < 0:
            hits[-1] = (hits[-1][0], number)
        if value == lane.target:
            hits.append((number, -1))
        if not number % _EVERY:
            progress(end, len(data))
    progress(len(data), len(data))
    return _Pass(number, violations, lanes)


def _lane(lanes: Mapping[int, _Lane], pcr: int, bank: str, actual: PcrValues) -> _Lane:
    """That of a PCR, also where no record went to it."""
    known = lanes.get(pcr)
    return known or _new_lane(actual[bank].get(pcr, b""), _HASHES[bank].digest_size)


def _new_lane(target: bytes, width: int) -> _Lane:
    value = bytes(width)
    return _Lane(target, value, [(0, -1)] if value == target else [])


def _parsed(
    pcr: int, template: Template, body: bytes, digest: bytes, start: int, end: int
) -> Parsed:
    return Parsed(Record(pcr, template, body), digest, start, end)


def _check_digest(parsed: Parsed, bank: Bank, number: int) -> None:
    assert bank.algorithm is not None
    if not digest_matches(parsed, bank.algorithm):
        raise wrong_digest(parsed, bank, number)


def _after_a_record(runs: list[tuple[int, int]]) -> bool:
    return any(end < 0 or end > 1 for _, end in runs)


def _first_common(runs: list[list[tuple[int, int]]]) -> int | None:
    """The smallest number of records that lies in a run of every lane; None without one."""
    if not runs:
        return None
    for number in sorted(max(first, 1) for lane in runs for first, _ in lane):
        if all(
            any(first <= number and (end < 0 or number < end) for first, end in lane)
            for lane in runs
        ):
            return number
    return None
