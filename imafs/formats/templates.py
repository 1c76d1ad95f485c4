# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Templates: which fields a record has, its template data and its template digest.

Sources: Linux 7.3 ima_template.c (``builtin_templates``), ima_crypto.c
(``ima_calc_field_array_hash``), ima_fs.c (the exceptions of template ``ima``).

*Template data* here is what the binary list holds behind the template's name and
``template_data_len``: for ordinary templates a u32 length and the data per field;
for ``ima`` the digest without length, then a u32 length and the name without NUL.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from imafs.errors import FormatError
from imafs.formats.algorithms import HashAlgorithm
from imafs.formats.fields import FIELDS, NAME_MAX, Field, Measurement, pack, unpack

_U32 = struct.Struct("<I")
#: TEMPLATE_NAME_LEN of ima_template.c: what a list may name at most.
TEMPLATE_NAME_MAX = 255
#: IMA_TEMPLATE_NUM_FIELDS_MAX: a kernel takes no format of more fields.
FIELDS_MAX = 15


@dataclass(frozen=True, slots=True)
class Template:
    """A template descriptor; ``label`` is the name that lists print."""

    label: str
    fields: tuple[Field, ...] = field(repr=False)

    @property
    def is_ima(self) -> bool:
        """The original template, whose records have no lengths."""
        return self.label == "ima"

    @property
    def format(self) -> str:
        """The fields as ``ima_template_fmt=`` takes them."""
        return "|".join(f.name for f in self.fields)

    def has(self, name: str) -> bool:
        """Whether the template has the field ``name``."""
        return any(f.name == name for f in self.fields)

    def build(self, measurement: Measurement) -> bytes:
        """Template data of a new record. Raises :class:`FormatError`."""
        return self.join([f.encode(measurement) for f in self.fields])

    def join(self, parts: list[bytes]) -> bytes:
        """Template data of these field data, one per field."""
        if not self.is_ima:
            return pack(parts)
        digest, name = parts
        return digest + _U32.pack(len(name) - 1) + name[:-1]

    def split(self, data: bytes) -> list[bytes]:
        """Field data of ``data``. Raises :class:`FormatError` on a bad length."""
        if not self.is_ima:
            return unpack(data, len(self.fields))
        return list(self._split_ima(data))

    def fits(self, data: bytes) -> bool:
        """Whether ordinary template data holds exactly these fields (hot path)."""
        at = 0
        for _ in self.fields:
            at += 4 + int.from_bytes(data[at : at + 4], "little")
        return at == len(data)

    def _split_ima(self, data: bytes) -> tuple[bytes, bytes]:
        # 20 bytes of digest, or 16 with ima_hash=md5: the stream does not say.
        for size in (20, 16):
            if len(data) >= size + 4 and _U32.unpack_from(data, size)[0] == len(data) - size - 4:
                return data[:size], data[size + 4 :] + b"\0"
        raise FormatError("template ima: neither a 20-byte nor a 16-byte digest fits", offset=0)

    def text(self, data: bytes) -> str:
        """The fields of the ASCII list, a space before each (latin-1)."""
        return "".join(
            " " + (f.text(part) if part else "")
            for f, part in zip(self.fields, self.split(data), strict=True)
        )

    def digest(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        """Template digest of ``data`` in ``algorithm``."""
        return algorithm.digest(self.hash_input(data))

    def hash_input(self, data: bytes) -> bytes:
        """The bytes that the template digest is taken over.

        Ordinary templates hash the template data as it is; ``ima`` hashes the digest
        and the name padded with NUL to 256 bytes.
        """
        if not self.is_ima:
            return data
        digest, name = self._split_ima(data)
        return digest + name.ljust(NAME_MAX + 1, b"\0")


def _fields(text: str) -> tuple[Field, ...]:
    try:
        return tuple(FIELDS[name] for name in text.split("|"))
    except KeyError as unknown:
        raise FormatError(f"template format {text!r}: unknown field {unknown}") from None


#: The built-in templates, in the kernel's order.
TEMPLATES: dict[str, Template] = {
    name: Template(name, _fields(fmt))
    for name, fmt in (
        ("ima", "d|n"),
        ("ima-ng", "d-ng|n-ng"),
        ("ima-sig", "d-ng|n-ng|sig"),
        ("ima-ngv2", "d-ngv2|n-ng"),
        ("ima-sigv2", "d-ngv2|n-ng|sig"),
        ("ima-buf", "d-ng|n-ng|buf"),
        ("ima-modsig", "d-ng|n-ng|sig|d-modsig|modsig"),
        ("evm-sig", "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode"),
    )
}

#: The same by their formats, which ``lookup_template_desc`` takes for the names.
BY_FORMAT: dict[str, Template] = {template.format: template for template in TEMPLATES.values()}


def lookup(label: str) -> Template:
    """The template that a list's record names: built in, or a custom format.

    Raises :class:`FormatError` for anything else.
    """
    known = TEMPLATES.get(label)
    if known is not None:
        return known
    if "|" in label or label in FIELDS:
        return custom(label)
    raise FormatError(f"unknown template {label!r}")


def built_in(text: str) -> Template:
    """A built-in template by its name or its format, as ``lookup_template_desc`` finds it.

    Raises :class:`FormatError`.
    """
    found = TEMPLATES.get(text) or BY_FORMAT.get(text)
    if found is None:
        raise FormatError(f"unknown template {text!r}; there are: {', '.join(TEMPLATES)}")
    return found


def custom(fmt: str) -> Template:
    """The template of ``ima_template_fmt=``; lists print the format as its name."""
    if not fmt:
        raise FormatError("an empty template format has no fields")
    return Template(fmt, _fields(fmt))
