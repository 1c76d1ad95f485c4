# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Fixtures of this room, and an emulator outside of any session."""

from tests.mount.fixtures import daemon, start
from tests.run.runs import start_run

__all__ = ["daemon", "start", "start_run"]
