# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Who has a measurement list open: nobody can stage while somebody else reads one. Blocking."""

from __future__ import annotations

import os
from dataclasses import dataclass

_LISTS = ("ascii_runtime_measurements", "binary_runtime_measurements")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process and the file."""

    pid: int
    command: str
    file: str


def holders(directory: str) -> list[Holder]:
    """Of the lists in ``directory``, as far as we may look; root sees all of them."""
    base = os.path.realpath(directory)
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        for path in sorted(_open_files(pid)):
            place, name = os.path.split(path)
            if place == base and name.startswith(_LISTS):
                found.append(Holder(pid, _command(pid), name))
    return found


def _open_files(pid: int) -> set[str]:
    place = f"/proc/{pid}/fd"
    found = set()
    try:
        for name in os.listdir(place):
            try:
                found.add(os.readlink(f"{place}/{name}"))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        return set()  # ended meanwhile, or not ours to see
    return found


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode(errors="backslashreplace").strip()
    except OSError:
        return "?"
