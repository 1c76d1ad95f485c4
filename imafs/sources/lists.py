# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recorded binary lists and recordings, as a real kernel or an emulator wrote them."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imafs.errors import FormatError, Refused
from imafs.formats.algorithms import Bank, bank_for, by_name
from imafs.formats.binary import Record, detect, read
from imafs.sources.recording import lists_of

#: Called with (bytes read, bytes in all).
Progress = Callable[[int, int], None]
_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Loaded:
    """All records in order; the first ``staged`` of them were staged when recorded."""

    records: list[Record]
    staged: int
    bank: Bank


def load(
    path: str, bank: str | None = None, progress: Progress = lambda done, total: None
) -> Loaded:
    """All records of a binary list, or of a recording (``imafs record``).

    Blocking. Raises :class:`Refused` where the file cannot be read and
    :class:`FormatError` (file, record, byte, reason) where any record is malformed:
    a list is taken whole or not at all.
    """
    named = bank_for(by_name(bank)) if bank else None
    try:
        parts = lists_of(path) or (b"", Path(path).read_bytes())
    except tarfile.TarError as error:
        raise FormatError(f"broken archive: {error}", source=path) from None
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{path}: {os.strerror(code)}") from None
    staged, current = parts
    data = staged + current
    try:
        chosen = named or detect(data)
        records: list[Record] = []
        in_stage = 0
        for parsed in read(data, chosen):
            records.append(parsed.record)
            in_stage += parsed.end <= len(staged)
            if len(records) % _EVERY == 0:
                progress(parsed.end, len(data))
        progress(len(data), len(data))
    except FormatError as error:
        if named is not None:
            _refuse_other_bank(path, data, named)
        raise FormatError(
            error.reason, record=error.record, offset=error.offset, source=path
        ) from None
    return Loaded(records, in_stage, chosen)


def _refuse_other_bank(path: str, data: bytes, bank: Bank) -> None:
    """Raises :class:`FormatError` where the list is of another bank than was said."""
    found = None
    with suppress(FormatError):
        found = detect(data)
    if found is not None and found.name != bank.name:
        raise FormatError(
            f"this is a list of bank {found.name}, not {bank.name}; the bank need not be named",
            source=path,
        )
