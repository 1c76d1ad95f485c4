# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Signatures of quotes, the keys that made them, and who vouches for these keys.

A key is read from what tools write: TPM2B_PUBLIC, TPMT_PUBLIC, PEM or DER. SHA-1 signs nothing
here: a collision of it costs less than a laptop.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from imafs.attest.quote import PublicArea, Signature, parse_public
from imafs.errors import FormatError
from imafs.text import shown

E = TypeVar("E", bound=x509.ExtensionType)

#: Hashes that a signature may be of.
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}
_LEAST_BITS, _MOST_BITS = 2048, 4096
#: Certificates between a key and its anchor, and all that one file may hold.
_DEPTH = 8
_MOST_CERTIFICATES = 64
#: id tcg-kp-AIKCertificate (TCG EK Credential Profile): a certificate for attestation.
_AIK = x509.ObjectIdentifier("2.23.133.8.3")
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----")


@dataclass(frozen=True, slots=True)
class Key:
    """A public key. ``area`` is what a TPM says of it, where that was given.

    ``der`` is its SubjectPublicKeyInfo.
    """

    public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    area: PublicArea | None = None
    der: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once: a fleet's keys are compared with that of every bundle.
        made = self.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        object.__setattr__(self, "der", made)

    @property
    def pem(self) -> bytes:
        """The same as PEM."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of :attr:`der`: the machine's name here."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def kind(self) -> str:
        """``RSA 2048``, ``ECC P-256``."""
        if isinstance(self.public, rsa.RSAPublicKey):
            return f"RSA {self.public.key_size}"
        return f"ECC P-{self.public.key_size}"


def _pems(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Label and text of the PEM blocks of a file, up to one that has no end.

    No pattern over the whole: one that looks for the end of each of many beginnings takes a minute.
    """
    at = 0
    while match := _PEM.search(data, at):
        last = b"-----END %s-----" % match[1]
        end = data.find(last, match.end())
        if end < 0:
            return
        at = end + len(last)
        yield match[1], data[match.start() : at]


def read_keys(data: bytes, source: str) -> list[Key]:
    """The key of a file, or all of several PEM ones. Raises :class:`FormatError`."""
    found = []
    for number, (_, text) in enumerate(_pems(data)):
        if number >= _MOST_CERTIFICATES * 1024:
            raise FormatError("too many keys", source=source)
        found.append(read_key(text + b"\n", source))
    return found or [read_key(data, source)]


def read_key(data: bytes, source: str) -> Key:
    """The key of a file: TPM2B_PUBLIC, TPMT_PUBLIC, PEM or DER. Raises :class:`FormatError`."""
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            return _usable(x509.load_pem_x509_certificate(data).public_key(), None, source)
        if b"-----BEGIN" in data:
            return _usable(load_pem_public_key(data), None, source)
        if data[:1] == b"\x30":  # a SEQUENCE; no structure of a TPM begins so
            return _usable(load_der_public_key(data), None, source)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise FormatError(f"is no public key: {_line(error)}", source=source) from None
    area = parse_public(data, source)
    return _usable(_of_area(area, source), area, source)


def _of_area(area: PublicArea, source: str) -> object:
    try:
        if area.curve is None:
            return rsa.RSAPublicNumbers(area.exponent, area.numbers[0]).public_key()
        x, y = area.numbers
        return ec.EllipticCurvePublicNumbers(x, y, _CURVES[area.curve]).public_key()
    except ValueError as error:
        raise FormatError(f"is no public key: {_line(error)}", source=source) from None


def _usable(public: object, area: PublicArea | None, source: str) -> Key:
    if isinstance(public, rsa.RSAPublicKey):
        if not _LEAST_BITS <= public.key_size <= _MOST_BITS:
            raise FormatError(f"an RSA key of {public.key_size} bits", source=source)
        return Key(public, area)
    if isinstance(public, ec.EllipticCurvePublicKey):
        if not isinstance(public.curve, tuple(type(curve) for curve in _CURVES.values())):
            raise FormatError(f"a key on {public.curve.name}, not P-256 or P-384", source=source)
        return Key(public, area)
    raise FormatError("is no RSA or ECC key", source=source)


def verify(key: Key, signature: Signature, message: bytes) -> str | None:
    """Why ``message`` was not signed by ``key``; None where it was."""
    name = signature.algorithm.name
    if name not in _HASHES:
        return f"a signature over {name} proves nothing"
    algorithm = _HASHES[name]
    try:
        if isinstance(key.public, rsa.RSAPublicKey):
            _verify_rsa(key.public, signature, algorithm, message)
        else:
            _verify_ecdsa(key.public, signature, algorithm, message)
    except InvalidSignature:
        return f"the signature is not that of the {key.kind} key over quote.msg"
    except _OtherSchemeError:
        return f"{signature.scheme} is no signature of an {key.kind} key"
    return None


class _OtherSchemeError(Exception):
    pass


