# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A machine with a TPM made of paper: keys, PCRs, a list, quotes and bundles, without imafs.

Nothing of it comes from imafs but the writing of the manifest and the tar: quotes are packed
by hand from TCG "TPM 2.0 Library", part 2.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imafs.attest.bundle import Bundle, Manifest
from imafs.attest.judgement import Demand
from imafs.attest.quote import Clock
from imafs.attest.signatures import read_keys
from tests.property.reference import WIDTHS, Rec, binary_list, ng

NOW = datetime(2026, 11, 30, tzinfo=UTC)
NONCE = bytes.fromhex("0badc0de")
IDS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
BOOT = ng(10, b"boot_aggregate")

#: Keys are slow to make, and any will do: (scheme, hash) -> key.
_KEYS: dict[tuple[str, str, int], Any] = {}


def key_of(scheme: str, number: int = 0) -> Any:
    """A private key for ``rsassa``, ``rsapss``, ``p256`` or ``p384``; always the same one."""
    kind = "rsa" if scheme.startswith("rsa") else scheme
    known = _KEYS.get((kind, "", number))
    if known is None:
        if kind == "rsa":
            known = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        else:
            known = ec.generate_private_key(ec.SECP256R1() if kind == "p256" else ec.SECP384R1())
        _KEYS[kind, "", number] = known
    return known


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(data)) + data


