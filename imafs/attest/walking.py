# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A binary list in blocks of records, as fast as plain Python reads one.

One call of ``struct`` reads the front of a record whose template is that of the record before
(nearly every one); the rest is left to :class:`imafs.formats.binary.Reader`, which also says
what is wrong.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from imafs.errors import FormatError
from imafs.formats.binary import PCR_LIMIT, Parsed, Reader
from imafs.formats.templates import Order, Template

#: Records of a block: few enough for a processor's cache, more than what a block itself costs.
BLOCK = 4096


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


def blocks(parts: Iterable[Part], width: int, *, fields: bool) -> Iterator[Block]:
    """All records of lists that follow each other, with digests of ``width`` bytes.

    ``fields``: those are looked for whose lengths do not fit. Raises :class:`FormatError`
    (record, byte; of all parts as one) where one is malformed.
    """
    number = before = 0
    for part in parts:
        first = number
        try:
            for block in _Walker(part, width).blocks(fields=fields):
                block.first, block.end = number, before + block.end
                number += len(block.pcrs)
                yield block
        except FormatError as error:
            raise FormatError(
                error.reason,
                record=None if error.record is None else first + error.record,
                offset=None if error.offset is None else before + error.offset,
            ) from None
        before += len(part.data)


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


class _Walker:
    """Walks one part."""

    def __init__(self, part: Part, width: int) -> None:
        self._data = part.data
        self._width = width
        self._order = part.order
        self._reader = Reader(part.data, width, part.order, opaque=True)

    def blocks(self, *, fields: bool) -> Iterator[Block]:
        """All records. Raises :class:`FormatError`."""
        at = number = 0
        template: Template | None = None
        while at < len(self._data):
            block = Block(number)
            while at < len(self._data) and len(block.pcrs) < BLOCK:
                if template is not None:
                    at = self._run(block, at, template, fields)
                if at < len(self._data) and len(block.pcrs) < BLOCK:
                    at, template = self._one(block, at, fields)
            block.end = at
            number += len(block.pcrs)
            yield block

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

    def _run(self, block: Block, at: int, template: Template, fields: bool) -> int:
        """Adds records while they are of this template, and the block has room; the end."""
        data, size, label = self._data, len(self._data), template.label.encode("latin-1")
        prefix = "<" if self._order == "little" else ">"
        # The length of the first field too: most templates have two, and one more look tells.
        front = struct.Struct(f"{prefix}I{self._width}sI{len(label)}sII")
        unpack, fixed, length = front.unpack_from, front.size, len(label)
        u32 = struct.Struct(f"{prefix}I").unpack_from
        two, fields = len(template.fields) == 2, fields and not template.opaque
        add_pcr, add_digest = block.pcrs.append, block.digests.append
        add_message = block.messages.append
        for place in range(len(block.pcrs), BLOCK):
            if at + fixed > size:
                break
            pcr, digest, name_length, name, body_length, first = unpack(data, at)
            body = at + fixed - 4
            end = body + body_length
            if name_length != length or name != label or pcr >= PCR_LIMIT or end > size:
                break
            message = data[body:end]
            if fields and not (
                first + 8 <= body_length and first + 8 + u32(message, first + 4)[0] == body_length
                if two
                else template.fits(message)
            ):
                block.doubtful.append(place)
            add_pcr(pcr)
            add_digest(digest)
            add_message(message)
            at = end
        return at
