# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Records that stand in memory or in segments, as joins and replays walk over them.

Pure, but for what reads a segment. See :class:`imafs.keeper.facts.Records`.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, by_name
from imafs.formats.binary import Reader, Record, encode
from imafs.formats.templates import TEMPLATES, Template
from imafs.keeper.facts import Mode, Modes, PcrValues

Buffer = bytes | memoryview
_BOOT_AGGREGATE = b"boot_aggregate"
_WIDTH = 20
#: Parts of files that one list keeps in memory.
_READ = 4


class Part(NamedTuple):
    """Records in ``data``: number i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: Buffer
    offsets: Sequence[int]


class Away(NamedTuple):
    """``number`` records in a file: ``read`` gives them. Blocking."""

    number: int
    read: Callable[[], Part]


class RecordList:
    """Some parts, one behind the other. Of those in files some are kept that were read last."""

    def __init__(self, parts: Iterable[Part | Away] = ()) -> None:
        self.parts: list[Part | Away] = []
        self._firsts: list[int] = []
        self._end = 0
        self._read: dict[int, Part] = {}
        for part in parts:
            count = part.number if isinstance(part, Away) else len(part.offsets) - 1
            if count > 0:
                self.parts.append(part)
                self._firsts.append(self._end)
                self._end += count

    def _part(self, at: int) -> Part:
        part = self.parts[at]
        if isinstance(part, Part):
            return part
        found = self._read.get(at)
        if found is None:
            while len(self._read) >= _READ:
                del self._read[next(iter(self._read))]
            found = self._read[at] = part.read()
        return found

    def __len__(self) -> int:
        return self._end

    def _pieces(self, first: int, last: int) -> Iterator[tuple[Part, int, int]]:
        """The parts of a range, each with its own numbers."""
        at = bisect_right(self._firsts, first) - 1
        while first < last:
            part, begin = self._part(at), self._firsts[at]
            end = min(last - begin, len(part.offsets) - 1)
            yield part, first - begin, end
            first, at = begin + end, at + 1

    def record(self, at: int) -> bytes:
        """See :class:`imafs.keeper.facts.Records`."""
        ((part, first, last),) = self._pieces(at, at + 1)
        return bytes(part.data[part.offsets[first] : part.offsets[last]])

    def joined(self, first: int, last: int) -> bytes:
        """The records of a range, one behind the other."""
        return b"".join(
            bytes(part.data[part.offsets[begin] : part.offsets[end]])
            for part, begin, end in self._pieces(first, last)
        )

    def sha256(self, first: int, last: int) -> bytes:
        """See :class:`imafs.keeper.facts.Records`."""
        found = hashlib.sha256()
        for part, begin, end in self._pieces(first, last):
            found.update(part.data[part.offsets[begin] : part.offsets[end]])
        return found.digest()

    def extends(self, bank: str, mode: Mode, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """See :class:`imafs.keeper.facts.Records`."""
        extended = digest_of(bank, mode)
        for part, begin, end in self._pieces(first, last):
            data = bytes(part.data[part.offsets[begin] : part.offsets[end]])
            for pcr, template, body, digest, _, _ in Reader(data, _WIDTH, opaque=True).walk():
                yield pcr, extended(template, body, digest)

    def is_boot_aggregate(self, at: int) -> bool:
        """See :class:`imafs.keeper.facts.Records`."""
        data = self.record(at)
        if _BOOT_AGGREGATE not in data:
            return False
        _, template, body, _, _, _ = next(Reader(data, _WIDTH, opaque=True).walk())
        for field, part in template.parts(body):
            if field.name in ("n", "n-ng"):
                return part.rstrip(b"\0") == _BOOT_AGGREGATE
        return False

    def pcrs(self, first: int, last: int) -> set[int]:
        """The PCRs that the records of a range go to."""
        return {
            int.from_bytes(part.data[offset : offset + 4], "little")
            for part, begin, end in self._pieces(first, last)
            for offset in part.offsets[begin:end]
        }


class _Extended:
    """What IMA extends a bank with for one record."""

    def __init__(self, bank: str, mode: Mode) -> None:
        algorithm = by_name(bank)
        self._size = algorithm.digest_size
        self._real = mode is Mode.REAL and bank != SHA1.name
        self._make = algorithm.constructor()
        self._violation = b"\xff" * self._size

    def __call__(self, template: Template, body: bytes, digest: bytes) -> bytes:
        if not any(digest):
            return self._violation
        if self._real:
            found: bytes = self._make(template.hash_input(body)).digest()
            return found
        return digest.ljust(self._size, b"\0")


def digest_of(bank: str, mode: Mode) -> _Extended:
    """A function of (template, template data, SHA-1 template digest): what goes to the PCR."""
    return _Extended(bank, mode)


def unknown(count: int) -> Part:
    """So many records in the place of others that are lost: they are equal to none, and no PCR
    leads over them."""
    template = TEMPLATES["ima-ng"]
    body = template.join([b"sha256:\0" + bytes(32), b"a record that is lost\0"])
    one = encode(Record(10, template, body), template.digest(body, SHA1))
    return Part(one * count, range(0, len(one) * (count + 1), len(one)))


def listed(data: bytes) -> RecordList:
    """The records of one list. Raises :class:`FormatError` where it is not whole records."""
    offsets = array("Q", (0,))
    offsets.extend(Reader(data, _WIDTH, opaque=True).ends())
    return RecordList([Part(data, offsets)])


def whole(data: bytes) -> bytes:
    """The whole records at the head of what was read of a list."""
    end = 0
    try:
        for row in Reader(data, _WIDTH, opaque=True).walk():
            end = row[-1]
    except FormatError:
        return data[:end]
    return data


def replayed(
    start: PcrValues, records: RecordList, modes: Modes, first: int, last: int
) -> dict[str, dict[int, bytes]]:
    """``start`` extended by a range, in every bank that this machine can hash."""
    values: dict[str, dict[int, bytes]] = {}
    for bank, mode in modes.items():
        try:
            algorithm = by_name(bank)
        except FormatError:
            continue
        if not algorithm.available:
            continue
        make = algorithm.constructor()
        own = dict(start.get(bank, {}))
        zero = bytes(algorithm.digest_size)
        for pcr, digest in records.extends(bank, mode, first, last):
            own[pcr] = make(own.get(pcr, zero) + digest).digest()
        values[bank] = own
    return values


def mode_of(bank: str, sha1: bytes, other: bytes) -> Mapping[str, Mode] | None:
    """What the same list of ``bank`` says of its mode; None where violations say nothing.

    ``sha1`` and ``other`` are the heads of both lists.
    """
    width = by_name(bank).digest_size
    mine = Reader(whole(sha1), _WIDTH, opaque=True).walk()
    for pcr, template, body, digest, _, _ in mine:
        if any(digest):
            front = pcr.to_bytes(4, "little")
            real = front + by_name(bank).digest(template.hash_input(body))
            padded = front + digest.ljust(width, b"\0")
            if real in other:
                return {bank: Mode.REAL}
            if padded in other:
                return {bank: Mode.PADDED}
    return None
