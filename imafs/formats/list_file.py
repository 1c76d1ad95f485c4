# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A measurement list in any form that people have, sound or damaged.

Binary lists of any bank and byte order, ASCII lists, the buffer of a kexec: :func:`parse` says
what it is and gives its binary form; :meth:`MeasurementList.items` its records in order, and
its faults where they are.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from imafs.errors import FormatError
from imafs.formats import ascii as text
from imafs.formats import kexec_buffer, pasted
from imafs.formats.algorithms import SHA1, Bank, list_bank
from imafs.formats.binary import (
    PCR_LIMIT,
    Parsed,
    Reader,
    Record,
    check_fields,
    digest_matches,
    not_computed,
    order_of,
    recognise,
    wrong_digest,
)
from imafs.formats.templates import TEMPLATES, Order, Template

Form = Literal["binary", "ascii", "kexec"]
#: PCR, template, template data, template digest, start and end, as :meth:`Reader.walk` has them.
Row = tuple[int, Template, bytes, bytes, int, int]
#: How often a list is hashed in search of a record behind a fault: a hostile one has a
#: template's name every ten bytes.
_EFFORT = 4


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a record, or of the bytes where one should begin.

    ``number`` is the record's, ``start`` the byte at which it begins (of a binary list), or
    ``line`` its line. ``parsed`` is the record where it could be read all the same; else
    ``resumed`` is the byte at which the next one begins, None where none is found.
    """

    number: int
    reason: str
    start: int | None = None
    line: int | None = None
    parsed: Parsed | None = None
    resumed: int | None = None
    #: Whether it takes the number: a line that is no record does not.
    counts: bool = True
    #: Whether the template digest alone is wrong.
    digest: bool = False

    @property
    def name(self) -> bytes | None:
        """The record's name, if it has one."""
        return None if self.parsed is None else name_of(self.parsed.record)

    def goes_on(self, of: MeasurementList) -> bool:
        """Whether records of the list can be read behind it."""
        if self.parsed is not None:
            return self.parsed.end < of.base + len(of.data)
        return self.resumed is not None or not self.counts

    def error(self, source: str | None = None) -> FormatError:
        """The refusal of the list because of this."""
        return FormatError(
            self.reason,
            record=self.number,
            offset=self.start,
            line=self.line,
            name=self.name,
            source=source,
        )


@dataclass(frozen=True, slots=True)
class MeasurementList:
    """A list and what was found out about it.

    ``data`` is the binary form, of ``bank`` and in ``order``; what :meth:`reader` walks. Of an
    ASCII list ``lines`` are its records' lines, and ``unproven`` counts violations: no digest
    proves that they were made again as they were.
    """

    form: Form
    bank: Bank
    order: Order
    data: bytes
    fmt: str | None = None
    lines: array[int] | None = None
    unproven: int = 0
    #: Bytes in front of ``data``.
    base: int = 0
    #: Lines that are no records, in front of record N; hints on records that nothing proves.
    bad: tuple[text.Bad, ...] = ()
    hints: Mapping[int, str] = field(default_factory=dict)
    #: Records that the buffer of a kexec says to have.
    count: int | None = None

    def reader(self, pcrs: int = PCR_LIMIT) -> Reader:
        """Of structure alone; it takes templates that are not known, and ``pcrs`` PCRs."""
        width = self.bank.digest_size
        return Reader(self.data, width, self.order, opaque=True, fmt=self.fmt, pcrs=pcrs)

    def items(self) -> Iterator[Parsed | Fault]:
        """Every record, and every fault in its place, as far as anything can be read."""
        return _Walk(self).items()

    def records(self, source: str | None = None) -> Iterator[Parsed]:
        """Every record. Raises :class:`FormatError` at the first fault."""
        for item in self.items():
            if isinstance(item, Fault):
                raise item.error(source)
            yield item


def parse(data: bytes, bank: Bank | None = None, fmt: str | None = None) -> MeasurementList:
    """Finds out what list ``data`` is.

    ``bank`` is the list's, where its digests cannot say it; ``fmt`` has the fields of templates
    that are not known, as ``ima_template_fmt=`` takes them. Raises :class:`FormatError` where
    not one record can be read.
    """
    if text.is_ascii_list(data):
        made = text.rebuild(data, bank, fmt)
        assert made.bank is not None
        return MeasurementList(
            *("ascii", made.bank, made.order, bytes(made.data), fmt, made.lines, made.unproven),
            bad=tuple(made.bad),
            hints=made.hints,
        )
    if pasted.is_text(data):
        raise FormatError("this is a text, and no line of it is a record of a list")
    buffer = kexec_buffer.header(data)
    if buffer is not None:
        records = data[kexec_buffer.HEADER_SIZE : buffer.size]
        return MeasurementList(
            *("kexec", list_bank(SHA1), buffer.order, records, fmt),
            base=kexec_buffer.HEADER_SIZE,
            count=buffer.count,
        )
    if bank is not None:
        return MeasurementList("binary", bank, order_of(data, bank.digest_size), data, fmt)
    shape = recognise(data)
    hints = {} if shape.doubt is None else {shape.doubt.record or 0: not_computed(shape.bank)}
    return MeasurementList("binary", shape.bank, shape.order, data, fmt, hints=hints)


