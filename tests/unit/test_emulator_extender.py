# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Extending: order, batches, failures, lost answers, a TPM that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock

from imafs.emulator import extender, status
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.errors import TpmError
from imafs.formats.algorithms import Bank
from imafs.tpm.channel import TpmChannel
from tests.property.builders import record
from tests.property.reference import Rec, ng, violation
from tests.support import ExpectedLogs
from tests.unit.emulator_fake import FakeDevice, booted, entry, running, until

NAMES = ("sha1", "sha256")


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extender, "_RETRY_FIRST", 0.001)


@contextmanager
def short_deadline() -> Iterator[None]:
    """TPM calls are given up after 50 ms: those of a TPM that answers may take as long."""
    defaults = TpmChannel.call.__kwdefaults__
    assert defaults is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "deadline", 0.05)
        yield


def many(count: int, start: int = 0) -> list[Rec]:
    return [
        violation(10, b"/v%d" % number)
        if number % 10 == 7
        else ng(11 if number % 5 == 3 else 10, b"/file%d" % number)
        for number in range(start, start + count)
    ]


def replayed(recs: list[Rec]) -> dict[str, dict[int, bytes]]:
    tpm = FakeDevice(*NAMES)
    for rec in recs:
        tpm.extend_one(entry(rec, *NAMES))
    return tpm.pcrs


def check(emulator: Emulator, device: FakeDevice, recs: list[Rec]) -> None:
    """Everything arrived once, in the order of the list, and the replay knows."""
    assert device.entries == [entry(rec, *NAMES) for rec in recs]
    assert device.pcrs == replayed(recs)
    assert emulator.queue.pending == 0
    assert emulator.queue.totals.extended == len(recs)
    for bank in device.banks:
        for pcr in (10, 11):
            assert emulator.extender.replay.value(bank, pcr) == device.pcrs[bank.name][pcr]


async def test_extends_are_in_list_order_and_in_batches() -> None:
    device, recs = FakeDevice(), many(1300)
    async with booted(device) as emulator:
        for rec in recs:
            emulator.append(record(rec))
        assert await emulator.wait_extended(len(recs), 20)
        check(emulator, device, recs)
    assert device.batches == [512, 512, 276]
    assert emulator.extender.failures.extend == 0


async def test_records_appended_while_a_batch_is_in_flight_follow_it() -> None:
    device, recs = FakeDevice(), many(40)
    async with booted(device) as emulator:
        device.hang()
        for rec in recs[:10]:
            emulator.append(record(rec))
        await until(lambda: device.calls[-1] == "extend")
        for rec in recs[10:]:
            emulator.append(record(rec))
        assert emulator.queue.pending == 40
        device.answer()
        assert await emulator.wait_extended(40, 20)
        check(emulator, device, recs)
        assert device.batches == [10, 30]


