# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The index of a segment: where each of its records begins, and how long their lines are.

A file of it stands beside the segment (``.idx``), so that a start reads no records. Layout, in
this machine's byte order: magic; u32 records; u32 records per chunk; per chunk u64 bytes of its
SHA-1 ASCII lines, u64 longest record, u64 longest line, u64 violations; u64 where each record
begins, and the segment's end. Pure: a file is taken only where its seal has its SHA-256, or it
is made anew. The offsets of a full segment are not kept: those of a chunk are read with it.
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
#: Bytes of the ASCII line of a record that is lost.
_LINE = 100


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


class Row(NamedTuple):
    """A chunk: bytes of its SHA-1 lines, its longest record and line, its violations."""

    text: int
    longest: int
    longest_text: int
    violations: int


class Index:
    """Grows while its segment does. ``offsets`` has one number more than there are records."""

    __slots__ = ("offsets", "rows")

    def __init__(self) -> None:
        self.offsets = array("Q", (0,))
        self.rows: list[Row] = []

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, measured: Measured) -> None:
        """Records behind those that are there."""
        offsets, rows = self.offsets, self.rows
        base = start = offsets[-1]
        row = rows.pop() if len(self) % CHUNK else _NO_ROW
        text, longest, longest_text, violations = row
        for end, line, violation in zip(*measured, strict=True):
            end += base
            text += line
            violations += violation
            if end - start > longest:
                longest = end - start
            if line > longest_text:
                longest_text = line
            offsets.append(end)
            start = end
            if (len(offsets) - 1) % CHUNK == 0:
                rows.append(Row(text, longest, longest_text, violations))
                text, longest, longest_text, violations = _NO_ROW
        if len(self) % CHUNK:
            rows.append(Row(text, longest, longest_text, violations))

    def chunks(self, first: int = 0) -> list[tuple[Row, array[int]]]:
        """Its chunks from one on, each with the offsets of its records."""
        return [
            (row, self.offsets[number * CHUNK : (number + 1) * CHUNK + 1])
            for number, row in enumerate(self.rows[first:], first)
        ]

    def encode(self) -> bytes:
        """The file."""
        table = array("Q")
        for row in self.rows:
            table.extend(row)
        head = _HEAD.pack(_MAGIC, len(self), CHUNK)
        return head + table.tobytes() + self.offsets.tobytes()


class Indexed(NamedTuple):
    """Records that stand in memory."""

    data: bytes
    measured: Measured
    idx: Index


def indexed(data: bytes) -> Indexed:
    """Of whole records. Raises :class:`FormatError` where they are not."""
    found, index = measured(data), Index()
    index.take(found)
    return Indexed(data, found, index)


class Table:
    """What of a full segment's index is kept in memory; its offsets stay in the file.

    ``starts``: the byte at which each chunk begins, and the segment's end.
    """

    __slots__ = ("count", "rows", "starts")

    def __init__(self, count: int, rows: Sequence[Row], starts: Sequence[int]) -> None:
        self.count, self.rows, self.starts = count, rows, starts

    def __len__(self) -> int:
        return self.count

    def records(self, chunk: int) -> int:
        """How many a chunk has."""
        return min(CHUNK, self.count - chunk * CHUNK)

    def place(self, chunk: int) -> tuple[int, int]:
        """Where in the file the offsets of a chunk are: the first byte, and how many."""
        front = _HEAD.size + 8 * _COLUMNS * len(self.rows)
        return front + 8 * CHUNK * chunk, 8 * (self.records(chunk) + 1)

    @classmethod
    def decode(cls, data: bytes, count: int, size: int) -> Table:
        """Of a file whose SHA-256 was checked.

        Raises :class:`FormatError` where it is not of ``count`` records in ``size`` bytes.
        """
        chunks = -(-count // CHUNK)
        if len(data) != encoded_size(count) or _HEAD.unpack_from(data) != (_MAGIC, count, CHUNK):
            raise FormatError("is no index of this segment")
        numbers = memoryview(data)[_HEAD.size :].cast("Q")
        table = numbers[: _COLUMNS * chunks].tolist()
        columns = [table[at::_COLUMNS] for at in range(_COLUMNS)]
        offsets = numbers[_COLUMNS * chunks :]
        starts = array("Q", [*(offsets[at] for at in range(0, count, CHUNK)), offsets[-1]])
        if starts[0] != 0 or starts[-1] != size:
            raise FormatError("is no index of this segment")
        return cls(count, [Row(*row) for row in zip(*columns, strict=True)], starts)


def encoded_size(count: int) -> int:
    """Bytes of the file of an index of so many records."""
    return _HEAD.size + 8 * (_COLUMNS * -(-count // CHUNK) + count + 1)


def guessed(count: int, size: int) -> tuple[Table, bytes]:
    """An index of records of which nobody knows where they were, and its file."""
    ends = array("Q", [size * (at + 1) // count for at in range(count)])
    index = Index()
    index.take(Measured(ends, array("Q", [_LINE]) * count, bytes(count)))
    data = index.encode()
    return Table.decode(data, count, size), data


def offsets_of(data: bytes, start: int, end: int) -> array[int]:
    """The offsets of a chunk as its file has them, counted from its ``start`` on.

    Raises :class:`FormatError` where they are not those that were there at the start.
    """
    numbers = array("Q")
    numbers.frombytes(data)
    found = numbers.tolist()
    if found[0] != start or found[-1] != end or found != sorted(found):
        raise FormatError("is not the index that its segment had")
    return array("I", map((-start).__add__, found))


_NO_ROW = Row(0, 0, 0, 0)
