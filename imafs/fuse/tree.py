# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The directory tree: one table of nodes, built once from the profile's entries."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from imafs.emulator.sysfs import Extra
from imafs.errors import Refused
from imafs.interface.profiles import Entry, Kind

ROOT = 1


@dataclass(slots=True)
class Node:
    """One inode. Mode, owner and times change by chmod and friends, as in the kernel.

    ``children`` are in the order that readdir shows. ``truncated`` is the size that
    truncate(2) set: stat shows it, the content stays.
    """

    inode: int
    name: str
    parent: int
    mode: int
    entry: Entry | None = None
    target: str | None = None
    extra: Extra | None = None
    children: list[Node] = field(default_factory=list)
    uid: int = 0
    gid: int = 0
    truncated: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0

    @property
    def is_dir(self) -> bool:
        """Whether the node is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_sized(self) -> bool:
        """Whether a kernel shows a size that is not 0 by itself: sysfs."""
        return self.extra is not None and self.extra.sysfs

    @property
    def is_seq(self) -> bool:
        """Whether lseek to the end is refused (seq_lseek)."""
        if self.extra is not None:
            return not self.extra.sysfs
        return self.entry is not None and self.entry.kind is Kind.LIST

    @property
    def nlink(self) -> int:
        """Link count as securityfs shows it: 2 and one per subdirectory, else 1."""
        return 2 + sum(child.is_dir for child in self.listed) if self.is_dir else 1

    @property
    def listed(self) -> list[Node]:
        """The children that readdir shows; names with a leading dot are only found."""
        return [child for child in self.children if not child.name.startswith(".")]


class Inodes:
    """Inode numbers of one mount, over all kernels that it shows.

    A name that is the same kind of file keeps its number, so bind mounts live on; a number
    is never another file's.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str, int, str | None], int] = {}

    def number(self, parent: int, name: str, mode: int, target: str | None) -> int:
        """The inode of ``name`` below the inode ``parent`` (0: the root itself)."""
        key = (parent, name, stat.S_IFMT(mode), target)
        return self._numbers.setdefault(key, ROOT + len(self._numbers))


class Tree:
    """All nodes by inode. ``layout`` is "ima" or "securityfs" (see the README).

    ``extras`` come below the root, with the directories that lead to them.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        layout: str,
        inodes: Inodes | None = None,
        extras: Sequence[Extra] = (),
    ) -> None:
        self._inodes = inodes or Inodes()
        self.nodes: dict[int, Node] = {}
        root = self._add(None, "", stat.S_IFDIR | 0o755)
        ima = root
        if layout == "securityfs":
            # Created in this order: integrity, its ima, the link; readdir reverses.
            integrity = self._add(root, "integrity", stat.S_IFDIR | 0o755)
            ima = self._add(integrity, "ima", stat.S_IFDIR | 0o755)
            self._add(root, "ima", stat.S_IFLNK | 0o444, target="integrity/ima")
        for entry in entries:
            kind = stat.S_IFLNK if entry.kind is Kind.LINK else stat.S_IFREG
            place = self._directory(root, entry.directory) if entry.directory else ima
            self._add(place, entry.name, kind | entry.mode, entry=entry, target=entry.target)
        for extra in extras:
            self.add(extra)
        for node in self.nodes.values():
            node.children.reverse()

    def add(self, extra: Extra) -> Node:
        """A file or directory beside the IMA directory."""
        root = self.nodes[ROOT]
        path, _, name = extra.path.rpartition("/")
        place = self._directory(root, path) if path else root
        kind = stat.S_IFDIR if extra.read is None else stat.S_IFREG
        return self._add(place, name, kind | extra.mode, extra=extra)

    def remove(self, node: Node) -> None:
        """A node without children is there no more."""
        del self.nodes[node.inode]
        self.nodes[node.parent].children.remove(node)

    def _directory(self, root: Node, path: str) -> Node:
        """The directory at a path from the root; made with its parents where it is not there."""
        node = root
        for name in path.split("/"):
            found = self.lookup(node.inode, name)
            node = found or self._add(node, name, stat.S_IFDIR | 0o755)
        return node

    def _add(
        self,
        parent: Node | None,
        name: str,
        mode: int,
        *,
        entry: Entry | None = None,
        target: str | None = None,
        extra: Extra | None = None,
    ) -> Node:
        now = time.time_ns()
        inode = self._inodes.number(parent.inode if parent else 0, name, mode, target)
        up = parent.inode if parent is not None else inode
        # root:root as in securityfs; an ordinary user's mount must be his own to read.
        owner = os.geteuid()
        node = Node(
            inode,
            name,
            up,
            mode,
            entry,
            target,
            extra,
            uid=owner,
            gid=os.getegid() if owner else 0,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
        )
        self.nodes[inode] = node
        if parent is not None:
            parent.children.append(node)
        return node

    def node(self, inode: int) -> Node:
        """Raises :class:`Refused` (ENOENT) for what only an earlier kernel had."""
        found = self.nodes.get(inode)
        if found is None:
            raise Refused(errno.ENOENT, "the kernel that had this file is gone")
        return found

    def lookup(self, parent: int, name: str) -> Node | None:
        """The child with this name, None where there is none."""
        return next((n for n in self.node(parent).children if n.name == name), None)

    def names(self, node: Node) -> list[str]:
        """The node's own name and those of the links to it."""
        return [node.name, *(n.name for n in self.nodes.values() if n.target == node.name)]
