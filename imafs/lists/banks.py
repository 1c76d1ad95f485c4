# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which digests every record gets, and which views of the list exist.

Mirrors ``ima_init_crypto`` (Linux 7.3 ima_crypto.c): one slot per TPM bank, one more
for SHA-1 if no bank has it (it gets files), one more for ``ima_hash=`` if no bank has
it (it gets none, it only serves the hash table).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, SHA256, Bank, HashAlgorithm, bank_for
from imafs.formats.binary import Record


class View(NamedTuple):
    """One form of a list: ASCII or binary, with the digests of list bank ``bank``."""

    ascii: bool
    bank: int


class Digests(NamedTuple):
    """Template digests of one record: SHA-1, the stored others, the hash table's."""

    sha1: bytes
    stored: tuple[bytes, ...]
    default: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """``banks``: the TPM's, in its order; ``default``: the algorithm of ``ima_hash=``."""

    banks: tuple[Bank, ...]
    default: HashAlgorithm = SHA256

    @property
    def lists(self) -> tuple[Bank, ...]:
        """The banks that have files: the TPM's, and SHA-1 always."""
        if any(bank.algorithm is SHA1 for bank in self.banks):
            return self.banks
        return (*self.banks, bank_for(SHA1))

    @property
    def stored(self) -> tuple[HashAlgorithm, ...]:
        """Algorithms whose digests are kept beside the SHA-1 binary form.

        Padded banks are not among them: their digests are made from SHA-1.
        """
        return tuple(
            bank.algorithm
            for bank in self.banks
            if bank.algorithm is not None and not bank.is_padded and bank.algorithm is not SHA1
        )

    def check_claims(self, name: str) -> None:
        """Raises :class:`FormatError` where a list of bank ``name`` cannot be shown as it is:
        its wrong digests would stand nowhere."""
        shown = [SHA1.name, *(algorithm.name for algorithm in self.stored)]
        if name not in shown:
            raise FormatError(
                f"wrong template digests of bank {name} cannot be shown here; there are: "
                f"{', '.join(shown)}"
            )

    @property
    def entry_size(self) -> int:
        """Bytes of one packed extend entry: u32 PCR and a digest per TPM bank."""
        return 4 + sum(bank.digest_size for bank in self.banks)


class Hasher:
    """Computes :class:`Digests` and extend entries for one layout (hot path)."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sha1 = SHA1.constructor()
        self._stored = tuple(a.constructor() for a in layout.stored)
        self._default = layout.default.constructor()
        names = [a.name for a in layout.stored]
        self._default_at = names.index(layout.default.name) if layout.default.name in names else -1
        self._default_is_sha1 = layout.default is SHA1
        self._violation = Digests(
            bytes(20),
            tuple(bytes(a.digest_size) for a in layout.stored),
            bytes(layout.default.digest_size),
        )
        # A bank whose id the kernel does not know extends 20 bytes of 0xff and zeros;
        # a known one that IMA cannot hash (Debian 6.1) the whole width (observed).
        self._violation_entry = b"".join(
            b"\xff" * bank.digest_size
            if bank.algorithm is not None
            else (b"\xff" * 20).ljust(bank.digest_size, b"\0")
            for bank in layout.banks
        )
        stored_at = self._stored_at = {name: at for at, name in enumerate(names)}
        # Per TPM bank: index into Digests.stored, or -1 for (padded) SHA-1.
        self._plan = tuple(
            (
                -1
                if bank.is_padded or bank.algorithm is None
                else stored_at.get(bank.algorithm.name, -1),
                bank.digest_size,
            )
            for bank in layout.banks
        )

    def digests(self, record: Record) -> Digests:
        """All digests of a record; zeros for a violation.

        Raises :class:`FormatError` for one that a tampered list claims of another bank.
        """
        if record.violation:
            return self._violation
        data = record.template.hash_input(record.data)
        sha1 = self._sha1(data).digest()
        stored = tuple([make(data).digest() for make in self._stored])
        if self._default_at >= 0:
            default = stored[self._default_at]
        elif self._default_is_sha1:
            default = sha1
        else:
            default = self._default(data).digest()
        if record.claimed is not None:
            return self._claimed(record.claimed, sha1, stored, default)
        return Digests(sha1, stored, default)

    def _claimed(
        self, claimed: tuple[str, bytes], sha1: bytes, stored: tuple[bytes, ...], default: bytes
    ) -> Digests:
        """The false digest that a tampered list shows; the hash table has the true one."""
        name, digest = claimed
        if name == SHA1.name:
            return Digests(digest, stored, default)
        self._layout.check_claims(name)
        at = self._stored_at[name]
        return Digests(sha1, (*stored[:at], digest, *stored[at + 1 :]), default)

    def extend_entry(self, record: Record, digests: Digests) -> bytes:
        """The extend of the record: u32 PCR (little endian), a digest per bank."""
        pcr = record.pcr.to_bytes(4, "little")
        if record.violation:
            return pcr + self._violation_entry
        return pcr + b"".join(
            [
                digests.stored[at] if at >= 0 else digests.sha1.ljust(size, b"\0")
                for at, size in self._plan
            ]
        )
