# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Profiles: which interface is played, as data.

A profile says which files exist, their names, modes and links, how they are opened, which
requests each takes, what the queue refuses in which order, what it counts, forgets and
measures. Engine and FUSE shell ask this table and have no branch of their own.
"""

from imafs.interface.profiles.model import (
    Entry,
    Export,
    Kind,
    ListFiles,
    Profile,
    RequestFile,
    Shown,
    directory,
)
from imafs.interface.profiles.table import PROFILES, lookup

__all__ = [
    "PROFILES",
    "Entry",
    "Export",
    "Kind",
    "ListFiles",
    "Profile",
    "RequestFile",
    "Shown",
    "directory",
    "lookup",
]
