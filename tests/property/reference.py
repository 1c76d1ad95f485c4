# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Measurement lists written out by hand: struct, hashlib and nothing of imafs.

What tests compare imafs with. Sources: Linux 7.3 ima_template.c (formats of the
templates), ima_template_lib.c (text of the fields), ima_fs.c (forms of a record),
ima_crypto.c (template digests). Everything is bytes, the ASCII list too.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: ``builtin_templates`` of ima_template.c.
FORMATS = {
    "ima": "d|n",
    "ima-ng": "d-ng|n-ng",
    "ima-sig": "d-ng|n-ng|sig",
    "ima-ngv2": "d-ngv2|n-ng",
    "ima-sigv2": "d-ngv2|n-ng|sig",
    "ima-buf": "d-ng|n-ng|buf",
    "ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
    "evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}
WIDTHS = {"md5": 16, "sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}


def u32(number: int) -> bytes:
    """A little-endian u32."""
    return struct.pack("<I", number)


@dataclass(frozen=True)
class Rec:
    """A record: ``parts`` are the stored bytes of its fields, ``label`` the printed name.

    For template ``ima`` the second part is the name without NUL.
    """

    pcr: int
    label: str
    parts: tuple[bytes, ...]
    violation: bool = False

    @property
    def field_names(self) -> list[str]:
        """The fields of the template, or of the custom format that is its name."""
        return FORMATS.get(self.label, self.label).split("|")

    @property
    def data(self) -> bytes:
        """The template data."""
        if self.label == "ima":
            digest, name = self.parts
            return digest + u32(len(name)) + name
        return b"".join(u32(len(part)) + part for part in self.parts)

    @property
    def hashed(self) -> bytes:
        """What the template digest is taken over."""
        if self.label == "ima":
            digest, name = self.parts
            return digest + name + bytes(256 - len(name))
        return self.data

    def digest(self, algorithm: str) -> bytes:
        """The real template digest, of a violation too."""
        return hashlib.new(algorithm, self.hashed).digest()

    def shown(self, algorithm: str, *, padded: bool = False) -> bytes:
        """The template digest that lists show."""
        width = WIDTHS[algorithm]
        if self.violation:
            return bytes(width)
        if padded:
            return self.digest("sha1").ljust(width, b"\0")
        return self.digest(algorithm)

    def binary(self, digest: bytes) -> bytes:
        """The record of a binary list whose digest this is."""
        label = self.label.encode("latin-1")
        front = u32(self.pcr) + digest + u32(len(label)) + label
        length = b"" if self.label == "ima" else u32(len(self.data))
        return front + length + self.data

    def ascii(self, digest: bytes) -> bytes:
        """The line of an ASCII list."""
        fields = [
            b" " + text(name, part) for name, part in zip(self.field_names, self.parts, strict=True)
        ]
        label = self.label.encode("latin-1")
        return b"%2d %s %s%s\n" % (self.pcr, digest.hex().encode(), label, b"".join(fields))


def text(field: str, part: bytes) -> bytes:
    """A field as the ASCII list prints it, without the space in front."""
    if not part:
        return b""
    if field in ("d-ng", "d-ngv2", "d-modsig"):
        prefix, digest = part.split(b"\0", 1)
        return prefix + digest.hex().encode()
    if field in ("n", "n-ng", "xattrnames"):
        return part.split(b"\0")[0]
    if field in ("iuid", "igid", "imode"):
        return b"%d" % int.from_bytes(part, "little") if len(part) in (1, 2, 4, 8) else b""
    return part.hex().encode()


def binary_list(records: Sequence[Rec], algorithm: str, *, padded: bool = False) -> bytes:
    """The binary list of a bank."""
    return b"".join(rec.binary(rec.shown(algorithm, padded=padded)) for rec in records)


def ascii_list(records: Sequence[Rec], algorithm: str, *, padded: bool = False) -> bytes:
    """The ASCII list of a bank."""
    return b"".join(rec.ascii(rec.shown(algorithm, padded=padded)) for rec in records)


def extend(old: bytes, digest: bytes, algorithm: str) -> bytes:
    """TPM2_PCR_Extend (TCG TPM 2.0 Part 1, 17.2)."""
    return hashlib.new(algorithm, old + digest).digest()


def extended(digests: Iterable[bytes], algorithm: str) -> bytes:
    """A PCR from zero after the template digests of these records; a violation's are zeros."""
    value = bytes(WIDTHS[algorithm])
    for digest in digests:
        value = extend(value, digest if any(digest) else b"\xff" * len(digest), algorithm)
    return value


def replay(ascii_list: bytes, algorithm: str, index: int = 10) -> bytes:
    """PCR ``index`` of a bank after the lines of that bank's ASCII list, from zero."""
    words = (line.split(maxsplit=2) for line in ascii_list.splitlines())
    digests = (bytes.fromhex(digest.decode()) for pcr, digest, _ in words if int(pcr) == index)
    return extended(digests, algorithm)


def ng(pcr: int, name: bytes, content: bytes = b"", algorithm: str = "sha256") -> Rec:
    """An ima-ng record of a file with this content."""
    digest = hashlib.new(algorithm, content).digest()
    return Rec(pcr, "ima-ng", (algorithm.encode() + b":\0" + digest, name + b"\0"))


def violation(pcr: int, name: bytes, algorithm: str = "sha256") -> Rec:
    """An ima-ng record of a violation."""
    stored = algorithm.encode() + b":\0" + bytes(WIDTHS[algorithm])
    return Rec(pcr, "ima-ng", (stored, name + b"\0"), violation=True)
