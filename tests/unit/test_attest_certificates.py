# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Who vouches for a key: chains of certificates, and chains that prove nothing."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from imafs.attest.evidence import check
from imafs.attest.judgement import Judgement
from imafs.attest.kinds import Kind
from imafs.attest.signatures import read_certificates
from imafs.errors import FormatError
from tests.papertpm import NOW, PaperTpm, key_of
from tests.support import processor_time

ROOT, MIDDLE = key_of("p256", 100), key_of("p384", 101)
AIK = x509.ObjectIdentifier("2.23.133.8.3")
DAY = timedelta(days=1)
MACHINE = PaperTpm()
MACHINE.files(b"/a")
MINE = MACHINE.private.public_key()


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str,
    key: Any,
    issuer: str,
    signer: Any,
    *extensions: tuple[x509.ExtensionType, bool],
    begin: timedelta = -DAY,
    end: timedelta = DAY,
) -> x509.Certificate:
    made = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begin)
        .not_valid_after(NOW + end)
    )
    for extension, critical in extensions:
        made = made.add_extension(extension, critical)
    return made.sign(signer, hashes.SHA256())


def usage(**uses: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{word: uses.get(word, False) for word in names})


CA = (x509.BasicConstraints(ca=True, path_length=None), True)
ANCHOR = certificate("root", ROOT.public_key(), "root", ROOT, CA)
PURPOSE = (x509.ExtendedKeyUsage([AIK]), False)
LEAF = certificate("machine", MINE, "root", ROOT, PURPOSE)


def judged(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate] = (ANCHOR,)
) -> Judgement:
    pem = b"".join(c.public_bytes(Encoding.PEM) for c in chain)
    bundle = replace(MACHINE.bundle(), certificates=pem or None)
    return check(bundle, MACHINE.demand(keys=(), anchors=anchors))


def test_a_key_that_is_vouched_for() -> None:
    assert judged([LEAF]).kind is Kind.OK
    assert judged([LEAF, ANCHOR]).kind is Kind.OK
    bundle = replace(MACHINE.bundle(), key=None, certificates=LEAF.public_bytes(Encoding.PEM))
    assert check(bundle, MACHINE.demand(keys=(), anchors=(ANCHOR,))).kind is Kind.OK
    # DER holds one.
    alone = replace(MACHINE.bundle(), certificates=LEAF.public_bytes(Encoding.DER))
    assert check(alone, MACHINE.demand(keys=(), anchors=(ANCHOR,))).kind is Kind.OK


def test_a_chain_in_any_order() -> None:
    middle = certificate("middle", MIDDLE.public_key(), "root", ROOT, CA)
    leaf = certificate("machine", MINE, "middle", MIDDLE)
    other = certificate("other", MIDDLE.public_key(), "root", ROOT, CA)
    assert judged([leaf, other, ANCHOR, middle]).kind is Kind.OK
    assert judged([leaf]).kind is Kind.KEY


