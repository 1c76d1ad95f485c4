# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Inodes: the part of ``struct ima_iint_cache`` that a listener can have.

No I/O. Mirrors ``ima_rdwr_violation_check``, ``ima_check_last_writer`` and the flags of
``process_measurement`` (Linux 7.2 and 7.3 ima_main.c). A kernel sees the last writer
close; here that is found out at the next open of the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from imafs.sources.watch.child.attributes import Info
from imafs.sources.watch.child.task import Account

#: Files that are remembered; one that is forgotten is hashed again, to no effect.
MOST = 1 << 16
#: Processes that are remembered per file before those that have closed it are looked for, and
#: how many are looked at for each that comes.
_PROCESSES, _LOOKS = 64, 2

Key = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells one content of a file from another: times in ns, size in bytes."""

    ctime: int
    mtime: int
    size: int

    @classmethod
    def of(cls, info: Info) -> Identity:
        """Of a file as fstat() shows it."""
        return cls(info.st_ctime_ns, info.st_mtime_ns, info.st_size)

    def same_content(self, other: Identity, *, written: bool) -> bool:
        """Whether nothing was written between these two.

        A rename or a chmod moves the change time too, and a kernel goes by what writers
        did; but who writes can set the time of modification back.
        """
        if written:
            return self == other
        return (self.mtime, self.size) == (other.mtime, other.size)


Live = Callable[[int, bool], bool]
"""``live(process, writing)``: whether it still has the file open that way."""


@dataclass(slots=True)
class Inode:
    """``measured`` are PCRs (``measured_pcrs``), of the content with ``identity``; ``digest`` is
    that of the newest measurement, into ``recorded``. ``dirty``: opened for writing since.

    ``generation`` counts what makes measurements on their way worthless: a file that was
    truncated is measured again, even while a writer holds it (``ima_reset_action_flags``).
    ``size`` and ``blocks`` are those that were seen last.

    ``may_emit_tomtou`` and ``emitted_open_writers`` are the kernel's flags of that name.
    """

    identity: Identity | None = None
    dirty: bool = False
    measured: set[int] = field(default_factory=set)
    digest: bytes = b""
    recorded: frozenset[int] = frozenset()
    may_emit_tomtou: bool = False
    emitted_open_writers: bool = False
    readers: dict[int, None] = field(default_factory=dict)
    writers: dict[int, None] = field(default_factory=dict)
    generation: int = 0
    size: int = -1
    blocks: int = 0
    #: Whether it begins as an ELF file, while it has this identity.
    elf: tuple[Identity, bool] | None = None

    def truncated(self) -> None:
        """Whatever its size was and is, a kernel measures it again."""
        self.measured.clear()
        self.generation += 1

    def look(self, size: int, blocks: int, zero_at: Callable[[int], bool]) -> None:
        """Finds out by its size whether it was truncated since the last look.

        Nobody tells of an ftruncate(); a smaller file tells by itself. One that has grown was
        truncated where zeros follow its old end and no block was added for them: what is
        written is seldom zero, and a hole before something written, or fallocate(), takes blocks.
        """
        last, last_blocks = self.size, self.blocks
        self.size, self.blocks = size, blocks
        if last < 0 or size == last:
            return
        if size < last or (blocks <= last_blocks and zero_at(last)):
            self.truncated()

    def _changed(self, identity: Identity) -> None:
        """No writer (any more): what was measured counts for this content only."""
        self.emitted_open_writers = False
        self.writers.clear()
        known = self.identity
        if known is None or not known.same_content(identity, written=self.dirty):
            self.measured.clear()
        self.dirty = False

    def reading(
        self, process: int, identity: Identity, *, must_measure: bool, written: bool, live: Live
    ) -> bool:
        """An open for reading only; True: an open_writers violation.

        ``written``: somebody has the file open for writing. Until the last of them has
        closed it, what was measured stays measured, as in a kernel.
        """
        if not written:
            self._changed(identity)
        if not must_measure:
            return False
        self.may_emit_tomtou = True
        if process not in self.readers and len(self.readers) >= _PROCESSES:
            _forget_some(self.readers, live)
        self.readers[process] = None
        if not written or self.emitted_open_writers:
            return False
        self.emitted_open_writers = True
        return True

    def is_read(self, live: Live) -> bool:
        """Whether a writer would make a ToMToU now."""
        return self.may_emit_tomtou and _any_left(self.readers, False, live)

    def writing(self, process: int, identity: Identity, live: Live) -> bool:
        """An open for writing; True: a ToMToU violation."""
        if not _any_left(self.writers, True, live):
            self._changed(identity)
        self.writers[process] = None
        self.dirty = True
        if not self.is_read(live):
            return False
        self.may_emit_tomtou = False
        return True


def _any_left(processes: dict[int, None], writing: bool, live: Live) -> bool:
    """Whether any of them has the file open; no further one is looked at than the first that
    has, the newest before the others."""
    while processes:
        if live(next(reversed(processes)), writing):
            return True
        processes.popitem()
    return False


def _forget_some(readers: dict[int, None], live: Live) -> None:
    """Looks at the oldest ones: never at all of them, which anybody could make long."""
    for _ in range(_LOOKS):
        oldest = next(iter(readers))
        del readers[oldest]
        if live(oldest, False):
            readers[oldest] = None


class Inodes:
    """The files that were used last, at most ``most``.

    Each is on the account with the fewest of all that have used it, and the account with the
    most forgets its own first: one that uses very many files does not have others' forgotten.
    ``forgotten`` is told of each.
    """

    def __init__(
        self,
        most: int = MOST,
        forgotten: Callable[[Key, Inode, Account], None] = lambda *_: None,
    ) -> None:
        self._most = most
        self._forgotten = forgotten
        self._accounts: dict[Key, Account] = {}
        self._known: dict[Account, OrderedDict[Key, Inode]] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def get(self, key: Key, account: Account) -> Inode:
        """The file ``key``, new if need be, that this account uses."""
        before = self._accounts.get(key)
        if before is None:
            inode = Inode()
            self._put(key, inode, account)
            if len(self._accounts) > self._most:
                self._forget()
            return inode
        fewer = len(self._known.get(account, ())) < len(self._known[before])
        inode = self._take(key)
        self._put(key, inode, account if fewer else before)
        return inode

    def _put(self, key: Key, inode: Inode, account: Account) -> None:
        self._accounts[key] = account
        self._known.setdefault(account, OrderedDict())[key] = inode

    def _take(self, key: Key) -> Inode:
        account = self._accounts.pop(key)
        inode = self._known[account].pop(key)
        if not self._known[account]:
            del self._known[account]
        return inode

    def _forget(self) -> None:
        account = max(self._known, key=lambda account: len(self._known[account]))
        key = next(iter(self._known[account]))
        self._forgotten(key, self._take(key), account)

    def find(self, key: Key) -> Inode | None:
        """The file ``key`` where it is known."""
        account = self._accounts.get(key)
        return None if account is None else self._known[account][key]

    def clear(self) -> None:
        """After a boot nothing is known."""
        self._accounts.clear()
        self._known.clear()
