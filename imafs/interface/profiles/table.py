# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""All profiles, newest kernel first, and how one is found."""

from __future__ import annotations

from imafs.errors import UsageError, nearest
from imafs.interface.profiles import export, staging, trim
from imafs.interface.profiles.model import Profile

PROFILES: tuple[Profile, ...] = (
    staging.MAINLINE,
    staging.LEGACY,
    staging.LEGACY_SINGLE,
    staging.V5,
    staging.V4,
    staging.V3,
    staging.RFC_V2,
    staging.RFC_V1,
    staging.SNAP,
    trim.TRIM_V5,
    trim.TRIM_V4,
    trim.TRIM_V3,
    trim.TRIM_V2,
    trim.TRIM_V1,
    export.PCRS_2025,
    export.FLUSH_2020,
    export.EXPORT_2020,
    export.EXPORT_2019,
    export.EXPORT_RFC,
)


def lookup(name: str) -> Profile:
    """The profile with this name or alias; :class:`UsageError` lists them all."""
    for profile in PROFILES:
        if name == profile.name or name in profile.aliases:
            return profile
    known = ", ".join(" = ".join((p.name, *p.aliases)) for p in PROFILES)
    names = (one for p in PROFILES for one in (p.name, *p.aliases))
    raise UsageError(f"unknown profile {name!r}{nearest(name, names)}; there are: {known}")
