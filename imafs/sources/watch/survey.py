# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a set of watched paths concerns: their file systems, and those mounted below.

Blocking: call it in a thread, away from the event loop (a path may be on a dead mount).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from imafs.errors import FileError, Refused
from imafs.formats.mounttable import Row, rows
from imafs.sources import facts
from imafs.sources.watch import places, wire

#: The listener reads /proc while openers wait: it must not wait for itself.
_NEVER = frozenset({"proc"})


def resolve(path: str, leave: bytes) -> bytes:
    """The path as records will show it. Raises :class:`FileError` and :class:`Refused`.

    ``leave``: see :func:`survey`.
    """
    try:
        real = os.path.realpath(path, strict=True)
        os.stat(real)
    except OSError as error:
        raise FileError(path, error) from None
    mounts = list(rows(Path("/proc/self/mountinfo").read_bytes()))
    on = places.holding(mounts, os.fsencode(real))
    if on is not None and on.kind in _NEVER:
        raise Refused(errno.EINVAL, f"{path} is on {on.kind}, which cannot be watched")
    if on is not None and on.device in _devices(mounts, leave):
        raise Refused(errno.EINVAL, f"{path} is on the emulator's own mount")
    return os.fsencode(real)


def _devices(mounts: Iterable[Row], point: bytes) -> set[bytes]:
    return {mount.device for mount in mounts if mount.point == point and mount.point != b"/"}


def survey(
    paths: Iterable[bytes], leave: bytes
) -> tuple[tuple[bytes, ...], tuple[wire.FileSystem, ...]]:
    """One directory (or file) per file system that ``paths`` concern, paths first, and what
    rules ask of each. ``leave`` is the emulator's own mountpoint: a kernel's policies leave
    securityfs out as well, and each look at the list would make it longer."""
    mounts = list(rows(Path("/proc/self/mountinfo").read_bytes()))
    wanted = dict.fromkeys(paths)
    own = _devices(mounts, leave)
    points = list(wanted)
    for path in wanted:
        points += [
            mount.point
            for mount in places.submounts(mounts, path)
            if mount.kind not in _NEVER and mount.device not in own
        ]
    found: list[bytes] = []
    systems: dict[int, wire.FileSystem] = {}
    for point in points:
        try:
            device = os.stat(point).st_dev
            about = facts.of_path(point)
        except (OSError, Refused):
            continue  # removed since it is watched, or a dead mount: nothing can be opened there
        found.append(point)
        systems[device] = wire.FileSystem(
            device, about.fsmagic, about.fsname, about.fs_subtype, about.fsuuid or b""
        )
    return tuple(dict.fromkeys(found)), tuple(systems.values())
