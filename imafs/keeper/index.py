# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The index of a segment: where each of its records begins, and how long their lines are.

A file of it stands beside the segment (``.idx``), so that a start reads no records. Layout, in
this machine's byte order: magic; u32 records; u32 records per chunk; per chunk u64 bytes of its
SHA-1 ASCII lines, u64 longest record, u64 longest line; u64 where each record begins, and the
segment's end. Pure: a file is taken only where its own seal has its SHA-256, or it is made anew.
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
#: "%2d " and 40 hex digits stand in front of what record_text gives.
_FRONT = 43


class Measured(NamedTuple):
    """Where each of some records ends, and how long its SHA-1 ASCII line is."""

    ends: array[int]
    lines: array[int]


def measured(data: bytes) -> Measured:
    """Of the records of ``data``. Raises :class:`FormatError` where it is not whole records."""
    ends, lines = array("Q"), array("Q")
    for pcr, template, body, _, _, end in Reader(data, 20, opaque=True).walk():
        try:
            text = len(record_text(template, body))
        except FormatError as error:
            raise FormatError(error.reason, record=len(ends)) from None
        ends.append(end)
        lines.append(_FRONT + (pcr > 99) + text)
    return Measured(ends, lines)


class Index:
    """Grows while its segment does. ``offsets`` has one number more than there are records."""

    __slots__ = ("longest", "longest_texts", "offsets", "texts")

    def __init__(self) -> None:
        self.offsets: Sequence[int] = array("Q", (0,))
        self.texts: Sequence[int] = array("Q")
        self.longest: Sequence[int] = array("Q")
        self.longest_texts: Sequence[int] = array("Q")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, measured: Measured) -> None:
        """Records behind those that are there."""
        offsets, texts = self.offsets, self.texts
        longest, longest_texts = self.longest, self.longest_texts
        assert isinstance(offsets, array)
        assert isinstance(texts, array)
        assert isinstance(longest, array)
        assert isinstance(longest_texts, array)
        base = offsets[-1]
        for end, line in zip(measured.ends, measured.lines, strict=True):
            if len(self) % CHUNK == 0:
                for numbers in (texts, longest, longest_texts):
                    numbers.append(0)
            longest[-1] = max(longest[-1], base + end - offsets[-1])
            longest_texts[-1] = max(longest_texts[-1], line)
            texts[-1] += line
            offsets.append(base + end)

    def encode(self) -> bytes:
        """The file."""
        table = array("Q")
        for row in zip(self.texts, self.longest, self.longest_texts, strict=True):
            table.extend(row)
        head = _HEAD.pack(_MAGIC, len(self), CHUNK)
        return head + table.tobytes() + array("Q", self.offsets).tobytes()

    @classmethod
    def decode(cls, data: memoryview, count: int, size: int) -> Index:
        """Of a file whose SHA-256 was checked: reads the pages of the file, no copy.

        Raises :class:`FormatError` where it is not of ``count`` records in ``size`` bytes.
        """
        chunks = -(-count // CHUNK)
        wanted = _HEAD.size + 8 * (3 * chunks + count + 1)
        if len(data) != wanted or _HEAD.unpack_from(data) != (_MAGIC, count, CHUNK):
            raise FormatError("is no index of this segment")
        numbers = data[_HEAD.size :].cast("Q")
        index = cls()
        index.texts = numbers[0 : 3 * chunks : 3].tolist()
        index.longest = numbers[1 : 3 * chunks : 3].tolist()
        index.longest_texts = numbers[2 : 3 * chunks : 3].tolist()
        index.offsets = numbers[3 * chunks :]
        if index.offsets[0] != 0 or index.offsets[-1] != size:
            raise FormatError("is no index of this segment")
        return index
