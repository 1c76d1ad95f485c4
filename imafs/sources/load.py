# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recorded binary lists and recordings, as a real kernel or an emulator wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imafs.errors import FileError, FormatError
from imafs.formats.algorithms import Bank, list_bank_named
from imafs.formats.binary import Parsed, Record, refuse_other_bank
from imafs.formats.fields import MOST_FIELD
from imafs.formats.list_file import Fault, parse
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
    #: Violations of an ASCII list, which no digest proves; records with a wrong template digest.
    unproven: int = 0
    unsound: int = 0

    def said(self) -> str:
        """The warning about a list that is not known to be as a kernel had it; else nothing."""
        parts = []
        if self.unproven:
            what = (
                "1 violation stands" if self.unproven == 1 else f"{self.unproven} violations stand"
            )
            parts.append(f"{what} as the text has it, which no digest proves")
        if self.unsound:
            what = "1 record" if self.unsound == 1 else f"{self.unsound} records"
            parts.append(f"{what} with a wrong template digest: the list is not sound")
        return "; ".join(parts)


def load(
    path: str,
    bank: str | None = None,
    progress: Progress = lambda done, total: None,
    *,
    as_is: bool = False,
    moment: str | None = None,
) -> Loaded:
    """All records of a list, of a recording (``imafs record``) or of an IMA directory.

    ``as_is`` takes records whose template digest is wrong, with that digest; ``moment`` is the
    directory of one of the lists in a recording. Blocking. Raises :class:`UsageError` for a
    ``bank`` that is none and for a directory above a list, :class:`FileError` where the file
    cannot be read and :class:`FormatError` (file, record, byte, reason) where any record is
    malformed: a list is taken whole or not at all.
    """
    named = list_bank_named(bank) if bank else None
    try:
        staged, current = lists_of(path, moment)
    except OSError as error:
        raise FileError(error.filename or path, error) from None
    data = staged + current
    try:
        found = parse(data, named)
        records: list[Record] = []
        in_stage = unsound = 0
        for item in found.items():
            if isinstance(item, Fault) and not (as_is and item.digest):
                raise item.error()
            record, end = _played(item, found.bank, len(records))
            records.append(record)
            unsound += record.claimed is not None
            in_stage += end <= len(staged)
            if len(records) % _EVERY == 0:
                progress(end, max(end, len(data)))
        progress(len(data), len(data))
    except FormatError as error:
        if named is not None:
            refuse_other_bank(data, named, path)
        raise error.at(path) from None
    return Loaded(records, in_stage, found.bank, found.unproven, unsound)


def _played(item: Parsed | Fault, bank: Bank, number: int) -> tuple[Record, int]:
    """The record as the emulator has it, in its own byte order, and where it ends."""
    parsed = item.parsed if isinstance(item, Fault) else item
    assert parsed is not None
    record = parsed.record
    if record.template.opaque:
        reason = f"unknown template {record.template.label!r}: no profile plays it"
        raise FormatError(reason, record=number, offset=parsed.start)
    if len(record.data) > _MOST_DATA:
        reason = f"{len(record.data)} bytes of template data: more than any kernel's"
        raise FormatError(reason, record=number, offset=parsed.start)
    if item is parsed and record.template.order == "little":
        return record, parsed.end  # nearly all of them
    template, data = record.template.little(record.data)
    claimed = (bank.name, parsed.digest) if isinstance(item, Fault) else None
    return Record(record.pcr, template, data, record.violation, claimed), parsed.end
