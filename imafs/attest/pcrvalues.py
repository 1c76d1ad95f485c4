# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Banks as tools name them, and PCR values collected by bank and number."""

from __future__ import annotations

import re

from imafs.errors import FormatError
from imafs.formats.algorithms import ALGORITHMS

#: CONFIG_IMA_MEASURE_PCR_IDX of nearly every kernel.
DEFAULT_PCR = 10

#: Banks that a TPM can have, by the kernel's names of their hashes; the kernel maps SHA-3 to none.
_SIZES = {
    a.name: a.digest_size for a in ALGORITHMS if a.tpm_id is not None or a.name.startswith("sha3-")
}
#: Banks of SHA-3, which the kernel's TPM driver maps to no hash, by TPM_ALG_ID.
SHA3 = {0x27: "sha3-256", 0x28: "sha3-384", 0x29: "sha3-512"}
#: So kernels name the files of such a bank (Linux 7.1 on).
_UNMAPPED = {f"{tpm_id:x}": name for tpm_id, name in SHA3.items()}
_PREFIX = re.compile(r"^(?:tpm2?_)?(?:alg_)?")


def bank_named(word: str) -> str | None:
    """The kernel's name of a bank that a tool calls ``SHA-256``, ``TPM_ALG_SHA256``, ``sm3_256``.

    None for a word that is no bank.
    """
    name = _PREFIX.sub("", word.lower()).replace("_", "-")
    if name in ("sm3-256", "sm3256"):
        name = "sm3"
    if name not in _SIZES:
        name = name.replace("sha-", "sha", 1)
    return name if name in _SIZES else _UNMAPPED.get(name)


def by_size(size: int) -> str | None:
    """The bank of values of ``size`` bytes; SHA-256, where SM3 would fit as well."""
    return next((name for name, wanted in _SIZES.items() if wanted == size), None)


class Collected:
    """PCR values while they are found. ``source`` is named by errors."""

    def __init__(self, source: str | None) -> None:
        self.source = source
        self.values: dict[str, dict[int, bytes]] = {}

    def add(self, bank: str | None, pcr: int, digits: str, where: str) -> None:
        """A value in hexadecimal digits; of the bank that its size says where None is named.

        Raises :class:`FormatError` where it is no value of that bank.
        """
        plain = digits.strip().lower().removeprefix("0x").replace(" ", "").replace(":", "")
        try:
            value = bytes.fromhex(plain)
        except ValueError:
            why = "an odd number of digits" if len(plain) % 2 else "no hexadecimal digits"
            raise FormatError(f"{where}: {why}", source=self.source) from None
        name = by_size(len(value)) if bank is None else bank_named(bank)
        if name is None or _SIZES[name] != len(value):
            of = "any bank" if bank is None else f"bank {bank}"
            raise FormatError(
                f"{where}: {len(plain)} hexadecimal digits are no value of {of}",
                source=self.source,
            )
        self.values.setdefault(name, {})[pcr] = value