def _verify_rsa(
    public: rsa.RSAPublicKey,
    signature: Signature,
    algorithm: hashes.HashAlgorithm,
    message: bytes,
) -> None:
    if signature.scheme == "rsassa":
        public.verify(signature.numbers[0], message, padding.PKCS1v15(), algorithm)
    elif signature.scheme == "rsapss":
        # TPMs differ in the size of the salt (part 1, B.7): as large as fits, or as the digest.
        scheme = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
        public.verify(signature.numbers[0], message, scheme, algorithm)
    else:
        raise _OtherSchemeError


def _verify_ecdsa(
    public: ec.EllipticCurvePublicKey,
    signature: Signature,
    algorithm: hashes.HashAlgorithm,
    message: bytes,
) -> None:
    if signature.scheme != "ecdsa":
        raise _OtherSchemeError
    r, s = (int.from_bytes(number, "big") for number in signature.numbers)
    public.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm))


# Certificates


#: There is a parser for each extension, and each raises what it likes: KeyError for a number that
#: it does not know, classes that are no ValueError.
_UNREADABLE = (
    *(Warning, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
    *(UnsupportedAlgorithm, InternalError),
)


def read_certificates(data: bytes, source: str) -> list[x509.Certificate]:
    """One DER certificate, or PEM ones. Raises :class:`FormatError`."""
    pems = [text for label, text in _pems(data) if label == b"CERTIFICATE"]
    if len(pems) > _MOST_CERTIFICATES:
        raise FormatError(f"{len(pems)} certificates", source=source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what is told of broken ones, on stderr
            if pems:
                found = [x509.load_pem_x509_certificate(pem) for pem in pems]
            else:
                found = [x509.load_der_x509_certificate(data)]
            for certificate in found:
                # Parsed only when they are asked for.
                _ = certificate.extensions, certificate.subject, certificate.issuer
        return found
    except _UNREADABLE as error:
        raise FormatError(f"is no certificate: {_line(error)}", source=source) from None


def key_of(certificate: x509.Certificate, source: str) -> Key:
    """The key of a certificate. Raises :class:`FormatError`."""
    try:
        return _usable(certificate.public_key(), None, source)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(f"is no public key: {_line(error)}", source=source) from None


def vouched(
    key: Key, chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> str | None:
    """Why the certificates lead from ``key`` to none of the anchors; None where they do.

    ``chain`` has the key's certificate first; the others may stand in any order. The certificate
    must be valid at ``now``, be none of an authority, and where it names purposes one of them
    must be attestation: an authority that gives certificates to web servers vouches for none.
    """
    if not chain:
        return "there is no certificate of the key (ak.crt)"
    leaf = chain[0]
    if _public_of(leaf) != key.der:
        return "the certificate is of another key"
    problem = _wrong_leaf(leaf)
    if problem is not None:
        return problem
    current = leaf
    for depth in range(_DEPTH):
        problem = _wrong_time(current, now)
        if problem is not None:
            return problem
        if any(_issued(current, anchor, depth, now) for anchor in anchors):
            return None
        following = [c for c in chain[1:] if c is not current and _issued(current, c, depth, now)]
        if not following:
            return f"nobody of --ca has issued {_subject(current)}"
        current = following[0]
    return f"more than {_DEPTH} certificates"


def _public_of(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _wrong_leaf(leaf: x509.Certificate) -> str | None:
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        return "the certificate of the key is that of an authority"
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        return "the certificate of the key is not for signatures"
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    if purposes is not None and _AIK not in purposes:
        return "the certificate of the key is for other purposes than attestation"
    return _unknown_critical(leaf)


def _issued(
    certificate: x509.Certificate, issuer: x509.Certificate, below: int, now: datetime
) -> bool:
    """Whether an authority has issued it. ``below``: authorities under this one."""
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return False
    if constraints.path_length is not None and constraints.path_length < below:
        return False
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return False
    if _wrong_time(issuer, now) is not None or _unknown_critical(issuer) is not None:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return not isinstance(certificate.signature_hash_algorithm, hashes.SHA1 | hashes.MD5)


def _wrong_time(certificate: x509.Certificate, now: datetime) -> str | None:
    if now < certificate.not_valid_before_utc:
        return f"{_subject(certificate)} is not valid yet"
    if now > certificate.not_valid_after_utc:
        return f"{_subject(certificate)} has expired"
    return None


_UNDERSTOOD = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage)
#: Of a certificate of an attestation key it holds the TPM's maker and model, and is critical.
_BESIDE = (x509.SubjectAlternativeName,)


def _unknown_critical(certificate: x509.Certificate) -> str | None:
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, (*_UNDERSTOOD, *_BESIDE)):
            return f"{_subject(certificate)} has a critical extension {extension.oid.dotted_string}"
    return None


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _subject(certificate: x509.Certificate) -> str:
    return f"the certificate of {shown(certificate.subject.rfc4514_string(), 200) or 'nobody'}"


def _line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
