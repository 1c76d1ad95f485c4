# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What may fail around a keeper, each by its name: the disk, the kernel's answers, the TPM, the
store, and the ends and beginnings of kernels.

The real collector and a real store before a kernel on paper. Whatever fails, the view is the truth
or it is EIO, nothing is deleted that is not stored, and the next keeper goes on.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import trio

from imafs.errors import Refused, StoreBrokenError, TpmError
from imafs.fuse.directory import WaitFirst
from imafs.keeper import collector as collectors
from imafs.keeper import joining, keeping, reading
from imafs.keeper import store as stores
from imafs.keeper.collector import Collector, State
from imafs.keeper.facts import Clock, PcrValues
from imafs.keeper.files import Disk
from imafs.keeper.records import listed, replayed
from imafs.keeper.source import Look
from imafs.keeper.store import BankFile, open_store
from imafs.keeper.view import ListHandle
from imafs.lists.banks import View
from tests.keeper import made
from tests.keeper.diskmodel import RecordingDisk, Step, durable
from tests.keeper.machine import WAIT, Crash, Machine, joins, shown
from tests.keeper.paper import MODES, SIZES, PaperKernel
from tests.keeper.victim import DISK, STEPS
from tests.support import ExpectedLogs, wait_for_async

#: Seconds of the pauses behind a failure, here.
SOON = 0.02


class BadKernel(PaperKernel):
    """One whose requests are answered as the test wants, and that loses what a carry cuts off."""

    def __init__(self, *, clock: bool = True) -> None:
        super().__init__(clock=clock)
        #: Called in the place of a request: "stage", "delete", "pcrs", "clock", "acquire".
        self.instead: dict[str, Callable[[], object]] = {}

    def cut(self, carried: int) -> list[bytes]:
        """A kexec; the first so many of its records come along. What does not."""
        k = [*self._staged, *self._current]
        self._current, self._staged = k[:carried], []
        self._begin()
        return k[carried:]

    @property
    def records(self) -> int:
        """How many the kernel has."""
        return len(self._staged) + len(self._current)

    def deleted(self) -> None:
        """D, whatever is answered."""
        self._staged = []

    def power_cut(self) -> None:
        """The TPM's clock goes back to where it was saved."""
        self._clock = Clock(0, 0, self._clock.reset, self._clock.restart, safe=False)
        self.power_on()

    def resets(self, number: int) -> None:
        """The TPM's counter is another one's."""
        self._clock = Clock(0, self._clock.clock, number, 0)

    def sleep(self) -> None:
        """S3: a restart of the TPM, which keeps its PCRs."""
        self._clock = Clock(0, self._clock.clock, self._clock.reset, self._clock.restart + 1)

    def extend_other(self) -> None:
        """Somebody else extends PCR 11."""
        self._pcrs = replayed(self._pcrs, listed(made.record("/other", 11)), MODES, 0, 1)

    def acquire(self) -> bool:
        return bool(self.instead.get("acquire", super().acquire)())

    def stage(self) -> int:
        return cast(int, self.instead.get("stage", super().stage)())

    def delete(self) -> int:
        return cast(int, self.instead.get("delete", super().delete)())

    def current(self, most: int | None = None, begin: int = 0) -> bytes:
        data = super().current(None, begin)
        if most is None or not data:
            return data
        ends = list(itertools.accumulate(len(record) for record in self._current))
        return data[: next((end for end in ends if end >= most), ends[-1])]

    def delete_first(self, number: int) -> int:
        """N."""
        if "delete_first" in self.instead:
            return cast(int, self.instead["delete_first"]())
        del self._current[:number]
        return 0

    def flushes(self) -> bool:
        return cast(bool, self.instead.get("flushes", super().flushes)())

    def pcrs(self, banks: object, numbers: object) -> PcrValues | None:
        if "pcrs" in self.instead:
            return cast(PcrValues, self.instead["pcrs"]())
        return super().pcrs(banks, numbers)

    def clock(self) -> Clock | None:
        return cast(Clock | None, self.instead.get("clock", super().clock)())


