# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recorded binary lists and recordings, as a real kernel or an emulator wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imafs.errors import FileError, FormatError
from imafs.formats.algorithms import Bank, bank_named
from imafs.formats.binary import Record, refuse_other_bank
from imafs.formats.fields import MOST_FIELD
from imafs.formats.lists import parse
from imafs.sources.recording import lists_of

#: Called with (bytes read, bytes in all).
Progress = Callable[[int, int], None]
_EVERY = 4096
#: Bytes of template data: one field as large as it can be, and the others beside it.
_MOST_DATA = MOST_FIELD + (1 << 20)


@dataclass(frozen=True, slots=True)
class Loaded:
    """All records in order; the first ``staged`` of them were staged when recorded."""

    records: list[Record]
    staged: int
    bank: Bank


def load(
    path: str, bank: str | None = None, progress: Progress = lambda done, total: None
) -> Loaded:
    """All records of a binary list, of a recording (``imafs record``) or of an IMA directory.

    Blocking. Raises :class:`UsageError` for a ``bank`` that is none and for a directory above a
    list, :class:`FileError` where the file cannot be read and :class:`FormatError` (file,
    record, byte, reason) where any record is malformed: a list is taken whole or not at all.
    """
    named = bank_named(bank) if bank else None
    try:
        staged, current = lists_of(path)
    except OSError as error:
        raise FileError(error.filename or path, error) from None
    data = staged + current
    try:
        found = parse(data, named)
        chosen = found.bank
        records: list[Record] = []
        in_stage = 0
        for parsed in found.records():
            template, body = parsed.record.template.little(parsed.record.data)
            if template.opaque:
                raise FormatError(
                    f"unknown template {template.label!r}: no profile plays it",
                    record=len(records),
                    offset=parsed.start,
                )
            if len(parsed.record.data) > _MOST_DATA:
                raise FormatError(
                    f"{len(parsed.record.data)} bytes of template data: more than any kernel's",
                    record=len(records),
                    offset=parsed.start,
                )
            record = parsed.record
            records.append(Record(record.pcr, template, body, record.violation))
            in_stage += parsed.end <= len(staged)
            if len(records) % _EVERY == 0:
                progress(parsed.end, len(data))
        progress(len(data), len(data))
    except FormatError as error:
        if named is not None:
            refuse_other_bank(data, named, path)
        raise error.at(path) from None
    return Loaded(records, in_stage, chosen)
