# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One use that is measured, and whoever waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from imafs.kernel.policy.match import Access
from imafs.sources.watch.child.attributes import Info
from imafs.sources.watch.child.hashing import Work
from imafs.sources.watch.child.iint import Inode
from imafs.sources.watch.child.task import UNKNOWN, Account, Credentials
from imafs.sources.watch.fanotify import Event


@dataclass(eq=False, slots=True)
class Job:
    """One use that is measured into ``pcrs``; ``event`` opened the file that is hashed.

    ``again``: the file was that new when it was hashed before that its change time proved
    nothing; the same digest is then the same content. ``direct``: opened with O_DIRECT.
    ``content``: the whole of a small file, where it was in memory. It is not hashed beyond
    ``until``, when the last one has gone who waited.
    """

    event: Event
    inode: Inode
    name: bytes
    info: Info
    pcrs: set[int]
    accesses: tuple[Access, ...]
    who: Credentials = UNKNOWN
    content: bytes | None = None
    again: bool = False
    direct: bool = False
    until: float = 0.0
    unasked: bool = False
    number: int = 0
    generation: int = 0
    work: Work | None = None
    digest: bytes = b""

    @property
    def key(self) -> tuple[int, int, int, int]:
        """The content of the file, as far as its inode tells."""
        info = self.info
        return info.st_dev, info.st_ino, info.st_ctime_ns, info.st_size


@dataclass(eq=False, slots=True)
class Opener:
    """Who waits, for so many answers of the watcher; ``began`` is known of who waits long."""

    event: Event
    deadline: float
    account: Account
    numbers: set[int] = field(default_factory=set)
    began: int | None = None


def covers(pending: Job, job: Job) -> bool:
    """Whether the measurement that is on its way is the one that is wanted."""
    current = pending.generation == job.inode.generation
    return current and pending.direct is job.direct and job.pcrs <= pending.pcrs
