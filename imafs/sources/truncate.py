# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""All views of a list cut behind one record: files that were read one after the other of a
list that grew meanwhile, brought to one moment.

The SHA-1 binary form says where every record ends; of another bank's form each record is
longer by the difference of the digests (Linux 7.3 ima_fs.c, ``ima_measurements_show``), and
an ASCII line has more than one newline only where a name has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from imafs.formats import views
from imafs.formats.algorithms import ALGORITHMS
from imafs.formats.binary import Reader

_WIDTHS = sorted({algorithm.digest_size for algorithm in ALGORITHMS})


class ShorterError(Exception):
    """A view has fewer records than it is to be cut to: the list shrank meanwhile."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The first ``records`` of a list: ``size`` bytes of binary form, ``lines`` of ASCII.

    ``width`` bytes has a template digest of that form; ``name`` is what stands in the first
    record behind it.
    """

    records: int
    width: int
    size: int
    lines: int
    name: bytes

    def binary(self, data: bytes) -> bytes:
        """A binary form of any bank. Raises :class:`ShorterError`."""
        if not self.records:
            return b""
        size = self.size + self.records * (self._width_of(data) - self.width)
        if len(data) < size:
            raise ShorterError
        return data[:size]

    def ascii(self, data: bytes) -> bytes:
        """An ASCII form of any bank. Raises :class:`ShorterError`."""
        end = 0
        for _ in range(self.lines):
            end = data.find(b"\n", end) + 1
            if not end:
                raise ShorterError
        return data[:end]

    def _width_of(self, data: bytes) -> int:
        for width in _WIDTHS:
            if data.startswith(self.name, 4 + width):
                return width
        raise ShorterError


def count(data: bytes, width: int) -> int:
    """Records of a binary list. Raises :class:`FormatError`."""
    return sum(1 for _ in Reader(data, width).walk())


def cut(data: bytes, width: int, records: int) -> Cut:
    """Where the first ``records`` of a binary list end, which has so many or more.

    Raises :class:`FormatError`.
    """
    size = lines = 0
    for _, template, body, _, _, end in islice(Reader(data, width).walk(), records):
        size = end
        lines += views.record_text(template, body).count("\n") if b"\n" in body else 1
    return Cut(records, width, size, lines, _name(data, width))


def _name(data: bytes, width: int) -> bytes:
    """Length and name of the first record's template, as they stand behind its digest."""
    start = 4 + width
    return data[start : start + 4 + int.from_bytes(data[start : start + 4], "little")]
