# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which of the kernel's records are stored, which life is this, and what is to be done?

Pure: the same facts give the same plan, and a plan carried out in part leads to facts whose plan
is the rest. S is what is stored, K what the kernel has (see :mod:`imafs.keeper.facts`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from imafs.keeper.evidence import Choice
from imafs.keeper.facts import (
    Action,
    Alarm,
    Anchor,
    DeleteFirst,
    DeleteStaged,
    ForkLife,
    Found,
    Gap,
    How,
    KernelFacts,
    Kind,
    MarkDone,
    Modes,
    OpenLife,
    Plan,
    RecordBoot,
    RecordGap,
    Store,
    StoreFacts,
    TakeAnchor,
    TpmFacts,
    WaitForKernel,
    gap_alarm,
)
from imafs.keeper.judge import Answer, Judge
from imafs.keeper.reach import Head

_USUAL = Choice()


def plan(store: StoreFacts, kernel: KernelFacts, tpm: TpmFacts, choice: Choice = _USUAL) -> Plan:
    """The plan for a start, and for each look at the kernel after it."""
    judge = Judge(store, kernel, tpm, choice)
    answer = judge.answer()
    arrived = None if kernel.pinned or answer.verified else _arrived(judge)
    return _Steps(judge).plan(answer) if arrived is None else arrived


def _arrived(judge: Judge) -> Plan | None:
    """The plan for a list that grew while the PCRs were read, if they tell which of its records
    they have: an end of K up to which it leads on from S, or from zero, to them.

    As a PCR is a chain of hashes this is the end that K had then, if what was extended last is
    there once. What is behind it came later, as behind every look.
    """
    if judge.kernel.extended is None or judge.tpm.pcrs is None:
        return None
    exact = replace(judge.kernel, pinned=True, extended=None)
    least = max(judge.kernel.extended, judge.staged)  # A is a barrier, whoever wrote it
    arrived = Judge(judge.store, exact, judge.tpm, judge.choice).arrived(least)
    if arrived is None:
        return None
    end, values = arrived
    kernel = replace(exact, records=Head(judge.k, end))
    # Of a bank that cannot be compared nobody knows at which end its values were read.
    pcrs = {bank: {**judge.tpm.pcrs[bank], **own} for bank, own in values.items()}
    then = Judge(judge.store, kernel, replace(judge.tpm, pcrs=pcrs), judge.choice)
    answer = then.answer()
    if not answer.verified or answer.found not in (Found.SAME_LIFE, Found.NEW_LIFE):
        return None
    return replace(_Steps(then).plan(answer), later=judge.total - end)


class _Steps:
    """What is to be done about an answer."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.choice = judge, judge.choice
        self.store, self.kernel, self.tpm = judge.store, judge.kernel, judge.tpm
        self.k, self.total, self.staged = judge.k, judge.total, judge.staged

    def plan(self, answer: Answer) -> Plan:
        """The actions, and whether the view is served."""
        refuse = self._refusal(answer)
        if answer.skip is None:
            waits = (WaitForKernel(answer.why), Alarm(Kind.UNDECIDED, answer.why))
            return Plan(answer.found, None, waits, refuse=answer.why)
        if self.kernel.suspended is not None:
            why = "measuring has ended for this kernel"
            waits = (WaitForKernel(why), Alarm(Kind.SUSPENDED, why))
            if answer.opens or answer.forks is not None:
                # Nothing may be begun any more: there is no life that the list goes on.
                return Plan(Found.SUSPENDED, None, waits, refuse=why)
            return Plan(Found.SUSPENDED, answer.skip, waits, refuse, answer.verified)
        actions = [*self._life(answer), *answer.alarms, *self._stores(answer)]
        return Plan(answer.found, answer.skip, tuple(actions), refuse, answer.verified)

    def _unless_served(self, why: str) -> str | None:
        return None if self.choice.serve_gaps else why

    def _refusal(self, answer: Answer) -> str | None:
        if answer.gap is not None:
            return self._unless_served(gap_alarm(answer.gap, answer.why).text)
        begun = self.store.begun and not answer.opens
        if not begun and not answer.verified and not self.judge.without_pcrs:
            return "it is not confirmed yet that the list is whole from its beginning on"
        for gap in () if answer.opens else self.store.gaps:
            fork = self._fork(answer)
            if fork is None or fork.takes(gap, self.store):
                return self._unless_served(gap_alarm(gap.index, gap.why).text)
        return None

    def _fork(self, answer: Answer) -> ForkLife | None:
        fork = answer.forks
        if fork is None:
            return None
        return ForkLife(fork.index, self.kernel.boot, self.tpm.clock, fork.anchors)

    def _life(self, answer: Answer) -> Iterator[Action]:
        clock, boot = self.tpm.clock, self.kernel.boot
        if answer.opens:
            yield OpenLife(boot, clock, answer.verified)
        elif (fork := self._fork(answer)) is not None:
            yield fork
        elif not self.judge.same_boot:
            yield RecordBoot(boot, self.kernel.modes)
        if answer.gap is not None:
            verified = self.store.end if self.store.begun and not answer.opens else None
            yield RecordGap(Gap(answer.gap, answer.why, verified=verified))
            yield gap_alarm(answer.gap, answer.why)

    def _stores(self, answer: Answer) -> Iterator[Action]:
        skip = answer.skip or 0
        end = self.store.end if answer.forks is None else answer.forks.index
        if answer.opens:
            end = 0
        pending = None if answer.opens or answer.forks is not None else self.store.pending
        # Behind a gap nobody may ever know whether it was deleted, and nothing asks for it: all
        # of K is stored then. It must not stay unconfirmed while the next batch is staged.
        if pending is not None and not skip:
            yield MarkDone(pending.n)
            pending = None
        stored = False
        if answer.anchor is not None and self.judge.chains:
            index = end + self.total - skip
            if skip < self.total:
                yield Store(skip, self.total - skip, self.total, How.JOIN, self.kernel.modes)
                stored, skip = True, self.total
            pcrs, clock = self.tpm.pcrs or {}, self.tpm.clock
            yield TakeAnchor(Anchor(index, pcrs, answer.anchor, clock))
        if self.kernel.staged is None:
            # A batch goes as one, also where the piece that was read is shorter than it.
            count, how = max(skip, min(self.total, self.choice.chunk)), How.PARTIAL
        else:
            count, how = self.staged, How.JOIN
        if skip < count:
            yield from self._stored(skip, count, how, answer.parts)
            stored, skip = True, count
        if count and self.kernel.staged is not None:
            yield DeleteStaged(count)
        elif count and self.kernel.flush is not True:
            yield DeleteFirst(count)
        else:
            return
        if skip == count and (stored or pending is not None):
            yield MarkDone(None if stored or pending is None else pending.n)

    def _stored(
        self, skip: int, count: int, how: How, parts: tuple[tuple[int, Modes], ...]
    ) -> Iterator[Action]:
        """K[skip:count] in one frame, or in one for each change of the banks' modes."""
        edges = [(at, modes) for at, modes in parts if skip < at < count]
        modes = next((m for at, m in reversed(parts) if at <= skip), self.kernel.modes)
        for at, following in edges:
            yield Store(skip, at - skip, at, how, modes)
            skip, modes = at, following
        yield Store(skip, count - skip, count, how, modes)