class Bad(Machine):
    """A machine with such a kernel."""

    kernel: BadKernel

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.kernel = BadKernel()

    async def dies(self, step: str, number: int = 1, *later: str) -> bool:
        """A keeper that ends in front of the nth of such a step; whether it came there. Records
        that come ``later`` are stored by a cycle, those before by the join."""
        if step in ("stage", "staged"):  # of a cycle alone
            later = (*later, f"/later/{len(self.kernel.truth)}")
        left = itertools.count(1)
        died = []

        def hook(name: str) -> None:
            if name == step and next(left) == number:
                died.append(name)
                raise Crash

        with pytest.MonkeyPatch.context() as patch:
            for name in DISK:
                patch.setattr(Disk, name, _announced(getattr(Disk, name), name, hook))
            try:
                async with self.running(hook) as collector:
                    await joins(collector)
                    await stored(collector)
                    for name in later:
                        self.kernel.add(name)
                        await stored(collector)
            except* Crash:
                pass
        return bool(died)

    async def kept(self) -> str | None:
        """A keeper starts and ends; why its view is refused. What it serves is the truth, and is
        deleted in the kernel."""
        async with self.running() as collector:
            await joins(collector)
            if collector.refusal is None:
                await self.truth(collector)
            return collector.refusal

    async def truth(self, collector: Collector) -> None:
        """What is served is the truth, and it is stored."""
        await collector.fresh()
        assert shown(collector) == b"".join(self.kernel.truth)
        await stored(collector)
        assert collector.catalogue is not None
        assert collector.catalogue.stored == len(self.kernel.truth)

    def all_complaints(self) -> list[str]:
        """Of every life."""
        lives = reading.lives(str(self.store))
        return [
            text
            for life in lives
            for text in reading.Reading(str(self.store), life).verify().complaints
        ]


def _announced(
    work: Callable[..., object], name: str, hook: Callable[[str], None]
) -> Callable[..., object]:
    def operation(self: Disk, *args: object) -> object:
        hook(name)
        return work(self, *args)

    return operation


async def stored(collector: Collector) -> None:
    """And deleted: a flush does not wait for that."""
    await collector.flush()
    await joins(collector)


async def becomes(collector: Collector, state: State) -> None:
    async def so() -> bool:
        return collector.state is state

    await wait_for_async(so, WAIT, f"the keeper is {state}")


@pytest.fixture
def machine(
    tmp_path: Path, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bad]:
    expected_logs.allow("keeper")
    monkeypatch.setattr(collectors, "_PAUSES", (SOON,))
    bad = Bad(tmp_path)
    yield bad
    assert bad.all_complaints() == []


# The keeper is killed


@pytest.mark.parametrize("step", [*STEPS, *DISK])
async def test_killed_in_front_of_each_step(machine: Bad, step: str) -> None:
    """In a first start, in one that finds a batch of the last, and in a cycle."""
    died = 0
    for number in range(1, 4):
        for name in ("a", "b"):
            machine.kernel.add(f"/{name}/{number}")
        died += await machine.dies(step, number, f"/c/{number}", f"/d/{number}")
        machine.kernel.add(f"/e/{number}")
        assert await machine.kept() is None
    assert died or step == "truncate"  # see the next one


