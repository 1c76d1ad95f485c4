# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the keeper holds: the kernel, the store, the life; and the steps that change them."""

from __future__ import annotations

import enum
import errno
import hashlib
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, TypeVar

import trio

from imafs.errors import (
    DegradedError,
    ImafsError,
    Refused,
    StoreBrokenError,
    TpmError,
    UsageError,
)
from imafs.host.ratelimit import Ratelimit
from imafs.keeper import facts
from imafs.keeper.archive import Archive, Batch, Stored
from imafs.keeper.catalogue import Catalogue
from imafs.keeper.chunks import Absent, Left
from imafs.keeper.facts import LifeFacts, Mode, Modes
from imafs.keeper.index import Indexed, indexed
from imafs.keeper.records import Part, RecordList, replayed
from imafs.keeper.source import NEEDED, Look, Source
from imafs.keeper.store import BadSectorError, Life, Store
from imafs.keeper.worker import Pool, Worker

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds for one call into the kernel, the TPM, the disk.
KERNEL_DEADLINE = 60.0
TPM_DEADLINE = 20.0
#: Of the TPM's clock, which only names what happened.
CLOCK_DEADLINE = 2.0
DISK_DEADLINE = 60.0
#: Seconds that a reader of the view waits for stored records, and threads that read them.
READ_DEADLINE = 15.0
READERS = 4
#: Bytes of records that are looked at in the event loop: the watchdog hears nothing meanwhile, and
#: no reader. Records may have 30 bytes, and each takes some 20 us.
AT_ONCE = 1 << 16

#: Records of a frame of a life that is forked.
_FORKED = 1 << 16
#: Bytes of what lies on a disk: it is never looked at at once.
UNKNOWN = 1 << 62
#: Places that are told damaged, at most.
_DAMAGES = 100


class State(enum.StrEnum):
    """Where the collector stands."""

    START = "start"
    WAITING = "waiting"  # somebody else has a list open
    JOINING = "joining"
    IDLE = "idle"
    STAGED = "staged"
    COMMITTED = "committed"
    SUSPENDED = "suspended"  # measuring has ended, a kexec or a halt follows
    DEGRADED = "degraded"  # nothing can be stored
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Settings:
    """When to stage, and what to do where something is missing."""

    records: int = 1000
    age: float = 60.0
    on_read: bool = True
    keep_free: float = 0.05
    serve_gaps: bool = False
    accept_gap: bool = False
    cache: int = 64 << 20
    volatile: str | None = None  # why what is stored would not outlive this boot
    lock_wait: float = 60.0
    scrub: float = 300.0  # seconds from one full segment that is read again to the next


class Again(Exception):
    """The kernel is not what was thought: join again."""


class SuspendedNow(Exception):
    """EACCES, ESTALE or ENODEV: this kernel ends."""


