# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A second reader of binary lists, written from the kernel's source and nothing of imafs.

Linux 7.3: ima_fs.c (``ima_measurements_show``, ``ima_ascii_measurements_show``),
ima_template_lib.c (``ima_show_template_data_ascii``), ima_template.c (``builtin_templates``,
``ima_restore_template_data``), ima_crypto.c (``ima_calc_field_array_hash``). It knows the bank
and reads little endian. Where a kernel would read beyond a field it stops at its end.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.property.reference import FORMATS, WIDTHS

#: What imafs makes of lists beyond what a kernel does, by name; each is written down below.
EXTENSIONS = (
    # A template of a patched kernel: any name of these characters, its fields as they look.
    "unknown template",
    # A kernel dereferences NULL + 2 for a digest without a colon: its bytes are shown.
    "digest without a colon",
)
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.|-]*")
#: Formats of ``supported_fields``: how a field is shown.
_SHOWN = {
    "d": "hex", "n": "string", "d-ng": "algorithm", "d-ngv2": "algorithm", "n-ng": "string",
    "sig": "hex", "buf": "hex", "d-modsig": "algorithm", "modsig": "hex", "evmsig": "hex",
    "xattrnames": "string", "xattrlengths": "hex", "xattrvalues": "hex",
    "iuid": "uint", "igid": "uint", "imode": "uint",
}  # fmt: skip


class BrokenError(Exception):
    """The record is no record, or its digest is not its own."""


@dataclass
class Read:
    """Lines of the sound records, and the number of the first one that is not; None: all are."""

    lines: list[bytes]
    fault: int | None
    #: Whether a digest has proven the bank.
    proven: bool


@dataclass
class Row:
    """A sound record. ``hashed`` is what its digest is taken over, a violation's too."""

    pcr: int
    digest: bytes
    template: bytes
    formats: list[str]
    fields: list[bytes]
    hashed: bytes
    violation: bool

    @property
    def line(self) -> bytes:
        """The line of the ASCII list."""
        shown = b"".join(
            b" " + (_shown(form, part) if part else b"")
            for form, part in zip(self.formats, self.fields, strict=True)
        )
        return b"%2d %s %s%s\n" % (self.pcr, self.digest.hex().encode(), self.template, shown)


def read(data: bytes, bank: str) -> Read:
    """The list as the kernel's ASCII list has it."""
    lines: list[bytes] = []
    proven = False
    try:
        for row in rows(data, bank):
            lines.append(row.line)
            proven = proven or not row.violation
    except BrokenError:
        return Read(lines, len(lines), proven)
    return Read(lines, None, proven)


def rows(data: bytes, bank: str) -> Iterator[Row]:
    """The records, each digest compared with what it is taken over. Raises :class:`BrokenError`."""
    width = WIDTHS[bank]
    rest = Rest(data)
    while rest:
        pcr = rest.u32()
        digest = rest.take(width)
        length = rest.u32()
        if not 1 <= length <= 255:
            raise BrokenError
        name = rest.take(length)
        violation = digest == bytes(width)
        if name == b"ima":
            fields, hashed = _ima(rest, digest, bank)
            formats = ["hex", "string"]
        else:
            hashed = rest.take(rest.u32())
            formats, fields = _fields(name, hashed)
        if pcr > 63:
            raise BrokenError
        if not violation and not _is_digest(hashed, digest, bank):
            raise BrokenError
        yield Row(pcr, digest, name, formats, fields, hashed, violation)


class Rest:
    """What of some bytes is not read yet; true while there is any."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self._data)

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise BrokenError
        self.at += size
        return self._data[self.at - size : self.at]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])


def _is_digest(hashed: bytes, digest: bytes, bank: str) -> bool:
    if hashlib.new(bank, hashed).digest() == digest:
        return True
    return bank != "sha1" and hashlib.sha1(hashed).digest().ljust(len(digest), b"\0") == digest


def _ima(rest: Rest, digest: bytes, bank: str) -> tuple[list[bytes], bytes]:
    """No length says whether the digest has 20 bytes or, of ima_hash=md5, 16."""
    begin = rest.at
    found: list[tuple[list[bytes], bytes, int]] = []
    for size in (20, 16):
        rest.at = begin
        try:
            content = rest.take(size)
            length = rest.u32()
            if length > 255:
                continue
            name = rest.take(length)
        except BrokenError:
            continue
        hashed = content + name.ljust(256, b"\0")
        found.append(([content, name], hashed, rest.at))
        if hashlib.new(bank, hashed).digest() == digest:
            return [content, name], hashed
    if not found:
        raise BrokenError
    fields, hashed, rest.at = found[0]
    return fields, hashed


def _fields(name: bytes, body: bytes) -> tuple[list[str], list[bytes]]:
    label = name.decode("latin-1")
    names = FORMATS.get(label, label).split("|")
    known = label in FORMATS or "|" in label or label in _SHOWN
    if not known or any(field not in _SHOWN for field in names):
        if not _NAME.fullmatch(name):
            raise BrokenError
        fields = _chain(body, None)
        return ["unknown"] * len(fields), fields
    return [_SHOWN[field] for field in names], _chain(body, len(names))


def _chain(body: bytes, count: int | None) -> list[bytes]:
    """``count`` lengths with their data, to the end; None: any number, or one without length."""
    fields: list[bytes] = []
    rest = Rest(body)
    try:
        while rest if count is None else len(fields) < count:
            fields.append(rest.take(rest.u32()))
    except BrokenError:
        if count is None:
            return [body]
        raise
    if rest:
        raise BrokenError
    return fields


def _shown(form: str, part: bytes) -> bytes:
    text = part.split(b"\0")[0]
    if form == "unknown":
        if re.match(rb"[a-z][a-z0-9:-]*:\0", part):
            form = "algorithm"
        else:
            form = "string" if part.endswith(b"\0") and part.count(b"\0") == 1 else "hex"
    if form == "string":
        return text
    if form == "uint":
        formats = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
        if len(part) not in formats:
            return b""
        return b"%d" % struct.unpack(formats[len(part)], part)[0]
    if form == "algorithm" and b":" in text:
        colon = text.rindex(b":")
        return (text if colon else b"") + part[colon + 2 :].hex().encode()
    return part.hex().encode()
