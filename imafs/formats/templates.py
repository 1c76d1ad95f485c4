# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Templates: which fields a record has, its template data and its template digest.

Sources: Linux 7.3 ima_template.c (``builtin_templates``), ima_crypto.c
(``ima_calc_field_array_hash``), ima_fs.c (the exceptions of template ``ima``).

*Template data* here is what the binary list holds behind the template's name and
``template_data_len``: for ordinary templates a u32 length and the data per field;
for ``ima`` the digest without length, then a u32 length and the name without NUL.
Lengths are in the byte order of the kernel that wrote the list, and so are the numbers
among the fields: without ``ima_canonical_fmt`` s390x writes, and hashes, them big endian.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from imafs.errors import FormatError
from imafs.formats.algorithms import HashAlgorithm
from imafs.formats.fields import (
    FIELDS,
    NAME_MAX,
    UNKNOWN,
    Field,
    Measurement,
    chain,
    pack,
    swap,
    unpack,
)

Order = Literal["little", "big"]
#: TEMPLATE_NAME_LEN of ima_template.c: what a list may name at most.
TEMPLATE_NAME_MAX = 255
#: IMA_TEMPLATE_NUM_FIELDS_MAX: a kernel takes no format of more fields.
FIELDS_MAX = 15
#: A name that a template of a patched kernel may have; anything else is damage.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.|-]*")


@dataclass(frozen=True, slots=True)
class Template:
    """A template descriptor; ``label`` is the name that lists print.

    ``order`` is the byte order of its lengths and numbers. ``opaque`` marks one of which
    nothing but the name is known: its fields are as many as the template data has.
    """

    label: str
    fields: tuple[Field, ...] = field(repr=False)
    order: Order = "little"
    opaque: bool = False

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
        """Template data of field data; the inverse of :meth:`split`."""
        if not self.is_ima:
            return pack(parts, self.order)
        digest, name = parts
        return digest + (len(name) - 1).to_bytes(4, self.order) + name[:-1]

    def split(self, data: bytes) -> list[bytes]:
        """Field data of ``data``. Raises :class:`FormatError` on a bad length."""
        if self.is_ima:
            return list(self._split_ima(data))
        if self.opaque:
            found = chain(data, self.order)
            return [data] if found is None else found
        return unpack(data, len(self.fields), self.order)

    def parts(self, data: bytes) -> Iterator[tuple[Field, bytes]]:
        """Every field with its data. Raises :class:`FormatError` on a bad length."""
        found = self.split(data)
        return zip((UNKNOWN,) * len(found) if self.opaque else self.fields, found, strict=True)

    def fits(self, data: bytes) -> bool:
        """Whether ordinary template data holds exactly these fields (hot path)."""
        at = 0
        for _ in self.fields:
            at += 4 + int.from_bytes(data[at : at + 4], self.order)
        return at == len(data) or self.opaque

    def _split_ima(self, data: bytes) -> tuple[bytes, bytes]:
        # 20 bytes of digest, or 16 with ima_hash=md5: the stream does not say.
        for size in (20, 16):
            length = int.from_bytes(data[size : size + 4], self.order)
            if len(data) == size + 4 + length:
                return data[:size], data[size + 4 :] + b"\0"
        raise FormatError("template ima: neither a 20-byte nor a 16-byte digest fits", offset=0)

    def text(self, data: bytes) -> str:
        """The fields of the ASCII list, a space before each (latin-1)."""
        return "".join(
            " " + (self.field_text(f, part) if part else "") for f, part in self.parts(data)
        )

    def field_text(self, field: Field, part: bytes) -> str:
        """One field as the ASCII list prints it."""
        if self.order == "big" and field.number:
            part = swap(part, field.word)
        return field.text(part)

    def little(self, data: bytes) -> tuple[Template, bytes]:
        """This template and ``data`` as a little-endian kernel writes them.

        Raises :class:`FormatError`.
        """
        if self.order == "little":
            return self, data
        if self.opaque:
            raise FormatError(f"unknown template {self.label!r}: its numbers cannot be converted")
        parts = [swap(part, f.word) if f.word else part for f, part in self.parts(data)]
        same = Template(self.label, self.fields, "little", self.opaque)
        return same, same.join(parts)

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


def lookup(label: str, order: Order = "little") -> Template:
    """The template that a list's record names: built in, or a custom format.

    Raises :class:`FormatError` for anything else.
    """
    known = TEMPLATES.get(label)
    if known is not None:
        return known if order == "little" else Template(label, known.fields, order)
    if "|" in label or label in FIELDS:
        return custom(label, order)
    raise FormatError(f"unknown template {label!r}")


def built_in(text: str) -> Template:
    """A built-in template by its name or its format, as ``lookup_template_desc`` finds it.

    Raises :class:`FormatError`.
    """
    found = TEMPLATES.get(text) or BY_FORMAT.get(text)
    if found is None:
        raise FormatError(f"unknown template {text!r}; there are: {', '.join(TEMPLATES)}")
    return found


def named(label: str, order: Order = "little", fmt: str | None = None) -> Template:
    """As :func:`lookup`; one that is not known has the fields of ``fmt``, or is opaque.

    Patched kernels have templates of their own. Raises :class:`FormatError` for what is no
    name at all.
    """
    try:
        return lookup(label, order)
    except FormatError:
        if not _LABEL.fullmatch(label):
            raise
        fields = () if fmt is None else custom(fmt).fields
        return Template(label, fields, order, opaque=fmt is None)


def custom(fmt: str, order: Order = "little") -> Template:
    """The template of ``ima_template_fmt=``; lists print the format as its name."""
    if not fmt:
        raise FormatError("an empty template format has no fields")
    return Template(fmt, _fields(fmt), order)
