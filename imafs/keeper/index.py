# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The index of a segment: where each of its records begins, and how long their lines are.

A file of it stands beside the segment (``.idx``), so that a start reads no records. Layout, in
this machine's byte order: magic; u32 records; u32 records per chunk; per chunk u64 bytes of its
SHA-1 ASCII lines, u64 longest record, u64 longest line, u64 violations; u64 where each record
begins, and the segment's end. Pure: a file is taken only where its seal has its SHA-256, or it
is made anew.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from imafs.errors import FormatError
from imafs.formats.binary import Reader
from imafs.formats.views import record_text

#: Records that are rendered at once: more would keep everybody else waiting.
CHUNK = 2048
_MAGIC = b"imafsix1"
_HEAD = struct.Struct("=8sII")
#: Per chunk: see the module.
_COLUMNS = 4
#: "%2d " and 40 hex digits stand in front of what record_text gives.
_FRONT = 43


class Measured(NamedTuple):
    """Where each of some records ends, how long its SHA-1 ASCII line is, and 1 for a violation."""

    ends: array[int]
    lines: array[int]
    violations: bytes


def measured(data: bytes) -> Measured:
    """Of the records of ``data``. Raises :class:`FormatError` where it is not whole records."""
    ends, lines, violations = array("Q"), array("Q"), bytearray()
    for pcr, template, body, digest, _, end in Reader(data, 20, opaque=True).walk():
        try:
            text = len(record_text(template, body))
        except FormatError as error:
            raise FormatError(error.reason, record=len(ends)) from None
        ends.append(end)
        lines.append(_FRONT + (pcr > 99) + text)
        violations.append(not any(digest))
    return Measured(ends, lines, bytes(violations))


class Index:
    """Grows while its segment does. ``offsets`` has one number more than there are records."""

    __slots__ = ("longest", "longest_texts", "mapped", "offsets", "texts", "violations")

    def __init__(self) -> None:
        self.mapped = 0  # bytes of the file whose pages the offsets are
        self.offsets: Sequence[int] = array("Q", (0,))
        self.texts: Sequence[int] = array("Q")
        self.longest: Sequence[int] = array("Q")
        self.longest_texts: Sequence[int] = array("Q")
        self.violations: Sequence[int] = array("Q")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, measured: Measured) -> None:
        """Records behind those that are there."""
        offsets, texts = self.offsets, self.texts
        longest, longest_texts, violations = self.longest, self.longest_texts, self.violations
        assert isinstance(violations, array)
        assert isinstance(offsets, array)
        assert isinstance(texts, array)
        assert isinstance(longest, array)
        assert isinstance(longest_texts, array)
        base = offsets[-1]
        for end, line, violation in zip(*measured, strict=True):
            if len(self) % CHUNK == 0:
                for numbers in (texts, longest, longest_texts, violations):
                    numbers.append(0)
            violations[-1] += violation
            longest[-1] = max(longest[-1], base + end - offsets[-1])
            longest_texts[-1] = max(longest_texts[-1], line)
            texts[-1] += line
            offsets.append(base + end)

    @property
    def _columns(self) -> tuple[Sequence[int], ...]:
        return self.texts, self.longest, self.longest_texts, self.violations

    def encode(self) -> bytes:
        """The file."""
        table = array("Q")
        for row in zip(*self._columns, strict=True):
            table.extend(row)
        head = _HEAD.pack(_MAGIC, len(self), CHUNK)
        return head + table.tobytes() + array("Q", self.offsets).tobytes()

    @classmethod
    def decode(cls, data: memoryview, count: int, size: int) -> Index:
        """Of a file whose SHA-256 was checked: reads the pages of the file, no copy.

        Raises :class:`FormatError` where it is not of ``count`` records in ``size`` bytes.
        """
        chunks = -(-count // CHUNK)
        wanted = _HEAD.size + 8 * (_COLUMNS * chunks + count + 1)
        if len(data) != wanted or _HEAD.unpack_from(data) != (_MAGIC, count, CHUNK):
            raise FormatError("is no index of this segment")
        numbers = data[_HEAD.size :].cast("Q")
        index = cls()
        index.mapped = wanted
        table = numbers[: _COLUMNS * chunks].tolist()
        index.texts, index.longest = table[::_COLUMNS], table[1::_COLUMNS]
        index.longest_texts, index.violations = table[2::_COLUMNS], table[3::_COLUMNS]
        index.offsets = numbers[_COLUMNS * chunks :]
        if index.offsets[0] != 0 or index.offsets[-1] != size:
            raise FormatError("is no index of this segment")
        return index
