# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Where ``scripts/setup --test`` (or ``--nightly``) put clients that are no part of imafs.

They have virtual environments of their own below the user's cache directory, named after
what they were made from: ``requirements/NAME.txt``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.support import find_command, missing, require, run, unmet

REQUIREMENTS = Path(__file__).parent / "requirements"


def cache() -> Path:
    """The directory of all of them, as scripts/setup has it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "imafs-tests"


def client(name: str) -> Path:
    """The directory of the commands of ``requirements/NAME.txt``; skips loudly without."""
    digest = hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()
    place = cache() / f"{name}-{digest[:12]}"
    if not (place / "complete").exists():
        unmet([f"{place} is not there (scripts/setup --test makes it, from PyPI)"])
    return place / "bin"


def ibm_tss(*commands: str) -> None:
    """Skips loudly without these commands of IBM's TSS; Debian 13 has no such package."""
    if any(map(missing, commands)) and find_command("apt-cache") is not None:
        offered = run(["apt-cache", "show", "tss2"], check=False)
        if offered.returncode != 0:
            pytest.skip("this release of Debian has no package tss2")
    require(*commands)


def trixie() -> Path:
    """A root file system of Debian 13 with tpm2-tools; skips loudly without."""
    place = cache() / "trixie"
    if not (place / "complete").exists():
        unmet([f"{place} is not there (scripts/setup --nightly makes it, from Debian)"])
    return place