@pytest.mark.parametrize("step", ["commit", "committed", "delete", "deleted", "confirmed"])
@pytest.mark.parametrize("number", [1, 2])
async def test_killed_while_a_long_first_list_is_taken_in_pieces(
    machine: Bad, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """What is left is long, too, and its head alone does not tell what is stored of it."""
    for module in (joining, collectors):
        monkeypatch.setattr(module, "WHOLE", 10)
        monkeypatch.setattr(module, "PIECE", 500)
    for name in range(60):
        machine.kernel.add(f"/{name}")
    assert await machine.dies(step, number)
    assert machine.kernel.records > 20
    async with machine.running() as collector:
        await joins(collector)
        await stored(collector)
        await machine.truth(collector)
    assert machine.lives == 1


async def test_killed_with_bytes_that_no_frame_counts(machine: Bad) -> None:
    """They are cut at the next start (``truncate``), also if that one is killed there."""
    kernel = machine.kernel
    assert await machine.kept() is None
    kernel.add("/a")
    assert await machine.dies("sync", 3)
    (segment,) = machine.store.glob("lives/*/000000000000.bin")
    size = segment.stat().st_size
    segment.write_bytes(segment.read_bytes() + b"torn")
    assert await machine.dies("truncate")
    assert await machine.kept() is None
    assert machine.ledger.offset == segment.stat().st_size
    assert size <= segment.stat().st_size


# The disk


def _of(end: str, number: int) -> Callable[[Step], int]:
    """Writes to files with such names fail."""

    def fail(step: Step) -> int:
        return number if step.kind in ("write", "sync") and step.named.endswith(end) else 0

    return fail


def _read_only(step: Step) -> int:
    return errno.EROFS


FAILURES = {
    "no space for data": _of(".bin", errno.ENOSPC),
    "no space for a frame": _of("journal", errno.ENOSPC),
    "error in data": _of(".bin", errno.EIO),
    "error in a frame": _of("journal", errno.EIO),
    "remounted read-only": _read_only,
}


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> list[RecordingDisk]:
    """The disks of all stores, which fail as the test wants."""
    found: list[RecordingDisk] = []

    def made_(root: str) -> RecordingDisk:
        found.append(RecordingDisk(root))
        return found[-1]

    monkeypatch.setattr(stores, "Disk", made_)
    return found


@pytest.mark.parametrize("failure", FAILURES)
async def test_disk_that_fails_while_it_is_kept(
    machine: Bad, disks: list[RecordingDisk], failure: str
) -> None:
    """Nothing is deleted, readers see all, and all of it is stored once the disk is well."""
    kernel = machine.kernel
    kernel.add("/a")
    async with machine.running() as collector:
        await joins(collector)
        await machine.truth(collector)
        kernel.add("/b")
        # An error makes a new journal of the old one, or a new segment: this fails, too.
        broken = FAILURES[failure]
        fail = broken if failure == "remounted read-only" else _both(broken)
        disks[0].fail = fail
        await collector.fresh()
        await becomes(collector, State.DEGRADED)
        for name in ("/c", "/d"):
            kernel.add(name)
            await collector.fresh()
            assert shown(collector) == b"".join(kernel.truth)
        assert kernel.records == 3
        disks[0].fail = lambda step: 0
        await joins(collector)
        await machine.truth(collector)
        assert kernel.records == 0
    assert await machine.kept() is None


def _both(fail: Callable[[Step], int]) -> Callable[[Step], int]:
    """And whatever would take the place of the file."""
    failed: list[int] = []

    def always(step: Step) -> int:
        if number := fail(step):
            failed.append(number)
        return failed[-1] if failed and step.kind in ("create", "write", "sync") else 0

    return always


@pytest.mark.parametrize("name", ["life.json.new", "journal.new"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_disk_that_fails_where_a_life_begins(
    machine: Bad, disks: list[RecordingDisk], name: str, number: int
) -> None:
    """Nothing is deleted of a life that is not on the disk; the half of it counts for nothing."""
    kernel = machine.kernel
    kernel.add("/a")
    fails = [_of(name, number)]
    original = RecordingDisk._step

    def step(self: RecordingDisk, step: Step) -> None:
        if found := (fails and fails[0](step)):
            raise OSError(found, os.strerror(found))
        original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordingDisk, "_step", step)
        patch.setattr(collectors, "FRESH", 0.1)
        async with machine.running() as collector:
            await becomes(collector, State.DEGRADED)
            with pytest.raises(Refused):
                await collector.fresh()
            assert kernel.records == 2
            fails.clear()
            patch.undo()
            await joins(collector)
            await machine.truth(collector)
    assert await machine.kept() is None


async def test_store_that_goes_away_while_an_agent_reads(machine: Bad) -> None:
    """As by a lazy umount: EIO or the truth, never less; and all of it when it is there again."""
    kernel = machine.kernel
    for number in range(50):
        kernel.add(f"/{number}")
    gone = machine.store.with_name("gone")
    async with machine.running() as collector:
        await joins(collector)
        await machine.truth(collector)
        assert collector.catalogue is not None
        before = b"".join(kernel.truth)
        machine.store.rename(gone)
        for view in (View(False, 0), View(True, 1)):
            handle = ListHandle(collector, collector.catalogue, view)
            with contextlib.suppress(Refused):
                await handle.prepare(0)
                found = await content(handle, 0)
                assert view.ascii or found == before[: len(found)]
        kernel.add("/later")
        with contextlib.suppress(Refused):
            await collector.fresh()
        gone.rename(machine.store)
        await joins(collector)
        await machine.truth(collector)
    assert await machine.kept() is None


async def test_bit_flip_in_a_full_segment(machine: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    """No start reads it again. The keeper does, in time: an alarm, and EIO there, also for what
    was in memory; what is in other segments is served."""
    monkeypatch.setattr("imafs.keeper.archive.SEGMENT_RECORDS", 3)
    kernel = machine.kernel
    for number in range(8):
        kernel.add(f"/{number}")
        assert await machine.kept() is None
    path = min(machine.store.glob("lives/*/*.bin"))
    whole = path.read_bytes()
    path.write_bytes(whole[:70] + bytes([whole[70] ^ 1]) + whole[71:])
    async with machine.running(scrub=0.05) as collector, trio.open_nursery() as nursery:
        await joins(collector)
        assert collector.refusal is None
        assert shown(collector) != b"".join(kernel.truth)  # nobody has looked
        nursery.start_soon(collector.scrub)

        async def told() -> bool:
            return "damaged" in collector.alarms

        await wait_for_async(told, WAIT, "it is noticed")
        assert "not those that were stored" in collector.alarms["damaged"]
        assert path.name in collector.alarms["damaged"]
        with pytest.raises(StoreBrokenError):
            shown(collector)
        assert collector.catalogue is not None
        handle = ListHandle(collector, collector.catalogue, View(False, 0))
        with pytest.raises(Refused):
            await content(handle, 0)
        last = len(kernel.truth[-1])
        assert await content(handle, len(b"".join(kernel.truth)) - last) == kernel.truth[-1]
        kernel.add("/goes on")
        await stored(collector)
        assert machine.complaints()
        path.write_bytes(whole)

        async def mended() -> bool:
            with contextlib.suppress(StoreBrokenError):
                return shown(collector) == b"".join(kernel.truth)
            return False

        await wait_for_async(mended, WAIT, "it is read again")
        nursery.cancel_scope.cancel()


async def content(handle: ListHandle, position: int) -> bytes:
    """What an agent reads from there on."""
    kept: list[object] = []
    while True:
        try:
            return bytes(handle.read(position, 1 << 20, fill=True))
        except WaitFirst as first:
            kept.append(await first.fetch())


async def test_names_that_lead_to_the_store_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not take the directory itself, also where others have made it."""
    synced: set[str] = set()
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "of" / "a" / "store"
    for _ in range(2):
        synced.clear()
        open_store(str(path)).close()
        assert {str(tmp_path), str(tmp_path / "of"), str(tmp_path / "of" / "a")} <= synced


# The store is another one


def copied(machine: Bad, name: str) -> Path:
    return Path(shutil.copytree(machine.store, machine.store.with_name(name)))


@pytest.mark.parametrize("trimmed", [False, True])
async def test_store_of_another_machine(machine: Bad, tmp_path: Path, trimmed: bool) -> None:
    """Its records are not taken for this one's: a new life, or a gap where none is whole."""
    machine.kernel.add("/there")
    assert await machine.kept() is None
    (tmp_path / "other").mkdir()
    other = Bad(tmp_path / "other")
    shutil.copytree(machine.store, other.store)
    other.kernel.boot = "another-boot"
    other.kernel.resets(41)
    other.kernel.add("/here")
    if trimmed:
        other.kernel.trim()
        other.kernel.add("/late")
    refusal = await other.kept()
    assert (refusal is not None) is trimmed
    assert (other.alarms == {"gap"}) is trimmed
    assert other.lives == 2
    assert other.all_complaints() == []
    other.kernel.power_on()
    other.kernel.boot = "another-boot-2"
    assert await other.kept() is None


async def test_store_of_yesterday(machine: Bad) -> None:
    """What was deleted since is in no store: a gap. Where nothing was, there is none."""
    kernel = machine.kernel
    kernel.add("/a")
    assert await machine.kept() is None
    yesterday = copied(machine, "yesterday")
    kernel.add("/b")
    assert await machine.dies("delete")  # stored, and still in the kernel
    shutil.rmtree(machine.store)
    shutil.copytree(yesterday, machine.store)
    assert await machine.dies("delete")
    assert await machine.kept() is None
    shutil.rmtree(machine.store)
    shutil.copytree(yesterday, machine.store)
    kernel.add("/c")
    refusal = await machine.kept()
    assert refusal is not None
    assert "may be missing behind record 2" in refusal
    assert [gap.index for gap in machine.ledger.gaps] == [2]


# What is staged already


async def test_staged_list_of_ours(machine: Bad) -> None:
    """A, and the end; a frame, and the end."""
    kernel = machine.kernel
    kernel.add("/a")
    for step in ("staged", "delete"):
        assert await machine.dies(step)
        assert kernel.stage() == errno.EEXIST
        assert await machine.kept() is None
        assert kernel.records == 0
        kernel.add(f"/behind/{step}")
    assert await machine.kept() is None


async def test_staged_list_of_another(machine: Bad) -> None:
    """Ours was deleted and not confirmed; somebody else has staged since, and never deletes."""
    kernel = machine.kernel
    kernel.add("/a")
    assert await machine.dies("deleted")
    kernel.add("/b")
    assert kernel.stage() == 0
    kernel.add("/c")
    assert await machine.kept() is None
    assert kernel.records == 0
    assert len(listed(b"".join(kernel.truth))) == 4


async def test_staged_list_that_looks_like_ours(machine: Bad) -> None:
    """The same violations twice: the batch was deleted, and came again."""
    kernel = machine.kernel
    assert await machine.kept() is None
    for _ in range(2):
        kernel.take(made.violation("/v"))
        kernel.take(made.violation("/v"))
        assert await machine.dies("deleted")
        kernel.take(made.violation("/v"))
        kernel.take(made.violation("/v"))
        assert kernel.stage() == 0
        assert await machine.kept() is None
        assert kernel.records == 0
    assert len(kernel.truth) == 9


# Answers of the kernel


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOENT])
async def test_deletion_that_is_refused_behind_it(machine: Bad, number: int) -> None:
    """With ima_flush_htable the list is unlinked before memory is asked for: ENOMEM; a second D
    finds nothing: ENOENT. Both mean that it is deleted."""
    kernel = machine.kernel
    kernel.add("/a")

    def delete() -> int:
        kernel.deleted()
        return number

    kernel.instead["delete"] = delete
    for name in ("/b", "/c"):
        async with machine.running() as collector:
            await joins(collector)
            kernel.add(name)
            await machine.truth(collector)
            assert collector.state is State.IDLE
    assert await machine.kept() is None
    assert machine.alarms == set()


@pytest.mark.parametrize(
    ("request_", "number"), [("stage", errno.EACCES), ("delete", errno.ESTALE)]
)
async def test_kernel_that_takes_no_more_requests(machine: Bad, request_: str, number: int) -> None:
    """A kexec has begun. What is staged comes again in the list of the next kernel: once."""
    kernel = machine.kernel
    kernel.add("/a")
    async with machine.running() as collector:
        await joins(collector)
        await machine.truth(collector)
        kernel.add("/b")
        kernel.instead[request_] = lambda: number
        with contextlib.suppress(Refused):
            await collector.fresh()
        await becomes(collector, State.SUSPENDED)
        assert kernel.records == 1
        del kernel.instead[request_]
        kernel.kexec()
        await joins(collector)
        await machine.truth(collector)
        assert kernel.records == 0
    assert await machine.kept() is None
    assert machine.lives == 1


@pytest.mark.parametrize("first", [True, False])
async def test_n_that_is_refused_by_a_kernel_of_which_nobody_tells_that_it_flushes(
    machine: Bad, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """An emulator has no command line to read: the answer to N tells, and a long list goes by A."""
    monkeypatch.setattr(joining, "WHOLE", 10)
    monkeypatch.setattr(collectors, "WHOLE", 10)
    kernel = machine.kernel
    kernel.instead |= {"flushes": lambda: None, "delete_first": lambda: errno.EINVAL}
    async with machine.running(records=10) as collector:
        if not first:
            await joins(collector)
        for number in range(30):
            kernel.add(f"/{number}")
        with contextlib.suppress(Refused):
            await collector.fresh()

        async def whole() -> bool:
            return collector.state is State.IDLE and collector.refusal is None

        await wait_for_async(whole, WAIT, "all of it is confirmed")
        await machine.truth(collector)
        assert kernel.records == 0
        assert collector.flushes is True
        assert collector.refusal is None
    assert await machine.kept() is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, errno.EBUSY, errno.EINTR])
