# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What an event means: is the file watched, does a rule measure this use, is it a violation?"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable

from imafs.kernel.policy import grammar
from imafs.kernel.policy.match import Access, Policy
from imafs.sources import facts
from imafs.sources.watch import fanotify, hooks, opener, wire
from imafs.sources.watch.fanotify import Event
from imafs.sources.watch.inodes import Identity, Inodes, Key
from imafs.sources.watch.jobs import DEFAULT_PCR, Job, Jobs
from imafs.sources.watch.opener import Credentials
from imafs.sources.watch.places import Places

#: A change time that is newer than this may not move with the next change (a kernel's clock
#: of file times ticks every 1 to 10 ms), ns.
_TICK = 20_000_000
#: What was opened with O_CREAT, is empty and that new was made by this very open, ns.
_JUST_MADE = 50_000_000
_MOST_DECISIONS = 1 << 16
#: Threads in an execve; of one that is forgotten the second event is judged as an open.
_MOST_EXECUTING = 1 << 12
_NOWHERE = wire.FileSystem(0, 0, "", "", b"")
_DELETED = b" (deleted)"


class Judge:
    """Decides over each event; ``ignorable`` is a directory whose events nobody needs."""

    def __init__(self, jobs: Jobs) -> None:
        self.settings = wire.Settings("sha256", False, ())
        self.ignoring = False
        #: So many descriptors may be held.
        self.room = 1
        self.ignorable: bytes | None = None
        self._jobs = jobs
        self._inodes = Inodes()
        self._paths: tuple[bytes, ...] = ()
        self._files: tuple[bytes, ...] = ()
        self._places = Places()
        #: Descriptor of the table of mounts; poll() tells when it has changed.
        self.mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._facts: dict[int, wire.FileSystem] = {}
        self._policy = Policy()
        self._decisions: dict[Access, int | None] = {}
        # Threads whose execve has shown its OPEN_EXEC_PERM: when they began, and which file.
        # One that is killed in between leaves its entry to whoever gets its number.
        self._executing: dict[int, tuple[int, Key]] = {}

    # What the watcher says

    def rules(self, text: bytes) -> None:
        """Another policy. What was measured stays measured, as in a kernel."""
        rules = (grammar.parse(line, custom=True) for line in text.split(b"\n"))
        self._policy = Policy(tuple(rule for rule in rules if rule is not None))
        self._decisions.clear()

    def watch(self, message: wire.Watch) -> None:
        """Other paths."""
        self._facts = {system.device: system for system in message.file_systems}
        self._decisions.clear()
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

    def consider(self, event: Event) -> None:
        """Has measured what must be; ``jobs`` knows then whether the opener waits."""
        self.ignorable = None
        counts = self._jobs.counts
        if event.mask & fanotify.Q_OVERFLOW:
            counts.overflows += 1
            return
        counts.events += 1
        name = os.readlink(b"/proc/self/fd/%d" % event.fd)
        info = os.fstat(event.fd)
        if info.st_nlink == 0:
            name = name.removesuffix(_DELETED)
        if not self._places.watched(name):
            self._elsewhere(event, name)
            return
        if not stat.S_ISREG(info.st_mode):
            return
        key = (info.st_dev, info.st_ino)
        executes = bool(event.mask & fanotify.OPEN_EXEC_PERM)
        if self._seen(event.tid, key, executes):
            return
        who = opener.credentials(event.tid)
        if self._excused(who.process):
            return
        counts.watched += 1
        if self._jobs.descriptors < self.room:
            self._use(event, name, info, who, executes)
        else:
            counts.lost += 1

    def _excused(self, process: int) -> bool:
        """Whether this is one of the excused, and not a later process of the same number."""
        began = dict(self.settings.excused).get(process)
        return began is not None and opener.began(process) == began

    def _seen(self, tid: int, key: Key, executes: bool) -> bool:
        """Whether this is the second event of one execve."""
        if not executes and tid not in self._executing:
            return False
        began = opener.began(tid)
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
        with open(f"/proc/self/fdinfo/{event.fd}", "rb", buffering=0) as file:
            text = file.read(4096)
        number = int(text[text.index(b"mnt_id:") + 7 :].split(None, 1)[0])
        directory = os.path.dirname(name)
        if self._places.may_ignore(directory, number):
            self.ignorable = directory

    def _use(
        self, event: Event, name: bytes, info: os.stat_result, who: Credentials, executes: bool
    ) -> None:
        way = opener.Way(0, True) if executes else opener.way(event.tid)
        self._jobs.counts.hidden += way.flags is None
        inode = self._inodes.get((info.st_dev, info.st_ino))
        identity = Identity.of(info)

        def live(processes: Iterable[int], writing: bool) -> set[int]:
            return opener.holders(processes, info.st_dev, info.st_ino, writing=writing)

        writes = hooks.writes(way)
        if writes and inode.writing(who.process, identity, live):
            self._jobs.violation(event, name, "ToMToU")
        elf = hooks.is_elf(os.pread(event.fd, 4, 0))
        if executes:
            passed = hooks.executed(elf=elf)
        else:
            passed = hooks.opened(way, created=_made(way, info), elf=elf)
        accesses = self._accesses(info, who, passed)
        pcrs = self._pcrs(accesses)
        if not writes:
            written = not executes and bool(pcrs) and bool(opener.is_written(event.fd))
            # Of a call that hides its flags the writer may be the opener itself.
            sure = bool(pcrs) and not (written and way.flags is None)
            if inode.reading(who.process, identity, must_measure=sure, written=written, live=live):
                self._jobs.violation(event, name, "open_writers")
        needed = pcrs - inode.measured
        if not needed:
            return
        job = Job(event, inode, name, info, needed, accesses)
        # A kernel does not hash what is opened with O_DIRECT: zeros, again and again.
        job.direct = bool((way.flags or 0) & os.O_DIRECT)
        job.again = inode.identity is None
        inode.identity = None if time.time_ns() - info.st_ctime_ns < _TICK else identity
        self._jobs.add(job)

    def _accesses(
        self, info: os.stat_result, who: Credentials, passed: tuple[hooks.Hook, ...]
    ) -> tuple[Access, ...]:
        """What the hooks of a kernel would know."""
        # A file system may have several devices (btrfs): the first one's facts do for all.
        system = self._facts.get(info.st_dev) or next(iter(self._facts.values()), _NOWHERE)
        found = facts.Facts(
            info.st_uid,
            info.st_gid,
            system.magic,
            system.name,
            system.subtype,
            system.uuid or None,
        )
        return tuple(facts.access(func, mask, who, found) for func, mask in passed)

    def _pcrs(self, accesses: tuple[Access, ...]) -> set[int]:
        """The PCRs that rules want this use measured into."""
        found = set()
        for access in accesses:
            if access not in self._decisions:
                if len(self._decisions) >= _MOST_DECISIONS:
                    self._decisions.clear()
                decision = self._policy.decide(access)
                pcr = DEFAULT_PCR if decision.pcr is None else decision.pcr
                self._decisions[access] = pcr if decision.measure else None
            wanted = self._decisions[access]
            if wanted is not None:
                found.add(wanted)
        return found


def _made(way: opener.Way, info: os.stat_result) -> bool:
    """Whether this very open made the file."""
    if way.flags is None or not way.flags & os.O_CREAT:
        return False
    if way.flags & os.O_EXCL:
        return True
    age = time.time_ns() - info.st_ctime_ns
    return info.st_size == 0 and info.st_ctime_ns == info.st_mtime_ns and age < _JUST_MADE
