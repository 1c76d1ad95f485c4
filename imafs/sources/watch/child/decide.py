# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What an event means: is the file watched, does a rule measure this use, is it a violation?"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from imafs.kernel.policy.match import Access
from imafs.sources import file_attributes
from imafs.sources.watch import fanotify, messages
from imafs.sources.watch.child import attributes, hooks, task
from imafs.sources.watch.child.allowance import Allowance
from imafs.sources.watch.child.attributes import Info
from imafs.sources.watch.child.hashing import Work
from imafs.sources.watch.child.held import FIRST, Held
from imafs.sources.watch.child.iint import Identity, Inode, Inodes, Key, Live
from imafs.sources.watch.child.job import Job
from imafs.sources.watch.child.pending import SMALL, Jobs
from imafs.sources.watch.child.rulebook import Rulebook
from imafs.sources.watch.child.task import Account, Credentials, Way
from imafs.sources.watch.fanotify import Event
from imafs.sources.watch.scope import Places

#: A change time that is newer than this may not move with the next change (a kernel's clock
#: of file times ticks every 1 to 10 ms), ns.
_TICK = 20_000_000
#: What was opened with O_CREAT, is empty and that new was made by this very open, ns.
_JUST_MADE = 50_000_000
#: Threads in an execve; of one that is forgotten the second event is judged as an open.
_MOST_EXECUTING = 1 << 12
_NOWHERE = messages.FileSystem(0, 0, "", "", b"")
_DELETED = b" (deleted)"


@dataclass(eq=False, slots=True)
class Use:
    """One use of a watched file. What is not known yet is None: how it is opened while its
    opener is still shown as running, whether it is an ELF file while nobody has read it."""

    event: Event
    name: bytes
    info: Info
    who: Credentials
    account: Account
    deadline: float
    way: Way | None
    elf: bool | None = None
    look: Work | None = None

    @property
    def key(self) -> Key:
        return self.info.st_dev, self.info.st_ino


