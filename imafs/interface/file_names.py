# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which names an open file may have: what a pattern of a fault or of a scenario can match.

Of all profiles, not of the one that runs: the next kernel of a kexec or of a reboot may be
any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache

from imafs.formats.algorithms import ALGORITHMS, Bank, bank_for
from imafs.interface.profiles.model import directory
from imafs.interface.profiles.table import PROFILES
from imafs.text import shown

#: Characters of a pattern: as many as a name has bytes (NAME_MAX).
_LONGEST = 255

#: Files beside the IMA directory (imafs.emulator.sysfs): the boot_id, the boot log of the layout
#: securityfs, and the class of TPMs with a file per PCR.
BESIDE = frozenset(
    {
        *(".boot_id", "binary_bios_measurements", "tpm_version_major"),
        *(str(pcr) for pcr in range(24)),
    }
)


def names(lists: tuple[Bank, ...], *, staging: bool = True, tpm: bool = True) -> frozenset[str]:
    """Names of files, and of links to them, of every profile; see :func:`directory`."""
    entries = (
        entry
        for profile in PROFILES
        for entry in directory(profile, lists, staging=staging, tpm=tpm)
    )
    return BESIDE | {entry.name for entry in entries}


@cache
def of_any_tpm() -> frozenset[str]:
    """:func:`names` for every bank that a TPM may have."""
    known = [bank_for(algorithm) for algorithm in ALGORITHMS if algorithm.tpm_id is not None]
    # SHA-3: ids that the kernel has no hash for.
    unknown = [Bank(0x27, 32, None), Bank(0x28, 48, None), Bank(0x29, 64, None)]
    return names((*known, *unknown))


def unmatched(pattern: str, known: Iterable[str]) -> str | None:
    """The complaint about a shell pattern that matches none of the names; None where one does."""
    if len(pattern) <= _LONGEST and any(fnmatchcase(name, pattern) for name in known):
        return None
    return (
        f"{shown(pattern, _LONGEST)!r} matches no file of any profile: it is a pattern of names "
        "in the IMA directory, such as '*_staged'"
    )
