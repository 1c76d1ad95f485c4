# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The emulator: starting, adopting and refusing, loading, reset, what it measures."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from imafs.control.ops import Options
from imafs.emulator import status
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.errors import FormatError, Refused, TpmError
from imafs.formats.algorithms import by_name
from imafs.formats.binary import Record
from imafs.formats.fields import Measurement
from imafs.formats.templates import TEMPLATES, custom
from imafs.interface.grammar import Operation, Request
from imafs.interface.profiles import lookup
from imafs.tpm import NoTpm
from imafs.tpm.channel import TpmChannel
from imafs.verbs.measuring import Measuring
from tests.property.builders import record
from tests.property.reference import Rec, ng, u32, violation
from tests.support import ExpectedLogs
from tests.unit.emulator_fake import DEADLINE, FakeDevice, booted, entry, running, until, zeros

NAMES = ("sha1", "sha256")
BARE = EmulatorConfig(boot_aggregate=False)
LIST = [
    ng(10, b"boot_aggregate"),
    ng(10, b"/a"),
    violation(10, b"/v"),
    ng(11, b"/a"),
    ng(10, b"/b"),
]


def newest_of(emulator: Emulator) -> Record:
    return emulator.kernel.newest()


def ends_with(device: FakeDevice, call: str) -> bool:
    return device.calls[-1] == call


def records(recs: list[Rec]) -> list[Record]:
    return [record(rec) for rec in recs]


# Starting


async def test_a_boot_measures_boot_aggregate_first() -> None:
    device = FakeDevice()
    emulator = Emulator(EmulatorConfig(), device)
    await emulator.start()
    async with running(emulator):
        await until(lambda: emulator.queue.pending == 0)
    digest = hashlib.sha256(bytes(32 * 10)).digest()
    rec = Rec(10, "ima-ng", (b"sha256:\0" + digest, b"boot_aggregate\0"))
    assert emulator.kernel.newest() == record(rec)
    assert device.entries == [entry(rec, *NAMES)]


async def test_without_boot_aggregate_the_list_is_empty() -> None:
    emulator = Emulator(BARE, FakeDevice())
    await emulator.start()
    assert len(emulator.queue.current) == 0
    with pytest.raises(Refused) as caught:
        emulator.kernel.newest()
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("arrived", range(len(LIST) + 1))
async def test_a_loaded_list_goes_on_where_the_pcrs_are(arrived: int) -> None:
    device = FakeDevice()
    for rec in LIST[:arrived]:
        device.extend_one(entry(rec, *NAMES))
    emulator = Emulator(EmulatorConfig(), device)
    await emulator.start(records(LIST))
    assert emulator.queue.pending == len(LIST) - arrived
    assert len(emulator.queue.current) == len(LIST)  # and no boot_aggregate
    async with running(emulator):
        assert await emulator.wait_extended(len(LIST), 20)
        assert device.entries == [entry(rec, *NAMES) for rec in LIST]
        assert (await emulator.measure(record(ng(10, b"/new")))).number == len(LIST) + 1
    assert emulator.queue.violations == 1


async def test_a_loaded_list_that_the_pcrs_contradict_is_refused() -> None:
    device = FakeDevice()
    device.extend_one(entry(LIST[1], *NAMES))
    emulator = Emulator(EmulatorConfig(), device)
    with pytest.raises(TpmError, match=r"sha1:10, sha256:10 are not zero.*--adopt"):
        await emulator.start(records(LIST))
    assert len(device.entries) == 1


@pytest.mark.parametrize("bank", NAMES)
async def test_a_used_pcr_without_a_list_is_refused(bank: str) -> None:
    device = FakeDevice()
    device.pcrs[bank][10] = b"\x01" * len(device.pcrs[bank][10])
    with pytest.raises(TpmError, match=f"PCRs {bank}:10 are not zero"):
        await Emulator(EmulatorConfig(), device).start()
    assert device.entries == []