class PaperTpm:
    """One machine. ``records`` are its list since the boot, all extended."""

    def __init__(
        self,
        scheme: str = "p256",
        algorithm: str = "sha256",
        *,
        number: int = 0,
        banks: Sequence[str] = ("sha1", "sha256"),
    ) -> None:
        self.scheme = scheme
        self.algorithm = algorithm
        self.private = key_of(scheme, number)
        self.banks = tuple(banks)
        self.clock = Clock(1000, 7, 0, True)
        self.boot()

    def boot(self) -> None:
        """Empty PCRs, and a list of boot_aggregate."""
        self.pcrs = {bank: {n: bytes(WIDTHS[bank]) for n in range(24)} for bank in self.banks}
        self.records: list[Rec] = []
        self.measure(BOOT)

    def reboot(self) -> None:
        """As :meth:`boot`, and the TPM counts it."""
        self.clock = replace(self.clock, reset_count=self.clock.reset_count + 1, clock=1)
        self.boot()

    def measure(self, *records: Rec) -> None:
        """Into the list and the PCRs."""
        for rec in records:
            self.records.append(rec)
            for bank, values in self.pcrs.items():
                digest = b"\xff" * WIDTHS[bank] if rec.violation else rec.digest(bank)
                values[rec.pcr] = hashlib.new(bank, values[rec.pcr] + digest).digest()

    def files(self, *names: bytes) -> None:
        """Records of files."""
        self.measure(*(ng(10, name) for name in names))

    def list(self, first: int = 0) -> bytes:
        """The binary list from a record on."""
        return binary_list(self.records[first:], "sha1")

    @property
    def public(self) -> bytes:
        """The key as PEM."""
        pem: bytes = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return pem

    @property
    def area(self) -> bytes:
        """The key as TPM2B_PUBLIC, restricted and fixed to its TPM."""
        return self.public_area(0x00050072)

    def public_area(self, attributes: int) -> bytes:
        """The key as TPM2B_PUBLIC."""
        numbers = self.private.public_key().public_numbers()
        front = struct.pack(">HIH", IDS[self.algorithm], attributes, 0)
        if self.scheme.startswith("rsa"):
            scheme = {"rsassa": 0x14, "rsapss": 0x16}[self.scheme]
            rest = struct.pack(">HHHHI", 0x10, scheme, IDS[self.algorithm], 2048, 0)
            return sized(b"\0\1" + front + rest + sized(numbers.n.to_bytes(256, "big")))
        size, curve = {"p256": (32, 3), "p384": (48, 4)}[self.scheme]
        rest = struct.pack(">HHHHH", 0x10, 0x18, IDS[self.algorithm], curve, 0x10)
        point = sized(numbers.x.to_bytes(size, "big")) + sized(numbers.y.to_bytes(size, "big"))
        return sized(b"\0\x23" + front + rest + point)

    def sign(self, message: bytes) -> bytes:
        """A TPMT_SIGNATURE."""
        algorithm = getattr(hashes, self.algorithm.upper())()
        front = struct.pack(">H", IDS[self.algorithm])
        if self.scheme.startswith("rsa"):
            scheme: Any = padding.PKCS1v15()
            if self.scheme == "rsapss":
                scheme = padding.PSS(padding.MGF1(algorithm), padding.PSS.MAX_LENGTH)
            made = self.private.sign(message, scheme, algorithm)
            return (b"\0\x14" if self.scheme == "rsassa" else b"\0\x16") + front + sized(made)
        r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(algorithm)))
        size = 32 if self.scheme == "p256" else 48
        return b"\0\x18" + front + sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))

    def message(
        self, nonce: bytes, selection: dict[str, Sequence[int]], digest: bytes | None = None
    ) -> bytes:
        """A TPMS_ATTEST."""
        values = b"".join(self.pcrs[bank][n] for bank, pcrs in selection.items() for n in pcrs)
        if digest is None:
            digest = hashlib.new(self.algorithm, values).digest()
        clock = self.clock
        return b"".join(
            (
                b"\xffTCG\x80\x18",
                sized(b"\0\x0b" + bytes(32)),
                sized(nonce),
                struct.pack(">QIIB", clock.clock, clock.reset_count, clock.restart_count, 1),
                bytes(8),
                struct.pack(">I", len(selection)),
                *(
                    struct.pack(">HB", IDS[bank], 3)
                    + sum(1 << n for n in pcrs).to_bytes(3, "little")
                    for bank, pcrs in selection.items()
                ),
                sized(digest),
            )
        )

    def values(self, selection: dict[str, Sequence[int]]) -> bytes:
        """The file of ``tpm2_quote -o``: two C structures of a little-endian machine."""
        out = struct.pack("<I", len(selection))
        for bank, pcrs in selection.items():
            out += struct.pack("<HB", IDS[bank], 3)
            out += sum(1 << n for n in pcrs).to_bytes(4, "little") + b"\0"
        out = out.ljust(4 + 16 * 8, b"\0")
        all_ = [self.pcrs[bank][n] for bank, pcrs in selection.items() for n in pcrs]
        lists = [all_[at : at + 8] for at in range(0, len(all_), 8)]
        out += struct.pack("<I", len(lists))
        for some in lists:
            row = struct.pack("<I", len(some))
            row += b"".join(struct.pack("<H", len(v)) + v.ljust(64, b"\0") for v in some)
            out += row.ljust(4 + 8 * 66, b"\0")
        return out

    def selection(self, *pcrs: int) -> dict[str, Sequence[int]]:
        """These PCRs (10) in every bank."""
        return dict.fromkeys(self.banks, pcrs or (10,))

    def bundle(
        self,
        nonce: bytes = NONCE,
        *,
        first: int = 0,
        selection: dict[str, Sequence[int]] | None = None,
        manifest: bool = True,
    ) -> Bundle:
        """Evidence of now; the clock goes on."""
        self.clock = replace(self.clock, clock=self.clock.clock + 10)
        chosen = selection or self.selection()
        message = self.message(nonce, chosen)
        written = None
        if manifest:
            written = Manifest(
                imafs="0",
                first=first,
                count=len(self.records) - first,
                excess=0,
                clock=self.clock,
                start=self.after(first),
                end={b: {n: self.pcrs[b][n] for n in pcrs} for b, pcrs in chosen.items()},
            )
        return Bundle(
            *(self.list(first), message, self.sign(message), self.values(chosen)),
            key=self.area,
            manifest=written,
        )

    def after(self, count: int) -> dict[str, dict[int, bytes]]:
        """PCRs after so many records; nothing of none."""
        if not count:
            return {}
        other = object.__new__(PaperTpm)
        other.banks = self.banks
        other.boot()
        other.boot_only()
        other.measure(*self.records[:count])
        used = {rec.pcr for rec in self.records[:count]}
        return {bank: {n: v[n] for n in used} for bank, v in other.pcrs.items()}

    def boot_only(self) -> None:
        """PCRs of zeros and no record."""
        self.pcrs = {bank: {n: bytes(WIDTHS[bank]) for n in range(24)} for bank in self.banks}
        self.records = []

    def demand(self, **changes: Any) -> Demand:
        """What a verifier that knows the key asks."""
        keys = tuple(read_keys(self.public, "ak.pem"))
        return replace(Demand(NONCE, NOW, keys), **changes)
