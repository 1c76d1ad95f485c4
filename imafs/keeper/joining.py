# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Joining: looks at the kernel and the TPM, asks what is to be done, and does it."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import replace
from functools import partial

import trio

from imafs.keeper import evidence, facts, join
from imafs.keeper.archive import Batch
from imafs.keeper.facts import KernelFacts, LifeFacts, Plan, StoreFacts, TpmFacts
from imafs.keeper.index import Indexed, indexed
from imafs.keeper.keeping import TPM_DEADLINE, UNKNOWN, Again, Keeping, State, SuspendedNow
from imafs.keeper.records import RecordList, listed
from imafs.keeper.source import Look

log = logging.getLogger(__name__)

#: Records that a list is read whole with; a longer first one is drained in pieces (quadratic).
WHOLE = 20_000
#: Bytes of such a piece.
PIECE = 1 << 18
#: Bytes of a record, at least.
_LEAST = 33
#: Seconds between two looks that could not decide.
_AGAIN = 0.2
#: Looks at the end of the kernel's list that one join takes, while records arrive.
_LOOKS = 4
#: Seconds between two looks at the PCRs that are to be the same, where no A is a barrier.
_EXTENDED = 0.05
#: Records that a kernel shows within a second, on a slow machine.
_IN_ONE_SECOND = 10_000


