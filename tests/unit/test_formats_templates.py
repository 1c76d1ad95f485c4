# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Templates: build, split, text and digest, against vectors that hashlib and struct give."""

from __future__ import annotations

import hashlib
import struct

import pytest

from imafs.errors import FormatError
from imafs.formats.algorithms import by_name
from imafs.formats.fields import FIELDS, Measurement
from imafs.formats.templates import TEMPLATES, custom, lookup

CONTENT = hashlib.sha256(b"content").digest()
SHA1 = hashlib.sha1(b"content").digest()
FILE = Measurement(
    b"/bin/a b",
    by_name("sha256"),
    CONTENT,
    sha1=SHA1,
    signature=b"\x03sig",
    buf=b"raw buf",
    modsig_digest=b"sha256:\0" + CONTENT,
    modsig=b"\x30\x01",
    evm_signature=b"\x05evm",
    xattr_lengths=struct.pack("<I", 5),
    xattr_values=b"value",
    uid=0,
    gid=7,
    mode=0o100755,
)


def lp(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


D_NG = b"sha256:\0" + CONTENT
NAME = b"/bin/a_b\0"
HEX = CONTENT.hex()

#: label -> (template data, fields of the ASCII line)
EXPECTED: dict[str, tuple[bytes, str]] = {
    "ima": (SHA1 + struct.pack("<I", 8) + b"/bin/a_b", f" {SHA1.hex()} /bin/a_b"),
    "ima-ng": (lp(D_NG, NAME), f" sha256:{HEX} /bin/a_b"),
    "ima-sig": (lp(D_NG, NAME, b"\x03sig"), f" sha256:{HEX} /bin/a_b 03736967"),
    "ima-ngv2": (lp(b"ima:" + D_NG, NAME), f" ima:sha256:{HEX} /bin/a_b"),
    "ima-sigv2": (
        lp(b"ima:" + D_NG, NAME, b"\x03sig"),
        f" ima:sha256:{HEX} /bin/a_b 03736967",
    ),
    "ima-buf": (lp(D_NG, NAME, b"raw buf"), f" sha256:{HEX} /bin/a_b 72617720627566"),
    "ima-modsig": (
        lp(D_NG, NAME, b"\x03sig", D_NG, b"\x30\x01"),
        f" sha256:{HEX} /bin/a_b 03736967 sha256:{HEX} 3001",
    ),
    "d-ng|n-ng|iuid|igid|imode": (
        lp(D_NG, NAME, bytes(4), b"\7\0\0\0", b"\xed\x81"),
        f" sha256:{HEX} /bin/a_b 0 7 33261",
    ),
    "d-ng": (lp(D_NG), f" sha256:{HEX}"),
    "d|n": (lp(SHA1, NAME), f" {SHA1.hex()} /bin/a_b"),
}


@pytest.mark.parametrize("label", EXPECTED)
def test_build_split_and_text(label: str) -> None:
    template = lookup(label)
    data, text = EXPECTED[label]
    assert template.label == label
    assert template.build(FILE) == data
    assert template.text(data) == text
    assert len(template.split(data)) == len(template.fields)


@pytest.mark.parametrize("label", EXPECTED)
@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
def test_the_template_digest(label: str, algorithm: str) -> None:
    data, _ = EXPECTED[label]
    # Template ima: no length, the name padded with zeros to 256 bytes.
    hashed = SHA1 + b"/bin/a_b" + bytes(248) if label == "ima" else data
    digest = lookup(label).digest(data, by_name(algorithm))
    assert digest == hashlib.new(algorithm, hashed).digest()


def test_the_built_in_templates_in_the_kernels_order() -> None:
    assert {label: template.format for label, template in TEMPLATES.items()} == {
        "ima": "d|n",
        "ima-ng": "d-ng|n-ng",
        "ima-sig": "d-ng|n-ng|sig",
        "ima-ngv2": "d-ngv2|n-ng",
        "ima-sigv2": "d-ngv2|n-ng|sig",
        "ima-buf": "d-ng|n-ng|buf",
        "ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
        "evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
    }
    assert next(iter(TEMPLATES)) == "ima"


def test_evm_sig() -> None:
    parts = [
        D_NG,
        NAME,
        b"\x05evm",
        b"security.ima|security.evm\0",
        struct.pack("<II", 5, 9),
        b"value",
        bytes(4),
        b"\7\0\0\0",
        b"\xed\x81",
    ]
    template = TEMPLATES["evm-sig"]
    assert template.split(lp(*parts)) == parts
    assert template.text(lp(*parts)) == (
        f" sha256:{HEX} /bin/a_b 0565766d security.ima|security.evm 0500000009000000 "
        "76616c7565 0 7 33261"
    )


@pytest.mark.parametrize(
    ("label", "spaces"), [("ima-ng", 0), ("ima-sig", 1), ("ima-modsig", 3), ("evm-sig", 7)]
)
def test_empty_fields_leave_their_spaces(label: str, spaces: int) -> None:
    bare = Measurement(b"/x", by_name("sha256"), CONTENT)
    template = TEMPLATES[label]
    text = template.text(template.build(bare))
    assert text == f" sha256:{HEX} /x" + " " * spaces


def test_template_ima_with_md5_has_16_bytes_of_digest() -> None:
    md5 = hashlib.md5(b"content", usedforsecurity=False).digest()
    template = TEMPLATES["ima"]
    data = template.build(Measurement(b"/x", by_name("md5"), md5))
    assert data == md5 + struct.pack("<I", 2) + b"/x"
    assert template.text(data) == f" {md5.hex()} /x"
    expected = hashlib.sha1(md5 + b"/x" + bytes(254)).digest()
    assert template.digest(data, by_name("sha1")) == expected


@pytest.mark.parametrize("length", [0, 1, 254, 255])
def test_template_ima_hashes_256_bytes_of_name_always(length: int) -> None:
    name = b"n" * length
    data = SHA1 + struct.pack("<I", length) + name
    expected = hashlib.sha256(SHA1 + name.ljust(256, b"\0")).digest()
    assert TEMPLATES["ima"].digest(data, by_name("sha256")) == expected


@pytest.mark.parametrize("data", [b"", bytes(19), bytes(21), SHA1 + b"\5\0\0\0abc", SHA1 + b"\5"])
def test_template_ima_refuses_what_does_not_fit(data: bytes) -> None:
    with pytest.raises(FormatError, match="template ima"):
        TEMPLATES["ima"].split(data)


@pytest.mark.parametrize(
    "name",
    [
        b"/" + b"a" * 300,
        b"/new\nline",
        b"/tab\there",
        "/größe-世".encode(),
        b"/bad\xff\xc3",
        b"",
        b"/one:two",
    ],
)
def test_names_come_out_as_they_are_stored(name: bytes) -> None:
    template = TEMPLATES["ima-ng"]
    data = template.build(Measurement(name, by_name("sha256"), CONTENT))
    assert data == lp(D_NG, name + b"\0")
    assert template.text(data).encode("latin-1") == f" sha256:{HEX} ".encode() + name


@pytest.mark.parametrize("fmt", ["", "d-ng|", "|n-ng", "d-ng||n-ng", "d-ng|wrong", "ima-ng|n-ng"])
def test_formats_with_unknown_fields_are_refused(fmt: str) -> None:
    with pytest.raises(FormatError):
        custom(fmt)


@pytest.mark.parametrize("label", ["", "ima_ng", "ima-sigv3", "IMA", "ima-ng "])
def test_unknown_labels_are_refused(label: str) -> None:
    with pytest.raises(FormatError, match="unknown template"):
        lookup(label)


def test_a_custom_format_of_one_field_is_found_by_its_name() -> None:
    for name in FIELDS:
        assert [field.name for field in lookup(name).fields] == [name]


def test_has() -> None:
    assert TEMPLATES["ima-sig"].has("sig")
    assert not TEMPLATES["ima-ng"].has("sig")
    assert TEMPLATES["ima"].has("d")
    assert not TEMPLATES["ima-ng"].has("d")
