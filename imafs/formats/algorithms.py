# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Hash algorithms by the kernel's names, and TPM banks.

Names and order are ``hash_algo_name[]`` (Linux 7.3, lib/crypto/hash_info.c); the
TPM ids are those which drivers/char/tpm maps to a kernel hash. A bank with any
other id has no kernel hash: IMA calls its files ``tpm_alg_%x`` and fills its
digests with zero-padded SHA-1 (ima_crypto.c).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imafs.errors import FormatError, UsageError


@dataclass(frozen=True, slots=True)
class HashAlgorithm:
    """One kernel hash algorithm; ``digest_size`` in bytes."""

    name: str
    digest_size: int
    tpm_id: int | None = None
    hashlib_name: str | None = None

    @property
    def available(self) -> bool:
        """Whether this Python's hashlib can compute it."""
        return self.hashlib_name is not None and self.hashlib_name in hashlib.algorithms_available

    @property
    def fits_ima(self) -> bool:
        """Whether template ``ima`` can store its digests (the field ``d``)."""
        return self.name in ("sha1", "md5")

    def constructor(self) -> Callable[..., Any]:
        """The hashlib constructor (``constructor()(data).digest()``).

        Raises :class:`FormatError` when this machine cannot compute the algorithm.
        """
        if not self.available:
            raise FormatError(f"hash algorithm {self.name} cannot be computed on this machine")
        assert self.hashlib_name is not None
        direct = getattr(hashlib, self.hashlib_name, None)
        if direct is not None:
            return direct  # type: ignore[no-any-return]
        name = self.hashlib_name
        return lambda data=b"": hashlib.new(name, data)

    def digest(self, data: bytes | memoryview) -> bytes:
        """Digest of ``data``."""
        result: bytes = self.constructor()(data).digest()
        return result


ALGORITHMS: tuple[HashAlgorithm, ...] = (
    HashAlgorithm("md4", 16, None, "md4"),
    HashAlgorithm("md5", 16, None, "md5"),
    HashAlgorithm("sha1", 20, 0x0004, "sha1"),
    HashAlgorithm("rmd160", 20, None, "ripemd160"),
    HashAlgorithm("sha256", 32, 0x000B, "sha256"),
    HashAlgorithm("sha384", 48, 0x000C, "sha384"),
    HashAlgorithm("sha512", 64, 0x000D, "sha512"),
    HashAlgorithm("sha224", 28, None, "sha224"),
    HashAlgorithm("rmd128", 16),
    HashAlgorithm("rmd256", 32),
    HashAlgorithm("rmd320", 40),
    HashAlgorithm("wp256", 32),
    HashAlgorithm("wp384", 48),
    HashAlgorithm("wp512", 64, None, "whirlpool"),
    HashAlgorithm("tgr128", 16),
    HashAlgorithm("tgr160", 20),
    HashAlgorithm("tgr192", 24),
    HashAlgorithm("sm3", 32, 0x0012, "sm3"),
    HashAlgorithm("streebog256", 32),
    HashAlgorithm("streebog512", 64),
    HashAlgorithm("sha3-256", 32, None, "sha3_256"),
    HashAlgorithm("sha3-384", 48, None, "sha3_384"),
    HashAlgorithm("sha3-512", 64, None, "sha3_512"),
)

_BY_NAME = {a.name: a for a in ALGORITHMS}
_BY_TPM_ID = {a.tpm_id: a for a in ALGORITHMS if a.tpm_id is not None}

#: What tpm2-tools call the algorithms that the kernel calls otherwise.
_TOOLS = {
    "sm3_256": "sm3",
    "sha3_256": "sha3-256",
    "sha3_384": "sha3-384",
    "sha3_512": "sha3-512",
}

SHA1 = _BY_NAME["sha1"]
SHA256 = _BY_NAME["sha256"]


def by_name(name: str) -> HashAlgorithm:
    """The algorithm with the kernel's ``name``; :class:`FormatError` if there is none."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise FormatError(f"unknown hash algorithm {name!r}") from None


def named(name: str) -> HashAlgorithm:
    """As :func:`by_name`, of what people write: the names of tpm2-tools too."""
    return by_name(_TOOLS.get(name, name))


def tools_name(algorithm: HashAlgorithm) -> str:
    """The name that tpm2-tools and tpm2-tss use."""
    return next((name for name, ours in _TOOLS.items() if ours == algorithm.name), algorithm.name)


def by_tpm_id(tpm_id: int) -> HashAlgorithm | None:
    """The kernel's algorithm for a TPM_ALG_ID, or None where the kernel has none."""
    return _BY_TPM_ID.get(tpm_id)


@dataclass(frozen=True, slots=True)
class Bank:
    """An allocated PCR bank as IMA sees it.

    ``algorithm`` is None where the kernel has no hash for the id; ``padded`` says
    that IMA cannot compute the bank's hash although it knows its name (Debian 6.1
    with sha384 and sha512): both extend zero-padded SHA-1 digests.
    """

    tpm_id: int
    digest_size: int
    algorithm: HashAlgorithm | None
    padded: bool = False

    @property
    def name(self) -> str:
        """Suffix of the bank's files: ``sha256`` or ``tpm_alg_27`` (Linux 7.1 on)."""
        return self.algorithm.name if self.algorithm is not None else f"tpm_alg_{self.tpm_id:x}"

    @property
    def is_padded(self) -> bool:
        """Whether template digests of this bank are zero-padded SHA-1."""
        return self.padded or self.algorithm is None


def bank_for(algorithm: HashAlgorithm, *, padded: bool = False) -> Bank:
    """The bank of an algorithm that has a TPM id; :class:`FormatError` otherwise."""
    if algorithm.tpm_id is None:
        raise FormatError(f"{algorithm.name} has no TPM algorithm id")
    return Bank(algorithm.tpm_id, algorithm.digest_size, algorithm, padded)


def list_bank(algorithm: HashAlgorithm) -> Bank:
    """The bank of a list with these digests: IMA writes one for ``ima_hash=`` too."""
    return Bank(algorithm.tpm_id or 0, algorithm.digest_size, algorithm)


def list_bank_named(name: str) -> Bank:
    """The bank of a list that a user names. Raises :class:`UsageError`."""
    known = [a.name for a in ALGORITHMS if a.available]
    found = _TOOLS.get(name, name)
    if found not in known:
        raise UsageError(f"{name!r} is no bank of a list; there are: {', '.join(known)}")
    return list_bank(by_name(found))


def bank_named(name: str) -> Bank:
    """The bank that a user names. Raises :class:`UsageError`, which says what there is."""
    known = [a.name for a in ALGORITHMS if a.tpm_id is not None]
    found = _TOOLS.get(name, name)
    if found not in known:
        raise UsageError(f"{name!r} is no PCR bank; there are: {', '.join(known)}")
    return bank_for(by_name(found))


def padded_banks_named(text: str) -> tuple[str, ...]:
    """Names, with commas, of banks that hold zero-padded SHA-1. Raises :class:`UsageError`."""
    names = tuple(bank_named(name).name for name in text.split(","))
    if SHA1.name in names:
        raise UsageError("'sha1' is not padded: the others are, with SHA-1")
    return names
