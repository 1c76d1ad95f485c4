# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The judge of events: is the file watched, does a rule measure this use, is it a violation?

It looks at files and at processes, and remembers inodes; what is to be done it says in a
:class:`~imafs.sources.watch.child.job.Verdict`, and does nothing of it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from imafs.kernel.policy.match import Access
from imafs.sources import file_attributes
from imafs.sources.watch import fanotify, messages
from imafs.sources.watch.child import attributes, hooks, task
from imafs.sources.watch.child.allowance import Allowance
from imafs.sources.watch.child.attributes import Info
from imafs.sources.watch.child.iint import Identity, Inode, Inodes, Key, Live
from imafs.sources.watch.child.job import Job, Missed, Use, Verdict
from imafs.sources.watch.child.rulebook import Rulebook
from imafs.sources.watch.child.task import Account, Way
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

#: Its opener goes on.
NOTHING = Verdict()


class Judge:
    """Judges each use of a watched file, or says that it cannot do so yet.

    An opener waits for ``seconds``; ``has_room`` tells whether the account may have one more
    that waits.
    """

    def __init__(self, seconds: float, has_room: Callable[[Account], bool]) -> None:
        self.seconds = seconds
        self.excused: dict[int, int] = {}
        #: Whether directories elsewhere are ignored.
        self.ignoring = False
        self.rulebook = Rulebook()
        self._has_room = has_room
        self._inodes = Inodes(forgotten=self._forget_inode)
        self._allowance = Allowance()
        self._paths: tuple[bytes, ...] = ()
        self._files: tuple[bytes, ...] = ()
        self._places = Places()
        #: Descriptor of the table of mounts; poll() tells when it has changed.
        self.mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._facts: dict[int, messages.FileSystem] = {}
        # Threads whose execve has shown its OPEN_EXEC_PERM: when they began, and which file.
        # One that is killed in between leaves its entry to the next thread of its number.
        self._executing: dict[int, tuple[int, Key]] = {}
        # Of this event: inodes that were forgotten while they were open.
        self._forgotten: list[Missed] = []

    # What the watcher says

    def know(self, settings: messages.Settings) -> None:
        """Other settings."""
        self.excused = dict(settings.excused)
        self.rulebook.know(settings.template_fmt)

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

    # Events

    def consider(self, event: Event) -> Verdict:
        """The verdict on an event, which has a descriptor."""
        name = os.readlink(b"/proc/self/fd/%d" % event.fd)
        if name.endswith(_DELETED) and not attributes.of(event.fd).st_nlink:
            name = name.removesuffix(_DELETED)
        if not self._places.watched(name):
            return Verdict(ignore=self._elsewhere(event, name))
        info = attributes.of(event.fd)
        if not stat.S_ISREG(info.st_mode):
            return NOTHING
        executes = bool(event.mask & fanotify.OPEN_EXEC_PERM)
        if self._seen(event.tid, (info.st_dev, info.st_ino), executes):
            return NOTHING
        who = task.credentials(event.tid)
        if self._is_excused(who.process):
            return NOTHING
        deadline = time.monotonic() + self.seconds
        account = task.account(event.tid, who.uid)
        use = Use(event, name, info, self._system(info), who, account, deadline)
        if executes:
            use.way = Way(os.O_RDONLY, True)
        if not self._has_room(account):
            return _missed(use, "too many files are being opened", "watched", "lost")
        return self._judge(use, "watched")

    def again(self, use: Use) -> Verdict:
        """The verdict on a use that could not be judged before."""
        if use.event.tid and task.began(use.event.tid) is None:
            return Verdict(use)  # killed while it waited
        # Somebody may have written to it since.
        use.info = attributes.of(use.event.fd)
        use.system = self._system(use.info)
        return self._judge(use)

    def _judge(self, use: Use, *counts: str) -> Verdict:
        verdict = self._judged(use, *counts)
        forgotten, self._forgotten = self._forgotten, []
        return replace(verdict, missed=(*verdict.missed, *forgotten)) if forgotten else verdict

    def _judged(self, use: Use, *counts: str) -> Verdict:
        if not self._is_known(use, last=time.monotonic() >= use.deadline):
            return Verdict(use, held=True, counts=counts)
        if not self.rulebook.ready:
            return _missed(use, "the policy is still being read", *counts)
        if use.elf is None:
            return _missed(use, "its file system does not answer", *counts)
        return self._decide(use, *counts)

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
        """The first bytes: at once where they are in memory, else a thread looks."""
        if use.look is None:
            return attributes.head(use.event.fd, 4, use.system.magic)
        if use.look.failure is not None:
            raise use.look.failure
        return use.look.result if isinstance(use.look.result, bytes) else None

    def _is_excused(self, process: int) -> bool:
        """Whether this is one of the excused, and not a later process of the same number."""
        began = self.excused.get(process)
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

    def _elsewhere(self, event: Event, name: bytes) -> tuple[bytes, int] | None:
        """The directory of an unwatched file, where it can be left out from now on."""
        if not self.ignoring:
            return None
        number = attributes.mount_number(event.fd)
        directory = os.path.dirname(name)
        return (directory, number) if self._places.may_ignore(directory, number) else None

    def _decide(self, use: Use, *counts: str) -> Verdict:
        """By the rules and the inode, as ``process_measurement`` does it."""
        event, info, who, way = use.event, use.info, use.who, use.way
        assert way is not None
        inode = self._inodes.get(use.key, use.account)
        identity = Identity.of(info)
        violations = []

        live = self._looks(use.key, use.account)
        inode.look(info.st_size, info.st_blocks, partial(_zero_at, use))
        writes = hooks.writes(way)
        if writes and inode.writing(who.process, identity, live):
            violations.append("ToMToU")
        made = _made(way, info)
        pcrs = self.rulebook.pcrs(_accesses(use, created=made))
        if not writes:
            written = not way.executes and bool(pcrs) and bool(task.is_written(event.fd))
            # Of a call that hides its flags the writer may be the opener itself.
            sure = bool(pcrs) and not (written and way.flags is None)
            if inode.reading(who.process, identity, must_measure=sure, written=written, live=live):
                violations.append("open_writers")
        needed = {pcr: label for pcr, label in pcrs.items() if pcr not in inode.measured}
        job = None
        if needed:
            job = Job(use, inode, needed, inode.generation, again=inode.identity is None)
            inode.identity = None if _is_new(info) else identity
        # Behind the check of an open, and not of a file that this very open has made.
        if way.truncates and not made:
            inode.truncated()
        if way.flags is None:
            counts = (*counts, "hidden")
        return Verdict(use, tuple(violations), job, counts=counts)

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

    def _forget_inode(self, key: Key, inode: Inode, account: Account) -> None:
        """Of a file that nobody reads nothing is lost: it is hashed again, to no effect."""
        if inode.is_read(self._looks(key, account)):
            why = "it is forgotten while it is open, one of too many: no ToMToU will be seen"
            uid = account if isinstance(account, int) else -1
            self._forgotten.append(Missed(b"inode %d" % key[1], why, uid))

    def _system(self, info: Info) -> messages.FileSystem:
        # A file system may have several devices (btrfs): the first one's facts do for all.
        return self._facts.get(info.st_dev) or next(iter(self._facts.values()), _NOWHERE)


def _missed(use: Use, why: str, *counts: str) -> Verdict:
    return Verdict(use, missed=(Missed(use.name, why, use.who.uid),), counts=counts)


def _zero_at(use: Use, offset: int) -> bool:
    return attributes.piece(use.event.fd, 1, offset, use.system.magic) == b"\0"


def _accesses(use: Use, *, created: bool) -> tuple[Access, ...]:
    """The accesses as the hooks of a kernel would know them."""
    way, info, system = use.way, use.info, use.system
    assert way is not None
    assert use.elf is not None
    if way.executes:
        passed = hooks.executed(elf=use.elf)
    else:
        passed = hooks.opened(way, created=created, elf=use.elf)
    found = file_attributes.Facts(
        info.st_uid,
        info.st_gid,
        system.magic,
        system.name,
        system.subtype,
        system.uuid or None,
    )
    return tuple(file_attributes.access(func, mask, use.who, found) for func, mask in passed)


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