def name_of(record: Record) -> bytes | None:
    """The name in the record; None where its template has none."""
    with suppress(FormatError):
        for f, part in record.template.parts(record.data):
            if f.name in ("n", "n-ng"):
                return part.split(b"\0", 1)[0]
    return None


class _Walk:
    """One pass over a list."""

    def __init__(self, of: MeasurementList) -> None:
        self._list = of
        self._number = 0
        self._bad = list(of.bad)[::-1]

    def items(self) -> Iterator[Parsed | Fault]:
        """As :meth:`MeasurementList.items`."""
        at: int | None = 0
        while at is not None:
            try:
                for row in self._list.reader(pcrs=1 << 32).walk(at):
                    yield from self._lines_before()
                    yield self._judged(row)
                    at = row[5]
                    self._number += 1
                break
            except FormatError as error:
                start, at = at, self._next(at + 1)
                yield self._broken(error, start, at)
                self._number += 1
        yield from self._lines_before()
        count = self._list.count
        if count is not None and self._number < count:
            where = self._list.base + len(self._list.data)
            reason = f"the buffer ends after {self._number} of {count} records"
            yield Fault(self._number, reason, where)

    def _lines_before(self) -> Iterator[Fault]:
        while self._bad and self._bad[-1].record <= self._number:
            bad = self._bad.pop()
            yield Fault(bad.record, bad.reason, line=bad.line, counts=False)

    def _judged(self, row: Row) -> Parsed | Fault:
        pcr, template, body, digest, start, end = row
        base, number, bank = self._list.base, self._number, self._list.bank
        record = Record(pcr, template, body, not any(digest))
        parsed = Parsed(record, digest, start + base, end + base)
        assert bank.algorithm is not None
        if pcr >= PCR_LIMIT:
            return self._fault(parsed, f"PCR {pcr} is out of range")
        if self._list.count is not None and number >= self._list.count:
            return self._fault(parsed, f"the buffer goes on behind {self._list.count} records")
        try:
            check_fields(parsed, number)
        except FormatError as error:
            return self._fault(parsed, self._placed(error, parsed.start))
        if not digest_matches(parsed, bank.algorithm):
            hint = self._list.hints.get(number, "")
            reason = wrong_digest(parsed, bank, number).reason
            reason = f"{reason}; {hint}" if hint else reason
            return replace(self._fault(parsed, reason), digest=True)
        return parsed

    def _fault(self, parsed: Parsed, reason: str) -> Fault:
        lines = self._list.lines
        if lines is not None:
            return Fault(self._number, reason, line=lines[self._number], parsed=parsed)
        return Fault(self._number, reason, parsed.start, parsed=parsed)

    def _broken(self, error: FormatError, start: int, resumed: int | None) -> Fault:
        """The fault of bytes that are no record."""
        base, lines = self._list.base, self._list.lines
        reason = self._placed(error, start)
        if lines is not None:
            return Fault(self._number, error.reason, line=lines[self._number], resumed=resumed)
        return Fault(self._number, reason, start + base, resumed=resumed)

    def _placed(self, error: FormatError, start: int) -> str:
        if error.offset is None or error.offset == start or self._list.lines is not None:
            return error.reason
        return f"{error.reason} (byte {error.offset})"

    def _next(self, after: int) -> int | None:
        """Where the next record begins whose template digest is its own.

        Lengths lead nowhere behind a broken one, but names of templates are known.
        """
        mine = self._list
        order, width, algorithm = mine.order, mine.bank.digest_size, mine.bank.algorithm
        assert algorithm is not None
        names = [name.encode() for name in TEMPLATES]
        pattern = b"|".join(re.escape(len(n).to_bytes(4, order) + n) for n in names)
        budget = _EFFORT * len(mine.data)
        for found in re.finditer(pattern, mine.data):
            start = found.start() - width - 4
            if start < after:
                continue
            with suppress(FormatError):
                pcr, template, body, digest, _, _ = next(mine.reader().walk(start))
                budget -= len(body)
                parsed = Parsed(Record(pcr, template, body), digest, start, start)
                if any(digest) and digest_matches(parsed, algorithm):
                    return start
            if budget < 0:
                break
        return None
