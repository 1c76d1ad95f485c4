# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Field data and its text, every field id, against bytes written by hand."""

from __future__ import annotations

import struct

import pytest

from imafs.errors import FormatError
from imafs.formats.algorithms import ALGORITHMS, SHA1, bank_for, by_name, by_tpm_id
from imafs.formats.fields import FIELDS, Measurement, pack, unpack

SHA256 = by_name("sha256")
DIGEST = bytes(range(32))
FILE = Measurement(
    b"/usr/bin/a b",
    SHA256,
    DIGEST,
    sha1=b"\x11" * 20,
    signature=b"\x03\x02sig",
    buf=b"state=1;",
    modsig_digest=b"sha1:\0" + b"\x22" * 20,
    modsig=b"\x30\x82",
    evm_signature=b"\x05\x02evm",
    xattr_lengths=struct.pack("<II", 3, 4),
    xattr_values=b"abcdefg",
    uid=1000,
    gid=4294967295,
    mode=0o100644,
)

#: field -> (field data, text)
EXPECTED = {
    "d": (b"\x11" * 20, "11" * 20),
    "n": (b"/usr/bin/a_b\0", "/usr/bin/a_b"),
    "d-ng": (b"sha256:\0" + DIGEST, "sha256:" + DIGEST.hex()),
    "d-ngv2": (b"ima:sha256:\0" + DIGEST, "ima:sha256:" + DIGEST.hex()),
    "n-ng": (b"/usr/bin/a_b\0", "/usr/bin/a_b"),
    "sig": (b"\x03\x02sig", "0302736967"),
    "buf": (b"state=1;", "73746174653d313b"),
    "d-modsig": (b"sha1:\0" + b"\x22" * 20, "sha1:" + "22" * 20),
    "modsig": (b"\x30\x82", "3082"),
    "evmsig": (b"\x05\x02evm", "050265766d"),
    "xattrlengths": (b"\x03\0\0\0\x04\0\0\0", "0300000004000000"),
    "xattrvalues": (b"abcdefg", "61626364656667"),
    "iuid": (b"\xe8\x03\0\0", "1000"),
    "igid": (b"\xff\xff\xff\xff", "4294967295"),
    "imode": (b"\xa4\x81", "33188"),
}


def test_there_are_these_fields() -> None:
    assert set(FIELDS) == {*EXPECTED, "xattrnames"}


@pytest.mark.parametrize("name", EXPECTED)
def test_field_data_and_text(name: str) -> None:
    data, text = EXPECTED[name]
    assert FIELDS[name].encode(FILE) == data
    assert FIELDS[name].text(data) == text


def test_xattr_names_are_shown_without_the_nul() -> None:
    names = b"security.selinux|security.ima\0"
    assert FIELDS["xattrnames"].text(names) == "security.selinux|security.ima"


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        (b"", b"\0"),
        (b"/" + b"a" * 300, b"/" + b"a" * 300 + b"\0"),
        (b"/with  two spaces ", b"/with__two_spaces_\0"),
        (b"/new\nline", b"/new\nline\0"),
        (b"/tab\there", b"/tab\there\0"),
        (b'/quo"te\\', b'/quo"te\\\0'),
        ("/größe 世".encode(), "/größe_世".encode() + b"\0"),
        (b"/bad\xff\xc3", b"/bad\xff\xc3\0"),
    ],
)
def test_names_of_ng_templates_keep_every_byte_but_spaces(name: bytes, stored: bytes) -> None:
    field = FIELDS["n-ng"]
    assert field.encode(Measurement(name, SHA256, DIGEST)) == stored
    assert field.text(stored).encode("latin-1") == stored[:-1]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        (b"/" + b"a" * 254, b"/" + b"a" * 254),
        # Longer than 255: the last component only, then cut (observed on 7.3.4: basename).
        (b"/" + b"d" * 300 + b"/file name", b"file_name"),
        (b"/x/" + b"f" * 300, b"f" * 255),
    ],
)
def test_the_name_of_template_ima_has_at_most_255_bytes(name: bytes, stored: bytes) -> None:
    assert FIELDS["n"].encode(Measurement(name, SHA1, bytes(20))) == stored + b"\0"


@pytest.mark.parametrize(
    ("field", "algorithm", "stored"),
    [
        ("d", "sha256", bytes(20)),
        ("d", "md5", bytes(20)),
        ("d-ng", "sha256", b"sha256:\0" + bytes(32)),
        ("d-ng", "sha1", b"sha1:\0" + bytes(20)),
        ("d-ngv2", "sha512", b"ima:sha512:\0" + bytes(64)),
    ],
)
def test_violations_store_zeros_for_the_digest(field: str, algorithm: str, stored: bytes) -> None:
    chosen = by_name(algorithm)
    measurement = Measurement(b"/x", chosen, b"\x55" * chosen.digest_size, violation=True)
    assert FIELDS[field].encode(measurement) == stored