class Judge:
    """Decides over each event; ``ignorable`` is a directory whose events nobody needs, and the
    number of the mount that it was reached through."""

    def __init__(self, jobs: Jobs) -> None:
        self.settings = messages.Settings("sha256", False, ())
        self.ignoring = False
        #: So many descriptors may be held, and half of them by one account.
        self.room = 2
        self.ignorable: tuple[bytes, int] | None = None
        self.rulebook = Rulebook()
        self._jobs = jobs
        self._held: Held[Use] = Held()
        self._inodes = Inodes(forgotten=self._forgotten)
        self._allowance = Allowance()
        self._paths: tuple[bytes, ...] = ()
        self._files: tuple[bytes, ...] = ()
        self._places = Places()
        #: Descriptor of the table of mounts; poll() tells when it has changed.
        self.mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._facts: dict[int, messages.FileSystem] = {}
        # Threads whose execve has shown its OPEN_EXEC_PERM: when they began, and which file.
        # One that is killed in between leaves its entry to whoever gets its number.
        self._executing: dict[int, tuple[int, Key]] = {}

    # What the watcher says

    def watch(self, message: messages.Watch) -> None:
        """Other paths."""
        self._facts = {system.device: system for system in message.file_systems}
        self.rulebook.forget()
        self._paths, self._files = message.paths, message.files
        self.look_at_mounts()

    def look_at_mounts(self) -> None:
        """Reads the table of mounts anew; looks at no path, whose file system may be dead."""
        os.lseek(self.mounts, 0, os.SEEK_SET)
        table = b"".join(iter(lambda: os.read(self.mounts, 1 << 16), b""))
        self._places.update(self._paths, table, self._files)

    def forget(self) -> None:
        """A boot."""
        self._inodes.clear()
        self._jobs.forget()

    # Events

    def consider(self, event: Event) -> bool:
        """Has measured what must be; ``jobs`` knows then whether the opener waits.

        True: it cannot be judged yet, see :meth:`due`.
        """
        counts = self._jobs.counts
        if event.mask & fanotify.Q_OVERFLOW:
            counts.overflows += 1
            self._jobs.missed.note(b"", "the kernel's queue of events was full")
            return False
        counts.events += 1
        name = os.readlink(b"/proc/self/fd/%d" % event.fd)
        if name.endswith(_DELETED) and not attributes.of(event.fd).st_nlink:
            name = name.removesuffix(_DELETED)
        if not self._places.watched(name):
            self._elsewhere(event, name)
            return False
        info = attributes.of(event.fd)
        if not stat.S_ISREG(info.st_mode):
            return False
        executes = bool(event.mask & fanotify.OPEN_EXEC_PERM)
        if self._seen(event.tid, (info.st_dev, info.st_ino), executes):
            return False
        who = task.credentials(event.tid)
        if self._excused(who.process):
            return False
        counts.watched += 1
        now = time.monotonic()
        way = Way(os.O_RDONLY, True) if executes else None
        account = task.account(event.tid, who.uid)
        use = Use(event, name, info, who, account, now + self._jobs.seconds, way)
        if not self._has_room(use):
            counts.lost += 1
            self._jobs.missed.note(name, "too many files are being opened", who.uid)
            return False
        return self._judge(use, now, FIRST)

    def _has_room(self, use: Use) -> bool:
        held = self._jobs.descriptors + len(self._held)
        if held < self.room // 2:
            return True
        return held < self.room and self._jobs.share(use.account) < self.room // 2

    # Uses that cannot be judged yet

    def wait(self, most: float) -> float:
        """Seconds until one of them is due."""
        return self._held.wait(time.monotonic(), most) if self._held else most

    def due(self) -> Iterator[tuple[Use, float]]:
        """Those to look at again, with :meth:`again`."""
        return self._held.due(time.monotonic())

    def again(self, use: Use, pause: float) -> bool:
        """As :meth:`consider`, of a use that could not be judged."""
        if use.event.tid and task.began(use.event.tid) is None:
            self._drop_look(use)
            return False  # killed while it waited
        # Somebody may have written to it since.
        use.info = attributes.of(use.event.fd)
        return self._judge(use, time.monotonic(), pause)

    def _judge(self, use: Use, now: float, pause: float) -> bool:
        if not self._is_known(use, last=now >= use.deadline):
            self._held.add(use, now, use.deadline, pause)
            return True
        if not self.rulebook.ready:
            self._jobs.missed.note(use.name, "the policy is still being read", use.who.uid)
        elif use.elf is None:
            self._jobs.missed.note(use.name, "its file system does not answer", use.who.uid)
            self._drop_look(use)
        else:
            self._use(use)
        return False

    def _is_known(self, use: Use, *, last: bool) -> bool:
        """Whether all is known that judging takes, or never will be."""
        if use.way is None:
            use.way = task.way(use.event.tid)
            if use.way is None and last:
                use.way = Way()
        if use.elf is None:
            use.elf = self._is_elf(use)
        return last or (self.rulebook.ready and use.way is not None and use.elf is not None)

    def _is_elf(self, use: Use) -> bool | None:
        inode = self._inodes.get(use.key, use.account)
        identity = Identity.of(use.info)
        if inode.elf is not None and inode.elf[0] == identity:
            return inode.elf[1]
        head = self._head(use)
        if head is None:
            return None
        elf = hooks.is_elf(head)
        inode.elf = None if _is_new(use.info) else (identity, elf)
        return elf

    def _head(self, use: Use) -> bytes | None:
        """The first bytes: at once where they are in memory, else a thread reads them."""
        if use.look is None:
            head = attributes.head(use.event.fd, 4, self._system(use.info).magic)
            if head is None:
                use.look = self._jobs.look(use.event, use.info, use.who)
            return head
        if use.look.failure is not None:
            raise use.look.failure
        return use.look.result if isinstance(use.look.result, bytes) else None

    def _drop_look(self, use: Use) -> None:
        if use.look is not None:
            self._jobs.look_away(use.look)

    def _excused(self, process: int) -> bool:
        """Whether this is one of the excused, and not a later process of the same number."""
        began = dict(self.settings.excused).get(process)
        return began is not None and task.began(process) == began

    def _seen(self, tid: int, key: Key, executes: bool) -> bool:
        """Whether this is the second event of one execve."""
        if not executes and tid not in self._executing:
            return False
        began = task.began(tid)
        if not executes:
            return self._executing.pop(tid) == (began, key)
        # Of a thread that cannot be looked up the second event is judged as well.
        self._executing.pop(tid, None)
        if began is not None:
            if len(self._executing) >= _MOST_EXECUTING:
                del self._executing[next(iter(self._executing))]
            self._executing[tid] = began, key
        return False

    def _elsewhere(self, event: Event, name: bytes) -> None:
        """Whether the directory of an unwatched file can be left out from now on."""
        if not self.ignoring:
            return
        number = attributes.mount_number(event.fd)
        directory = os.path.dirname(name)
        if self._places.may_ignore(directory, number):
            self.ignorable = directory, number

    def _use(self, use: Use) -> None:
        event, name, info, who, way = use.event, use.name, use.info, use.who, use.way
        assert way is not None
        assert use.elf is not None
        self._jobs.counts.hidden += way.flags is None
        inode = self._inodes.get(use.key, use.account)
        identity = Identity.of(info)

        live = self._looks(use.key, use.account)
        inode.look(info.st_size, info.st_blocks, partial(self._zero_at, use))
        writes = hooks.writes(way)
        if writes and inode.writing(who.process, identity, live):
            self._violation(use, "ToMToU")
        made = _made(way, info)
        if way.executes:
            passed = hooks.executed(elf=use.elf)
        else:
            passed = hooks.opened(way, created=made, elf=use.elf)
        accesses = self._accesses(info, who, passed)
        pcrs = self.rulebook.pcrs(accesses)
        if not writes:
            written = not way.executes and bool(pcrs) and bool(task.is_written(event.fd))
            # Of a call that hides its flags the writer may be the opener itself.
            sure = bool(pcrs) and not (written and way.flags is None)
            if inode.reading(who.process, identity, must_measure=sure, written=written, live=live):
                self._violation(use, "open_writers")
        needed = pcrs - inode.measured
        if needed:
            self._measure(use, inode, Job(event, inode, name, info, needed, accesses, who))
        # Behind the check of an open, and not of a file that this very open has made.
        if (way.flags or 0) & os.O_TRUNC and not made:
            inode.truncated()

    def _looks(self, key: Key, account: Account) -> Live:
        """Looks at processes, for as long as the account may take; the others are taken to have
        the file still: they have opened it, and nobody has seen them close it."""
        end = time.monotonic() + self._allowance.left(account, time.monotonic())

        def live(process: int, writing: bool) -> bool:
            began = time.monotonic()
            if began >= end:
                return True
            found = task.holds(process, *key, writing=writing)
            now = time.monotonic()
            self._allowance.take(account, now - began, now)
            return found

        return live

    def _forgotten(self, key: Key, inode: Inode, account: Account) -> None:
        """Of a file that nobody reads nothing is lost: it is hashed again, to no effect."""
        if inode.is_read(self._looks(key, account)):
            why = "it is forgotten while it is open, one of too many: no ToMToU will be seen"
            uid = account if isinstance(account, int) else -1
            self._jobs.missed.note(b"inode %d" % key[1], why, uid)

    def _zero_at(self, use: Use, offset: int) -> bool:
        magic = self._system(use.info).magic
        return attributes.piece(use.event.fd, 1, offset, magic) == b"\0"

    def _violation(self, use: Use, cause: str) -> None:
        place = (self._system(use.info).id, use.info.st_ino)
        self._jobs.violation(use.event, use.name, cause, use.who, use.deadline, place)

    def _measure(self, use: Use, inode: Inode, job: Job) -> None:
        info = use.info
        assert use.way is not None
        # A kernel does not hash what is opened with O_DIRECT: zeros, again and again.
        job.direct = bool((use.way.flags or 0) & os.O_DIRECT)
        job.again = inode.identity is None
        inode.identity = None if _is_new(info) else Identity.of(info)
        if info.st_size <= SMALL and not job.direct:
            job.content = attributes.whole(use.event.fd, SMALL, self._system(info).magic)
        self._jobs.add(job, use.deadline)

    def _system(self, info: Info) -> messages.FileSystem:
        # A file system may have several devices (btrfs): the first one's facts do for all.
        return self._facts.get(info.st_dev) or next(iter(self._facts.values()), _NOWHERE)

    def _accesses(
        self, info: Info, who: Credentials, passed: tuple[hooks.Hook, ...]
    ) -> tuple[Access, ...]:
        """What the hooks of a kernel would know."""
        system = self._system(info)
        found = file_attributes.Facts(
            info.st_uid,
            info.st_gid,
            system.magic,
            system.name,
            system.subtype,
            system.uuid or None,
        )
        return tuple(file_attributes.access(func, mask, who, found) for func, mask in passed)


def _is_new(info: Info) -> bool:
    """Whether the next change may leave the change time as it is."""
    return time.time_ns() - info.st_ctime_ns < _TICK


def _made(way: Way, info: Info) -> bool:
    """Whether this very open made the file."""
    if way.flags is None or not way.flags & os.O_CREAT:
        return False
    if way.flags & os.O_EXCL:
        return True
    age = time.time_ns() - info.st_ctime_ns
    return info.st_size == 0 and info.st_ctime_ns == info.st_mtime_ns and age < _JUST_MADE
