# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The real collector and a real store, on a machine whose PCRs go other ways than its list.

The walks of tests/property ask what is decided. Here it is carried out: what is written of an
anchor, a gap and a fork has to say the same to the keeper that starts next.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from imafs.errors import DegradedError, FileError, Refused
from imafs.keeper import joining, reading, status
from imafs.keeper.collector import State
from imafs.keeper.facts import PcrValues
from imafs.keeper.records import listed
from tests.keeper import made
from tests.keeper.machine import WAIT, Crash, Machine, joins, shown
from tests.keeper.paper import PaperKernel
from tests.support import ExpectedLogs, wait_for_async


class BusyKernel(PaperKernel):
    """Records arrive while its PCRs are read, so that no look at its list finds the end."""

    def __init__(self, arriving: int, *, violations: bool = False) -> None:
        self.reads = {"staged": 0, "current": 0}
        self.arriving, self._made = 0, made.violation if violations else made.record
        super().__init__()
        self.arriving = arriving

    def pcrs(self, banks: object, numbers: object) -> PcrValues | None:
        if self.arriving:
            self.arriving -= 1
            self.take(self._made(f"/arrives/{self.arriving}"))
        return super().pcrs(banks, numbers)

    def staged(self) -> bytes:
        self.reads["staged"] += len(self._staged)
        return super().staged()

    def current(self, most: int | None = None, begin: int = 0) -> bytes:
        found = super().current(most, begin)
        self.reads["current"] += len(listed(found))
        return found


@pytest.mark.parametrize("boots", ["goes on", "kexec", "reboot"])
async def test_a_keeper_that_was_away_for_a_long_list_finds_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boots: str
) -> None:
    """A list of which nothing is stored is drained in pieces. Of one that goes on its end alone
    tells what is: it is looked at whole, however long it has become."""
    monkeypatch.setattr(joining, "WHOLE", 10)
    machine = Machine(tmp_path)
    machine.kernel.add("/first")
    assert await machine.kept() is None
    if boots == "kexec":
        machine.kernel.kexec()
    elif boots == "reboot":
        machine.kernel.power_on()
    for number in range(30):
        machine.kernel.add(f"/away/{number}")
    assert await machine.kept() is None
    assert machine.lives == (2 if boots == "reboot" else 1)
    assert machine.complaints() == []


async def test_a_keeper_that_has_ended_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    await Machine(tmp_path).kept()

    async def gone() -> bool:
        return threading.active_count() <= before + 1  # trio's own, which wait for work

    await wait_for_async(gone, WAIT, "the threads have ended")


async def test_a_long_list_is_read_once_while_records_arrive(tmp_path: Path) -> None:
    """Reading a long one takes seconds on a kernel: over it no end would ever be found."""
    machine = Machine(tmp_path)
    kernel = BusyKernel(arriving=8)
    for number in range(500):
        kernel.add(f"/before/{number}")
    machine.kernel = kernel
    async with machine.keeper() as collector:
        assert collector.refusal is None
        reads = dict(kernel.reads)
        await collector.flush()
        assert shown(collector) == b"".join(kernel.truth)
    # At the join once, and once when they are stored.
    assert reads["staged"] <= 2 * 510
    assert reads["current"] <= 20


async def test_start_while_records_arrive_without_a_pause(tmp_path: Path) -> None:
    """No look finds the end of the list; the PCRs tell how much of it they have."""
    machine = Machine(tmp_path)
    machine.kernel = kernel = BusyKernel(arriving=1_000_000)
    for _ in range(3):
        async with machine.keeper() as collector:
            assert (collector.refusal, collector.alarms) == (None, {})
            assert collector.verified is not None
            kernel.arriving = 0
            await collector.flush()
            assert shown(collector) == b"".join(kernel.truth)
        kernel.arriving = 1_000_000
    assert machine.lives == 1
    assert machine.complaints() == []


async def test_violations_alone_arrive_without_a_pause(
    tmp_path: Path, expected_logs: ExpectedLogs, caplog: pytest.LogCaptureFixture
) -> None:
    """One is to a PCR as another: they do not tell how many of them it has."""
    expected_logs.allow("keeper")
    machine = Machine(tmp_path)
    machine.kernel = BusyKernel(arriving=60, violations=True)
    assert await machine.kept() is None
    assert "undecided: the end of the list was not exact" in caplog.text
    assert machine.complaints() == []