async def test_other_pcrs_may_be_anything() -> None:
    device = FakeDevice()
    device.pcrs["sha1"][0] = b"\x01" * 20
    device.pcrs["sha256"][11] = b"\x01" * 32
    await Emulator(EmulatorConfig(), device).start()


async def test_the_pcr_of_the_configuration_counts() -> None:
    device = FakeDevice()
    device.pcrs["sha1"][12] = b"\x01" * 20
    with pytest.raises(TpmError, match="sha1:12"):
        await Emulator(replace(BARE, pcr=12), device).start()


async def test_adopting_goes_on_from_the_pcrs_as_they_are() -> None:
    device = FakeDevice()
    stranger = ng(10, b"/stranger")
    device.extend_one(entry(stranger, *NAMES))
    async with booted(device, replace(BARE, adopt=True)) as emulator:
        await emulator.measure(record(LIST[1]))
        assert device.entries == [entry(rec, *NAMES) for rec in (stranger, LIST[1])]
        for bank in device.banks:
            assert emulator.extender.replay.value(bank, 10) == device.pcrs[bank.name][10]
        rows = (await status.status(emulator))["pcrs"]
        assert isinstance(rows, list)
        assert all(row["equal"] for row in rows)


async def test_a_tpm_that_does_not_answer_at_start_is_an_error() -> None:
    class Dead(FakeDevice):
        def read_pcrs(self, pcrs: object) -> dict[str, dict[int, bytes]]:
            raise TpmError("no TPM there")

    with pytest.raises(TpmError, match="no TPM there"):
        await Emulator(EmulatorConfig(), Dead()).start()


async def test_without_a_tpm() -> None:
    emulator = Emulator(EmulatorConfig(), NoTpm())
    await emulator.start()
    assert emulator.append(record(LIST[1])).number == 2
    assert emulator.queue.pending == 0
    assert await emulator.wait_extended(2, 1)
    rec = Rec(10, "ima-ng", (b"sha256:\0" + bytes(32), b"boot_aggregate\0"))
    emulator.queue.delete_first(1)
    emulator.queue.stage()
    answer = await status.status(emulator)
    assert answer["banks"] == []
    assert answer["pcrs"] == []
    assert record(rec).violation is False


async def test_padded_banks_are_the_configurations() -> None:
    device = FakeDevice("sha1", "sha512")
    async with booted(device, replace(BARE, padded_banks=frozenset({"sha512"}))) as emulator:
        await emulator.measure(record(LIST[1]))
    sha1 = LIST[1].digest("sha1")
    assert device.entries == [u32(10) + sha1 + sha1 + bytes(44)]


# Reset


async def test_reset_boots_anew() -> None:
    device = FakeDevice()
    emulator = Emulator(EmulatorConfig(), device)
    await emulator.start()
    async with running(emulator):
        await emulator.measure(record(LIST[1]))
        emulator.append(record(violation(10, b"/v")))
        emulator.queue.stage()
        emulator.append(record(LIST[4]))
        await emulator.wait_extended(4, 20)
        await emulator.reset()
        queue = emulator.queue
        assert (len(queue.current), len(queue.staged), queue.violations) == (1, 0, 0)
        assert (queue.totals.added, queue.totals.deleted) == (1, 0)
        # The hash table is empty too.
        assert (await emulator.measure(record(LIST[1]))).number == 2
        digest = hashlib.sha256(bytes(320)).digest()
        first = Rec(10, "ima-ng", (b"sha256:\0" + digest, b"boot_aggregate\0"))
        assert device.entries == [entry(first, *NAMES), entry(LIST[1], *NAMES)]


