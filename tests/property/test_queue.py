# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Queue, hash table, packed lists and accounting as a whole, against plain Python lists."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from imafs.errors import Refused
from imafs.formats.algorithms import Bank, by_name
from imafs.interface.opens import Accounting, Holder
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View
from imafs.lists.packed import PackedList
from tests.property.builders import banks, record, recs
from tests.property.reference import Rec, ng, u32, violation

UNKNOWN = Bank(0x27, 32, None)
#: TPMs: usual ones, without SHA-1, padded banks, a bank that the kernel does not know, none.
TPMS: tuple[tuple[Bank, ...], ...] = (
    banks("sha1", "sha256"),
    banks("sha256", "sha384"),
    banks("sha1", "sha256", "sha384", "sha512", padded=("sha384", "sha512")),
    (*banks("sha256"), UNKNOWN),
    (),
)
READERS = 3


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of a few dozen records then span several segments."""
    monkeypatch.setattr("imafs.lists.packed.SEGMENT", 4)


def shown(rec: Rec, bank: Bank) -> bytes:
    """The template digest in the lists of a bank."""
    if bank.algorithm is None or bank.padded:
        sha1 = bytes(20) if rec.violation else rec.digest("sha1")
        return sha1.ljust(bank.digest_size, b"\0")
    return rec.shown(bank.name)


def extended(rec: Rec, tpm: tuple[Bank, ...]) -> bytes:
    """What is extended for a record."""
    if rec.violation:
        return u32(rec.pcr) + b"".join(
            (b"\xff" * (20 if bank.algorithm is None else bank.digest_size)).ljust(
                bank.digest_size, b"\0"
            )
            for bank in tpm
        )
    return u32(rec.pcr) + b"".join(shown(rec, bank) for bank in tpm)


@dataclass
class Model:
    """What the queue must be."""

    tpm: tuple[Bank, ...]
    default: str
    flush: bool
    table: bool
    suspended: bool = False
    violations: int = 0
    added: int = 0
    deleted: int = 0
    duplicates: int = 0
    extended: int = 0

    def __post_init__(self) -> None:
        self.current: list[Rec] = []
        self.staged: list[Rec] = []
        self.seen: set[tuple[bytes, int]] = set()
        self.pending: list[bytes] = []
        sha1 = any(bank.name == "sha1" for bank in self.tpm)
        self.lists = self.tpm if sha1 else (*self.tpm, *banks("sha1"))

    def append(self, rec: Rec, loaded: bool) -> int:
        self.violations += rec.violation
        if self.suspended:
            return errno.ENODEV
        if not rec.violation and self.table:
            key = (rec.digest(self.default), rec.pcr)
            if key in self.seen and not loaded:
                self.duplicates += 1
                return errno.EEXIST
            self.seen.add(key)
        self.current.append(rec)
        self.added += 1
        if self.tpm:
            self.pending.append(extended(rec, self.tpm))
        else:
            self.extended += 1
        return 0

    def stage(self) -> int:
        if self.staged:
            return errno.EEXIST
        if not self.current:
            return errno.ENOENT
        if self.suspended:
            return errno.EACCES
        self.staged, self.current = self.current, []
        return 0

    def delete_staged(self) -> int:
        if not self.staged:
            return errno.ENOENT
        if self.suspended:
            return errno.ESTALE
        self.deleted += len(self.staged)
        self.staged = []
        if self.flush and self.table:
            self.seen = set()
        return 0

    def delete_first(self, number: int) -> int:
        if number > len(self.current):
            return errno.ENOENT
        if self.suspended:
            return errno.ESTALE
        self.deleted += number
        self.current = self.current[number:]
        return 0


def code(call: Callable[[], object]) -> int:
    """0, or the errno of the refusal."""
    try:
        call()
    except Refused as refused:
        return refused.errno
    return 0


def content(packed: PackedList, view: View) -> list[bytes]:
    """The records of a view, found one by one."""
    found = []
    for index in range(len(packed)):
        place = packed.run(view, index)
        assert place is not None
        run, at = place
        found.append(bytes(run.data[run.offsets[at] : run.offsets[at + 1]]))
    assert packed.run(view, len(packed)) is None
    return found


class QueueMachine(RuleBasedStateMachine):
    """Everything that can happen to a queue."""

    @initialize(
        tpm=st.sampled_from(TPMS),
        default=st.sampled_from(["md5", "sha1", "sha256", "sha384", "sha512"]),
        flush=st.booleans(),
        disable=st.booleans(),
        cache=st.sampled_from([0, 2000, 1 << 20]),
    )
    def boot(
        self, tpm: tuple[Bank, ...], default: str, flush: bool, disable: bool, cache: int
    ) -> None:
        self.queue = Queue(
            Layout(tpm, by_name(default)),
            flush_htable=flush,
            disable_htable=disable,
            cache=cache,
        )
        self.model = Model(tpm, default, flush, not disable)
        self.accounting = Accounting(READERS)
        self.held: list[Holder] = []
        self.fresh = 0
        self.known: list[Rec] = []

    def _append(self, rec: Rec, loaded: bool) -> None:
        before = self.model.added
        answer = code(lambda: self.queue.append(record(rec), loaded=loaded))
        assert answer == self.model.append(rec, loaded)
        assert self.queue.totals.added - before == (answer == 0)
        self.known = [*self.known, rec][-20:]

    @rule(rec=recs(), loaded=st.booleans())
    def append_any(self, rec: Rec, loaded: bool) -> None:
        self._append(rec, loaded)

    @rule(count=st.integers(1, 12), pcr=st.sampled_from([10, 11]))
    def append_many(self, count: int, pcr: int) -> None:
        for _ in range(count):
            self.fresh += 1
            self._append(ng(pcr, b"/%d" % self.fresh), False)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), loaded=st.booleans())
    def append_again(self, data: st.DataObject, loaded: bool) -> None:
        self._append(data.draw(st.sampled_from(self.known)), loaded)

    @rule()
    def append_violation(self) -> None:
        self._append(violation(10, b"/v"), False)

    @rule()
    def stage(self) -> None:
        assert code(self.queue.stage) == self.model.stage()

    @rule()
    def delete_staged(self) -> None:
        assert code(self.queue.delete_staged) == self.model.delete_staged()

    @rule(number=st.one_of(st.integers(1, 8), st.just((1 << 64) - 1)))
    def delete_first(self, number: int) -> None:
        answer = code(lambda: self.queue.delete_first(number))
        assert answer == self.model.delete_first(number)

    @precondition(lambda self: self.model.current)
    @rule(data=st.data())
    def delete_some(self, data: st.DataObject) -> None:
        self.delete_first(data.draw(st.integers(1, len(self.model.current))))

    @rule(suspended=st.sampled_from([True, False, False, False]))
    def suspend(self, suspended: bool) -> None:
        self.queue.suspended = self.model.suspended = suspended

    @rule(most=st.integers(1, 4))
    def collect(self, most: int) -> None:
        self.queue.collect(most)

    @rule(most=st.integers(1, 9))
    def extend(self, most: int) -> None:
        packed = self.queue.pending_extends(most)
        assert packed == b"".join(self.model.pending[:most])
        done = min(most, len(self.model.pending))
        self.queue.confirm_extends(done)
        self.model.extended += done
        del self.model.pending[:done]

    @rule(data=st.data(), staged=st.booleans(), ascii_=st.booleans())
    def look(self, data: st.DataObject, staged: bool, ascii_: bool) -> None:
        number = data.draw(st.integers(0, len(self.model.lists) - 1))
        records = self._check(staged, ascii_, number)
        view, packed = View(ascii_, number), self.queue.list(staged)
        end = sum(map(len, records))
        position = data.draw(st.integers(0, end + 5))
        index, inside = packed.locate(view, position)
        if position >= end:
            assert (index, inside) == (len(records), 0)
        else:
            assert sum(map(len, records[:index])) + inside == position
            assert 0 <= inside < len(records[index])
        wide = max(map(len, records[:index]), default=0)
        if wide >= 4096:
            assert packed.longest(view, index) == wide
        else:
            assert packed.longest(view, index) < 4096

    def _check(self, staged: bool, ascii_: bool, number: int) -> list[bytes]:
        bank = self.model.lists[number]
        records = [
            (rec.ascii if ascii_ else rec.binary)(shown(rec, bank))
            for rec in (self.model.staged if staged else self.model.current)
        ]
        packed, view = self.queue.list(staged), View(ascii_, number)
        assert content(packed, view) == records
        assert packed.size(view) == sum(map(len, records))
        assert packed.newest(view) == (records[-1] if records else None)
        return records

    @rule(tid=st.integers(0, 3), write=st.booleans())
    def open(self, tid: int, write: bool) -> None:
        readers = sum(not holder.write for holder in self.held)
        writers = [holder for holder in self.held if holder.write]
        expected = 0
        if not write and readers == READERS:
            expected = errno.ENFILE
        elif (write and readers) or (writers and not (write and tid and writers[0].tid == tid)):
            expected = errno.EBUSY
        if expected:
            assert code(lambda: self.accounting.open(tid, write=write)) == expected
        else:
            self.held.append(self.accounting.open(tid, write=write))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.accounting.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "queue"):
            return
        queue, model = self.queue, self.model
        assert (len(queue.current), len(queue.staged)) == (len(model.current), len(model.staged))
        assert queue.violations == model.violations
        assert queue.pending == len(model.pending)
        totals = queue.totals
        assert (totals.added, totals.deleted) == (model.added, model.deleted)
        assert (totals.duplicates, totals.extended) == (model.duplicates, model.extended)
        newest = [*model.staged, *model.current][-1:]
        expected = newest[0].binary(newest[0].shown("sha1")) if newest else None
        assert queue.newest() == expected

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        for staged in (False, True):
            for ascii_ in (False, True):
                for number in range(len(self.model.lists)):
                    self._check(staged, ascii_, number)
        assert self.queue.pending_extends(1 << 30) == b"".join(self.model.pending)


TestQueue = QueueMachine.TestCase