class Joining(Keeping):
    """See :func:`imafs.keeper.join.plan`, whose facts are gathered and actions done here."""

    async def _opened(self) -> None:
        """The newest life is open, if there is one. Its files are there from then on; until it is
        known what the kernel has beside them they are EIO."""
        if self.life is None:
            self.life = await self._on_disk(self._store.newest)
            self._show_life()
            for text in () if self.life is None else self.life.archive.damaged:
                self.damaged(f"{self._store.path}/{text}")
            self._tell()

    async def _joined(self) -> None:
        """Looks at the kernel until it is known what is stored, and does what is to be done."""
        self._tell(State.JOINING)
        while True:
            asked = self._asked
            self._full = await self._room(0)
            found = await self._facts()
            choice = evidence.Choice(serve_gaps=self.settings.serve_gaps)
            # In a thread: it may read stored records, and hash some seconds long.
            work = partial(join.plan, self._store_facts(), *found, choice)
            plan = await self._apart(UNKNOWN, work)
            self.refusal = plan.refuse
            await self._carry_out(plan, found[0])
            if (number := found[0].suspended) is not None:
                self._suspended = self.boot, number
                raise SuspendedNow
            if plan.skip is not None:
                break
            self._needs_whole = self._needs_whole or self._in_part
            self._failed(f"{State.JOINING}: {plan.refuse}")
            self._unseen(asked)
            await trio.sleep(_AGAIN)
        self.refusal, self._needs_whole = plan.refuse, False
        self._settle_alarms(plan)
        if plan.verified and self.catalogue is not None:
            self.verified = (len(self.catalogue) - plan.later, time.time())
        self._looked(asked)
        self._ready()

    def _settle_alarms(self, plan: Plan) -> None:
        """Ends those of earlier looks. Those of the life hold, over restarts of the keeper too."""
        raised = {action.kind for action in plan.actions if isinstance(action, facts.Alarm)}
        for kind in (*facts.OF_LOOK, *(facts.UNCONFIRMED if plan.verified else ())):
            if kind not in raised:
                self.calm(kind)
        ledger = self._archive().ledger
        lasting = [facts.gap_alarm(gap.index, gap.why) for gap in ledger.gaps]
        lasting += [facts.diverged_alarm(anchor.why) for anchor in ledger.diverged]
        lasting += [facts.reset_alarm() for _ in ledger.resets]
        for alarm in lasting:
            if alarm.kind not in self.alarms:
                self.alarm(alarm.kind, alarm.text)

    def _store_facts(self) -> StoreFacts:
        life, catalogue = self.life, self.catalogue
        if life is None or catalogue is None:
            return StoreFacts()
        ledger = life.archive.ledger
        frames = list(ledger.frames)
        if ledger.last is not None and ledger.last not in frames:
            frames.insert(0, ledger.last)
        return StoreFacts(
            life=life.facts,
            records=catalogue.records(whole=False),
            frames=frames,
            seals=[facts.Seal(seal.end, seal.sha256, seal.pcrs) for seal in ledger.seals],
            anchors=ledger.anchors,
            gaps=ledger.gaps,
            done=ledger.done,
            damaged=bool(life.archive.damaged or self._damages),
        )

    async def _facts(self) -> tuple[KernelFacts, TpmFacts]:
        look = self.look
        assert look is not None
        self.boot = await self._in_kernel(self._source.boot_id)
        said = await self._in_kernel(self._source.flushes)
        self._flush = True if self._refuses_n == self.boot else said
        await self._look_at_policy()
        # Of a list that is empty, or has violations alone, nobody reads them.
        eras = [] if self.life is None else self.life.archive.ledger.eras
        last = eras[-1].modes if eras and eras[-1].boot == self.boot else None
        self._modes = await self._in_kernel(partial(self._source.modes, look.banks, last))
        count = await self._in_kernel(self._source.count)
        # Of a life that goes on the end of the list alone tells what is stored. And whether a list
        # may be covered is to be known before anything of it is deleted.
        life = self.life
        begun = (
            life is not None and StoreFacts(life.facts, anchors=life.archive.ledger.anchors).begun
        )
        first = not begun and self._may_delete.is_set()
        # Where the head alone did not tell what is stored of it, the end will.
        part = count > WHOLE and self._flush is not True and first and not self._needs_whole
        self._in_part = part
        kernel, tpm = await self._read(look, part, count)
        known = self._known
        return replace(kernel, known=known, flush=self._flush, part=part), tpm

    async def _look_at_policy(self) -> None:
        self.view_measured = await self._in_kernel(self._source.view_measured)
        if self.view_measured == "yes" and self._flush:
            text = (
                "each poll of the view by root makes a record: docs/keeper.md has the policy rule"
            )
            self.alarm("view_measured", text)
        else:
            self.calm("view_measured")
        if self.view_measured == "unknown" and self._flush:
            text = "whether IMA measures the view is not known: the kernel's policy cannot be read"
            self.told.say("policy", logging.WARNING, "%s", text)

    async def _read(self, look: Look, part: bool, count: int) -> tuple[KernelFacts, TpmFacts]:
        """K, and the PCRs behind a barrier where its end is exact."""
        most = PIECE if part else None
        # 16 s for 100,000 records, 391 s for 500,000 (measured): quadratic.
        seconds = (count / _IN_ONE_SECOND) ** 2
        kernel = suspended = None
        tpm, asks = TpmFacts(), False
        # Both stay as they are, but for what comes behind: of a long list that alone is read again.
        staged, data = listed(b""), b""
        for _ in range(_LOOKS):
            # Without a TPM the last frame's own word decides, so it must not be staged over.
            # Nor where there is no room for what would be staged.
            asks = look.staging and not part and not self._full and await self._has_pcrs()
            if not len(staged):
                first = await self._in_kernel(self._source.stage) if asks else errno.EEXIST
                suspended = self._barrier(first)
                read = await self._in_kernel(self._source.staged, seconds)
                staged = await self._apart(len(read), partial(listed, read))
            work = partial(self._source.current, most, len(data))
            data += await self._in_kernel(work, seconds)
            current = await self._apart(len(data), partial(listed, data))
            second = await self._in_kernel(self._source.stage) if asks else errno.EEXIST
            suspended = self._barrier(second) or suspended
            if second == 0:
                kernel, data = None, b""  # it is staged now
                continue
            before = await self._in_kernel(self._source.count)
            records = RecordList([*staged.parts, *current.parts])
            tpm = await self._tpm_facts(records)
            extended = asks or part or await self._is_extended(records, tpm)
            after = await self._in_kernel(self._source.count)
            pinned = before == after == len(current) and extended and not part
            kernel = KernelFacts(
                self.boot,
                self._modes,
                records,
                len(staged) if look.staging else None,
                pinned=pinned,
                suspended=suspended,
            )
            if pinned or part:
                break
        if kernel is None:
            raise Again("the list grew at every look")
        if not kernel.pinned and not part:
            kernel = await self._grown(kernel, len(data), seconds, behind_a=asks)
        return kernel, tpm

    async def _grown(
        self, kernel: KernelFacts, begin: int, seconds: float, *, behind_a: bool
    ) -> KernelFacts:
        """K with what has come since the PCRs were read: they may tell how much of it they have.

        ``begin``: bytes of its current part; ``behind_a``: without A as a barrier the last record
        of K may be in the list and not extended yet.
        """
        k = kernel.records
        assert isinstance(k, RecordList)
        more = await self._in_kernel(partial(self._source.current, None, begin), seconds)
        rest = await self._apart(len(more), partial(listed, more))
        extended = len(k) if behind_a else max(0, len(k) - 1)
        return replace(kernel, records=RecordList([*k.parts, *rest.parts]), extended=extended)

    def _barrier(self, number: int) -> int | None:
        """The number of an A that a kernel refuses which measures nothing more: what it has is
        extended, too. None: it was taken, or there is nothing to stage."""
        if number == errno.EACCES:
            return number
        if number not in (0, errno.EEXIST, errno.ENOENT):
            self._refused("A", number)
        return None

    async def _is_extended(self, records: RecordList, tpm: TpmFacts) -> bool:
        """Whether the PCRs stay as they are. A record is in the list before it is extended, and N
        walks the list without the lock under which both happen (ima_queue_delete_partial): where
        nothing can be staged a second look has to tell. It stands behind the extend in the TPM's
        own queue."""
        if tpm.pcrs is None:
            return True
        await trio.sleep(_EXTENDED)
        return (await self._tpm_facts(records)).pcrs == tpm.pcrs

    async def _has_pcrs(self) -> bool:
        return await self._pcrs((10,)) is not None

    async def _pcrs(self, numbers: tuple[int, ...]) -> facts.PcrValues | None:
        return await self._tpm.call(
            partial(self._source.pcrs, tuple(self._modes), numbers), TPM_DEADLINE
        )

    async def _tpm_facts(self, records: RecordList) -> TpmFacts:
        size = len(records) * _LEAST
        numbers = await self._apart(size, partial(records.pcrs, 0, len(records))) | {10}
        if self.life is not None:
            numbers |= set(self.life.facts.deciding)
            numbers |= {n for own in self.life.archive.ledger.pcrs.values() for n in own}
        pcrs = await self._pcrs(tuple(sorted(n for n in numbers if n < 24)))
        clock = await self._tpm.call(self._source.clock, TPM_DEADLINE)
        return TpmFacts(pcrs, clock)

    async def _carry_out(self, plan: Plan, kernel: KernelFacts) -> None:
        """All actions in order. Where one fails, what the others have made is known."""
        k = kernel.records
        assert isinstance(k, RecordList)
        self._known = plan.skip
        try:
            for action in plan.actions:
                await self._act(action, kernel, k)
        finally:
            if self._known is not None and self.catalogue is not None:
                left = len(k) - self._gone
                first, self._gone = self._gone + min(self._known, left), 0
                size = (len(k) - first) * _LEAST
                work = partial(_shown, k, first, len(k))
                self.catalogue.show(await self._apart(size, work))
            self._gone = 0

    async def _act(self, action: facts.Action, kernel: KernelFacts, k: RecordList) -> None:
        match action:
            case facts.OpenLife():
                await self._open_life(action, kernel)
            case facts.ForkLife():
                await self._fork(action)
            case facts.RecordBoot():
                pcrs = self._archive().ledger.pcrs
                modes = dict(action.modes)
                await self._commit(Batch(b"", 0, action.boot, pcrs=pcrs, modes=modes))
            case facts.RecordGap(gap=gap):
                when = None if self.verified is None or gap.verified is None else self.verified[1]
                await self._mark(replace(gap, verified_at=when))
            case facts.TakeAnchor(anchor=anchor):
                await self._mark(anchor)
            case facts.MarkDone():
                await self._confirm(sync=True)
            case facts.Store():
                await self._store_part(k, action)
                self._known = max(self._known or 0, action.place + action.count - self._gone)
            case facts.DeleteStaged():
                await self._delete_staged()
                self._deleted(action.count)
            case facts.DeleteFirst():
                await self._delete_first(action.count)
                self._deleted(action.count)
            case facts.Alarm():
                self.alarm(action.kind, action.text)
            case _:
                log.debug("join: %s", action)

    def _deleted(self, count: int) -> None:
        self._gone += count
        self._known = max(0, (self._known or 0) - count)

    async def _open_life(self, action: facts.OpenLife, kernel: KernelFacts) -> None:
        assert self.look is not None
        k = kernel.records
        deciding = await self._apart(len(k) * _LEAST, partial(evidence.deciding, k))
        life = LifeFacts(
            0,
            action.boot,
            dict(kernel.modes),
            "little",
            action.clock,
            whole=action.whole,
            deciding=deciding,
        )
        await self._begin(life)

    async def _store_part(self, k: RecordList, action: facts.Store) -> None:
        last = action.place + action.count
        size = action.count * _LEAST
        shown = await self._apart(size, partial(_shown, k, action.place, last))
        if self.catalogue is not None:
            self.catalogue.show(shown)
        batch = await self._batch(shown, action.how, action.modes)
        sha256 = await self._apart(action.batch * _LEAST, partial(k.sha256, 0, action.batch))
        batch = replace(batch, staged=action.batch, staged_sha256=sha256, skip=action.place)
        await self._commit(batch)


def _shown(k: RecordList, first: int, last: int) -> Indexed:
    return indexed(k.joined(first, last))