async def test_answer_that_no_kernel_gives(machine: Bad, number: int) -> None:
    """It looks again, whatever that is; nothing is stored twice."""
    kernel = machine.kernel
    for request in ("stage", "delete"):
        async with machine.running() as collector:
            await joins(collector)
            kernel.add(f"/{request}")
            answers = [number]
            original = getattr(PaperKernel, request)

            def answer(
                answers: list[int] = answers, original: Callable[[PaperKernel], int] = original
            ) -> int:
                return answers.pop() if answers else original(kernel)

            kernel.instead[request] = answer
            with contextlib.suppress(Refused):
                await collector.fresh()
            await joins(collector)
            await machine.truth(collector)
            assert not answers
    assert await machine.kept() is None


async def test_reader_that_holds_a_list_for_a_day(machine: Bad) -> None:
    """The keeper waits for ever, and says behind ``lock_wait`` who can be asked."""
    kernel = machine.kernel
    kernel.add("/a")
    kernel.instead["acquire"] = lambda: False
    async with machine.running(lock_wait=0.3) as collector:
        await becomes(collector, State.WAITING)
        assert "holders" not in collector.why

        async def named() -> bool:
            return "imafs keep holders names it" in collector.why

        await wait_for_async(named, WAIT, "it says so")
        with pytest.raises(Refused):
            await collector.fresh()
        assert kernel.records == 2
        del kernel.instead["acquire"]
        await joins(collector)
        await machine.truth(collector)