async def test_nothing_of_the_old_boot_is_extended_after_a_reset() -> None:
    # Which waiting task runs first is trio's dice: many resets with a batch in flight and
    # more pending behind it.
    for number in range(30):
        device = FakeDevice()
        async with booted(device) as emulator:
            old = [record(ng(10, b"/old%d" % n)) for n in range(600)]
            device.hang()
            for one in old:
                emulator.append(one)
            await until(partial(ends_with, device, "extend"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(emulator.reset)
                await trio.testing.wait_all_tasks_blocked()
                device.answer()
            new = ng(10, b"/new%d" % number)
            await emulator.measure(record(new))
            assert device.entries == [entry(new, *NAMES)]


async def test_boot_aggregate_is_the_first_record_after_a_reset_too() -> None:
    class Slow(FakeDevice):
        def reset(self) -> None:
            super().reset()
            self.hang()

    device = Slow()
    emulator = Emulator(EmulatorConfig(), device)
    await emulator.start()
    async with running(emulator):
        await emulator.wait_extended(1, 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(emulator.reset)
            await until(lambda: device.calls[-2:] == ["reset", "read"] or not nursery.child_tasks)
            emulator.append(record(LIST[1]))  # measuring goes on meanwhile
            device.answer()
        await until(lambda: emulator.queue.pending == 0)
        digest = hashlib.sha256(bytes(320)).digest()
        first = Rec(10, "ima-ng", (b"sha256:\0" + digest, b"boot_aggregate\0"))
        assert device.entries[0] == entry(first, *NAMES)


async def test_resets_at_the_same_time_are_made_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # None of them may wait for RESET_WAIT: nothing is in flight.
    monkeypatch.setattr("imafs.emulator.emulator.RESET_WAIT", 1e9)
    device = FakeDevice()
    async with booted(device) as emulator:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(emulator.reset)
        assert device.calls.count("reset") == 20
        assert (await emulator.measure(record(LIST[1]))).number == 1
        assert device.entries == [entry(LIST[1], *NAMES)]


async def test_a_reset_abandons_a_batch_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imafs.emulator.emulator.RESET_WAIT", 0.02)
    device = FakeDevice()
    device.late = False
    async with booted(device) as emulator:
        device.hang()
        emulator.append(record(LIST[1]))
        await until(partial(ends_with, device, "extend"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(emulator.reset)
            await until(lambda: "reset" in device.calls)
            device.answer()
        await emulator.measure(record(LIST[4]))
        assert device.entries == [entry(LIST[4], *NAMES)]


async def test_a_loaded_list_may_be_staged_in_part() -> None:
    emulator = Emulator(EmulatorConfig(), FakeDevice())
    await emulator.start(records(LIST), staged=2)
    assert (len(emulator.queue.staged), len(emulator.queue.current)) == (2, 3)
    assert emulator.queue.pending == 5


async def test_an_empty_list_that_was_loaded_gets_no_boot_aggregate() -> None:
    emulator = Emulator(EmulatorConfig(), FakeDevice())
    await emulator.start([])
    assert len(emulator.queue.current) == 0


async def test_a_failed_reset_changes_nothing() -> None:
    class Fixed(FakeDevice):
        def reset(self) -> None:
            raise TpmError("only a swtpm of ours can be reset")

    device = Fixed()
    async with booted(device) as emulator:
        await emulator.measure(record(LIST[1]))
        with pytest.raises(TpmError, match="only a swtpm"):
            await emulator.reset()
        assert len(emulator.queue.current) == 1
        assert (await emulator.measure(record(LIST[4]))).extended
        assert device.entries == [entry(LIST[1], *NAMES), entry(LIST[4], *NAMES)]


@pytest.mark.parametrize("late", [True, False])
async def test_a_failed_reset_extends_no_batch_twice(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imafs.emulator.emulator.RESET_WAIT", 0.02)

    class Fixed(FakeDevice):
        def reset(self) -> None:
            raise TpmError("only a swtpm of ours can be reset")

    device = Fixed()
    device.late = late
    async with booted(device) as emulator:
        device.hang()
        for rec in LIST:
            emulator.append(record(rec))
        await until(partial(ends_with, device, "extend"))
        with pytest.raises(TpmError, match="only a swtpm"):
            await emulator.reset()
        device.answer()
        assert await emulator.wait_extended(len(LIST), 20)
        assert device.entries == [entry(rec, *NAMES) for rec in LIST]
        assert emulator.extender.failures.mismatch is None


async def test_a_reset_that_comes_after_it_was_given_up_is_noticed(
    monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("sha1:10.* do not replay since record 1: somebody else .* reset them")
    deadlines = TpmChannel.call.__kwdefaults__
    assert deadlines is not None
    device = FakeDevice()
    async with booted(device) as emulator:
        await emulator.measure(record(LIST[1]))
        device.hang()
        with monkeypatch.context() as short:
            short.setitem(deadlines, "deadline", 0.05)
            with pytest.raises(TpmError, match="did not answer"):
                await emulator.reset()
        device.answer()
        await until(lambda: not device.entries)
        await emulator.measure(record(LIST[4]))
        assert emulator.extender.failures.mismatch is not None


async def test_a_reset_ends_every_wait_for_the_old_boot() -> None:
    device = FakeDevice()
    async with booted(device) as emulator:
        verbs = Measuring(emulator, trio.Lock())
        emulator.pace.delay = 1000.0
        receipts = [emulator.append(record(rec)) for rec in LIST]
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await emulator.wait_for(receipts[-1], 1000))

        async def ask_by_verb() -> None:
            try:
                await verbs.wait(Options(extended=True), lambda done, total: None)
            except Refused as refused:
                answers.append(refused.errno_name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask_by_verb)
            await trio.testing.wait_all_tasks_blocked()
            emulator.pace.delay = 0.0
            await emulator.reset()
        assert sorted(map(str, answers)) == ["ENODEV", "False"]
        # The same number in the next boot is another record.
        assert (await emulator.measure(record(LIST[1]))).extended
        assert not await emulator.wait_for(receipts[0], 1000)
        assert device.entries == [entry(LIST[1], *NAMES)]


async def test_what_was_extended_before_a_reset_is_told_so() -> None:
    device = FakeDevice()
    async with booted(device) as emulator:
        device.hang()
        receipt = emulator.append(record(LIST[1]))
        answers: list[bool] = []

        async def ask() -> None:
            answers.append(await emulator.wait_for(receipt, 1000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(partial(ends_with, device, "extend"))
            nursery.start_soon(emulator.reset)
            await trio.testing.wait_all_tasks_blocked()
            device.answer()
        assert answers == [True]


# What it measures


def test_records_are_in_the_configured_template_and_pcr() -> None:
    fmt = custom("d-ng|n-ng|imode")
    emulator = Emulator(replace(BARE, template=fmt, pcr=12), FakeDevice())
    measurement = Measurement(b"/x", by_name("sha256"), bytes(32), mode=5)
    made = emulator.kernel.record(measurement)
    assert (made.pcr, made.template, made.violation) == (12, fmt, False)
    assert emulator.kernel.record(measurement, TEMPLATES["ima-sig"], 11).template.label == "ima-sig"
    assert emulator.kernel.record(measurement, TEMPLATES["ima-sig"], 11).pcr == 11


@pytest.mark.parametrize("label", ["ima", "ima-ng", "ima-sigv2"])
@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_violations_use_the_default_template_pcr_and_hash(label: str, algorithm: str) -> None:
    config = replace(BARE, template=TEMPLATES[label], algorithm=by_name(algorithm), pcr=9)
    emulator = Emulator(config, FakeDevice())
    made = emulator.kernel.violation(b"/v")
    zero = bytes({"sha1": 20, "sha256": 32}[algorithm])
    stored = algorithm.encode() + b":\0" + zero
    first = {"ima": bytes(20), "ima-ng": stored, "ima-sigv2": b"ima:" + stored}[label]
    assert made.violation
    assert made.pcr == 9
    assert made.template.label == label
    assert made.template.split(made.data)[:2] == [first, b"/v\0"]
    # A rule's template is not used (7.3.4-mixed-pcr11).
    odd = Measurement(b"/v", by_name(algorithm), zero, violation=True)
    assert emulator.kernel.record(odd, TEMPLATES["ima-sig"]).template.label == label


def test_critical_data() -> None:
    emulator = Emulator(replace(BARE, template=TEMPLATES["ima-sig"]), FakeDevice())
    made = emulator.kernel.critical_data(b"selinux state", b"enforcing=1;")
    digest = hashlib.sha256(b"enforcing=1;").digest()
    assert made.template.label == "ima-buf"
    assert made.template.split(made.data) == [
        b"sha256:\0" + digest,
        b"selinux_state\0",
        b"enforcing=1;",
    ]


async def test_what_cannot_be_built_is_no_record() -> None:
    emulator = Emulator(replace(BARE, template=TEMPLATES["ima"]), FakeDevice())
    with pytest.raises(FormatError):
        emulator.kernel.record(Measurement(b"/x", by_name("sha256"), bytes(32)))
    assert len(emulator.queue.current) == 0


async def test_suspended() -> None:
    async with booted(FakeDevice()) as emulator:
        emulator.queue.suspended = True
        with pytest.raises(Refused) as caught:
            await emulator.measure(record(LIST[1]))
        assert caught.value.errno == errno.ENODEV
        emulator.queue.suspended = False
        assert (await emulator.measure(record(LIST[1]))).number == 1


async def test_a_duplicate_is_an_answer_and_no_error() -> None:
    async with booted(FakeDevice()) as emulator:
        await emulator.measure(record(LIST[1]))
        receipt = await emulator.measure(record(LIST[1]))
        assert (receipt.duplicate, receipt.extended) == (True, True)
        assert emulator.append(record(LIST[1]), loaded=True).number == 2


async def test_a_duplicate_of_what_no_pcr_has_yet() -> None:
    async with booted(FakeDevice()) as emulator:
        emulator.pace.behind = 1
        assert not (await emulator.measure(record(LIST[1]), 0.01)).extended
        receipt = await emulator.measure(record(LIST[1]), 0.01)
        assert (receipt.duplicate, receipt.extended) == (True, False)
        emulator.pace.behind, emulator.pace.fail = 0, 1
        emulator.extender.hurry()
        await emulator.wait_extended(1, 10)
        receipt = await emulator.measure(record(LIST[1]), 0.01)
        assert (receipt.duplicate, receipt.extended) == (True, False), "that extend has failed"


async def test_newest_is_the_record_to_repeat() -> None:
    async with booted(FakeDevice()) as emulator:
        for rec in LIST:
            emulator.append(record(rec))
            assert newest_of(emulator) == record(rec)
        emulator.queue.stage()
        assert newest_of(emulator) == record(LIST[-1])


async def test_waiting_for_records() -> None:
    async with booted(FakeDevice()) as emulator:
        waited = False

        async def wait() -> None:
            nonlocal waited
            await emulator.wait_added(3)
            waited = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for rec in LIST[:2]:
                emulator.append(record(rec))
                await trio.testing.wait_all_tasks_blocked()
            assert not waited
            emulator.append(record(LIST[2]))
        assert waited


# Requests


async def test_requests_reach_the_queue() -> None:
    async with booted(FakeDevice()) as emulator:
        for rec in LIST:
            emulator.append(record(rec))
        emulator.kernel.request(Request(Operation.DELETE_FIRST, 2))
        assert len(emulator.queue.current) == 3
        emulator.kernel.request(Request(Operation.STAGE))
        assert (len(emulator.queue.current), len(emulator.queue.staged)) == (0, 3)
        with pytest.raises(Refused) as caught:
            emulator.kernel.request(Request(Operation.STAGE))
        assert caught.value.errno == errno.EEXIST
        emulator.kernel.request(Request(Operation.DELETE_STAGED))
        assert len(emulator.queue.staged) == 0


async def test_deleted_records_are_freed_behind_the_scenes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imafs.lists.packed.SEGMENT", 2)
    async with booted(FakeDevice()) as emulator:
        for number in range(100):
            emulator.append(record(ng(10, b"/%d" % number)))
        emulator.kernel.request(Request(Operation.DELETE_FIRST, 100))
        assert emulator.queue._garbage
        await until(lambda: not emulator.queue._garbage)


async def test_the_list_of_an_ended_boot_is_freed_behind_the_scenes() -> None:
    async with booted(FakeDevice()) as emulator:
        for rec in LIST:
            emulator.append(record(rec))
        gone = list(emulator.queue.current.segments)
        await emulator.reset()
        assert set(gone) < set(emulator.queue._garbage)
        await until(lambda: not emulator.queue._garbage)


# Status


async def test_status() -> None:
    device = FakeDevice()
    async with booted(device) as emulator:
        for rec in LIST:
            await emulator.measure(record(rec))
        emulator.queue.delete_first(1)
        emulator.queue.stage()
        emulator.append(record(LIST[1]))  # a duplicate
        await emulator.measure(record(ng(10, b"/c")))
        holder = emulator.kernel.accounting.open(0, write=True)
        answer = await status.status(emulator)
        emulator.kernel.accounting.release(holder)
    assert answer["records"] == {
        "current": 1,
        "staged": 4,
        "pending": 0,
        "since_boot": 6,
        "deleted": 1,
        "duplicates": 1,
        "unsound": 0,
    }
    staged = sum(len(rec.binary(rec.shown("sha1"))) for rec in LIST[1:])
    current = ng(10, b"/c")
    assert answer["bytes"] == {"current": len(current.binary(bytes(20))), "staged": staged}
    assert answer["violations"] == 1
    assert answer["banks"] == list(NAMES)
    assert answer["writer"] == {"pid": 0, "name": None}
    assert answer["readers"] == []
    assert answer["tcti"] == "fake:"
    rows = answer["pcrs"]
    assert isinstance(rows, list)
    assert [(row["bank"], row["pcr"]) for row in rows] == [
        ("sha1", 10),
        ("sha1", 11),
        ("sha256", 10),
        ("sha256", 11),
    ]
    for row in rows:
        assert row["equal"]
        assert row["value"] == device.pcrs[row["bank"]][row["pcr"]].hex()
    assert zeros("sha1")["sha1"][10] == bytes(20)


async def test_status_tells_a_pcr_that_does_not_replay() -> None:
    device = FakeDevice()
    async with booted(device) as emulator:
        await emulator.measure(record(LIST[1]))
        device.pcrs["sha1"][10] = b"\x01" * 20
        rows = (await status.status(emulator))["pcrs"]
        assert isinstance(rows, list)
        assert {row["bank"]: row["equal"] for row in rows} == {"sha1": False, "sha256": True}


# Freeing


async def test_what_an_automatic_export_deletes_is_freed(tmp_path: Path) -> None:
    """No request of user space comes after it."""
    config = replace(BARE, profile=lookup("export-2019"), export_root=tmp_path, export_limit=10)
    async with booted(FakeDevice(), config) as emulator:
        emulator.kernel.request(Request(Operation.EXPORT, path=bytes(tmp_path / "list")))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(25):
            emulator.append(record(ng(10, b"/%d" % number)))
        assert emulator.queue.totals.deleted == 22
        assert emulator.queue.has_garbage, "not in the middle of a measurement"
        await until(lambda: not emulator.queue.has_garbage)


async def test_what_a_loaded_list_leaves_is_freed() -> None:
    """A draft that forgets what is staged makes a new hash table at the start already."""
    config = replace(BARE, profile=lookup("rfc-v1"), flush_htable=True)
    emulator = Emulator(config, FakeDevice())
    await emulator.start(records(LIST), staged=3)
    assert emulator.queue.has_garbage
    async with running(emulator):
        await until(lambda: not emulator.queue.has_garbage)
