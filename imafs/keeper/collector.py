# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The collector: stages, stores, and only then deletes; one task, one kernel, one store.

What it does at a start and after any trouble is :func:`imafs.keeper.join.plan`'s to say. While
the lock is held without a break it knows how many records of the kernel's list are stored.
Every call into the kernel, the TPM and the disk has a deadline.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import trio

from imafs.errors import (
    DegradedError,
    FileError,
    FormatError,
    ImafsError,
    NotThereError,
    Refused,
    StoreBrokenError,
    TpmError,
)
from imafs.keeper import facts
from imafs.keeper.catalogue import Catalogue
from imafs.keeper.chunks import Absent
from imafs.keeper.index import Indexed, indexed
from imafs.keeper.joining import PIECE, WHOLE, Joining
from imafs.keeper.keeping import DISK_DEADLINE, Again, Settings, State, SuspendedNow
from imafs.keeper.records import listed
from imafs.keeper.source import TooLongError
from imafs.keeper.worker import Worker

__all__ = ["Collector", "Settings", "State"]

log = logging.getLogger(__name__)

#: Seconds between two looks at the count, which takes no lock.
POLL = 0.2
#: Seconds that a reader waits for a look at the kernel: nobody can kill it meanwhile.
FRESH = 15.0
#: Bytes of a record, for the room that is asked for before it was seen.
_GUESS = 400
#: Behind these the same kernel takes nothing more; other errors end a descriptor alone.
_ENDS = (errno.EACCES, errno.ESTALE)
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Collector(Joining):
    """:meth:`run` is the task; :meth:`fresh` is for readers."""

    # Readers

    async def fresh(self) -> Catalogue:
        """The list with all that the kernel has at this moment. Raises :class:`Refused` (EIO)."""
        self._asked += 1
        await self._until(self._asked)
        if self.refusal is not None or self.catalogue is None:
            raise Refused(errno.EIO, self.refusal or "there is no list yet")
        return self.catalogue

    async def looked(self) -> None:
        """Returns once the first look at the kernel is over, or somebody is in its way."""
        busy = (State.START, State.JOINING)
        while self.state in busy and self._suspended is None and not self.held:
            await self._changed.wait()

    async def flush(self) -> None:
        """Everything that the kernel has now is stored behind this. Raises
        :class:`DegradedError`, also where nobody could look at what it has."""
        self._asked += 1
        asked = self._flushes = self._asked
        await self._until(asked)
        with trio.move_on_after(FRESH):
            # A refused view answers at once that nobody has looked; the look is under way.
            while self._seen < asked and self.state is State.JOINING:
                await self._changed.wait()
        if self._seen < asked:
            raise DegradedError(self.why or self.refusal or self.state)
        await self._settled()

    async def _until(self, ticket: int) -> None:
        self._wanted.set()
        with trio.move_on_after(FRESH):
            while self._shown < ticket and self.state is not State.BROKEN:
                await self._changed.wait()
            return
        raise Refused(errno.EIO, f"{self.why or self.state}: no look at the kernel was possible")

    async def _settled(self) -> None:
        with trio.move_on_after(FRESH):
            while self.state is State.STAGED or (self.catalogue and self.catalogue.pending):
                if self.state in (State.DEGRADED, State.BROKEN, State.SUSPENDED, State.WAITING):
                    raise DegradedError(self.why or self.state)
                await self._changed.wait()
            return
        raise DegradedError(f"not stored within {FRESH:g} s: {self.why or self.state}")

    # The task

    async def run(self) -> None:
        """Until it is cancelled. Raises :class:`StoreBrokenError` and :class:`UsageError`."""
        pause: tuple[State, str, float] | None = None
        failures = 0
        try:
            while True:
                try:
                    if pause is not None:
                        before, pause = pause, None
                        await self._pause(*before)
                        if self._suspended is None and await self._is_another_kernel():
                            self._suspended = self.boot, errno.ENODEV
                    if self._suspended is not None:
                        await self._another_kernel()
                    await self._opened()
                    await self._lock()
                    await self._joined()
                    self.calm("too_long")
                    failures = failures if self._full else 0
                    await self._collect()
                except SuspendedNow:
                    continue
                except Again as again:
                    self._known = None
                    pause = State.JOINING, str(again), 0.1
                except (DegradedError, FormatError) as error:
                    self._full = str(error)
                    pause = State.DEGRADED, str(error), self._wait_of(failures)
                    failures += 1
                except TooLongError as error:
                    self._known, self.refusal = None, str(error)
                    self.alarm("too_long", str(error))
                    pause = State.DEGRADED, str(error), self._wait_of(failures)
                    failures += 1
                except (Refused, TpmError) as error:
                    self._known = None
                    pause = State.JOINING, str(error), self._wait_of(failures)
                    failures += 1
                except (FileError, NotThereError) as error:
                    # The directory is gone, or nobody serves it any more: opened anew, if ever.
                    self._suspended = self.boot, errno.ENODEV
                    if self.state is not State.SUSPENDED and await self._is_another_kernel():
                        continue  # it came in between
                    self.refusal = str(error)
                    pause = State.SUSPENDED, str(error), self._wait_of(failures)
                    failures += 1
        except StoreBrokenError as error:
            self.refusal = str(error)
            self._tell(State.BROKEN, str(error))
            raise
        finally:
            self._tell()

    async def scrub(self) -> None:
        """The second task: reads all that is stored again, one full segment after the other, for
        ever. A start reads what lies behind the last of them alone.

        Not where IMA makes a record of each such reading: that would never end.
        """
        worker, done = Worker("scrub"), 0
        try:
            while True:
                await trio.sleep(self.settings.scrub)
                life, catalogue = self.life, self.catalogue
                seals = [] if life is None else life.archive.ledger.seals
                if life is None or catalogue is None or not seals or self._is_measured:
                    continue
                seal = seals[done % len(seals)]
                done += 1
                path = f"{life.archive.directory}/{seal.segment}"
                check = partial(self._store.check, path, seal.size, seal.sha256)
                try:
                    await worker.call(check, DISK_DEADLINE)
                except Refused as error:
                    self.told.say("scrub", logging.WARNING, "%s: not read again: %s", path, error)
                except (StoreBrokenError, DegradedError) as error:
                    catalogue.forget(path)
                    self.damaged(str(error))
        finally:
            worker.end()

    @property
    def _is_measured(self) -> bool:
        return bool(self._flush) and self.view_measured == "yes"

    @staticmethod
    def _wait_of(failures: int) -> float:
        return _PAUSES[min(failures, len(_PAUSES) - 1)]

    async def _pause(self, state: State, why: str, seconds: float) -> None:
        """Nothing is deleted meanwhile; readers see what the kernel has all the same. A flush ends
        it: it is answered by what comes of another try."""
        flushes = self._flushes
        self._tell(state, why)
        with trio.move_on_after(seconds):
            while self._flushes == flushes and not await self._is_another_kernel():
                if self._asked > self._shown:
                    await self._show_unstored()
                with trio.move_on_after(1.0):
                    await self._wanted.wait()
                    self._wanted = trio.Event()

    async def _is_another_kernel(self) -> bool:
        """Whether another one runs than at the last join; False where nobody tells."""
        try:
            return bool(self.boot) and await self._in_kernel(self._source.boot_id) != self.boot
        except ImafsError:
            return False

    async def _show_unstored(self) -> None:
        """Readers' look at the kernel in a state without D: store, staged, current."""
        asked = self._asked
        if self.refusal is not None:
            self._unseen(asked)
        if self._known is None or self.catalogue is None or self.refusal is not None:
            return  # without a join nobody knows what is new: readers wait for one, or get EIO
        try:
            data = await self._in_kernel(self._read_all)
            head = await self._apart(len(data), partial(_head, data, self._known))
            if head.known < self._known:
                raise Refused(errno.EIO, "the kernel's list has become shorter")
            if await self._is_another_kernel():
                return  # these may be its records: a join says what is new of them
            self.catalogue.show(head.new)
        except (Refused, FormatError) as error:
            self.told.say("readers", logging.WARNING, "a reader gets EIO: %s", error)
            self._failed(f"a reader gets EIO: {error}")
            return
        self._looked(asked)

    def _read_all(self) -> bytes:
        return self._source.staged() + self._source.current()

    async def violations(self) -> int:
        """Of the whole list, or as the kernel counts them with those of before this boot: it
        counts some that have no record. Raises :class:`Refused` (EIO)."""
        await self.fresh()
        self._counted = await self._in_kernel(self._source.violations)
        kept = []
        while True:
            catalogue = self.catalogue
            try:
                return self.violations_known
            except Absent as absent:
                assert catalogue is not None
                kept.append(await self.fetch(catalogue, absent))

    @property
    def violations_known(self) -> int:
        """As of the last look. Raises :class:`Absent`."""
        catalogue = self.catalogue
        if catalogue is None:
            return 0
        before = catalogue.violations_before(self.boot)
        return max(catalogue.violations, before + self._counted)

    # The lock

    async def _lock(self) -> None:
        began = trio.current_time()
        if self.look is None:
            self.look = await self._in_kernel(self._source.look)
        while not await self._in_kernel(self._source.acquire):
            waited = trio.current_time() - began
            why = "somebody else has a measurement list open"
            if waited >= self.settings.lock_wait:
                why += " (imafs keep holders names it)"
            self.refusal = self.refusal or why
            self._tell(State.WAITING, why)
            self._unseen(self._asked)
            await trio.sleep(POLL)
        self.look = replace(self.look, staging=self._source.staging)

    async def _another_kernel(self) -> None:
        """Nothing is stored or deleted until another kernel runs. This one measures nothing more,
        but its lists are there: readers see them behind what is stored."""
        assert self._suspended is not None
        boot, number = self._suspended
        if number not in _ENDS:
            self._known = None
        if self.state is not State.SUSPENDED:  # else it is told already, and in better words
            why = f"measuring has ended for this kernel ({errno.errorcode.get(number, number)})"
            if self._known is None:
                self.refusal = why
            self._tell(State.SUSPENDED, why)
        while number in _ENDS and await self._in_kernel(self._source.boot_id) == boot:
            if self._asked > self._shown:
                await self._show_unstored()
            await trio.sleep(POLL)
        self._known = None
        await self._in_kernel(self._source.release)
        self.look = self._suspended = None
        self._counted = 0
        await trio.sleep(POLL)

    # Collecting

    async def _collect(self) -> None:
        """Cycles, until something is not as it was thought."""
        while True:
            with trio.move_on_after(POLL):
                await self._wanted.wait()
            self._wanted = trio.Event()
            asked = self._asked
            if await self._in_kernel(self._source.boot_id) != self.boot:
                self._suspended = (self.boot, errno.ENODEV)
                raise SuspendedNow
            if self._full is not None and (full := await self._room(0)) is None:
                self._full = full
                self._ready()
            count = await self._in_kernel(self._source.count)
            if not count:
                self._since = None
            elif self._since is None:
                self._since = trio.current_time()
            if not self._is_due(count, asked):
                continue
            if count or self._known:
                await self._cycle(count, asked)
            else:
                self._looked(asked)

    def _is_due(self, count: int, asked: int) -> bool:
        reads = asked > self._shown and (self.settings.on_read or self._flushes > self._shown)
        old = self._since is not None and (trio.current_time() - self._since >= self.settings.age)
        return reads or count >= self.settings.records or old

    async def _cycle(self, count: int, asked: int) -> None:
        self._must_delete()
        if (room := await self._room(count * _GUESS)) is not None:
            raise DegradedError(room)
        if self.look is not None and (not self.look.staging or (count > WHOLE and not self._flush)):
            await self._cycle_of_first(asked)
            return
        self._hook("stage")
        number = await self._in_kernel(self._source.stage)
        if number == errno.ENOENT:
            self._looked(asked)
            return
        if number:
            self._refused("A", number)
        self._hook("staged")
        self._tell(State.STAGED)
        self._since = None
        data = await self._in_kernel(self._source.staged)
        count = await self._store_batch(data, facts.How.STAGE, asked)
        await self._delete_staged()
        await self._after_delete(count)

    async def _cycle_of_first(self, asked: int) -> None:
        """Without A, or with too many to read at once: the first records, deleted by number."""
        data = await self._in_kernel(partial(self._source.current, PIECE))
        if not data:
            self._looked(asked)
            return
        self._tell(State.STAGED)
        head = await self._apart(len(data), partial(_head, data, self._known or 0))
        count = head.number
        rest = count < await self._in_kernel(self._source.count)
        await self._store_head(head, facts.How.PARTIAL, self._shown if rest else asked)
        await self._delete_first(count)
        await self._after_delete(count)
        if rest:
            self._wanted.set()

    async def _store_batch(self, data: bytes, how: facts.How, asked: int) -> int:
        """Commits the records of a batch that are not stored; how many there are in it."""
        head = await self._apart(len(data), partial(_head, data, self._known or 0))
        await self._store_head(head, how, asked)
        return head.number

    async def _store_head(self, head: _Head, how: facts.How, asked: int) -> None:
        """Shows the records that are not stored, and commits them."""
        assert self.catalogue is not None
        self.catalogue.show(head.new)
        self._looked(asked)
        batch = await self._batch(head.new, how)
        batch = replace(batch, staged=head.number, staged_sha256=head.sha256, skip=head.known)
        await self._commit(batch)
        self._known = max(head.known, head.number)
        self._tell(State.COMMITTED)

    async def _after_delete(self, number: int) -> None:
        self._known = max(0, (self._known or 0) - number)
        # Where no PCRs confirm the list this line alone says that the batch is deleted. A kexec
        # loses what is not synced, and the next batch comes along.
        await self._confirm(sync=self.verified is None)
        self._ready()
        if self._in_part and await self._in_kernel(self._source.count) <= WHOLE:
            # The join of a long list had seen no end that the PCRs could confirm.
            raise Again("most of a long list is stored: the rest is looked at whole")


class _Head(NamedTuple):
    """The kernel's list, or its head: so many records, of which the first ``known`` are stored."""

    number: int
    known: int
    sha256: bytes
    new: Indexed


def _head(data: bytes, known: int) -> _Head:
    """Raises :class:`FormatError`."""
    records = listed(data)
    count = len(records)
    known = min(known, count)
    sha256 = hashlib.sha256(data).digest()
    return _Head(count, known, sha256, indexed(records.joined(known, count)))
