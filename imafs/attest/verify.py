# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Does a list explain PCR values, and up to which record?

Every record's template digest is checked, every bank's digest is computed from the
template data, and the replay is compared with the PCRs after each record: a list that
was read after the quote has records in excess, which is no error. A violation extends
0xff over the whole width (Linux 7.3 ima_queue.c, ``ima_add_digest_entry`` callers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imafs.attest.replay import PcrValues
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, Bank, HashAlgorithm, bank_for, by_name
from imafs.formats.binary import Reader, check_fields, detect

#: Called with (bytes read, bytes in all) now and then.
Progress = Callable[[int, int], None]
_EVERY = 8192


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

    None where there is no such number; ``mismatches`` then says which PCRs never got
    theirs. ``records`` and ``violations`` count the whole list.
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


class _Lane:
    """The running value of one bank in one PCR."""

    __slots__ = ("at", "ever", "hit", "make", "target", "value", "violation", "width")

    def __init__(self, algorithm: HashAlgorithm, target: bytes, at: int) -> None:
        self.make = algorithm.constructor()
        self.target = target
        self.value = bytes(algorithm.digest_size)
        self.violation = b"\xff" * algorithm.digest_size
        self.width = algorithm.digest_size
        self.at = at  # index of the digest among those computed per record
        self.hit = self.ever = self.value == target


def verify(
    data: bytes,
    actual: PcrValues,
    *,
    bank: Bank | None = None,
    padded: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> Verdict:
    """Replays the binary list ``data`` against ``actual``.

    ``bank`` is the list's (found by its digests otherwise); ``padded`` names banks that
    hold zero-padded SHA-1. Compared are the PCRs that records of the list went to, or
    PCR 10 for an empty list. Raises :class:`FormatError` (record, byte, reason) where a
    record is malformed or its template digest wrong.
    """
    chosen = bank if bank is not None else detect(data)
    assert chosen.algorithm is not None
    algorithms = _algorithms(chosen.algorithm, actual, padded)
    makers = [algorithm.constructor() for algorithm in algorithms]
    names = [name for name in actual if by_name(name).available]
    index = {a.name: i for i, a in enumerate(algorithms)}
    lanes: dict[int, list[_Lane]] = {}
    open_lanes = 0
    records = violations = 0
    matched: int | None = None
    size = len(data)
    for number, parsed in enumerate(Reader(data, chosen.digest_size)):
        record = parsed.record
        mine = lanes.get(record.pcr)
        if mine is None:
            mine = lanes[record.pcr] = [
                _Lane(by_name(n), actual[n][record.pcr], index["sha1" if n in padded else n])
                for n in names
                if record.pcr in actual[n]
            ]
            if not records and mine and all(lane.hit for lane in mine):
                matched = 0  # quoted before the first record
            open_lanes += sum(not lane.hit for lane in mine)
            if matched is not None and not all(lane.hit for lane in mine):
                matched = None
        if record.violation:
            violations += 1
            digests = None
        else:
            check_fields(parsed, number)
            message = record.template.hash_input(record.data)
            digests = [make(message).digest() for make in makers]
            _check(parsed.digest, digests, chosen.algorithm, index, number, parsed.start)
        for lane in mine:
            digest = lane.violation if digests is None else digests[lane.at]
            lane.value = lane.make(lane.value + digest.ljust(lane.width, b"\0")).digest()
            if lane.hit:
                lane.hit = False
                open_lanes += 1
            if lane.value == lane.target:
                lane.hit = lane.ever = True
                open_lanes -= 1
        records = number + 1
        if not open_lanes and matched is None and mine:
            matched = records
        if not number % _EVERY:
            progress(parsed.end, size)
    progress(size, size)
    if not records:
        matched = 0 if not any(any(v.get(10, b"")) for v in actual.values()) else None
    return _verdict(chosen, records, violations, matched, lanes, names, actual)


def _algorithms(
    own: HashAlgorithm, actual: PcrValues, padded: Sequence[str]
) -> list[HashAlgorithm]:
    """The hashes to compute per record: the list's own first, then the banks'."""
    wanted = {own.name: own}
    for name in actual:
        algorithm = SHA1 if name in padded else by_name(name)
        if algorithm.available:
            wanted[algorithm.name] = algorithm
    return list(wanted.values())


def _check(
    found: bytes,
    digests: list[bytes],
    algorithm: HashAlgorithm,
    index: dict[str, int],
    number: int,
    start: int,
) -> None:
    if digests[0] == found:
        return
    sha1 = digests[index["sha1"]] if "sha1" in index else None
    if sha1 is not None and sha1.ljust(len(found), b"\0") == found:
        return
    raise FormatError(
        f"the {algorithm.name} template digest {found.hex()} is not that of the template data",
        record=number,
        offset=start + 4,
    )


def _verdict(
    chosen: Bank,
    records: int,
    violations: int,
    matched: int | None,
    lanes: dict[int, list[_Lane]],
    names: list[str],
    actual: PcrValues,
) -> Verdict:
    compared: list[tuple[str, int]] = []
    wrong: list[Mismatch] = []
    for pcr, row in sorted(lanes.items()):
        banks = [n for n in names if pcr in actual[n]]
        for name, lane in zip(banks, row, strict=True):
            compared.append((name, pcr))
            if matched is None and not lane.ever:
                wrong.append(Mismatch(name, pcr, lane.target, lane.value))
    return Verdict(chosen.name, records, violations, matched, tuple(compared), tuple(wrong))


def bank_named(name: str | None) -> Bank | None:
    """The bank of a ``--bank`` option. Raises :class:`FormatError`."""
    return bank_for(by_name(name)) if name else None
