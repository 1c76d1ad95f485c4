# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The kinds of verdicts on a bundle. Without cryptography: the manual page is made of them."""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """One outcome: its word, its exit code, and what it means. Later ones are worse."""

    OK = ("ok", 0, "the records are those that the quote confirms")
    KEXEC = ("kexec", 20, "all is well; the kernel was replaced by kexec since the last bundle")
    REBOOT = ("reboot", 21, "all is well; the machine was rebooted since the last bundle")
    FILES = ("files", 22, "the records are confirmed; some are of files that --reference has not")
    VIOLATIONS = ("violations", 23, "the records are confirmed; some are violations")
    REFERENCE = ("reference", 38, "a pattern of --reference comes to no end: files are not judged")
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
    UNJUDGED = ("unjudged", 39, "the process that judged the bundle was killed, also alone")
    MALFORMED = ("malformed", 3, "the bundle cannot be read, or a digest is not that of its record")
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


def worse(one: Kind, other: Kind) -> Kind:
    """Of two kinds the one that is later in their order."""
    return max(one, other, key=list(Kind).index)
