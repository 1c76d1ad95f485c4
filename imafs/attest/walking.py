# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A binary list in blocks of records, as fast as plain Python reads one.

One call of ``struct`` reads the front of a record whose template is that of the record before
(nearly every one); the rest is left to :class:`imafs.formats.binary.Reader`, which also says
what is wrong.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice

from imafs.errors import FormatError
from imafs.formats.algorithms import Bank
from imafs.formats.binary import PCR_LIMIT, Parsed, Reader, Record, digest_matches
from imafs.formats.fields import NAME_MAX, chain
from imafs.formats.templates import TEMPLATES, Order, Template

#: Records of a block: few enough for a processor's cache, more than what a block itself costs.
BLOCK = 4096
_ORDERS: tuple[Order, ...] = ("little", "big")
#: Names of templates that are looked at in search of a record.
_CANDIDATES = 256
#: Bytes of a first field that is looked over in a run: a digest and its algorithm, and more.
_USUAL = 256


@dataclass(slots=True)
class Block:
    """Records in order: their PCRs, template digests, and what these are the hashes of.

    ``first`` is the number of the first one, ``end`` the byte behind the last one.
    ``doubtful`` are places in the block whose template data does not hold its fields.
    """

    first: int
    end: int = 0
    pcrs: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a list: whole records, whose numbers are in ``order``."""

    data: bytes
    order: Order = "little"


@dataclass(frozen=True, slots=True)
class Stretch:
    """The records of a part that begin at byte ``start`` and end at byte ``stop``."""

    part: Part
    start: int
    stop: int


def whole(parts: Iterable[Part]) -> list[Stretch]:
    """All of these parts."""
    return [Stretch(part, 0, len(part.data)) for part in parts]


def blocks(parts: Iterable[Part], width: int, *, fields: bool) -> Iterator[Block]:
    """All records of lists that follow each other; see :func:`stretch_blocks`."""
    return stretch_blocks(whole(parts), width, fields=fields)


def stretch_blocks(stretches: Iterable[Stretch], width: int, *, fields: bool) -> Iterator[Block]:
    """All records of stretches that follow each other, with digests of ``width`` bytes.

    ``fields``: those are looked for whose lengths do not fit. Raises :class:`FormatError`
    (record, byte; of all stretches as one) where one is malformed, or goes on behind a stretch.
    """
    number = before = 0
    for stretch in stretches:
        first = number
        try:
            for block in _Walker(stretch, width).blocks(fields=fields):
                block.first, block.end = number, before + block.end - stretch.start
                number += len(block.pcrs)
                yield block
        except FormatError as error:
            raise FormatError(
                error.reason,
                record=None if error.record is None else first + error.record,
                offset=None if error.offset is None else before + error.offset,
            ) from None
        before += stretch.stop - stretch.start


def cut(parts: Sequence[Part], own: Bank, pieces: int) -> list[list[Stretch]]:
    """The parts in that many pieces of about one length, or in fewer.

    A piece begins where a record seems to: its template digest is right. Only who walks up to
    there knows whether that is one, or bytes within another.
    """
    total = sum(len(part.data) for part in parts)
    goals = deque(total * piece // pieces for piece in range(1, pieces))
    out: list[list[Stretch]] = [[]]
    before = 0
    for part in parts:
        start = 0
        while goals and goals[0] < before + len(part.data):
            found = _record_from(part, own, max(goals.popleft() - before, start + 1))
            if found is not None:
                out[-1].append(Stretch(part, start, found))
                out.append([])
                start = found
        out[-1].append(Stretch(part, start, len(part.data)))
        before += len(part.data)
    return out


def _record_from(part: Part, own: Bank, after: int) -> int | None:
    """Where a record seems to begin, not far behind that byte."""
    assert own.algorithm is not None
    reader = Reader(part.data, own.digest_size, part.order, opaque=True)
    labels = {*TEMPLATES, next(reader.walk())[1].label}
    names = [label.encode("latin-1") for label in labels]
    pattern = b"|".join(re.escape(len(name).to_bytes(4, part.order) + name) for name in names)
    front = 4 + own.digest_size
    found = re.compile(pattern).finditer(part.data, after + front)
    for match in islice(found, _CANDIDATES):
        start = match.start() - front
        with suppress(FormatError):
            pcr, template, body, digest, _, end = next(reader.walk(start))
            parsed = Parsed(Record(pcr, template, body), digest, start, end)
            if any(digest) and digest_matches(parsed, own.algorithm):
                return start
    return None


def record(parts: Iterable[Part], width: int, number: int) -> Parsed:
    """One record by its number, for what is wrong with it; its bytes as of all parts as one."""
    before = 0
    for part in parts:
        for parsed in Reader(part.data, width, part.order, opaque=True):
            if number == 0:
                return replace(parsed, start=before + parsed.start, end=before + parsed.end)
            number -= 1
        before += len(part.data)
    raise IndexError(number)


def proven(record: Record) -> list[bytes]:
    """The fields of a record as its digest alone has them; one, of what is not made of fields.

    The name of a template is in no digest: who holds a list may call it another one, such as
    one whose fields nobody knows, or ``ima``, whose bytes another template's may have as well. Nor
    is the byte order of the list, which is the manifest's word: the lengths in what is hashed tell
    theirs, for a kernel's make sense in one order only.
    """
    hashed = record.template.hash_input(record.data)
    for order in _ORDERS:
        fields = chain(hashed, order)
        if fields is not None:
            return fields
    for size in (20, 16):
        if len(hashed) == size + NAME_MAX + 1:
            return [hashed[:size], hashed[size:]]
    return [hashed]


def proven_name(record: Record) -> bytes | None:
    """The name among :func:`proven` fields; None where there is none."""
    fields = proven(record)
    return fields[1].split(b"\0", 1)[0] if len(fields) > 1 else None


@lru_cache(maxsize=64)
def _front(order: Order, width: int, name: int, first: int) -> struct.Struct:
    """A record up to the length of its second field, of a first one of ``first`` bytes."""
    return struct.Struct(f"{'<' if order == 'little' else '>'}I{width}s{name}sII{first}xI")


class _Walker:
    """Walks one part."""

    def __init__(self, stretch: Stretch, width: int) -> None:
        self._data = stretch.part.data
        self._start, self._stop = stretch.start, stretch.stop
        self._width = width
        self._order = stretch.part.order
        self._reader = Reader(self._data, width, self._order, opaque=True)

    def blocks(self, *, fields: bool) -> Iterator[Block]:
        """All records. Raises :class:`FormatError`."""
        at, number = self._start, 0
        template: Template | None = None
        while at < self._stop:
            block = Block(number)
            while at < self._stop and len(block.pcrs) < BLOCK:
                if template is not None:
                    if fields and not template.opaque and len(template.fields) > 1:
                        at = self._run_of_fields(block, at, template)
                    at = self._run(block, at, template, fields)
                if at < self._stop and len(block.pcrs) < BLOCK:
                    at, template = self._one(block, at, fields)
            block.end = at
            number += len(block.pcrs)
            yield block
        if at > self._stop:
            raise FormatError(f"a record goes on behind byte {self._stop}", record=number)

    def _one(self, block: Block, at: int, fields: bool) -> tuple[int, Template | None]:
        """Adds any record; the end, and its template if more of that may be read in a run."""
        try:
            pcr, template, body, digest, _, end = next(self._reader.walk(at))
        except FormatError:
            deque(self._reader.walk(), maxlen=0)  # says so with the record's number
            raise
        if fields and not template.is_ima and not template.fits(body):
            block.doubtful.append(len(block.pcrs))
        block.pcrs.append(pcr)
        block.digests.append(digest)
        block.messages.append(template.hash_input(body))
        return end, None if template.is_ima else template

    def _run_of_fields(self, block: Block, at: int, template: Template) -> int:
        """As :meth:`_run`, while the first field is as long as that of the record before: then one
        look gives the length of the second one too. Digests are, in nearly every record."""
        data, stop, label = self._data, self._stop, template.label.encode("latin-1")
        u32 = struct.Struct("<I" if self._order == "little" else ">I").unpack_from
        expected = len(label).to_bytes(4, self._order) + label
        digest_at = 4 + self._width + len(expected)
        if at + digest_at + 8 > stop:
            return at
        (usual,) = u32(data, at + digest_at + 4)
        if usual > _USUAL:
            return at
        front = _front(self._order, self._width, len(expected), usual)
        unpack, fixed = front.unpack_from, front.size
        begin, known = digest_at + 4, 8 + usual
        others = range(len(template.fields) - 2)
        add_pcr, add_digest = block.pcrs.append, block.digests.append
        add_message = block.messages.append
        for place in range(len(block.pcrs), BLOCK):
            if at + fixed > stop:
                break
            pcr, digest, name, length, first, second = unpack(data, at)
            body = at + begin
            end = body + length
            if first != usual or name != expected or pcr >= PCR_LIMIT or end > stop:
                break
            field = body + known + second
            for _ in others:
                if field + 4 > end:
                    field = -1
                    break
                field += 4 + u32(data, field)[0]
            if field != end:
                block.doubtful.append(place)
            add_pcr(pcr)
            add_digest(digest)
            add_message(data[body:end])
            at = end
        return at

    def _run(self, block: Block, at: int, template: Template, fields: bool) -> int:
        """Adds records while they are of this template, and the block has room; the end."""
        data, stop, label = self._data, self._stop, template.label.encode("latin-1")
        prefix = "<" if self._order == "little" else ">"
        # The length of the first field too: most templates have few, and one more look at each
        # of the others tells.
        front = struct.Struct(f"{prefix}I{self._width}s{4 + len(label)}sII")
        u32 = struct.Struct(f"{prefix}I").unpack_from
        unpack, fixed = front.unpack_from, front.size
        expected = len(label).to_bytes(4, self._order) + label
        others = range(len(template.fields) - 1) if fields and not template.opaque else None
        add_pcr, add_digest = block.pcrs.append, block.digests.append
        add_message = block.messages.append
        for place in range(len(block.pcrs), BLOCK):
            if at + fixed > stop:
                break
            pcr, digest, name, length, first = unpack(data, at)
            body = at + fixed - 4
            end = body + length
            if name != expected or pcr >= PCR_LIMIT or end > stop:
                break
            if others is not None:
                field = body + 4 + first
                for _ in others:
                    if field + 4 > end:
                        field = -1
                        break
                    field += 4 + u32(data, field)[0]
                if field != end:
                    block.doubtful.append(place)
            add_pcr(pcr)
            add_digest(digest)
            add_message(data[body:end])
            at = end
        return at
