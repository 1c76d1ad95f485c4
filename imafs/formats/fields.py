# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Template fields: how IMA stores one and how it prints one.

Sources: Linux 7.3 ima_template_lib.c (``ima_event*_init`` for the stored bytes,
``ima_show_template_data_ascii`` for the text). Stored bytes are the *field data*
without the length that the template data puts in front of it.

Text is a ``str`` in latin-1, one character per byte: names are raw bytes to the
kernel (newlines, tabs and invalid UTF-8 included), and latin-1 keeps every one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, HashAlgorithm

#: Bytes of one field that a kernel finds memory for: KMALLOC_MAX_SIZE (include/linux/slab.h)
#: with pages of 4 KiB; ima_write_template_field_data copies the field by kmemdup.
MOST_FIELD = 4 << 20
#: IMA_EVENT_NAME_LEN_MAX: what the field ``n`` of template ``ima`` holds at most.
NAME_MAX = 255


@dataclass(frozen=True, slots=True)
class Measurement:
    """The source of a template's fields (``struct ima_event_data``).

    ``name`` are the raw bytes of the path or of the hint; ``digest`` is the
    content's digest in ``algorithm``. ``sha1`` is the SHA-1 of the same content,
    wanted by the field ``d`` where ``algorithm`` is neither SHA-1 nor MD5.
    ``violation`` stores zeros for the digest. ``buf`` is the raw buffer of
    critical data. ``uid``, ``gid`` and ``mode`` are None where no file stands
    behind the record (boot_aggregate): the fields stay empty.
    """

    name: bytes
    algorithm: HashAlgorithm
    digest: bytes
    sha1: bytes | None = None
    violation: bool = False
    signature: bytes = b""
    buf: bytes = b""
    modsig_digest: bytes = b""
    modsig: bytes = b""
    evm_signature: bytes = b""
    xattr_names: bytes = b""
    xattr_lengths: bytes = b""
    xattr_values: bytes = b""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


def _string(raw: bytes) -> bytes:
    # DATA_FMT_STRING: the NUL is stored, and spaces become underscores so that the
    # ASCII list stays splittable (ima_write_template_field_data).
    return raw.split(b"\0", 1)[0].replace(b" ", b"_") + b"\0"


def _digest(m: Measurement) -> bytes:
    if m.violation:
        return bytes(SHA1.digest_size)
    if m.algorithm.fits_ima:
        return m.digest
    if m.sha1 is None:
        raise FormatError(
            f"the field d stores SHA-1 or MD5 only and no SHA-1 of {m.name!r} is known"
        )
    return m.sha1


def _name(m: Measurement) -> bytes:
    name = m.name
    if len(name) > NAME_MAX:
        # The kernel falls back to the dentry's name, then cuts.
        name = name.rsplit(b"/", 1)[-1][:NAME_MAX]
    return _string(name)


def _digest_ng(m: Measurement) -> bytes:
    digest = bytes(m.algorithm.digest_size) if m.violation else m.digest
    return m.algorithm.name.encode() + b":\0" + digest


def _uint(size: int, value: int | None) -> bytes:
    return b"" if value is None else value.to_bytes(size, "little")


def _hex(raw: bytes) -> str:
    return raw.hex()


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("latin-1")


def _digest_text(raw: bytes) -> str:
    # strrchr(data, ':'): the prefix is printed unless the colon is the first byte,
    # the digest starts two bytes behind the colon (":" and NUL).
    prefix = raw.split(b"\0", 1)[0]
    colon = prefix.rfind(b":")
    if colon < 0:
        return raw.hex()
    return (prefix.decode("latin-1") if colon else "") + raw[colon + 2 :].hex()


def _uint_text(raw: bytes) -> str:
    # DATA_FMT_UINT prints the widths that it knows, and nothing of any other
    # (ima_show_template_field_data, whose switch has an empty default).
    return str(int.from_bytes(raw, "little")) if len(raw) in (1, 2, 4, 8) else ""


#: What a field looks like that begins with the name of an algorithm, as d-ng and d-ngv2 do.
_ALGORITHM = re.compile(rb"[a-z][a-z0-9:-]*:\0")


