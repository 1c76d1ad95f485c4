# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One use of a watched file on its way: what is known of it, what is decided, who waits. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from imafs.sources.watch import messages
from imafs.sources.watch.child.attributes import Info
from imafs.sources.watch.child.hashing import Work
from imafs.sources.watch.child.iint import Inode, Key
from imafs.sources.watch.child.task import Account, Credentials, Way
from imafs.sources.watch.fanotify import Event


@dataclass(eq=False, slots=True)
class Use:
    """One use of a watched file; its opener waits until ``deadline`` at most.

    What is not known yet is None: ``way`` while the opener is still shown as running, ``elf``
    while nobody has read how the file begins. ``look`` is a thread that reads it.
    """

    event: Event
    name: bytes
    info: Info
    system: messages.FileSystem
    who: Credentials
    account: Account
    deadline: float
    way: Way | None = None
    elf: bool | None = None
    look: Work | None = None

    @property
    def key(self) -> Key:
        return self.info.st_dev, self.info.st_ino

    @property
    def is_direct(self) -> bool:
        """Opened with O_DIRECT: a kernel does not hash that, and records zeros."""
        return self.way is not None and self.way.is_direct


@dataclass(eq=False, slots=True)
class Job:
    """One use that is measured: ``pcrs`` has the template that is wanted in each PCR,
    ``generation`` is that of the inode when it was decided.

    ``again``: the file was that new when it was hashed before that its change time proved
    nothing; the same digest is then the same content. It is not hashed beyond ``until``, when
    the last one has gone who waited.
    """

    use: Use
    inode: Inode
    pcrs: dict[int, str]
    generation: int
    again: bool = False
    until: float = 0.0
    unasked: bool = False
    number: int = 0
    work: Work | None = None
    digest: bytes = b""

    @property
    def key(self) -> tuple[int, int, int, int]:
        """The content of the file, as far as its inode tells."""
        info = self.use.info
        return info.st_dev, info.st_ino, info.st_ctime_ns, info.st_size


@dataclass(frozen=True, slots=True)
class Missed:
    """``name`` is not measured, or may not be, for this reason; ``uid`` has opened it."""

    name: bytes
    why: str
    uid: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The work that an event makes before its opener goes on; the empty one: none.

    ``violations`` are causes, in the order of their records. ``held``: ``use`` cannot be judged
    yet. ``ignore`` is a directory, and the mount that it was reached through, whose events are
    about no watched file. ``counts`` are those of :class:`messages.Counters` that go up by one.
    """

    use: Use | None = None
    violations: tuple[str, ...] = ()
    measure: Job | None = None
    held: bool = False
    ignore: tuple[bytes, int] | None = None
    missed: tuple[Missed, ...] = ()
    counts: tuple[str, ...] = ()


@dataclass(eq=False, slots=True)
class Opener:
    """An opener that waits, for so many answers of the watcher. ``began`` is known of one that
    waits long."""

    event: Event
    deadline: float
    account: Account
    numbers: set[int] = field(default_factory=set)
    began: int | None = None


def covers(pending: Job, job: Job) -> bool:
    """Whether the measurement that is on its way is the one that is wanted."""
    current = pending.generation == job.generation
    same = pending.use.is_direct is job.use.is_direct
    return current and same and job.pcrs.keys() <= pending.pcrs.keys()