@pytest.mark.parametrize("done", [0, 1, 17, 39, 40])
@pytest.mark.parametrize("lost", [False, True])
async def test_a_failed_batch_goes_on_where_it_stopped(
    done: int, lost: bool, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("extending failed, records stay and are retried: the TPM is ill")
    device, recs = FakeDevice(), many(40)
    device.failures.append((done, lost))
    async with booted(device) as emulator:
        for rec in recs:
            emulator.append(record(rec))
        assert await emulator.wait_extended(len(recs), 20)
        check(emulator, device, recs)
        failures = emulator.extender.failures
        assert (failures.extend, failures.mismatch) == (1, None)
        assert failures.last == "the TPM is ill"
        # Reconnected, and the PCRs were read before anything was extended again.
        assert device.calls[device.calls.index("extend") :][:3] == ["extend", "reconnect", "read"]


async def test_records_stay_in_the_list_while_extending_fails(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.expect("extending failed")
    device, recs = FakeDevice(), many(30)
    device.failures.extend((number, True) for number in (0, 3, 0, 1, 10))
    async with booted(device) as emulator:
        receipts = [emulator.append(record(rec)) for rec in recs]
        assert [receipt.number for receipt in receipts] == list(range(1, 31))
        assert len(emulator.queue.current) == 30
        await until(lambda: emulator.extender.failures.extend == 5)
        assert len(emulator.queue.current) == 30
        assert await emulator.wait_extended(30, 20)
        check(emulator, device, recs)


async def test_a_stranger_in_the_pcr_is_named(expected_logs: ExpectedLogs) -> None:
    expected_logs.expect("extending failed")
    expected_logs.expect("somebody else extended or reset them")
    device, recs = FakeDevice(), many(20)
    async with booted(device) as emulator:
        for rec in recs[:5]:
            emulator.append(record(rec))
        assert await emulator.wait_extended(5, 20)
        device.extend_one(entry(ng(10, b"/stranger"), *NAMES))
        device.failures.append((2, False))
        for rec in recs[5:]:
            emulator.append(record(rec))
        await until(lambda: emulator.extender.failures.mismatch)
        mismatch = emulator.extender.failures.mismatch
        assert mismatch is not None
        assert "sha1:10" in mismatch
        assert "sha256:10" in mismatch
        assert "since record 5" in mismatch
        assert len(emulator.queue.current) == 20


async def test_after_a_mismatch_no_entry_that_certainly_arrived_is_extended_again(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.allow("extending failed|somebody else")
    device, recs = FakeDevice(), many(20)
    stranger = ng(10, b"/stranger")
    async with booted(device) as emulator:
        device.extend_one(entry(stranger, *NAMES))
        device.failures.append((5, False))
        for rec in recs:
            emulator.append(record(rec))
        assert await emulator.wait_extended(20, 20)
        # The TPM said that five had arrived: ExtendError.done.
        assert device.entries == [entry(rec, *NAMES) for rec in (stranger, *recs)]


@pytest.mark.parametrize("late", [True, False])
async def test_a_tpm_that_hangs_is_given_up_and_retried(
    late: bool, expected_logs: ExpectedLogs
) -> None:
    # Arriving late: the abandoned call is carried out before the next one begins.
    expected_logs.expect("did not answer within 0.05 s")
    device, recs = FakeDevice(), many(10)
    device.late = late
    async with booted(device) as emulator:
        device.hang()
        with short_deadline():
            for rec in recs:
                emulator.append(record(rec))
            await until(lambda: emulator.extender.failures.extend)
            assert len(emulator.queue.current) == 10
            await until(lambda: "reconnect" in device.calls)
        assert emulator.queue.pending == 10
        # Nothing of the kernel's side waits for the TPM.
        emulator.queue.stage()
        emulator.queue.delete_staged()
        device.answer()
        await until(lambda: emulator.queue.pending == 0)
        check(emulator, device, recs)


async def test_a_measurement_is_answered_within_its_own_deadline() -> None:
    device = FakeDevice()
    async with booted(device) as emulator:
        done = await emulator.measure(record(ng(10, b"/a")))
        assert (done.number, done.duplicate, done.extended) == (1, False, True)
        again = await emulator.measure(record(ng(10, b"/a")))
        assert again.duplicate
        device.hang()
        late = await emulator.measure(record(ng(10, b"/b")), wait=0.02)
        assert (late.number, late.duplicate, late.extended) == (2, False, False)
        assert len(emulator.queue.current) == 2
        device.answer()
        assert await emulator.wait_extended(2, 20)


async def test_the_status_comes_while_the_tpm_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "TPM_DEADLINE", 0.05)
    device = FakeDevice()
    async with booted(device) as emulator:
        await emulator.measure(record(ng(10, b"/a")))
        device.hang()
        emulator.append(record(ng(10, b"/b")))
        await until(lambda: device.calls[-1] == "extend")
        answer = await status.status(emulator)
        assert answer["records"] == {
            "current": 2,
            "staged": 0,
            "pending": 1,
            "since_boot": 2,
            "deleted": 0,
            "duplicates": 0,
            "unsound": 0,
        }
        failures = answer["failures"]
        assert isinstance(failures, dict)
        assert "did not answer" in failures["last"]
        rows = answer["pcrs"]
        assert isinstance(rows, list)
        assert [row["value"] for row in rows] == [None, None]
        assert all(row["pending"] for row in rows)


async def test_a_status_that_gave_up_waiting_for_the_extender_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status, "TPM_DEADLINE", 0.02)
    device, recs = FakeDevice(), many(10)
    async with booted(device) as emulator:
        device.hang()
        for rec in recs:
            emulator.append(record(rec))
        await until(lambda: device.calls[-1] == "extend")
        await status.status(emulator)
        assert not emulator.channel.broken
        device.answer()
        assert await emulator.wait_extended(10, 20)
        check(emulator, device, recs)
        assert "reconnect" not in device.calls


async def test_a_tpm_whose_banks_cannot_be_replayed_gets_no_entry_twice(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.expect("extending failed")
    device, recs = FakeDevice("sha256"), [ng(10, b"/%d" % number) for number in range(10)]
    device.banks = (Bank(0x27, 32, None),)
    device.failures.append((5, False))
    async with booted(device) as emulator:
        for rec in recs:
            emulator.append(record(rec))
        assert await emulator.wait_extended(10, 20)
        sha1 = [rec.digest("sha1") for rec in recs]
        assert device.entries == [b"\x0a\0\0\0" + digest + bytes(12) for digest in sha1]


async def test_calls_are_made_one_at_a_time() -> None:
    device = FakeDevice()
    channel = TpmChannel(device)
    inside = most = 0

    def work() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(channel.call, work)
    assert most == 1


async def test_a_failed_call_reconnects_before_the_next_one() -> None:
    device = FakeDevice()
    channel = TpmChannel(device)

    def fail() -> None:
        raise TpmError("no")

    with pytest.raises(TpmError, match="no"):
        await channel.call(fail)
    assert channel.broken
    assert await channel.call(lambda: 5) == 5
    assert not channel.broken
    assert device.calls == ["reconnect"]


async def test_the_newest_records_stay_behind() -> None:
    device, recs = FakeDevice(), many(40)
    async with booted(device) as emulator:
        emulator.pace.behind = 5
        for rec in recs:
            emulator.append(record(rec))
        await until(lambda: emulator.queue.pending == 5)
        assert len(device.entries) == 35
        # The answer to a measurement does not wait for an extend that will not come.
        assert not await emulator.wait_extended(40, 20)
        emulator.append(record(many(1, 40)[0]))
        await until(lambda: len(device.entries) == 36)
        emulator.pace.behind = 0
        emulator.extender.hurry()
        assert await emulator.wait_extended(41, 20)
        check(emulator, device, [*recs, *many(1, 40)])


async def test_a_delay_holds_every_record_for_so_long(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # the TPM's threads are given their time
    device, recs = FakeDevice(), many(3)
    async with booted(device) as emulator:
        emulator.pace.delay = 7.0
        begin = trio.current_time()
        emulator.append(record(recs[0]))
        await trio.sleep(6)
        emulator.append(record(recs[1]))  # comes too late for the first batch
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.9):
            await emulator.extender.wait_extended(1)
        await emulator.extender.wait_extended(1)
        assert device.batches == [1]
        assert trio.current_time() - begin == pytest.approx(7, abs=0.1)
        await emulator.extender.wait_extended(2)
        assert trio.current_time() - begin == pytest.approx(14, abs=0.1)
        emulator.append(record(recs[2]))
        emulator.pace.delay = 0
        emulator.extender.hurry()
        await emulator.extender.wait_extended(3)
        assert trio.current_time() - begin == pytest.approx(14, abs=0.1)


async def test_extends_that_fail_on_purpose_stay_out_of_the_pcrs() -> None:
    device, recs = FakeDevice(), many(30)
    async with booted(device) as emulator:
        for rec in recs[:10]:
            emulator.append(record(rec))
        assert await emulator.wait_extended(10, 20)
        emulator.pace.fail = 3
        receipts = [emulator.append(record(rec)) for rec in recs[10:]]
        await emulator.extender.wait_extended(30)
        assert device.entries == [entry(rec, *NAMES) for rec in recs[:10] + recs[13:]]
        assert len(emulator.queue.current) == 30
        done = [await emulator.wait_extended(receipt.number, 0) for receipt in receipts]
        assert done == [False] * 3 + [True] * 17
        told = await status.status(emulator)
        rows = told["pcrs"]
        assert isinstance(rows, list)
        # The list does not lead to the PCR that these records should have gone to.
        assert {row["equal"] for row in rows if row["pcr"] == 10} == {False}
        for bank in device.banks:
            row = next(r for r in rows if (r["bank"], r["pcr"]) == (bank.name, 10))
            assert row["replayed"] == replayed(recs)[bank.name][10].hex()
        assert emulator.extender.failures.skipped == 3
        assert emulator.extender.failures.mismatch is None


async def test_changing_the_pace_ends_the_wait_for_a_retry(
    monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("extending failed")
    monkeypatch.setattr(extender, "_RETRY_FIRST", 1000.0)
    device, recs = FakeDevice(), many(5)
    device.failures.append((2, False))
    async with booted(device) as emulator:
        for rec in recs:
            emulator.append(record(rec))
        await until(lambda: emulator.extender.failures.extend == 1)
        await until(lambda: trio.lowlevel.current_statistics().tasks_runnable == 0)
        emulator.extender.hurry()
        assert await emulator.wait_extended(5, 20)
        check(emulator, device, recs)


async def test_extends_fail_on_purpose_only_behind_those_that_arrived(
    monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("extending failed")
    monkeypatch.setattr(extender, "_RETRY_FIRST", 1000.0)
    device, recs = FakeDevice(), many(8)
    device.failures.append((2, True))
    async with booted(device) as emulator:
        for rec in recs:
            emulator.append(record(rec))
        await until(lambda: emulator.extender.failures.extend == 1)
        # Three are in the PCRs, of which two are known to be; the next two are to fail.
        emulator.pace.fail = 2
        emulator.extender.hurry()
        await emulator.extender.wait_extended(8)
        assert device.entries == [entry(rec, *NAMES) for rec in recs[:3] + recs[5:]]
        skipped = [number for number in range(1, 9) if emulator.extender.skipped(number)]
        assert skipped == [4, 5]
        assert emulator.extender.failures.mismatch is None


async def test_records_that_stay_behind_do_so_after_a_failure_too(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.expect("extending failed")
    device, recs = FakeDevice(), many(10)
    device.failures.append((4, False))
    async with booted(device) as emulator:
        emulator.pace.behind = 3
        for rec in recs:
            emulator.append(record(rec))
        await emulator.extender.wait_extended(7)
        assert device.entries == [entry(rec, *NAMES) for rec in recs[:7]]
        assert emulator.queue.pending == 3


async def test_extends_that_fail_one_by_one_are_kept_as_one_range() -> None:
    device, recs = FakeDevice(), many(30)
    async with booted(device) as emulator:
        for number, rec in enumerate(recs, 1):
            emulator.pace.fail = int(number not in (3, 20))
            emulator.append(record(rec))
            await emulator.extender.wait_extended(number)
        failed = [number for number in range(32) if emulator.extender.skipped(number)]
        assert failed == [n for n in range(1, 31) if n not in (3, 20)]
        assert len(emulator.extender._skipped) == 3
        assert device.entries == [entry(recs[n - 1], *NAMES) for n in (3, 20)]


async def test_a_slow_tpm_gets_what_it_does_in_the_time_of_a_call() -> None:
    device, recs = FakeDevice(), many(60)
    device.pace = 25
    async with booted(device) as emulator:
        for rec in recs:
            emulator.append(record(rec))
        assert await emulator.wait_extended(len(recs), 20)
        check(emulator, device, recs)
        assert device.batches == [25, 25, 10]


async def test_what_the_tpm_refuses_stays_in_the_list_and_the_queue_goes_on(
    expected_logs: ExpectedLogs,
) -> None:
    """As ``ima_pcr_extend``: said once per PCR, counted, never tried again."""
    expected_logs.expect("record 2: PCR 17 is not extended, the record stays: .*0x907")
    expected_logs.expect("record 5: PCR 63 is not extended, the record stays: .*0x907")
    device = FakeDevice()
    device.refuses = {17, 63}
    recs = [ng(pcr, b"/%d" % n) for n, pcr in enumerate([10, 17, 11, 17, 63, 23, 17, 10])]
    kept = [rec for rec in recs if rec.pcr not in device.refuses]
    async with booted(device) as emulator:
        receipts = [emulator.append(record(rec)) for rec in recs]
        await emulator.extender.wait_extended(8)
        assert device.entries == [entry(rec, *NAMES) for rec in kept]
        assert len(emulator.queue.current) == 8
        failures = emulator.extender.failures
        assert (failures.refused, failures.extend, failures.mismatch) == (4, 0, None)
        done = [await emulator.wait_extended(receipt.number, 0) for receipt in receipts]
        assert done == [rec in kept for rec in recs]
        assert "reconnect" not in device.calls, "the connection is in order"
        rows = (await status.status(emulator))["pcrs"]
        assert isinstance(rows, list)
        assert {(row["pcr"], row["equal"]) for row in rows} == {(10, True), (11, True), (23, True)}


async def test_a_refused_record_of_an_ordinary_pcr_shows_in_the_status(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.expect("record 1: PCR 10 is not extended")
    device = FakeDevice()
    device.refuses = {10}
    async with booted(device) as emulator:
        emulator.append(record(ng(10, b"/lost")))
        await emulator.extender.wait_extended(1)
        device.refuses = set()
        emulator.append(record(ng(10, b"/kept")))
        await emulator.extender.wait_extended(2)
        told = await status.status(emulator)
        rows, failures = told["pcrs"], told["failures"]
        assert isinstance(rows, list)
        assert isinstance(failures, dict)
        assert {row["equal"] for row in rows} == {False}
        assert (failures["refused"], failures["mismatch"]) == (1, None)


@pytest.mark.parametrize("done", range(7))
async def test_refused_records_among_those_in_doubt(done: int, expected_logs: ExpectedLogs) -> None:
    """The connection fails in the middle of a batch with records of PCR 17."""
    expected_logs.expect("extending failed")
    expected_logs.allow("PCR 17 is not extended")
    device = FakeDevice()
    recs = [ng(pcr, b"/%d" % n) for n, pcr in enumerate([10, 17, 10, 17, 17, 10])]
    kept = [rec for rec in recs if rec.pcr != 17]
    device.refuses = {17}
    arrived = sum(rec.pcr != 17 for rec in recs[:done])
    device.failures.append((0, False))
    async with booted(device) as emulator:
        for rec in kept[:arrived]:
            device.extend_one(entry(rec, *NAMES))
        for rec in recs:
            emulator.append(record(rec))
        await emulator.extender.wait_extended(6)
        assert device.entries == [entry(rec, *NAMES) for rec in kept]
        assert emulator.extender.failures.refused == 3
        assert emulator.extender.failures.mismatch is None


async def test_a_loaded_list_with_such_records_is_taken(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("is not extended, the record stays")
    device = FakeDevice()
    device.refuses = {17, 22}
    for bank in device.pcrs.values():
        bank.update({pcr: b"\xff" * len(bank[pcr]) for pcr in (17, 22)})
    recs = [ng(pcr, b"/%d" % n) for n, pcr in enumerate([10, 17, 10, 22, 10])]
    emulator = Emulator(EmulatorConfig(boot_aggregate=False), device)
    await emulator.start([record(rec) for rec in recs])
    async with running(emulator):
        await emulator.extender.wait_extended(5)
        assert device.entries == [entry(rec, *NAMES) for rec in recs if rec.pcr == 10]
        assert emulator.extender.failures.refused == 2
