# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which files are below a watched path, and which directories certainly are not.

A file counts by its name, as the kernel's record shows it. Whether a directory may be
ignored is another question: through another mount (a bind mount) the same one can be
below a watched path, so directories are compared by file system and path in it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from imafs.host.mount_table import Row, rows


def below(path: bytes, root: bytes) -> bool:
    """Whether ``path`` is ``root`` or below it; both absolute and clean."""
    return path == root or root == b"/" or path.startswith(root + b"/")


def inside(mount: Row, path: bytes) -> bytes | None:
    """``path`` (below ``mount``) as a path in the file system; None: not below."""
    if not below(path, mount.point):
        return None
    rest = path[len(mount.point) :] if mount.point != b"/" else path
    return (mount.root.rstrip(b"/") + b"/" + rest.lstrip(b"/")).rstrip(b"/") or b"/"


def holding(mounts: Iterable[Row], path: bytes) -> Row | None:
    """The mount that ``path`` is on."""
    found = None
    for mount in mounts:
        if below(path, mount.point) and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


class Places:
    """The watched paths over a table of mounts."""

    def __init__(self) -> None:
        self.roots: tuple[bytes, ...] = ()
        self._mounts: dict[int, Row] = {}
        self._inside: dict[bytes, list[tuple[bytes, bytes]]] = {}

    def update(
        self, roots: Iterable[bytes], mountinfo: bytes, files: Collection[bytes] = ()
    ) -> None:
        """Takes other paths, or a newer table of mounts; ``files`` are no directories."""
        self.roots = tuple(roots)
        mounts = list(rows(mountinfo))
        self._mounts = {mount.number: mount for mount in mounts}
        self._inside = {}
        for root in self.roots:
            on = holding(mounts, root)
            for mount in ([on] if on is not None else []) + submounts(mounts, root):
                at = mount.root if mount is not on else inside(mount, root)
                assert at is not None
                # The directory of a watched file is not ignored either.
                kept = os.path.dirname(at) if root in files else at
                self._inside.setdefault(mount.device, []).append((at, kept))

    def watched(self, path: bytes) -> bool:
        """Whether the file of this name is watched."""
        return any(below(path, root) for root in self.roots)

    def may_ignore(self, directory: bytes, number: int) -> bool:
        """Whether nothing in ``directory``, reached through mount ``number``, is watched.

        False for a mount that is not in the table: of another mount namespace, or newer.
        """
        mount = self._mounts.get(number)
        at = None if mount is None else inside(mount, directory)
        if mount is None or at is None:
            return False
        return not any(
            below(at, root) or at == kept for root, kept in self._inside.get(mount.device, ())
        )


def submounts(mounts: Iterable[Row], root: bytes) -> list[Row]:
    """The mounts on points below ``root`` (not on it)."""
    return [mount for mount in mounts if mount.point != root and below(mount.point, root)]