async def test_violations_alone_arrive_until_the_first_list_is_long(
    tmp_path: Path, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short list told nothing as a whole; one that has become long is taken in pieces."""
    expected_logs.allow("keeper")
    monkeypatch.setattr(joining, "WHOLE", 10)
    machine = Machine(tmp_path)
    machine.kernel = kernel = BusyKernel(arriving=1_000_000, violations=True)
    async with machine.keeper() as collector:
        kernel.arriving = 0
        assert collector.catalogue is not None
        assert collector.catalogue.stored > 0
    assert machine.lives == 1


@pytest.fixture
def machine(tmp_path: Path, expected_logs: ExpectedLogs) -> Machine:
    expected_logs.allow("keeper")
    return Machine(tmp_path)


async def test_records_behind_an_anchor_lead_on_from_its_pcrs(machine: Machine) -> None:
    """Somebody extended the PCR: that is told until the next boot, and found once."""
    kernel = machine.kernel
    async with machine.keeper() as collector:
        kernel.add("/a")
        await collector.flush()
        kernel.extend()
        await collector._joined()  # as behind any trouble
        assert "pcr_diverged" in collector.alarms
        kernel.add("/b")
        await collector.flush()
    kernel.add("/c")
    for _ in range(2):
        assert await machine.kept() is None
        assert machine.alarms == {"pcr_diverged"}
    assert len(machine.ledger.diverged) == 1
    assert machine.complaints() == []


async def test_segment_that_ends_at_an_anchor_is_verified(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imafs.keeper.archive.SEGMENT_RECORDS", 3)
    kernel = machine.kernel
    for number in range(12):
        kernel.add(f"/{number}")
        async with machine.keeper() as collector:
            await collector.flush()
            if number % 2:
                kernel.extend()
                await collector._joined()
        assert machine.complaints() == []
    assert await machine.kept() is None


async def test_restored_machine_goes_on_in_a_fork(machine: Machine) -> None:
    kernel = machine.kernel
    kernel.add("/a")
    assert await machine.kept() is None
    kernel.add("/b")
    snapshot = kernel.snapshot()
    for name in ("/c", "/d"):
        kernel.add(name)
        assert await machine.kept() is None
    kernel.restore(snapshot)
    kernel.add("/e")
    assert await machine.kept() is None
    assert machine.alarms == {"rolled_back"}
    assert machine.lives == 2
    assert await machine.kept() is None
    assert machine.alarms == set()
    assert machine.complaints() == []


@pytest.mark.parametrize("step", ["commit", "committed", "confirmed"])
@pytest.mark.parametrize("number", range(1, 5))
async def test_crash_in_a_fork_leaves_the_old_life(
    machine: Machine, step: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imafs.keeper.keeping._FORKED", 2)
    kernel = machine.kernel
    for name in ("/a", "/b", "/c"):
        kernel.add(name)
        assert await machine.kept() is None
    snapshot = kernel.snapshot()
    kernel.add("/d")
    assert await machine.kept() is None
    kernel.restore(snapshot)
    kernel.add("/e")
    await machine.killed(step, number)
    assert await machine.kept() is None
    assert machine.complaints() == []


@pytest.mark.parametrize("behind", [True, False])
async def test_fork_behind_an_anchor_has_it_too(machine: Machine, behind: bool) -> None:
    """One in front of it has it not."""
    kernel = machine.kernel
    kernel.add("/a")
    await machine.kept()
    snapshot = kernel.snapshot()
    async with machine.keeper() as collector:
        kernel.extend()
        await collector._joined()
        kernel.add("/b")
        await collector.flush()
        if behind:
            snapshot = kernel.snapshot()
            kernel.add("/c")
            await collector.flush()
    kernel.restore(snapshot)
    kernel.add("/d")
    for _ in range(2):
        assert await machine.kept() is None
    assert machine.lives == 2
    assert len(machine.ledger.diverged) == behind
    assert machine.complaints() == []


async def test_fork_of_a_life_with_a_gap_is_refused(machine: Machine) -> None:
    kernel = machine.kernel
    await machine.kept()
    kernel.add("/a")
    kernel.trim()
    kernel.add("/b")
    assert await machine.kept() is not None
    snapshot = kernel.snapshot()
    kernel.add("/c")
    await machine.killed("", 0)
    kernel.restore(snapshot)
    kernel.add("/d")
    for _ in range(2):
        assert await machine.kept() is not None


@pytest.mark.parametrize("how", ["open", "cut", "others"])
async def test_fork_over_damaged_records_is_a_gap(
    how: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records in front of it are to be in the new life, and are not to be had. Of a full
    segment a start has not looked at them."""
    if how != "open":
        monkeypatch.setattr("imafs.keeper.archive.SEGMENT_RECORDS", 2)
    kernel = machine.kernel
    for name in ("/a", "/b"):
        kernel.add(name)
        assert await machine.kept() is None
    snapshot = kernel.snapshot()
    for name in ("/c", "/d"):
        kernel.add(name)
        assert await machine.kept() is None
    (segment,) = machine.store.glob("lives/*/000000000000.bin")
    data = bytearray(segment.read_bytes())
    data[30] ^= 1
    segment.write_bytes(data[:-1] if how == "cut" else data)
    kernel.restore(snapshot)
    kernel.add("/e")
    for _ in range(2):
        assert await machine.kept() is not None
    assert "gap" in machine.alarms
    assert machine.lives == 1
    stored = machine.ledger.end
    kernel.add("/f")
    assert await machine.kept() is not None
    async with machine.keeper() as collector:
        await collector.flush()
    assert machine.ledger.end == stored + 1


@pytest.mark.parametrize("clock", [True, False])
async def test_machine_that_goes_back_behind_a_hibernation(
    tmp_path: Path, expected_logs: ExpectedLogs, clock: bool
) -> None:
    """From zero on any list leads to its PCR: what is stored is not in front of this one. Without
    the TPM's clock (sysfs tells none) that is a gap."""
    expected_logs.allow("keeper")
    machine = Machine(tmp_path, clock=clock)
    kernel = machine.kernel
    kernel.add("/a")
    snapshot = kernel.snapshot()
    kernel.add("/b")
    async with machine.keeper() as collector:
        await collector.flush()
        kernel.hibernate()
        await collector._joined()
    kernel.restore(snapshot)
    for _ in range(2):
        assert (await machine.kept() is None) is clock
        kernel.add("/c")
    assert machine.complaints() == []


async def test_violation_that_comes_again_behind_a_hibernation(machine: Machine) -> None:
    """It is all that was extended since the PCR was zero, as the last stored one was before: the
    batch that ends with that may be there still, or this one is another."""
    kernel = machine.kernel
    kernel.add("/a")
    dies = False

    def hook(step: str) -> None:
        if dies and step == "deleted":
            raise Crash

    with contextlib.suppress(BaseExceptionGroup):
        async with machine.keeper(hook) as collector:
            await collector.flush()
            kernel.hibernate()
            kernel.take(made.violation("/v"))
            dies = True
            await collector._joined()
    assert [anchor.why for anchor in machine.ledger.anchors] == ["the PCR began anew"]
    assert not machine.ledger.confirmed
    kernel.hibernate()
    kernel.take(made.violation("/v"))
    kernel.kexec()
    assert await machine.kept() is not None


@pytest.mark.parametrize("behind", [True, False])
async def test_violation_that_others_delete_behind_a_hibernation(
    machine: Machine, behind: bool
) -> None:
    """The PCR is as if it had begun anew in front of the last stored violation."""
    kernel = machine.kernel
    kernel.add("/a")
    kernel.take(made.violation("/v"))
    assert await machine.kept() is None
    kernel.take(made.violation("/v"))
    kernel.hibernate()
    kernel.take(made.violation("/w"))
    kernel.trim()
    if behind:
        kernel.add("/b")
    assert await machine.kept() is not None


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("violation", [True, False])
async def test_hibernation_that_a_keeper_slept_through(
    tmp_path: Path, expected_logs: ExpectedLogs, clock: bool, violation: bool
) -> None:
    """What came behind it is stored. A record that comes once tells so, or else the TPM's clock."""
    expected_logs.allow("keeper")
    machine = Machine(tmp_path, clock=clock)
    kernel = machine.kernel
    kernel.add("/a")
    async with machine.keeper() as collector:
        await collector.flush()
        kernel.hibernate()
        if violation:
            kernel.take(made.violation("/v"))
        else:
            kernel.add("/b")
        await collector.flush()
    assert (await machine.kept() is None) is (clock or not violation)
    if clock or not violation:
        assert machine.alarms == {"pcr_reset"}
    assert machine.complaints() == []


async def test_kernel_whose_first_record_others_deleted(machine: Machine) -> None:
    """The PCR began anew, and its list is equal to the stored one as far as PCRs tell."""
    kernel = machine.kernel
    assert await machine.kept() is None
    kernel.add("/a")
    kernel.hibernate()
    kernel.kexec(0)
    kernel.trim()
    assert await machine.kept() is not None


async def test_machine_that_goes_back_to_another_hibernation(machine: Machine) -> None:
    """From zero on any list leads to its PCR: not behind the first hibernation's anchor."""
    kernel = machine.kernel
    kernel.add("/a")
    async with machine.keeper() as collector:
        await collector.flush()
        kernel.hibernate()
        await collector._joined()
        kernel.add("/b")
        await collector.flush()
    kernel.add("/lost")
    kernel.trim()
    kernel.hibernate()
    kernel.add("/c")
    snapshot = kernel.snapshot()
    assert await machine.kept() is not None
    kernel.add("/d")
    assert await machine.kept() is not None
    kernel.restore(snapshot)
    kernel.add("/e")
    assert await machine.kept() is not None


async def test_records_that_others_take_from_behind_a_stage(machine: Machine) -> None:
    """All of them are stored, and a part of those is staged still."""
    kernel = machine.kernel
    assert await machine.kept() is None

    def hook(step: str) -> None:
        if step == "staged":
            raise Crash

    with contextlib.suppress(BaseExceptionGroup):
        async with machine.keeper(hook) as collector:
            kernel.add("/a")
            await collector.flush()
    kernel.add("/b")
    kernel.extend()  # so that what is not staged is stored as well
    await machine.killed("delete", 1)
    assert machine.ledger.end == 3
    kernel.trim_current()
    gaps = len(machine.ledger.gaps)
    await machine.kept()
    assert len(machine.ledger.gaps) == gaps
    assert machine.ledger.end == 3


async def test_nothing_is_stored_twice_behind_a_gap(machine: Machine) -> None:
    """A batch was stored, and is staged still; others took records from behind it."""
    kernel = machine.kernel
    assert await machine.kept() is None
    kernel.add("/stored")
    await machine.killed("delete", 1)
    end = machine.ledger.end
    kernel.add("/taken")
    kernel.trim_current()
    kernel.add("/left")
    assert await machine.kept() is not None
    (gap,) = machine.ledger.gaps
    assert (gap.index, machine.ledger.end) == (end, end + 1)
    assert machine.complaints() == []


@pytest.mark.parametrize("whole", [True, False])
async def test_boot_that_begins_as_the_one_before_without_a_tpm(
    tmp_path: Path, expected_logs: ExpectedLogs, whole: bool
) -> None:
    """Its records may be those of the last batch, of which a kexec lost some."""
    expected_logs.allow("keeper")
    machine = Machine(tmp_path, tpm=False)
    kernel = machine.kernel
    for name in ("/a", "/b", "/c"):
        kernel.add(name)
    await machine.killed("delete", 1)
    assert machine.ledger.end == 4
    kernel.power_on()
    for name in ("/a", "/b", "/c") if whole else ("/a",):
        kernel.add(name)
    kernel.kexec()
    kernel.add("/d")
    # Where all of them came again the list is the same whatever they are.
    assert (await machine.kept() is None) is whole


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("carried", [0, 1])
async def test_gap_of_a_kexec_is_in_the_same_life(
    tmp_path: Path, expected_logs: ExpectedLogs, clock: bool, carried: int
) -> None:
    """Its carry lost records that nobody has stored. The next reboot begins another life."""
    expected_logs.allow("keeper")
    machine = Machine(tmp_path, clock=clock)
    kernel = machine.kernel
    kernel.add("/a")
    assert await machine.kept() is None
    kernel.add("/b")
    kernel.add("/c")
    kernel.kexec(carried)
    for _ in range(2):
        refusal = await machine.kept()
        assert refusal is not None
        assert "may be missing behind record 2" in refusal
        kernel.add("/d")
    assert machine.lives == 1
    assert [gap.index for gap in machine.ledger.gaps] == [2]
    assert [anchor.why for anchor in machine.ledger.anchors] == ["a gap"]
    assert machine.complaints() == []
    kernel.power_on()
    assert await machine.kept() is None
    assert machine.lives == 2


async def test_gap_of_a_list_without_its_beginning_is_in_another_life(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """Of a kernel whose boot_aggregate is gone nobody knows whose life it goes on, without the
    TPM's clock."""
    expected_logs.allow("keeper")
    machine = Machine(tmp_path, clock=False)
    kernel = machine.kernel
    kernel.add("/before")
    assert await machine.kept() is None
    kernel.power_on()
    kernel.add("/gone")
    kernel.trim()
    kernel.add("/a")
    assert await machine.kept() is not None
    assert machine.lives == 2
    assert [gap.index for gap in machine.ledger.gaps] == [0]


async def test_a_gap_tells_when_the_list_was_verified_last(
    machine: Machine, expected_logs: ExpectedLogs
) -> None:
    """A keeper that was started since does not know; the journal keeps what is known."""
    expected_logs.allow("keeper")
    kernel = machine.kernel
    kernel.add("/a")
    async with machine.keeper() as collector:
        await collector.flush()
        assert collector.verified is not None
        when = collector.verified[1]
        kernel.add("/b")
        kernel.kexec(0)

        async def gap() -> bool:
            return bool(status.status(collector)["gaps"])

        await wait_for_async(gap, WAIT, "the gap is written down")
        (told,) = status.status(collector)["gaps"]
        assert (told["verified"], told["verified_at"]) == (told["after"], when)
    assert [gap.verified_at for gap in machine.ledger.gaps] == [when]
    kernel.add("/c")
    kernel.kexec(0)
    assert await machine.kept() is not None
    assert [gap.verified_at for gap in machine.ledger.gaps] == [when, None]


async def test_a_kexec_that_nothing_tells_from_a_reboot_is_another_life(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """The same of a kexec. What was stored stays as it was; with the clock it is the same life."""
    expected_logs.allow("keeper")
    for clock in (False, True):
        machine = Machine(tmp_path / str(clock), clock=clock)
        kernel = machine.kernel
        kernel.add("/before")
        assert await machine.kept() is None
        kernel.kexec()
        kernel.add("/gone")
        kernel.trim()
        kernel.add("/a")
        assert await machine.kept() is not None
        assert machine.lives == (1 if clock else 2)
        lives = [
            reading.Reading(str(machine.store), name) for name in reading.lives(str(machine.store))
        ]
        assert [life.verify().complaints for life in lives] == [()] * len(lives)
        assert b"/before" in b"".join(lives[0].export(0))


@pytest.mark.parametrize("step", ["", "delete"])
async def test_view_goes_on_where_measuring_has_ended(machine: Machine, step: str) -> None:
    """A kexec has begun: A is refused, or the D behind a commit. The lists are there to be read."""
    kernel = machine.kernel
    kernel.add("/a")

    def hook(name: str) -> None:
        if name == step and len(kernel.truth) > 2:
            kernel.suspend()

    async with machine.keeper(hook) as collector:
        await collector.flush()
        kernel.add("/b")
        if not step:
            kernel.suspend()
        for _ in range(2):
            await collector.fresh()
            assert shown(collector) == b"".join(kernel.truth)

            async def suspended() -> bool:
                return collector.state is State.SUSPENDED

            await wait_for_async(suspended, WAIT, "it is told")
        assert collector.refusal is None
        stored = collector.catalogue.stored if collector.catalogue is not None else 0
        assert stored == (3 if step else 2)
    # One that starts now: where something is staged it hears of it by D alone.
    async with machine.keeper(until=State.SUSPENDED) as collector:
        await collector.fresh()
        assert shown(collector) == b"".join(kernel.truth)
        kernel.kexec()

        await joins(collector)
        kernel.add("/c")
        await collector.flush()
        assert collector.refusal is None
        assert shown(collector) == b"".join(kernel.truth)
    assert machine.complaints() == []
    assert machine.lives == 1


@pytest.mark.parametrize("begins", ["first", "reboot", "gap"])
async def test_where_measuring_has_ended_no_life_begins(machine: Machine, begins: str) -> None:
    """What cannot be told from stored records alone is refused: nothing is written any more."""
    kernel = machine.kernel
    if begins != "first":
        kernel.add("/a")
        assert await machine.kept() is None
    if begins == "reboot":
        kernel.power_on()
    elif begins == "gap":
        kernel.add("/b")
        kernel.trim()
    kernel.add("/c")
    kernel.suspend()
    async with machine.running() as collector:
        with pytest.raises(Refused):
            await collector.fresh()
        assert collector.state is State.SUSPENDED
    assert machine.lives == (0 if begins == "first" else 1)


async def test_directory_that_may_not_be_opened_for_a_while(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sign that the kernel ends: it is tried again."""
    kernel = machine.kernel
    kernel.add("/a")
    refusals = [FileError("/paper", PermissionError(errno.EACCES, "Permission denied"))]

    def count() -> int:
        if refusals:
            raise refusals.pop()
        return PaperKernel.count(kernel)

    async with machine.keeper() as collector:
        monkeypatch.setattr(kernel, "count", count)
        kernel.add("/b")

        async def stored() -> bool:
            with contextlib.suppress(DegradedError):
                await collector.flush()
            return not refusals and collector.state is State.IDLE and collector.refusal is None

        await wait_for_async(stored, WAIT, "it is kept again")
        assert shown(collector) == b"".join(kernel.truth)


async def test_kernel_that_ends_between_two_questions(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files are gone (ENODEV), and another boot_id is there: no error of the directory."""
    kernel = machine.kernel
    async with machine.keeper() as collector:
        await collector.flush()

        def count() -> int:
            kernel.power_on()
            monkeypatch.undo()
            raise FileError("/paper/runtime_measurements_count", OSError(errno.ENODEV, "gone"))

        monkeypatch.setattr(kernel, "count", count)

        async def joined() -> bool:
            return machine.lives == 2 and collector.state is State.IDLE and collector.joined

        await wait_for_async(joined, WAIT, "the next kernel is kept")
        await collector.fresh()
        assert shown(collector) == b"".join(kernel.truth)
    assert "/paper" not in caplog.text


async def test_violations_that_the_kernel_counted_alone(machine: Machine) -> None:
    """Of one without a record its own number tells; those of kernels before are added to it."""
    kernel = machine.kernel
    kernel.take(made.violation("/a"))
    kernel.counted = 1
    assert await machine.kept() is None
    kernel.kexec()
    for name in ("/b", "/c"):
        kernel.take(made.violation(name))
    kernel.counted = 2
    async with machine.keeper() as collector:
        assert await collector.violations() == 3
        await collector.flush()
        kernel.counted = 4
        assert await collector.violations() == 5
        kernel.counted = 0
        assert await collector.violations() == 3


@pytest.mark.parametrize("seed", range(12))
async def test_random_pasts(machine: Machine, seed: int) -> None:
    await play(machine, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1_000, 1_400))
async def test_many_random_pasts(machine: Machine, seed: int) -> None:
    await play(machine, seed)


async def play(machine: Machine, seed: int) -> None:
    """Nothing is lost here: the view is the truth throughout, but where a machine was restored."""
    kernel, rng = machine.kernel, random.Random(seed)
    counts: Counter[str] = Counter()
    names = (f"/{number}" for number in itertools.count())
    snapshot, restored = kernel.snapshot(), False

    def some() -> None:
        for _ in range(rng.randrange(4)):
            if rng.random() < 0.1:
                kernel.take(made.violation(next(names)))
            else:
                kernel.add(next(names))

    for _ in range(25):
        some()
        event = rng.choice(("add", "add", "kexec", "extend", "fail", "sleep", "kill", "back"))
        counts[event] += 1
        if event == "kexec":
            kernel.kexec()
        elif event in ("extend", "fail", "sleep"):
            async with machine.keeper() as collector:
                await collector.flush()
                if event == "extend":
                    kernel.extend()
                elif event == "sleep":
                    kernel.hibernate()
                else:
                    kernel.add(next(names), fails=True)
                await collector._joined()
        elif event == "kill":
            step = rng.choice(("stage", "staged", "commit", "committed", "delete", "deleted"))
            await machine.killed(step, rng.randrange(1, 3))
        elif event == "back" and rng.random() < 0.5:
            snapshot = kernel.snapshot()
        elif event == "back" and seed % 2:
            kernel.restore(snapshot)
            restored = True
        some()
        refusal = await machine.kept()
        assert refusal is None or restored, (refusal, counts)
        assert machine.complaints() == []
        if refusal is not None:
            kernel.power_on()
            snapshot, restored = kernel.snapshot(), False