@pytest.mark.parametrize("algorithm", ["sha1", "md5"])
def test_field_d_takes_sha1_and_md5_as_they_are(algorithm: str) -> None:
    chosen = by_name(algorithm)
    digest = b"\x77" * chosen.digest_size
    assert FIELDS["d"].encode(Measurement(b"/x", chosen, digest)) == digest


def test_field_d_without_a_sha1_is_refused() -> None:
    with pytest.raises(FormatError, match="SHA-1"):
        FIELDS["d"].encode(Measurement(b"/x", SHA256, DIGEST))


def test_sig_falls_back_to_the_evm_signature() -> None:
    measurement = Measurement(b"/x", SHA256, DIGEST, evm_signature=b"\x05evm")
    assert FIELDS["sig"].encode(measurement) == b"\x05evm"


@pytest.mark.parametrize("name", ["iuid", "igid", "imode", "sig", "buf", "modsig", "d-modsig"])
def test_what_is_not_known_stays_empty(name: str) -> None:
    assert FIELDS[name].encode(Measurement(b"boot_aggregate", SHA256, DIGEST)) == b""


@pytest.mark.parametrize("name", ["iuid", "igid", "imode"])
@pytest.mark.parametrize(
    ("width", "text"),
    [(1, "1"), (2, "1"), (3, ""), (4, "1"), (5, ""), (7, ""), (8, "1"), (9, ""), (16, "")],
)
def test_a_number_of_a_width_that_no_kernel_knows_prints_nothing(
    name: str, width: int, text: str
) -> None:
    assert FIELDS[name].text((1).to_bytes(width, "little")) == text


def test_root_is_not_unknown() -> None:
    measurement = Measurement(b"/x", SHA256, DIGEST, uid=0, gid=0, mode=0)
    assert FIELDS["iuid"].encode(measurement) == bytes(4)
    assert FIELDS["igid"].encode(measurement) == bytes(4)
    assert FIELDS["imode"].encode(measurement) == bytes(2)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"sha256:\0\xab\xcd", "sha256:abcd"),
        (b"verity:sha256:\0\xab", "verity:sha256:ab"),
        (b"sha1:\0", "sha1:"),
        (b"sha1:\0:\0:", "sha1:3a003a"),
    ],
)
def test_digest_text(data: bytes, text: str) -> None:
    assert FIELDS["d-ng"].text(data) == text


def test_pack_puts_a_little_endian_length_before_every_part() -> None:
    assert pack([b"ab", b"", b"c"]) == b"\2\0\0\0ab\0\0\0\0\1\0\0\0c"
    assert pack([]) == b""


@pytest.mark.parametrize(
    ("data", "count", "offset"),
    [
        (b"", 1, 0),
        (b"\1\0\0", 1, 0),
        (b"\1\0\0\0", 1, 0),
        (b"\1\0\0\0a\xff\xff\xff\xff", 2, 5),
        (b"\1\0\0\0ab", 1, 5),
        (b"\0\0\0\0\0\0\0\0", 1, 4),
    ],
)
def test_unpack_says_where_it_fails(data: bytes, count: int, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        unpack(data, count)
    assert caught.value.offset == offset


def test_unpack_undoes_pack() -> None:
    parts = [b"ab", b"", bytes(300)]
    assert unpack(pack(parts), 3) == parts


def test_algorithms_are_the_kernels() -> None:
    names = (
        "md4 md5 sha1 rmd160 sha256 sha384 sha512 sha224 rmd128 rmd256 rmd320 wp256 wp384 wp512 "
        "tgr128 tgr160 tgr192 sm3 streebog256 streebog512 sha3-256 sha3-384 sha3-512"
    )
    assert [algorithm.name for algorithm in ALGORITHMS] == names.split()
    assert {a.name: a.tpm_id for a in ALGORITHMS if a.tpm_id is not None} == {
        "sha1": 0x4,
        "sha256": 0xB,
        "sha384": 0xC,
        "sha512": 0xD,
        "sm3": 0x12,
    }
    for algorithm in ALGORITHMS:
        if algorithm.available:
            assert len(algorithm.digest(b"x")) == algorithm.digest_size
    assert by_tpm_id(0xB) is SHA256
    assert by_tpm_id(0x27) is None


@pytest.mark.parametrize("name", ["", "SHA1", "sha-1", "sha3", "tpm_alg_27"])
def test_unknown_algorithms_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="unknown hash algorithm"):
        by_name(name)


def test_an_algorithm_without_a_tpm_id_has_no_bank() -> None:
    with pytest.raises(FormatError, match="md5"):
        bank_for(by_name("md5"))


def test_an_algorithm_that_cannot_be_computed_is_refused_not_guessed() -> None:
    with pytest.raises(FormatError, match="tgr192"):
        by_name("tgr192").digest(b"")
