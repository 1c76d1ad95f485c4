# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The kexec buffer: a measurement list on its way to the next kernel.

Source: Linux 7.3 ima.h:136-142 (``struct ima_kexec_hdr``), ima_kexec.c
(``ima_dump_measurement_list``), ima_template.c:415-537
(``ima_restore_measurement_list``)::

    u16 version = 1; u16 reserved; u32 reserved; u64 buffer_size; u64 count; records

``buffer_size`` counts the header too; the records are in SHA-1 binary form. Integers are
little endian, as in :mod:`imafs.formats.binary`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from imafs.errors import FormatError
from imafs.formats.binary import Parsed, Reader, check_fields
from imafs.formats.templates import TEMPLATES, Order

_HEADER = struct.Struct("<HHIQQ")
_BIG = struct.Struct(">HHIQQ")
HEADER_SIZE = _HEADER.size
VERSION = 1
#: MAX_TEMPLATE_NAME_LEN (ima_template.c:79): a longer name is not restored.
TEMPLATE_NAME_END = len(TEMPLATES["evm-sig"].format) + 1
_SHA1 = 20
_LAYOUTS: tuple[tuple[struct.Struct, Order], ...] = ((_HEADER, "little"), (_BIG, "big"))


def encode(records: bytes, count: int) -> bytes:
    """The buffer around ``count`` records that are in SHA-1 binary form already."""
    return _HEADER.pack(VERSION, 0, 0, HEADER_SIZE + len(records), count) + records


def decode(data: bytes) -> Iterator[Parsed]:
    """The records of a buffer, in order, one by one as the next kernel restores them.

    Raises :class:`FormatError` (record, byte of the buffer, reason) at the first one that a
    kernel would not restore, template ``ima`` among them; a kernel keeps those before it.
    Bytes behind ``buffer_size`` are the segment's padding. Stricter than the kernel, which
    reads on where ``buffer_size`` exceeds the segment and takes a ``count`` that is too large.

    Template digests are not compared, as a kernel does not: it computes them anew from the
    template data, but for zeros, which stand for a violation.
    """
    size, count = _header(data)
    number = -1
    try:
        for number, parsed in enumerate(Reader(data[HEADER_SIZE:size], _SHA1)):
            _check(parsed, number, count, size)
            yield Parsed(
                parsed.record,
                parsed.digest,
                parsed.start + HEADER_SIZE,
                parsed.end + HEADER_SIZE,
            )
    except FormatError as error:
        at = None if error.offset is None else error.offset + HEADER_SIZE
        raise FormatError(error.reason, record=error.record, offset=at) from None
    if number + 1 < count:
        raise FormatError(
            f"the buffer ends after {number + 1} of {count} records",
            record=number + 1,
            offset=size,
        )


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a buffer."""

    size: int
    count: int
    order: Order


def header(data: bytes) -> Header | None:
    """The header, if these bytes are a buffer: of a list it would be one of PCR 1 or 65536."""
    if len(data) < HEADER_SIZE:
        return None
    for layout, order in _LAYOUTS:
        version, reserved, more, size, count = layout.unpack_from(data)
        if (version, reserved, more) == (VERSION, 0, 0) and HEADER_SIZE <= size <= len(data):
            return Header(size, count, order)
    return None


def _header(data: bytes) -> tuple[int, int]:
    """``buffer_size`` and ``count``."""
    if len(data) < HEADER_SIZE:
        raise FormatError(f"a header of {HEADER_SIZE} bytes is missing", offset=len(data))
    version, _, _, size, count = _HEADER.unpack_from(data)
    if version != VERSION:
        raise FormatError(f"version {version}, not {VERSION}", offset=0)
    if not HEADER_SIZE <= size <= len(data):
        raise FormatError(f"a buffer size of {size} where there are {len(data)} bytes", offset=8)
    return size, count


def _check(parsed: Parsed, number: int, count: int, size: int) -> None:
    template = parsed.record.template
    if number >= count - 1 and parsed.end + HEADER_SIZE != size:
        # ENFORCE_BUFEND: the last record must end the buffer, or it is not restored.
        raise FormatError(
            f"the buffer goes on behind {count} records", record=number, offset=parsed.end
        )
    if template.is_ima:
        raise FormatError(
            "a record of template ima, which no kernel restores",
            record=number,
            offset=parsed.start,
        )
    if len(template.label) >= TEMPLATE_NAME_END:
        raise FormatError(
            f"a template name of {len(template.label)} bytes, longer than a kernel restores",
            record=number,
            offset=parsed.start + 4 + _SHA1,
        )
    check_fields(parsed, number)
