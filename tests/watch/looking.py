# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What an emulator says of watched files."""

from __future__ import annotations

from typing import Any

from tests.mount.daemon import Daemon
from tests.watch.disk import Disk


def status(emulator: Daemon) -> dict[str, Any]:
    """That part of its status."""
    return emulator.group("watch")


def names(emulator: Daemon) -> list[str]:
    """Names in the list."""
    text = emulator.read("ascii_runtime_measurements_sha256").decode()
    return [line.split(" ", 4)[4] for line in text.splitlines()]


def measures(emulator: Daemon, disk: Disk, name: str) -> None:
    """A new file is measured before it is read."""
    path = disk.file(name, name.encode())
    assert path.read_bytes()
    assert names(emulator)[-1] == str(path)