THIEF = key_of("p256", 102)
BAD: dict[str, tuple[list[x509.Certificate], str]] = {
    "none": ([], "no certificate"),
    "of another key": (
        [certificate("x", THIEF.public_key(), "root", ROOT, PURPOSE)],
        "is of another key",
    ),
    "by itself": ([certificate("machine", MINE, "machine", MACHINE.private)], "nobody of --ca"),
    "in the root's name": ([certificate("machine", MINE, "root", THIEF)], "nobody of --ca"),
    "expired": ([certificate("m", MINE, "root", ROOT, begin=-2 * DAY, end=-DAY)], "has expired"),
    "of tomorrow": ([certificate("m", MINE, "root", ROOT, begin=DAY, end=2 * DAY)], "not valid"),
    "of an authority": ([certificate("m", MINE, "root", ROOT, CA)], "that of an authority"),
    "of a web server": (
        [
            certificate(
                *("m", MINE, "root", ROOT),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            )
        ],
        "for other purposes",
    ),
    "for encryption": (
        [certificate("m", MINE, "root", ROOT, (usage(key_encipherment=True), True))],
        "not for signatures",
    ),
    "with something critical": (
        [
            certificate(
                *("m", MINE, "root", ROOT),
                (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), True),
            )
        ],
        "critical extension 1.2.3.4",
    ),
    "by a machine": (
        [
            certificate("m", MINE, "middle", MIDDLE),
            certificate("middle", MIDDLE.public_key(), "root", ROOT, PURPOSE),
        ],
        "nobody of --ca",
    ),
    "by one that may not": (
        [
            certificate("m", MINE, "middle", MIDDLE),
            certificate(
                *("middle", MIDDLE.public_key(), "root", ROOT),
                *(CA, (usage(digital_signature=True), True)),
            ),
        ],
        "nobody of --ca",
    ),
    "by one that has expired": (
        [
            certificate("m", MINE, "middle", MIDDLE),
            certificate(
                *("middle", MIDDLE.public_key(), "root", ROOT, CA), begin=-2 * DAY, end=-DAY
            ),
        ],
        "nobody of --ca",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_chain_that_proves_nothing(what: str) -> None:
    chain, said = BAD[what]
    found = judged(chain)
    assert (found.kind, said in found.said) == (Kind.KEY, True), found.said


def test_a_chain_longer_than_the_authority_allows() -> None:
    short = (x509.BasicConstraints(ca=True, path_length=0), True)
    anchor = certificate("root", ROOT.public_key(), "root", ROOT, short)
    middle = certificate("middle", MIDDLE.public_key(), "root", ROOT, CA)
    assert judged([certificate("m", MINE, "root", ROOT)], [anchor]).kind is Kind.OK
    assert judged([certificate("m", MINE, "middle", MIDDLE), middle], [anchor]).kind is Kind.KEY


def test_a_circle_of_authorities_ends() -> None:
    one = certificate("one", ROOT.public_key(), "two", MIDDLE, CA)
    two = certificate("two", MIDDLE.public_key(), "one", ROOT, CA)
    leaf = certificate("m", MINE, "one", ROOT)
    stranger = certificate("else", THIEF.public_key(), "else", THIEF, CA)
    found = judged([leaf, one, two], [stranger])
    assert (found.kind, "certificates" in found.said) == (Kind.KEY, True)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        LEAF.public_bytes(Encoding.PEM) * 65,
        LEAF.public_bytes(Encoding.DER)[:-1],
    ],
)
def test_files_that_hold_no_certificate(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_certificates(data, "ak.crt")


def test_beginnings_without_an_end_are_read_once() -> None:
    """A pattern that looks for the end of each keeps a verifier busy, and anybody may send them."""
    beginnings = b"".join(b"-----BEGIN A%d-----\n" % n for n in range(12_000))
    with processor_time(2), pytest.raises(FormatError, match="no certificate"):
        read_certificates(beginnings, "ak.crt")
    whole = LEAF.public_bytes(Encoding.PEM)
    assert read_certificates(whole + beginnings, "ak.crt") == [LEAF]
    other = b"-----BEGIN X-----\n-----END X-----\n"
    assert read_certificates(other + whole + other + whole, "ak.crt") == [LEAF, LEAF]


def test_a_name_that_writes_on_the_terminal() -> None:
    leaf = certificate("machine\n\x1b[31mok", MINE, "nobody", THIEF, PURPOSE)
    found = judged([leaf])
    assert found.kind is Kind.KEY
    assert found.said.isprintable()
    assert r"\x1b" in found.said


def test_certificates_that_are_broken_within() -> None:
    """Names, times and numbers are parsed late: whatever they are, there is a verdict."""
    chance = random.Random(16)
    whole = [c.public_bytes(Encoding.DER) for c in (LEAF, ANCHOR)]
    kinds = set()
    for number in range(2000):
        broken = bytearray(whole[number % 2])
        for _ in range(chance.choice((1, 1, 2, 3))):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        pem = as_pem(bytes(broken))
        if number % 2:
            pem = as_pem(whole[0]) + pem
        bundle = replace(MACHINE.bundle(), certificates=pem)
        found = check(bundle, MACHINE.demand(keys=(), anchors=(ANCHOR,)))
        assert found.said.isprintable()
        kinds.add(found.kind)
    assert {Kind.MALFORMED, Kind.KEY} <= kinds <= {Kind.MALFORMED, Kind.KEY, Kind.OK}


def as_pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


#: Extensions, whose parsers raise each what it likes, by OID and DER.
ODD_ONES = {
    "a name of X.400": ("2.5.29.17", "3004a3023000"),
    "a name of EDI": ("2.5.29.17", "3006a504a1020c00"),
    "constraints of such a name": ("2.5.29.30", "3006a0043002a300"),
    "a revocation list at one": ("2.5.29.31", "300a3008a006a004a3023000"),
    "an authority at one": ("1.3.6.1.5.5.7.1.1", "3010300e06082b06010505073001a3023000"),
    "a feature of no number": ("1.3.6.1.5.5.7.1.24", "3003020163"),
}


@pytest.mark.parametrize("odd", ODD_ONES)
@pytest.mark.parametrize("keyless", [True, False])
def test_an_extension_that_nobody_can_read_ends_no_verdict(odd: str, keyless: bool) -> None:
    """Any stranger may send one, and the verdicts of a fleet ended in a traceback."""
    oid, der = ODD_ONES[odd]
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), bytes.fromhex(der))
    made = certificate("a", MINE, "b", ROOT, (extension, False)).public_bytes(Encoding.PEM)
    bundle = replace(MACHINE.bundle(), certificates=made)
    if keyless:
        bundle = replace(bundle, key=None)
    anchor = certificate("b", ROOT.public_key(), "b", ROOT)
    found = check(bundle, MACHINE.demand(keys=(), anchors=(anchor,)))
    assert (found.kind, "ak.crt" in found.said) == (Kind.MALFORMED, True)
