# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Fixtures of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mount.fixtures import start as start
from tests.watch.disk import Disk


@pytest.fixture
def disk() -> Iterator[Disk]:
    """An empty file system that nobody else uses; made before the emulator, gone after it."""
    made = Disk()
    yield made
    made.close()
