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


def read(data: bytes, bank: str) -> Read:
    """The list as the kernel's ASCII list has it."""
    lines: list[bytes] = []
    proven = False
    try:
        for line, violation in _records(data, bank):
            lines.append(line)
            proven = proven or not violation
    except BrokenError:
        return Read(lines, len(lines), proven)
    return Read(lines, None, proven)


def _records(data: bytes, bank: str) -> Iterator[tuple[bytes, bool]]:
    width = WIDTHS[bank]
    rest = data
    while rest:
        pcr, rest = _u32(rest)
        digest, rest = _take(rest, width)
        length, rest = _u32(rest)
        if not 1 <= length <= 255:
            raise BrokenError
        name, rest = _take(rest, length)
        violation = digest == bytes(width)
        if name == b"ima":
            body, fields, hashed, rest = _ima(rest, digest, bank)
            formats = ["hex", "string"]
        else:
            length, rest = _u32(rest)
            body, rest = _take(rest, length)
            formats, fields = _fields(name, body)
            hashed = body
        if pcr > 63:
            raise BrokenError
        if not violation and not _is_digest(hashed, digest, bank):
            raise BrokenError
        shown = b"".join(
            b" " + (_shown(f, part) if part else b"")
            for f, part in zip(formats, fields, strict=True)
        )
        yield b"%2d %s %s%s\n" % (pcr, digest.hex().encode(), name, shown), violation


def _take(data: bytes, size: int) -> tuple[bytes, bytes]:
    if size > len(data):
        raise BrokenError
    return data[:size], data[size:]


def _u32(data: bytes) -> tuple[int, bytes]:
    raw, rest = _take(data, 4)
    return struct.unpack("<I", raw)[0], rest


def _is_digest(hashed: bytes, digest: bytes, bank: str) -> bool:
    if hashlib.new(bank, hashed).digest() == digest:
        return True
    return bank != "sha1" and hashlib.sha1(hashed).digest().ljust(len(digest), b"\0") == digest


def _ima(rest: bytes, digest: bytes, bank: str) -> tuple[bytes, list[bytes], bytes, bytes]:
    """No length says whether the digest has 20 bytes or, of ima_hash=md5, 16."""
    found = []
    for size in (20, 16):
        try:
            content, behind = _take(rest, size)
            length, behind = _u32(behind)
            if length > 255:
                continue
            name, behind = _take(behind, length)
        except BrokenError:
            continue
        hashed = content + name.ljust(256, b"\0")
        if hashlib.new(bank, hashed).digest() == digest:
            return b"", [content, name], hashed, behind
        found.append((b"", [content, name], hashed, behind))
    if not found:
        raise BrokenError
    return found[0]


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
    rest = body
    try:
        while rest if count is None else len(fields) < count:
            length, rest = _u32(rest)
            part, rest = _take(rest, length)
            fields.append(part)
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
