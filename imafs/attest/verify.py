# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Does a list explain PCR values, and up to which record?

Every record's template digest is checked, every bank's digest is computed from the
template data, and the replay is compared with the PCRs after each record: a list that
was read after the quote has records in excess, which is no error.

Of each PCR it is said what its value is, since there are PCRs that no list leads to: firmware
extends 0 to 9 before IMA does, a TPM lets no kernel extend 17 to 22 (locality) and has
none from 24 on, though rules may send records there (``pcr=0`` to ``63``).
"""

from __future__ import annotations

import enum
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from imafs.attest.lanes import HASHES, Digests, Lane, Task, digests, new_lane, replay
from imafs.attest.parallel import WORTH, Beside, Progress, in_processes
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.attest.walking import Part, cut, whole
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, Bank
from imafs.formats.binary import detect
from imafs.lists.replay import PcrValues

#: Bytes of a list that are worth a process.
_PIECE = WORTH // 2
#: The share of the work that the template digests are, about.
_DIGESTS = 0.7
#: Of one bank: the time of its chain to that of the digests; processes that keep one busy that
#: walks the chain; bytes between which a process hands on what it has.
_CHAIN = 0.42
_PROCESSES = 4
_STEP = 2 << 20
#: PCRs that firmware extends, those that no kernel can, and the number of PCRs of a TPM.
FIRMWARE = range(10)
LOCALITIES = range(17, 23)
TPM_PCRS = 24


class Value(enum.Enum):
    """What the value of a PCR is, to a list of which records went there."""

    MATCHES = "matches"
    #: Nothing was extended, though the list has records.
    ZERO = "zero"
    #: Of PCR 0 to 9: it held what firmware had extended before, or somebody extends it too.
    FIRMWARE = "firmware"
    #: Of PCR 17 to 22, and from 24 on.
    NOT_EXTENDED = "not extended"
    #: What the same records give whose digests are zero-padded SHA-1.
    PADDED = "padded"
    DIFFERS = "differs"
    #: No value of it is known.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One PCR of one bank.

    ``after`` is the number of records after which it has its value, alone; ``records`` of the
    list went there. ``actual`` is empty where it is unknown. ``replayed`` is what all of the
    list gives.
    """

    bank: str
    pcr: int
    value: Value
    after: int | None
    records: int
    actual: bytes
    replayed: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """``matched``: the number of records after which every PCR that can be compared agrees.

    None where there is no such number but 0, of a list that has records: PCRs to which
    nothing was extended confirm none of them. ``findings`` then says what each PCR is.
    ``records`` and ``violations`` count the whole list, ``compared`` are the PCRs looked at.
    """

    bank: str
    records: int
    violations: int
    matched: int | None
    compared: tuple[tuple[str, int], ...]
    findings: tuple[Finding, ...] = field(default=(), repr=False)

    @property
    def mismatches(self) -> tuple[Finding, ...]:
        """PCRs that no prefix of the list leads to, where they are to; none of a match."""
        wrong = (Value.ZERO, Value.PADDED, Value.DIFFERS)
        if self.matched is not None or not self.records:
            return ()
        return tuple(finding for finding in self.findings if finding.value in wrong)

    @property
    def excess(self) -> int:
        """Records behind the match: they came after the PCRs were read."""
        return self.records - self.matched if self.matched is not None else 0

    @property
    def padded(self) -> tuple[str, ...]:
        """Banks that hold zero-padded SHA-1, though nobody said so."""
        found = (f.bank for f in self.findings if f.value is Value.PADDED)
        return tuple(dict.fromkeys(found))


