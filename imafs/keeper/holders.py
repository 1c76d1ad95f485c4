# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Who has a measurement list open: nobody can stage while somebody else reads one. Blocking.

A file is told by its mount: below a cover the kernel's lists have the names that the view has,
and readers of the view keep nobody from anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from imafs.host import mounts

_LISTS = ("ascii_runtime_measurements", "binary_runtime_measurements")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process and the file."""

    pid: int
    command: str
    file: str


def holders(directory: str) -> list[Holder]:
    """Of the lists in ``directory``, as far as we may look; root sees all of them."""
    base = mounts.resolve(directory)
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        for path in sorted(_open_files(pid)):
            place, name = os.path.split(path)
            if place == base and name.startswith(_LISTS):
                found.append(Holder(pid, _command(pid), name))
    return found


def _open_files(pid: int) -> set[str]:
    """Paths of its open files, but for those on a keeper's view."""
    place = f"/proc/{pid}/fd"
    found = set()
    try:
        views = _views(pid)
        for name in os.listdir(place):
            try:
                path = os.readlink(f"{place}/{name}")
                if os.path.basename(path).startswith(_LISTS) and _mount(pid, name) in views:
                    continue
                found.add(path)
            except OSError:
                continue  # closed meanwhile
    except OSError:
        return set()  # ended meanwhile, or not ours to see
    return found


def _views(pid: int) -> set[int]:
    """Numbers of the mounts of keepers' views, where that process looks from."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return {mount.number for mount in mounts.of_table(file.read()) if mount.kept}


def _mount(pid: int, name: str) -> int | None:
    """The number of the mount that an open file is on. No request goes to its file system."""
    with open(f"/proc/{pid}/fdinfo/{name}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line.removeprefix(b"mnt_id:"))
    return None


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode(errors="backslashreplace").strip()
    except OSError:
        return "?"
