# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The words of a verdict: its kinds, what a verifier demands, what comes out."""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509

from imafs.attest import firmware, quote, signatures
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.attest.reference import Files, Reference
from imafs.attest.state import State


class Kind(enum.Enum):
    """One outcome: its word, its exit code, and what it means. Later ones are worse."""

    OK = ("ok", 0, "the records are those that the quote confirms")
    KEXEC = ("kexec", 20, "all is well; the kernel was replaced by kexec since the last bundle")
    REBOOT = ("reboot", 21, "all is well; the machine was rebooted since the last bundle")
    FILES = ("files", 22, "the records are confirmed; some are of files that --reference has not")
    VIOLATIONS = ("violations", 23, "the records are confirmed; some are violations")
    UNPROVEN = ("unproven", 24, "the quote says nothing of some records")
    STALE = ("stale", 25, "the verifier's state is lost or older than the bundle begins")
    START = ("start", 26, "the bundle begins with values that are not the verifier's own")
    HEAD = ("head", 27, "records at the beginning are missing")
    NONCE = ("nonce", 28, "the quote has another nonce")
    REPLAYED = ("replayed", 29, "a bundle of the past: its quote was accepted before, or is older")
    MACHINE = ("machine", 30, "the quote is of another machine's key")
    KEY = ("key", 31, "nothing vouches for the key")
    ROLLBACK = ("rollback", 32, "the machine's TPM, clock or list went back")
    RESET = ("reset", 33, "the PCRs were reset and no reboot was counted")
    BOOT = ("boot", 34, "boot_aggregate is not what the firmware's PCRs or its log give")
    MANIFEST = ("manifest", 35, "the manifest contradicts what is signed")
    PCRS = ("pcrs", 36, "quote.pcrs are not the values that were quoted")
    SIGNATURE = ("signature", 37, "the signature is not the key's")
    MALFORMED = ("malformed", 3, "the bundle cannot be read")
    MISMATCH = ("mismatch", 8, "the records do not lead to the quote")

    def __init__(self, word: str, code: int, meaning: str) -> None:
        self.word = word
        self.code = code
        self.meaning = meaning

    @property
    def accepted(self) -> bool:
        """Whether the quote confirms the records: the verifier's state moves on."""
        return self in _ACCEPTED


_ACCEPTED = frozenset({Kind.OK, Kind.KEXEC, Kind.REBOOT, Kind.FILES, Kind.VIOLATIONS})


@dataclass(frozen=True, slots=True)
class Demand:
    """What a verifier asks of a bundle.

    The key is one of ``keys``, or vouched for by ``anchors`` at ``now``; ``enrol`` takes the
    first one that a machine without a state shows. ``padded`` are banks in which zero-padded
    SHA-1 is accepted. ``pcr`` is that of records without a rule's own: the quote must have it.
    """

    nonce: bytes
    now: datetime
    keys: Sequence[signatures.Key] = ()
    anchors: Sequence[x509.Certificate] = ()
    enrol: bool = False
    padded: Collection[str] = ()
    pcr: int = DEFAULT_PCR
    reference: Reference | None = None
    no_violations: bool = False


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