def verify(
    data: bytes,
    actual: PcrValues,
    *,
    bank: Bank | None = None,
    padded: Sequence[str] = (),
    pcr: int = DEFAULT_PCR,
    progress: Progress = lambda done, total: None,
) -> Verdict:
    """Replays the binary list ``data`` against ``actual``, as :func:`verify_parts`.

    ``bank`` is the list's (found by its digests otherwise).
    """
    own = bank if bank is not None else detect(data)
    return verify_parts(
        [Part(data)], own, actual, Choice(padded=padded, pcr=pcr), progress=progress
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What is compared, and how.

    ``padded`` names banks that hold zero-padded SHA-1. Compared are the PCRs that records went
    to, and ``pcr``, that of records without a rule's own: a list from which all of these were
    deleted is none. ``pcrs`` and ``banks`` leave it at some. ``starts`` are values
    that PCRs have before the first record (bank name -> PCR -> value).
    """

    padded: Sequence[str] = ()
    pcr: int = DEFAULT_PCR
    pcrs: Collection[int] | None = None
    banks: Collection[str] | None = None
    starts: PcrValues = field(default_factory=dict)

    def is_padded(self, bank: str) -> bool:
        """Also where the kernel has no hash for the TPM's algorithm."""
        return bank in self.padded or HASHES[bank].tpm_id is None

    def chosen(self, actual: PcrValues) -> PcrValues:
        """Of the PCR values those that are compared, of banks that can be hashed here."""
        return {
            bank: {n: v for n, v in values.items() if self.pcrs is None or n in self.pcrs}
            for bank, values in actual.items()
            if bank in HASHES and (self.banks is None or bank in self.banks)
        }


_ALL = Choice()


def verify_parts(
    parts: Sequence[Part],
    own: Bank,
    actual: PcrValues,
    choice: Choice = _ALL,
    *,
    progress: Progress = lambda done, total: None,
) -> Verdict:
    """Replays lists that follow each other, of bank ``own``.

    Raises :class:`FormatError` (record, byte, reason) where a record is malformed or its
    template digest wrong. Of a long list the template digests, which are independent of each
    other, are computed in pieces, one for each processor; then every bank's chain in a process.
    """
    targets = choice.chosen(actual)
    names = [own.name, *(name for name in targets if name != own.name)]
    tasks = {name: _task(name, targets, choice) for name in names}
    size = sum(len(part.data) for part in parts)
    done = None
    if len(targets) == 1 and size >= WORTH:
        with suppress(FormatError):  # the pass over the whole list says which record it is
            done = _one_bank(parts, own, list(tasks.values()), next(iter(targets)), progress)
    found, chains = done or _banks(parts, own, tasks, list(targets), progress)
    records = len(found.pcrs)
    progress(size, size)
    lanes = {
        (name, number): chains[name].get(number) or new_lane(tasks[name], number)
        for number in sorted({*found.pcrs, choice.pcr})
        if choice.pcrs is None or number in choice.pcrs
        for name in targets
    }
    known = {key: lane for key, lane in lanes.items() if lane.target}
    matched = _matched(known, records)
    findings = [_finding(key, lane, matched) for key, lane in lanes.items()]
    if matched is None and records:
        findings = _with_padded(findings, parts, own, tasks)
    compared = tuple(known)
    return Verdict(own.name, records, found.violations, matched, compared, tuple(findings))


def _banks(
    parts: Sequence[Part],
    own: Bank,
    tasks: Mapping[str, Task],
    targets: Sequence[str],
    progress: Progress,
) -> tuple[Digests, dict[str, dict[int, Lane]]]:
    """What the records extend, and every bank's lanes, in a process each."""
    size = sum(len(part.data) for part in parts)
    found = _digests(parts, own, list(tasks.values()), _share(progress, size, 0, _DIGESTS))

    def chain(name: str, report: Progress) -> dict[int, Lane]:
        return replay(found, tasks[name], report)

    report = _share(progress, size, _DIGESTS, 1)
    return found, dict(zip(targets, in_processes(chain, targets, report, size), strict=True))


def _one_bank(
    parts: Sequence[Part], own: Bank, tasks: Sequence[Task], name: str, progress: Progress
) -> tuple[Digests, dict[str, dict[int, Lane]]] | None:
    """As :func:`_banks`, of one bank: its chain, which is one long way, is walked here while other
    processes compute the digests of what follows; None where there is one processor.

    Raises :class:`FormatError`, with the number of a record within some piece.
    """
    size = sum(len(part.data) for part in parts)
    others = min(len(os.sched_getaffinity(0)), _PROCESSES) - 1
    if not others:
        return None
    pieces = cut(parts, own, max(size // _STEP, others + 1))
    # So many are computed here that all processes end at one time.
    ahead = round(len(pieces) * max(0.0, 1 - others * _CHAIN) / (1 + others))
    (task,) = (task for task in tasks if task.name == name)

    def work(number: str) -> Digests:
        made = digests(pieces[int(number)], own, tasks, _silent)
        return replace(made, packed={name: made.packed[name]})

    names = [str(number) for number in range(len(pieces))]
    beside = [Beside(work, names[ahead + n :: others]) for n in range(others)]
    lanes: dict[int, Lane] = {}
    pcrs, violations = bytearray(), 0
    try:
        streams = [each.results() for each in beside]
        for at, number in enumerate(names):
            found = work(number) if at < ahead else next(streams[(at - ahead) % others])
            replay(found, task, _silent, lanes, len(pcrs))
            pcrs += found.pcrs
            violations += found.violations
            progress(size * at // len(names), size)
    finally:
        for each in beside:
            each.end()
    return Digests(bytes(pcrs), {}, violations), {name: lanes}


def _digests(
    parts: Sequence[Part], own: Bank, tasks: Sequence[Task], progress: Progress
) -> Digests:
    """What every record extends the banks by. Raises as :func:`verify_parts`."""
    size = sum(len(part.data) for part in parts)
    if size >= WORTH:
        with suppress(FormatError):  # the pass over the whole list says which record it is
            pieces = cut(parts, own, min(len(os.sched_getaffinity(0)), size // _PIECE))

            def work(name: str, report: Progress) -> Digests:
                return digests(pieces[int(name)], own, tasks, report)

            names = [str(number) for number in range(len(pieces))]
            return Digests.joined(in_processes(work, names, progress, size))
    return digests(whole(parts), own, tasks, progress)


def _share(progress: Progress, size: int, begin: float, end: float) -> Progress:
    """The progress of some of the work, as that of all of it."""

    def share(done: int, total: int) -> None:
        if done < total:
            progress(int(size * (begin + (end - begin) * done / total)), size)

    return share


def _task(name: str, targets: PcrValues, choice: Choice) -> Task:
    starts = choice.starts.get(name, {})
    padded = name in choice.padded or (name in targets and choice.is_padded(name))
    return Task(name, targets.get(name, {}), padded, starts)


def _matched(lanes: Mapping[tuple[str, int], Lane], records: int) -> int | None:
    """The number of records after which all PCRs agree that a list can lead to.

    It is the largest one before another record went to one of them.
    """
    if not records:
        return 0 if all(lane.holds(0) for lane in lanes.values()) else None
    deciding = {
        key: lane for key, lane in lanes.items() if lane.first is not None or _can_be_led(key[1])
    }
    others = [lane for key, lane in deciding.items() if key[1] not in FIRMWARE]
    # PCR 0 to 9 may have been begun by firmware, or not.
    agreeing = [lane for key, lane in deciding.items() if key[1] not in FIRMWARE or lane.hits]
    found = first_common(agreeing, records)
    return found if found is not None else first_common(others, records)


def _can_be_led(pcr: int) -> bool:
    return pcr < TPM_PCRS and pcr not in LOCALITIES


def first_common(lanes: Sequence[Lane], records: int) -> int | None:
    """The smallest number of records that lies in a run of every lane, up to the runs' end."""
    for number in sorted({max(first, 1) for lane in lanes for first, _ in lane.hits}):
        if all(lane.holds(number) for lane in lanes):
            ends = (
                end if end >= 0 else records + 1
                for lane in lanes
                for first, end in lane.hits
                if first <= number and (end < 0 or number < end)
            )
            return min(ends) - 1
    return None


def _finding(key: tuple[str, int], lane: Lane, matched: int | None) -> Finding:
    bank, pcr = key
    after = matched if matched is not None and lane.holds(matched) else lane.first
    return Finding(
        *(bank, pcr, _value(pcr, lane, matched), after, lane.records, lane.target, lane.value)
    )


def _value(pcr: int, lane: Lane, matched: int | None) -> Value:
    if not lane.target:
        return Value.UNKNOWN if _can_be_led(pcr) else Value.NOT_EXTENDED
    if lane.holds(matched) if matched is not None else (lane.first is not None):
        # Zero for a while is no match where nothing else agrees.
        if matched is not None or any(lane.target) or not lane.records:
            return Value.MATCHES
        return Value.ZERO
    if not _can_be_led(pcr):
        return Value.NOT_EXTENDED
    if not any(lane.target):
        return Value.ZERO
    return Value.FIRMWARE if pcr in FIRMWARE else Value.DIFFERS


def _with_padded(
    found: list[Finding], parts: Sequence[Part], own: Bank, tasks: Mapping[str, Task]
) -> list[Finding]:
    """The findings after trying zero-padded SHA-1 where wide banks differ."""
    for name, task in tasks.items():
        wrong = [f for f in found if f.bank == name and f.value is Value.DIFFERS]
        if name == SHA1.name or task.padded or not wrong:
            continue
        again = replace(task, padded=True)
        lanes = replay(digests(whole(parts), own, [again], _silent, checked=False), again, _silent)
        found = [_if_padded(f, lanes.get(f.pcr)) if f in wrong else f for f in found]
    return found


def _silent(done: int, total: int) -> None:
    return None


def _if_padded(finding: Finding, lane: Lane | None) -> Finding:
    if lane is None or lane.first is None:
        return finding
    return replace(finding, value=Value.PADDED, after=lane.first, replayed=lane.value)
