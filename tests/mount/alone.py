# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A script for a mount namespace of a test's own: no other imafs of this machine is seen.

Its argument: the directory whose mounts stay. Everything that others of this machine have mounted
by whatever name is detached, dead or alive; what cannot be is named, with exit code 1.
"""

from __future__ import annotations

import contextlib
import sys

from imafs.errors import MountError
from imafs.host import mounts


def others(kept: str | None) -> list[mounts.Mount]:
    """Mounts of emulators and keepers that are not below ``kept``."""
    below = None if kept is None else f"{kept.rstrip('/')}/"
    return [m for m in mounts.mounts() if m.ours and not (below and m.path.startswith(below))]


def detach_others(kept: str | None) -> list[mounts.Mount]:
    """Those that are left: rounds go on as long as one helps."""
    left, before = others(kept), None
    while left and left != before:
        for mount in left:
            # What lies below a dead mount, which nobody can name, goes with it.
            with contextlib.suppress(MountError):
                mounts.detach(mount)
        left, before = others(kept), left
    return left


if __name__ == "__main__":
    found = detach_others(sys.argv[1] if len(sys.argv) > 1 else None)
    sys.exit("\n".join(f"cannot be detached: {mount}" for mount in found) or 0)
