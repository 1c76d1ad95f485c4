# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A disk that forgets: records every step of the store, and plays any part of them again.

The method of ALICE (Pillai et al., OSDI 2014). A step is durable once a sync that covers it
has ended: ``sync`` covers what was written to its file before, ``sync_directory`` the names of
its directory. After a power cut behind step n every durable step has happened, and of the
others any subset, a write also by halves. A file system promises no more than that.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from imafs.keeper.files import Disk


@dataclass(frozen=True)
class Step:
    """``kind``: create, write, truncate, rename, remove, mkdir, sync, syncdir."""

    kind: str
    path: str = ""
    inode: int = -1
    at: int = 0
    data: bytes = b""
    new: str = ""

    named: str = ""  # of the file, where the step has but a descriptor

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path)


class RecordingDisk(Disk):
    """A real disk whose steps are kept. Nothing is really synced: nobody cuts its power."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.steps: list[Step] = []
        self.fail: Callable[[Step], int] = lambda step: 0
        #: Steps that are left out, as a faulty store would: for tests of the tests.
        self.forget: Callable[[Step], bool] = lambda step: False
        self._inodes: dict[int, int] = {}
        self._next = 0
        self._named: dict[str, int] = {}

    def _step(self, step: Step) -> None:
        number = self.fail(step)
        if number:
            raise OSError(number, os.strerror(number))
        if not self.forget(step):
            self.steps.append(step)

    def _of(self, kind: str, descriptor: int, at: int = 0, data: bytes = b"") -> Step:
        inode = self._inodes[descriptor]
        named = next((path for path, known in self._named.items() if known == inode), "")
        return Step(kind, "", inode, at, data, named=named)

    def _inode(self, path: str) -> int:
        if path not in self._named:
            self._named[path] = self._next
            self._next += 1
        return self._named[path]

    def make_directory(self, path: str) -> None:
        self._step(Step("mkdir", path))
        super().make_directory(path)

    def create(self, path: str) -> int:
        descriptor = super().create(path)
        self._named.pop(path, None)
        self._inodes[descriptor] = self._inode(path)
        try:
            self._step(Step("create", path, self._inodes[descriptor]))
        except OSError:
            os.close(descriptor)
            super().remove(path)
            raise
        return descriptor

    def open(self, path: str) -> int:
        descriptor = super().open(path)
        self._inodes[descriptor] = self._inode(path)
        return descriptor

    def write(self, descriptor: int, at: int, data: bytes) -> None:
        self._step(self._of("write", descriptor, at, bytes(data)))
        super().write(descriptor, at, data)

    def truncate(self, descriptor: int, size: int) -> None:
        self._step(self._of("truncate", descriptor, size))
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        inode = self._inodes[descriptor]
        try:
            self._step(self._of("sync", descriptor))
        except OSError:
            # Linux marks the pages clean that it could not write: a later sync passes them by.
            self.steps.append(Step("lost", "", inode))
            raise

    def sync_directory(self, path: str) -> None:
        self._step(Step("syncdir", path))

    def rename(self, old: str, new: str) -> None:
        self._step(Step("rename", old, self._inode(old), new=new))
        super().rename(old, new)
        self._named[new] = self._named.pop(old)

    def remove(self, path: str) -> None:
        self._step(Step("remove", path))
        super().remove(path)
        self._named.pop(path, None)


def durable(steps: list[Step]) -> list[bool]:
    """Which of the steps a power cut behind the last one cannot undo."""
    found = [False] * len(steps)
    synced: set[int] = set()
    directories: set[str] = set()
    for at in range(len(steps) - 1, -1, -1):
        step = steps[at]
        match step.kind:
            case "sync":
                synced.add(step.inode)
                found[at] = True
            case "lost":
                synced.discard(step.inode)
            case "syncdir":
                directories.add(step.path)
                found[at] = True
            case "write" | "truncate":
                found[at] = step.inode in synced
            case _:
                found[at] = step.directory in directories
    return found


def after_cut(base: Image, steps: list[Step], rng: random.Random) -> Image:
    """What the disk may hold when the power is cut behind ``steps``."""
    lasting = durable(steps)
    keep = rng.choice((0.0, 0.3, 0.7, 1.0))
    image = Image(dict(base.content), dict(base.files), set(base.directories))
    for step, sure in zip(steps, lasting, strict=True):
        if sure or rng.random() < keep:
            image.play(step, 1.0 if sure or rng.random() < 0.6 else rng.random())
    return image


@dataclass
class Image:
    """Names and contents; ``content`` is by inode."""

    content: dict[int, bytes] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    directories: set[str] = field(default_factory=lambda: {""})

    def play(self, step: Step, part: float = 1.0) -> None:
        """One step; of a write only so large a part."""
        match step.kind:
            case "mkdir":
                self.directories.add(step.path)
            case "create":
                self.files[step.path] = step.inode
                self.content.setdefault(step.inode, b"")
            case "write":
                data = step.data[: round(part * len(step.data))]
                old = self.content.get(step.inode, b"").ljust(step.at, b"\0")
                self.content[step.inode] = old[: step.at] + data + old[step.at + len(data) :]
            case "truncate":
                old = self.content.get(step.inode, b"")
                self.content[step.inode] = old[: step.at].ljust(step.at, b"\0")
            case "rename":
                self.files.pop(step.path, None)
                self.files[step.new] = step.inode
                self.content.setdefault(step.inode, b"")
            case "remove":
                self.files.pop(step.path, None)

    def lay_out(self, root: Path) -> RecordingDisk:
        """A disk below ``root`` that holds the image; its inodes have the same numbers."""
        for directory in sorted(self.directories):
            (root / directory).mkdir(exist_ok=True)
        disk = RecordingDisk(str(root))
        for path, inode in self.files.items():
            place = root / path
            if os.path.dirname(path) in self.directories:
                place.write_bytes(self.content[inode])
                disk._named[path] = inode
        disk._next = max([-1, *self.content]) + 1
        return disk


def fails(kind: str, number: int = errno.EIO, *, times: int = 1) -> Callable[[Step], int]:
    """Makes the next ``times`` steps of a kind fail."""
    left = [times]

    def fail(step: Step) -> int:
        if step.kind == kind and left[0]:
            left[0] -= 1
            return number
        return 0

    return fail