def _unknown_text(raw: bytes) -> str:
    # Of a field of which nothing is known: what its bytes say.
    if _ALGORITHM.match(raw):
        return _digest_text(raw)
    if raw.find(b"\0") == len(raw) - 1:
        return _text(raw)
    return raw.hex()


def _unknown(measurement: Measurement) -> NoReturn:
    raise FormatError("what a field of an unknown template holds is not known")


@dataclass(frozen=True, slots=True)
class Field:
    """One field id: ``encode`` gives the field data, ``text`` its ASCII form.

    ``string`` marks data that ends in NUL, ``digest`` one behind the name of its algorithm,
    ``word`` the size of the numbers in the byte order of the machine, and ``number`` data
    that prints as a single one.
    """

    name: str
    encode: Callable[[Measurement], bytes]
    text: Callable[[bytes], str]
    string: bool = False
    digest: bool = False
    word: int = 0

    @property
    def number(self) -> bool:
        """Whether the data is one number."""
        return self.text is _uint_text


_ALL = (
    Field("d", _digest, _hex),
    Field("n", _name, _text, string=True),
    Field("d-ng", _digest_ng, _digest_text, digest=True),
    Field("d-ngv2", lambda m: b"ima:" + _digest_ng(m), _digest_text, digest=True),
    Field("n-ng", lambda m: _string(m.name), _text, string=True),
    Field("sig", lambda m: m.signature or m.evm_signature, _hex),
    Field("buf", lambda m: m.buf, _hex),
    Field("d-modsig", lambda m: m.modsig_digest, _digest_text, digest=True),
    Field("modsig", lambda m: m.modsig, _hex),
    Field("evmsig", lambda m: m.evm_signature, _hex),
    Field(
        "xattrnames", lambda m: _string(m.xattr_names) if m.xattr_names else b"", _text, string=True
    ),
    Field("xattrlengths", lambda m: m.xattr_lengths, _hex, word=4),
    Field("xattrvalues", lambda m: m.xattr_values, _hex),
    Field("iuid", lambda m: _uint(4, m.uid), _uint_text, word=4),
    Field("igid", lambda m: _uint(4, m.gid), _uint_text, word=4),
    Field("imode", lambda m: _uint(2, m.mode), _uint_text, word=2),
)

#: Every field id of ima_template.c (``supported_fields``).
FIELDS: Mapping[str, Field] = {field.name: field for field in _ALL}

#: A field of a template that is not known.
UNKNOWN = Field("unknown", _unknown, _unknown_text)


def swap(data: bytes, word: int) -> bytes:
    """Numbers of ``word`` bytes in the other byte order; data of another size as one number."""
    if not data or len(data) % word:
        word = len(data) or 1
    return b"".join(data[at : at + word][::-1] for at in range(0, len(data), word))


def pack(parts: list[bytes], order: Literal["little", "big"] = "little") -> bytes:
    """Template data of ordinary templates: a u32 length, then the field data, per field."""
    out = bytearray()
    for part in parts:
        out += len(part).to_bytes(4, order)
        out += part
    return bytes(out)


def unpack(data: bytes, count: int, order: Literal["little", "big"] = "little") -> list[bytes]:
    """The ``count`` field data of ordinary template data.

    Raises :class:`FormatError` (offset relative to ``data``) where a length
    leads beyond the end or bytes are left over.
    """
    parts: list[bytes] = []
    at = 0
    size = len(data)
    for number in range(count):
        if at + 4 > size:
            raise FormatError(f"field {number} has no room for its length", offset=at)
        length = int.from_bytes(data[at : at + 4], order)
        if length > size - at - 4:
            raise FormatError(
                f"field {number} claims {length} bytes where {size - at - 4} are left", offset=at
            )
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if at != size:
        raise FormatError(f"{size - at} bytes are left over behind the last field", offset=at)
    return parts


def chain(data: bytes, order: Literal["little", "big"] = "little") -> list[bytes] | None:
    """Field data, as many as there are; None where ``data`` is not made of lengths and data."""
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], order)
        if at + 4 > len(data) or end > len(data):
            return None
        parts.append(data[at + 4 : end])
        at = end
    return parts
