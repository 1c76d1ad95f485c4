# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Fixtures of this room: see tests/mount/fixtures.py."""

from tests.keeper.process import keepers
from tests.mount.fixtures import daemon, kept, start

__all__ = ["daemon", "keepers", "kept", "start"]