# The TPM


async def test_tpm_that_is_gone_for_a_while(machine: Bad) -> None:
    """At a start nothing is deleted or served before it answers. Later nothing needs it."""
    kernel = machine.kernel
    kernel.add("/a")

    def gone() -> object:
        raise TpmError("the TPM does not answer")

    for _ in range(2):
        kernel.instead |= {"pcrs": gone, "clock": gone}
        async with machine.running() as collector:

            async def told() -> bool:
                return "does not answer" in collector.why

            await wait_for_async(told, WAIT, "it says so")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(collectors, "FRESH", 0.1)
                with pytest.raises(Refused):
                    await collector.fresh()
            had = kernel.records
            assert had
            kernel.instead.clear()
            await joins(collector)
            kernel.instead |= {"pcrs": gone, "clock": gone}
            kernel.add("/while it is gone")
            await machine.truth(collector)
            kernel.instead.clear()
        kernel.add("/b")
    assert await machine.kept() is None


async def test_tpm_that_hangs(machine: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it without end: a start looks again, a commit goes without its clock."""
    monkeypatch.setattr(joining, "TPM_DEADLINE", 0.1)
    monkeypatch.setattr(keeping, "CLOCK_DEADLINE", 0.05)
    kernel = machine.kernel
    kernel.add("/a")
    goes_on = threading.Event()

    def hangs() -> object:
        goes_on.wait(WAIT)
        return PaperKernel.pcrs(kernel, (), ())

    kernel.instead["pcrs"] = hangs
    async with machine.running() as collector:

        async def told() -> bool:
            return "no answer within" in collector.why or "still hangs" in collector.why

        await wait_for_async(told, WAIT, "it says so")
        assert kernel.records == 2
        kernel.instead.clear()
        goes_on.set()
        await joins(collector)
        goes_on.clear()
        kernel.instead["clock"] = lambda: goes_on.wait(WAIT) and None
        kernel.add("/b")
        await machine.truth(collector)
        assert machine.ledger.last is not None
        assert machine.ledger.last.clock is None
        goes_on.set()
    assert await machine.kept() is None


def no_pcrs() -> None:
    """There is no TPM."""


@pytest.mark.parametrize(
    "step", ["staged", "commit", "committed", "delete", "deleted", "confirmed"]
)
async def test_without_a_tpm(machine: Bad, step: str) -> None:
    """Its own word decides, and the status says so."""
    kernel = machine.kernel
    kernel.instead |= {"pcrs": no_pcrs, "clock": no_pcrs}
    for number in range(3):
        kernel.add(f"/a/{number}")
        assert await machine.dies(step)
        kernel.add(f"/b/{number}")
        assert await machine.kept() is None
        assert machine.alarms == {"unverified"}
        assert kernel.records == 0
    assert machine.lives == 1


async def test_without_a_tpm_a_deletion_is_durable_before_the_next_stage(
    machine: Bad, disks: list[RecordingDisk]
) -> None:
    """A kexec loses what is not synced, and brings along what was staged since: where no PCRs tell
    them apart the line ``done`` has to."""
    kernel = machine.kernel
    kernel.instead |= {"pcrs": no_pcrs, "clock": no_pcrs}
    looked = []

    def hook(step: str) -> None:
        if step == "stage":
            steps = disks[-1].steps
            sure = durable(steps)
            looked.append(all(sure[at] for at, one in enumerate(steps) if one.kind == "write"))

    async with machine.running(hook) as collector:
        await joins(collector)
        for name in ("/a", "/b", "/c"):
            kernel.add(name)
            await collector.flush()
    assert looked == [True] * 3


@pytest.mark.parametrize("staging", [True, False])
async def test_record_that_is_not_extended_yet(machine: Bad, staging: bool) -> None:
    """It is in the list before it is in the PCR. A waits for that; N does not, nor does a keeper
    that may not stage."""
    kernel = LateKernel(staging=staging)
    machine.kernel = kernel
    for number in range(3):
        kernel.add(f"/{number}")
        kernel.late(f"/late/{number}")
        assert await machine.kept() is None
        assert machine.alarms == set()


class LateKernel(BadKernel):
    """One that extends its last record while its PCRs are read."""

    def __init__(self, *, staging: bool) -> None:
        self._late: list[bytes] = []
        self.staging = staging
        super().__init__()

    def late(self, name: str) -> None:
        """A record that is in the list alone."""
        self.take(made.record(name), fails=True)
        self._late.append(self.truth[-1])

    def _extended(self) -> None:
        for record in self._late:
            self._pcrs = replayed(self._pcrs, listed(record), MODES, 0, 1)
        self._late.clear()

    def stage(self) -> int:
        self._extended()
        return super().stage()

    def pcrs(self, banks: object, numbers: object) -> PcrValues | None:
        found = super().pcrs(banks, numbers)
        if cast(tuple[int, ...], numbers) != (10,) or not self.staging:
            self._extended()
        return found

    def look(self) -> Look:
        banks = tuple(BankFile(bank, size) for bank, size in SIZES.items())
        return Look(banks, staging=self.staging)


async def test_pcr_that_others_extend_too(machine: Bad) -> None:
    """PCR 11 is systemd's on machines with unified kernel images: told, and no gap."""
    kernel = machine.kernel
    for number in range(3):
        kernel.take(made.record(f"/eleven/{number}", 11))
        kernel.extend_other()
        kernel.add(f"/ten/{number}")
        assert await machine.dies("delete")
        assert await machine.kept() is None
        assert machine.alarms == {"other_pcr"}
    assert machine.lives == 1


# Ends and beginnings


@pytest.mark.parametrize("unstored", [0, 2])
@pytest.mark.parametrize("carried", range(7))
async def test_carry_that_is_cut_at_every_record(machine: Bad, carried: int, unstored: int) -> None:
    """And the keeper dies behind the commit of that join. The view is whole where all that was lost
    is stored, and EIO otherwise."""
    kernel = machine.kernel
    for name in ("/a", "/b", "/c"):
        kernel.add(name)
    assert await machine.dies("delete")  # four are stored, staged, and not deleted
    for number in range(unstored):
        kernel.add(f"/unstored/{number}")
    lost = kernel.cut(carried)
    missing = len(lost) > 4 or (unstored and lost and carried < 4 + unstored)
    kernel.add("/next")
    assert await machine.dies("committed")
    kernel.add("/later")
    for _ in range(2):
        refusal = await machine.kept()
        assert (refusal is not None) == bool(missing), refusal
    assert ("gap" in machine.alarms) == bool(missing)
    kernel.power_on()
    assert await machine.kept() is None


async def test_two_kexecs_without_a_commit(machine: Bad) -> None:
    kernel = machine.kernel
    kernel.add("/a")
    for step in ("staged", "delete", "deleted"):
        kernel.add(f"/{step}")
        assert await machine.dies(step)
        for number in range(2):
            kernel.kexec()
            kernel.add(f"/{step}/{number}")
        assert await machine.kept() is None
    assert machine.lives == 1


@pytest.mark.parametrize("step", ["commit", "committed", "write", "sync", "delete", "deleted"])
async def test_reboot_during_a_commit(machine: Bad, step: str) -> None:
    kernel = machine.kernel
    for number in range(3):
        kernel.add(f"/{number}")
        assert await machine.dies(step)
        kernel.power_on()
        kernel.add(f"/next/{number}")
        assert await machine.kept() is None
        assert machine.alarms == set()


async def test_two_reboots_between_runs(machine: Bad) -> None:
    kernel = machine.kernel
    for number in range(3):
        kernel.add(f"/{number}")
        assert await machine.kept() is None
        kernel.power_on()
        kernel.add("/unseen")
        kernel.power_on()
    assert await machine.kept() is None
    assert machine.lives == 4


async def test_clock_that_goes_back_is_no_restored_machine(machine: Bad) -> None:
    """A power cut sets the TPM's clock back to where it was saved last."""
    kernel = machine.kernel
    for number in range(3):
        kernel.add(f"/{number}")
        assert await machine.dies("delete")
        kernel.power_cut()
        kernel.add(f"/next/{number}")
        assert await machine.kept() is None
        assert machine.alarms == set()
    assert machine.lives == 4


@pytest.mark.parametrize("step", ["staged", "delete", "deleted"])
async def test_sleep_is_nothing(machine: Bad, step: str) -> None:
    """S3 counts as a restart of the TPM, and its PCRs stay."""
    kernel = machine.kernel
    kernel.add("/a")
    for number in range(3):
        kernel.sleep()
        kernel.add(f"/{number}")
        assert await machine.dies(step)
        kernel.sleep()
        assert await machine.kept() is None
        assert machine.alarms == set()
    assert machine.lives == 1
