# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recorded binary lists, as a real kernel or an emulator wrote them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from imafs.errors import FormatError, Refused
from imafs.formats.algorithms import Bank, bank_for, by_name
from imafs.formats.binary import Record, detect, read

#: Called with (bytes read, bytes in all).
Progress = Callable[[int, int], None]
_EVERY = 4096


def load(
    path: str, bank: str | None = None, progress: Progress = lambda done, total: None
) -> tuple[list[Record], Bank]:
    """All records of a binary list and the bank it was written for.

    Blocking. Raises :class:`Refused` where the file cannot be read and
    :class:`FormatError` (file, record, byte, reason) where any record is malformed:
    a list is taken whole or not at all.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{path}: {os.strerror(code)}") from None
    try:
        chosen = bank_for(by_name(bank)) if bank else detect(data)
        records: list[Record] = []
        for parsed in read(data, chosen):
            records.append(parsed.record)
            if len(records) % _EVERY == 0:
                progress(parsed.end, len(data))
        progress(len(data), len(data))
    except FormatError as error:
        raise FormatError(
            error.reason, record=error.record, offset=error.offset, source=path
        ) from None
    return records, chosen
