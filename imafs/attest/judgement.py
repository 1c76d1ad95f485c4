# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a verifier demands, and what comes out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509

from imafs.attest import firmware, quote, signatures
from imafs.attest.kinds import Kind
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.attest.reference import Files, Reference
from imafs.attest.state import State


@dataclass(frozen=True, slots=True)
class Demand:
    """What a verifier asks of a bundle.

    The key is one of ``keys``, or vouched for by ``anchors`` at ``now``; ``enrol`` takes the
    first one that a machine without a state shows. ``padded`` are banks in which zero-padded
    SHA-1 is accepted. ``pcr`` is that of records without a rule's own: the quote must have it,
    and each of ``pcrs``, to which rules of the machine's policy send others.
    """

    nonce: bytes
    now: datetime
    keys: Sequence[signatures.Key] = ()
    anchors: Sequence[x509.Certificate] = ()
    enrol: bool = False
    padded: Collection[str] = ()
    pcr: int = DEFAULT_PCR
    pcrs: Collection[int] = ()
    reference: Reference | None = None
    no_violations: bool = False
    by_der: Mapping[bytes, signatures.Key] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Of the same key that one is kept of which a TPM's own words are known.
        keys = sorted(self.keys, key=lambda key: key.area is not None)
        object.__setattr__(self, "by_der", {key.der: key for key in keys})


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and what it rests on.

    ``records`` from ``first`` on are confirmed, ``excess`` came behind the quote. ``boots`` are
    kernels that followed each other by kexec. ``proven`` are the (bank, PCR) that agree.
    ``state`` is what the verifier knows from now on, None where it learnt nothing.
    """

    kind: Kind
    said: str
    key: str | None = None
    first: int = 0
    records: int = 0
    excess: int = 0
    violations: int = 0
    boots: int = 0
    proven: tuple[tuple[str, int], ...] = ()
    clock: quote.Clock | None = None
    boot: firmware.Boot = firmware.Boot.UNKNOWN
    notes: tuple[str, ...] = ()
    files: Files | None = field(default=None, repr=False)
    state: State | None = field(default=None, repr=False)


class Found(Exception):
    """A verdict that ends the work: caught where the judgement is made."""

    def __init__(self, kind: Kind, said: str) -> None:
        self.kind = kind
        self.said = said
        super().__init__(said)