class Keeping:
    """State and steps; :class:`imafs.keeper.collector.Collector` says in which order."""

    def __init__(
        self,
        source: Source,
        store: Store,
        settings: Settings,
        hook: Callable[[str], None] = lambda step: None,
        *,
        hold: bool = False,
    ) -> None:
        """``hold``: nothing is deleted before :meth:`let_delete`."""
        self._source = source
        self._store = store
        self.settings = settings
        self._hook = hook
        self._kernel = Worker("kernel")
        self._disk = Worker("disk")
        self._tpm = Worker("tpm")
        self._reckoner = Worker("reckoner")
        self._readers = Pool("reader", READERS, READ_DEADLINE)
        self.state = State.START
        self.why = ""
        #: What kept it from its work last, and when (epoch): told also once that is over.
        self.last_error: tuple[str, float] | None = None
        #: Why a view is not to be served; None: it is the truth.
        self.refusal: str | None = "the keeper has not looked at the kernel yet"
        self.life: Life | None = None
        self.catalogue: Catalogue | None = None
        self.boot = ""
        self.look: Look | None = None
        self.verified: tuple[int, float] | None = None
        self.deleted = 0
        self.alarms: dict[str, str] = {}
        self._damages: set[str] = set()
        self.view_measured = "unknown"
        self._modes: dict[str, Mode] = {}
        self._flush: bool | None = None
        self._refuses_n: str | None = None  # boot_id of the kernel that answered N with EINVAL
        self._known: int | None = None  # leading records of the kernel's list that are stored
        self._in_part = False  # a join saw the head of the kernel's list alone
        self._needs_whole = False  # and that did not tell what is stored of it
        self._counted = 0  # violations, as the kernel said last
        self._gone = 0  # records that a join has deleted so far
        #: Why nothing can be stored; None again with the next commit.
        self._full: str | None = None
        self._suspended: tuple[str, int] | None = None
        #: Numbers of asks: all; those that were answered; those that a look at the kernel answered.
        self._asked = self._shown = self._seen = self._flushes = 0
        #: When the kernel's list was last looked at (epoch); None: not yet.
        self.looked_at: float | None = None
        self._wanted = trio.Event()
        self._changed = trio.Event()
        self._since: float | None = None
        self._may_delete = trio.Event()
        self.held = False  # a deletion waits for that
        #: For what readers can cause as often as they like.
        self.told = Ratelimit(log)
        if not hold:
            self._may_delete.set()

    @property
    def joined(self) -> bool:
        """Whether it is known which of the kernel's records are stored."""
        return self._known is not None

    def let_delete(self) -> None:
        """The kernel's own list may become shorter than the view from now on."""
        self._may_delete.set()

    async def _until_deletable(self) -> None:
        self.held = not self._may_delete.is_set()
        if self.held:
            self._tell()
            await self._may_delete.wait()
            self.held = False

    @property
    def source(self) -> str:
        """The IMA directory of the kernel."""
        return self._source.directory

    @property
    def flushes(self) -> bool | None:
        """Whether the kernel frees memory by its deletions (ima_flush_htable); None: not known."""
        return self._flush

    # Telling

    def _tell(self, state: State | None = None, why: str = "") -> None:
        """Whoever waits looks again."""
        if state is not None:
            if why:
                if (state, why) != (self.state, self.why):
                    log.warning("%s: %s", state, why)
                self._failed(f"{state}: {why}")
            self.state, self.why = state, why
        self._changed.set()
        self._changed = trio.Event()

    def _failed(self, text: str) -> None:
        self.last_error = text, time.time()

    def _ready(self) -> None:
        """Idle, but for what keeps records from being stored."""
        if self._full is None:
            self._tell(State.IDLE)
        else:
            self._tell(State.DEGRADED, self._full)

    def _looked(self, asked: int) -> None:
        """The list is known as it was when so many had asked."""
        self._seen = max(self._seen, asked)
        self.looked_at = time.time()
        self._unseen(asked)

    def _unseen(self, asked: int) -> None:
        """So many have their answer, though nobody has looked: the state says why."""
        self._shown = max(self._shown, asked)
        self._tell()

    def alarm(self, kind: str, text: str) -> None:
        """Something that an administrator should see; once in the log, always in the status."""
        if self.alarms.get(kind) != text:
            self.alarms[kind] = text
            log.warning("%s: %s", kind, text)

    def calm(self, kind: str) -> None:
        """What an alarm told is so no more."""
        if self.alarms.pop(kind, None) is not None:
            log.info("%s: no more", kind)

    async def changed(self) -> None:
        """Returns when anything has changed."""
        await self._changed.wait()

    # Calls that may hang

    async def _in_kernel(self, work: Callable[[], T], seconds: float = 0) -> T:
        return await self._kernel.call(work, max(KERNEL_DEADLINE, seconds))

    async def _on_disk(self, work: Callable[[], T]) -> T:
        try:
            return await self._disk.call(work, DISK_DEADLINE)
        except Refused as error:
            raise DegradedError(str(error)) from None

    async def _apart(self, size: int, work: Callable[[], T]) -> T:
        """What pure ``work`` on so many bytes of records returns, while the event loop goes on."""
        return work() if size <= AT_ONCE else await self._reckoner.call(work, math.inf)

    async def fetch(self, catalogue: Catalogue, absent: Absent) -> object:
        """Stored records come into memory, for as long as somebody has what is returned.

        Raises :class:`Refused` (EIO).
        """
        try:
            part = await self._readers.call(absent.chunk.serial, catalogue.reading(absent))
        except (StoreBrokenError, DegradedError) as error:
            self.damaged(str(error))
            raise Refused(errno.EIO, str(error)) from None
        except Refused as error:
            self.told.say("reads", logging.WARNING, "a reader of the view gets EIO: %s", error)
            self._failed(f"a reader of the view gets EIO: {error}")
            raise Refused(errno.EIO, str(error)) from None
        if isinstance(part, Left):
            self.damaged(str(part.lost))
        return catalogue.hold(absent, part)

    def damaged(self, text: str) -> None:
        """Stored records are not to be had: once in the log, however many places are so."""
        if len(self._damages) < _DAMAGES and text not in self._damages:
            self._damages.add(text)
            self.alarm("damaged", text)
            self._failed(f"damaged: {text}")

    def _refused(self, call: str, number: int) -> NoReturn:
        if number in (errno.EACCES, errno.ESTALE, errno.ENODEV, errno.ENOTCONN):
            self._suspended = (self.boot, number)
            raise SuspendedNow
        if number == errno.EINVAL and call == "A":
            raise UsageError("the kernel takes no A on its _staged files: Linux 7.2 is needed")
        raise Again(f"{call}: {errno.errorcode.get(number, str(number))}")

    # The life

    def _archive(self) -> Archive:
        assert self.life is not None
        return self.life.archive

    def _show_life(self) -> None:
        life = self.life
        if life is None:
            self.catalogue = None
            return
        catalogue = Catalogue(life.banks, self._store.read_at, self.settings.cache)
        archive = life.archive
        catalogue.begin(archive.sealed, archive.tail, archive.ledger.eras)
        self.catalogue = catalogue

    async def _begin(self, life: LifeFacts) -> None:
        assert self.look is not None
        if self.life is not None:
            self.life.archive.close()
        self.life = None
        self.life = await self._on_disk(partial(self._store.begin, life, self.look.banks))
        log.info("a new life: %06d, kernel %s", self.life.facts.number, life.boot)
        for kind in facts.OF_LIFE:
            self.calm(kind)
        self._show_life()

    async def _fork(self, action: facts.ForkLife) -> None:
        old, catalogue = self.life, self.catalogue
        assert old is not None
        assert catalogue is not None
        records, ledger = catalogue.records(), old.archive.ledger
        await self._check_stored(old.archive, action.index)
        before = facts.StoreFacts(anchors=ledger.anchors, gaps=ledger.gaps)
        every: list[facts.Gap | facts.Anchor] = [*ledger.gaps, *ledger.anchors]
        marks = [mark for mark in every if action.takes(mark, before)]
        forked = replace(
            old.facts, boot=action.boot, clock=action.clock, forked=(old.facts.number, action.index)
        )
        await self._begin(forked)
        # Until its last record is confirmed it counts for nothing (:meth:`Store.newest`).
        edges = {mark.index for mark in marks} | {era.first for era in ledger.eras}
        edges |= set(range(0, action.index, _FORKED))
        at = 0
        for last in sorted(edge for edge in edges | {action.index} if edge <= action.index):
            if last > at:
                modes = next((e.modes for e in reversed(ledger.eras) if e.first <= at), None)
                data = await self._apart(UNKNOWN, partial(records.joined, at, last))
                shown = await self._apart(len(data), partial(indexed, data))
                await self._commit(await self._batch(shown, facts.How.JOIN, modes))
                at = last
            for mark in [mark for mark in marks if mark.index == at]:
                await self._mark(mark)
        await self._confirm(sync=True)

    async def _check_stored(self, archive: Archive, end: int) -> None:
        """Whether the full segments of the records up to ``end``, of which a start reads nothing,
        are as they were stored. Raises :class:`Again`: a join that knows of the damage decides."""
        for seal in [seal for seal in archive.ledger.seals if seal.first < end]:
            path = f"{archive.directory}/{seal.segment}"
            try:
                await self._on_disk(partial(self._store.check, path, seal.size, seal.sha256))
            except (StoreBrokenError, BadSectorError) as error:
                self.damaged(str(error))
                raise Again("stored records are damaged") from None

    async def _mark(self, mark: facts.Anchor | facts.Gap) -> None:
        archive = self._archive()
        await self._on_disk(partial(archive.mark, mark))

    # Storing and deleting

    async def _batch(self, shown: Indexed, how: facts.How, modes: Modes | None = None) -> Batch:
        """``modes``: in which its records were extended, where that is not this kernel's."""
        modes = dict(self._modes if modes is None else modes)
        pcrs, boot = self._archive().ledger.pcrs, self.boot
        return await self._apart(
            len(shown.data), partial(_batch, shown, boot=boot, how=how, pcrs=pcrs, modes=modes)
        )

    async def _room(self, size: int) -> str | None:
        """Why so many bytes more are not to be stored; None: they are."""
        if self.settings.volatile is not None:
            return self.settings.volatile
        return await self._on_disk(partial(self._store.room, size, self.settings.keep_free))

    async def _commit(self, batch: Batch) -> Stored:
        archive = self._archive()
        if (room := await self._room(len(batch.data))) is not None:
            raise DegradedError(room)
        if batch.clock is None:
            batch = replace(batch, clock=await self._clock())
        self._hook("commit")
        stored = await self._on_disk(partial(archive.commit, batch))
        self._hook("committed")
        self._full = None
        if self.catalogue is not None:
            self.catalogue.store(stored)
        return stored

    async def _clock(self) -> facts.Clock | None:
        """Of the TPM. None where it tells none, or not in time: the records matter more."""
        try:
            return await self._tpm.call(self._source.clock, CLOCK_DEADLINE)
        except (Refused, TpmError):
            return None

    async def _confirm(self, *, sync: bool = False) -> None:
        await self._on_disk(partial(self._archive().confirm, sync=sync))
        self._hook("confirmed")

    async def _delete_staged(self) -> None:
        await self._until_deletable()
        self._hook("delete")
        number = await self._in_kernel(self._source.delete)
        # ENOMEM: with ima_flush_htable the list is unlinked all the same; then ENOENT.
        if number not in (0, errno.ENOMEM, errno.ENOENT):
            self._refused("D", number)
        self.deleted += 1
        self._hook("deleted")

    def _must_delete(self) -> None:
        """Raises :class:`DegradedError` under a kernel that takes no requests: one before 7.2."""
        if self.look is not None and not self.look.deletes:
            raise DegradedError(f"this kernel deletes no records; {NEEDED}")

    async def _delete_first(self, number: int) -> None:
        self._must_delete()
        await self._until_deletable()
        self._hook("delete")
        refused = await self._in_kernel(partial(self._source.delete_first, number))
        if refused == errno.EINVAL:
            self._refuses_n = self.boot
            if self._source.staging:
                raise DegradedError("this kernel takes no N (ima_flush_htable): A takes all of it")
            raise DegradedError("ima_flush_htable without staging: this kernel deletes nothing")
        if refused:
            self._refused("N", refused)
        self.deleted += 1
        self._hook("deleted")

    async def close(self) -> None:
        """Lets go of the kernel and of the store."""
        with suppress(ImafsError):
            await self._in_kernel(self._source.release)
        if self.life is not None:
            with suppress(ImafsError):
                await self._on_disk(self.life.archive.close)
        for worker in (self._kernel, self._disk, self._tpm, self._reckoner, self._readers):
            worker.end()


def _batch(
    shown: Indexed, *, boot: str, how: facts.How, pcrs: facts.PcrValues, modes: Modes
) -> Batch:
    data, count = shown.data, len(shown.idx)
    records = RecordList([Part(data, shown.idx.offsets)])
    return Batch(
        data,
        count,
        boot,
        staged=count,
        staged_sha256=hashlib.sha256(data).digest(),
        how=how,
        pcrs=replayed(pcrs, records, modes, 0, count),
        modes=modes,
        measured=shown.measured,
    )
