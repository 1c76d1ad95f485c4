# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The directory tree: a node per name of the entries of a directory."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Any

from imafs.errors import Refused
from imafs.fuse.directory import Directory, Entry
from imafs.host import caller

ROOT = 1


@dataclass(slots=True)
class Node:
    """One inode. Mode, owner and times change by chmod and friends, as in the kernel.

    ``owner`` is whose ``entry`` it is; a directory on the way to an entry has neither.
    ``children`` are in the order that readdir shows. ``truncated`` is the size that
    truncate(2) set: stat shows it, the content stays.
    """

    inode: int
    name: str
    parent: int
    mode: int
    target: str | None = None
    entry: Entry | None = None
    owner: Directory[Any] | None = None
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
    def is_file(self) -> bool:
        """Whether the node is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_present(self) -> bool:
        """Whether its directory still has it."""
        return self.owner is None or self.owner.is_present(self.entry)

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
    """All nodes of one generation of ``directory``, by inode."""

    def __init__(self, directory: Directory[Any], inodes: Inodes) -> None:
        self._inodes = inodes
        self.nodes: dict[int, Node] = {}
        self._root = self._add(None, "", stat.S_IFDIR | 0o755)
        for entry in directory.entries():
            self.add(directory, entry)
        for node in self.nodes.values():
            node.children.reverse()

    def add(self, owner: Directory[Any], entry: Entry) -> Node:
        """A name of ``owner``."""
        path, _, name = entry.path.rpartition("/")
        kind = 0 if stat.S_IFMT(entry.mode) else stat.S_IFREG
        if entry.target is not None:
            kind = stat.S_IFLNK
        place = self._directory(path) if path else self._root
        node = self._add(place, name, kind | entry.mode, entry.target)
        node.entry, node.owner = entry, owner
        node.gid = node.gid if entry.gid is None else entry.gid
        node.uid = node.uid if entry.uid is None else entry.uid
        return node

    def remove(self, node: Node) -> None:
        """A node without children is there no more."""
        del self.nodes[node.inode]
        self.nodes[node.parent].children.remove(node)

    def _directory(self, path: str) -> Node:
        """The directory at a path from the root; made with its parents where it is not there."""
        node = self._root
        for name in path.split("/"):
            found = self.lookup(node.inode, name)
            node = found or self._add(node, name, stat.S_IFDIR | 0o755)
        return node

    def _add(self, parent: Node | None, name: str, mode: int, target: str | None = None) -> Node:
        now = time.time_ns()
        inode = self._inodes.number(parent.inode if parent else 0, name, mode, target)
        up = parent.inode if parent is not None else inode
        # root:root as in securityfs; an ordinary user's mount must be his own to read.
        owner = 0 if caller.can_mount() else os.geteuid()
        node = Node(
            inode,
            name,
            up,
            mode,
            target,
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
