# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""kexec and reboot on an emulator without a mount: the TPM, the queue, the order of things."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from imafs.emulator import status
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.emulator.policy_writer import PolicyWriter
from imafs.emulator.restart import Lifecycle
from imafs.errors import Refused, TpmError, UsageError
from imafs.formats.algorithms import SHA1, SHA256
from imafs.formats.binary import Reader, Record
from imafs.formats.fields import Measurement
from imafs.formats.kexec_buffer import decode
from imafs.formats.templates import TEMPLATES, custom
from imafs.interface.behaviour import CARRIES_BOTH
from imafs.interface.grammar import Operation, Request
from imafs.interface.profiles import PROFILES, lookup
from imafs.kernel import carry, kexec
from imafs.kernel.policy.language import parse
from imafs.kernel.policy.match import Policy
from tests.property.builders import record
from tests.property.reference import Rec, extend, ng, violation
from tests.support import ExpectedLogs
from tests.unit.emulator_fake import FakeDevice, entry, running, until

NAMES = ("sha1", "sha256")
BARE = EmulatorConfig(boot_aggregate=False)
LIST = [ng(10, b"/a"), violation(10, b"/v"), ng(11, b"/b"), ng(10, b"/c")]
RECORDS = [record(rec) for rec in LIST]
AGGREGATE = Rec(
    10, "ima-ng", (b"sha256:\0" + hashlib.sha256(bytes(320)).digest(), b"boot_aggregate\0")
)


@asynccontextmanager
async def machine(
    device: FakeDevice, config: EmulatorConfig = BARE
) -> AsyncIterator[tuple[Emulator, Lifecycle]]:
    """A running emulator with LIST in it, the first two records staged."""
    emulator = Emulator(config, device)
    await emulator.start()
    async with running(emulator):
        for number, one in enumerate(RECORDS):
            emulator.append(one)
            if number == 1:
                emulator.kernel.request(Request(Operation.STAGE))
        yield emulator, Lifecycle(emulator)


def current(emulator: Emulator) -> list[Record]:
    data, _ = carry.buffer(emulator.queue, replace(CARRIES_BOTH, staged=False), None)
    return [parsed.record for parsed in Reader(data[24:], 20)]


def buffers(records: list[Record]) -> dict[bytes, bytes]:
    """Critical data by name."""
    parts = [r.template.split(r.data) for r in records if r.template.label == "ima-buf"]
    return {name.rstrip(b"\0"): buffer for _, name, buffer in parts}


def refusal(caught: pytest.ExceptionInfo[Refused]) -> str:
    return caught.value.errno_name


def replayed(records: list[Record], pcr: int = 10) -> dict[str, bytes]:
    values = {"sha1": bytes(20), "sha256": bytes(32)}
    for one in records:
        for name in values:
            if one.pcr == pcr:
                data = one.template.hash_input(one.data)
                width = len(values[name])
                digest = b"\xff" * width if one.violation else hashlib.new(name, data).digest()
                values[name] = extend(values[name], digest, name)
    return values


async def test_a_kexec_carries_staged_then_current() -> None:
    device = FakeDevice()
    async with machine(device, EmulatorConfig()) as (emulator, life):
        image = life.load()
        assert emulator.kernel.image == image
        found = await life.execute()
        assert found == kexec.Crossing(7, 7)
        records = current(emulator)
        assert records[0] == record(AGGREGATE)
        assert records[1:5] == RECORDS
        assert list(buffers(records)) == [kexec.LOAD, kexec.EXECUTE]
        assert records[7] == record(AGGREGATE)
        queue = emulator.queue
        assert (len(queue.current), len(queue.staged), queue.suspended) == (8, 0, False)
        assert queue.violations == 0
        # The hash table is empty and has nothing restored; violations never were in it.
        assert emulator.append(RECORDS[0]).number == 9
        await emulator.wait_extended(9, 20)
        assert len(device.entries) == 9
        values = replayed([*records, RECORDS[0]])
        assert {name: device.pcrs[name][10] for name in NAMES} == values
        answer = await status.status(emulator)
        assert answer["boot"] == {
            **{"number": 1, "kexecs": 1, "carried": 7, "carried_in_all": 7, "lost": 0},
            **{"kexec_loaded": False, "kexec_held": False},
        }
        rows = answer["pcrs"]
        assert isinstance(rows, list)
        assert all(row["equal"] for row in rows)


async def test_the_texts_count_since_this_kernel_began() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        emulator.kernel.request(Request(Operation.DELETE_STAGED))
        emulator.kernel.request(Request(Operation.DELETE_FIRST, 1))
        size = sum(len(rec.binary(bytes(20))) for rec in LIST)
        image = life.load()
        # The segment is for what is there, the counts are of what there ever was.
        here = len(LIST[3].binary(bytes(20)))
        assert image.segment_size == kexec.segment_size(here)
        text = kexec.event(4096, size, 4)
        assert (
            text
            == (
                f"kexec_segment_size=4096;ima_binary_runtime_size={size + 24};"
                "ima_runtime_measurements_count=4;"
            ).encode()
        )
        assert buffers(current(emulator))[kexec.LOAD] == text
        await life.execute()
        # In the next kernel only what was restored counts.
        restored = current(emulator)
        life.load()
        texts = current(emulator)
        last = texts[-1].template.split(texts[-1].data)[2]
        assert last == kexec.event(4096, sum(map(kexec.runtime_size, restored)), 3)


@pytest.mark.parametrize(
    ("lists", "headers", "extra", "size"),
    [
        (1881, 2, 2048, 4096),  # 7.3.4-kexec
        (0, 2, 2048, 4096),
        (2000, 2, 2048, 4096),
        (2001, 2, 2048, 8192),
        (2024, 1, 2048, 4096),
        (2025, 1, 2048, 8192),
        (0, 2, 40960, 45056),
    ],
)
def test_segment_size(lists: int, headers: int, extra: int, size: int) -> None:
    assert kexec.segment_size(lists, headers=headers, extra=extra) == size


async def test_execute_loads_where_nothing_is_loaded_and_nothing_comes_between() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        await life.execute()
        texts = buffers(current(emulator))
        assert set(texts) == {kexec.LOAD, kexec.EXECUTE}
        assert [one for one in current(emulator) if one.template.label == "ima-buf"] == (
            current(emulator)[-2:]
        )


async def test_a_list_that_outgrew_its_segment_is_cut_and_said_to_be(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.expect("kexec: .* records were not carried over: the segment of 4096 bytes")
    device = FakeDevice()
    async with machine(device) as (emulator, life):
        life.load()
        for number in range(100):
            emulator.append(record(ng(10, b"/more/%d" % number)))
        data, count = life.buffer()
        assert len(data) == 4096
        with pytest.raises(Refused) as caught:
            await life.execute(whole=True)
        assert caught.value.errno == errno.EOVERFLOW
        assert not emulator.queue.suspended
        predicted = str(caught.value)
        before = [*RECORDS, *current(emulator)[2:]]
        found = await life.execute()
        assert found is not None
        assert found.carried == count - 1
        assert found.lost == found.records - found.carried > 0
        lost = f"{found.lost} of {found.records} records would be lost: {found.why}"
        assert predicted == f"{lost}; load again"
        assert current(emulator) == before[: found.carried]
        assert emulator.kernel.start.lost == found.lost
        # What is lost is in the PCRs all the same, and the status says that they are right.
        await emulator.wait_extended(emulator.queue.totals.added, 20)
        assert len(device.entries) == emulator.queue.totals.added == found.records


async def test_whole_goes_on_where_everything_fits() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        life.load()
        # As many as fit, kexec_execute included, and not one more.
        filler = record(ng(10, b"/filler/%04d" % 0))
        text = emulator.kernel.critical_data(kexec.EXECUTE, kexec.event(4096, 2000, 20))
        room = 4096 - 24 - carry.runtime_size(emulator.queue) - kexec.runtime_size(text)
        for number in range(room // kexec.runtime_size(filler)):
            emulator.append(record(ng(10, b"/filler/%04d" % number)))
        found = await life.execute(whole=True)
        assert found is not None
        assert found.lost == 0


@pytest.mark.parametrize("profile", ["mainline", "legacy", "legacy-single"])
@pytest.mark.parametrize("template", ["ima-ng", "ima", "d-ng|n-ng|d|d|d|d|d|d|d|d|d|d|d|d|d|d|d"])
@pytest.mark.parametrize("label", [None, "ima_kexec", "another"])
@pytest.mark.parametrize("more", range(4, 24))  # 2 to 3 KiB, where the segment ends
async def test_what_whole_predicts_is_what_happens(
    expected_logs: ExpectedLogs, profile: str, template: str, label: str | None, more: int
) -> None:
    """Whatever the next record is of: of kexec_execute's policy, of the list's templates."""
    expected_logs.allow("records were not carried over")
    rule = parse(b"measure func=CRITICAL_DATA label=" + (label or "").encode()) if label else None
    config = replace(
        BARE,
        profile=lookup(profile),
        policy=None if rule is None else Policy((rule,)),
        template=TEMPLATES.get(template) or custom(template),
    )
    async with machine(FakeDevice(), config) as (emulator, life):
        life.load()
        for number in range(more):
            name = b"/more/%d" % number
            measurement = Measurement(name, SHA256, SHA256.digest(name), sha1=SHA1.digest(name))
            emulator.append(emulator.kernel.record(measurement))
        predicted = ""
        try:
            found = await life.execute(whole=True)
            assert found is not None
            assert found.lost == 0
        except Refused as refused:
            predicted = str(refused)
        if predicted:
            found = await life.execute()
            assert found is not None
            lost = f"{found.lost} of {found.records} records would be lost: {found.why}"
            assert predicted == f"{lost}; load again"


async def test_template_ima_stops_the_restoring(expected_logs: ExpectedLogs) -> None:
    expected_logs.expect("record 2 is of template ima: not restored")
    config = replace(BARE, template=TEMPLATES["ima"])
    emulator = Emulator(config, FakeDevice())
    await emulator.start()
    async with running(emulator):
        old = Rec(10, "ima", (bytes(20), b"/old"))
        for rec in (*LIST[:2], old, LIST[2]):
            emulator.append(record(rec))
        found = await Lifecycle(emulator).execute()
        assert found is not None
        assert (found.carried, found.records) == (2, 6)
        assert current(emulator) == RECORDS[:2]


async def test_no_carry(expected_logs: ExpectedLogs) -> None:
    expected_logs.expect("6 of 6 records were not carried over: .*--no-carry")
    device = FakeDevice()
    async with machine(device) as (emulator, life):
        await life.execute(carry_over=False)
        assert current(emulator) == []
        emulator.append(RECORDS[0])
        await emulator.wait_extended(7, 20)
        assert len(device.entries) == 7
        rows = (await status.status(emulator))["pcrs"]
        assert isinstance(rows, list)
        assert all(row["equal"] for row in rows)


async def test_hold_is_the_window_between_suspend_and_the_next_kernel() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        assert await life.execute(lookup("legacy"), hold=True) is None
        for operation, code in (
            (Operation.DELETE_STAGED, errno.ESTALE),
            (Operation.STAGE, errno.EEXIST),
        ):
            with pytest.raises(Refused) as caught:
                emulator.kernel.request(Request(operation))
            assert caught.value.errno == code
        with pytest.raises(Refused) as caught:
            emulator.append(RECORDS[0])
        assert refusal(caught) == "ENODEV"
        with pytest.raises(Refused) as caught:
            life.load()
        assert refusal(caught) == "EBUSY"
        with pytest.raises(Refused) as caught:
            await life.execute()
        assert refusal(caught) == "EBUSY"
        assert emulator.kernel.config.profile.name == "mainline"
        found = await life.finish()
        assert found == kexec.Crossing(6, 6)
        assert emulator.kernel.config.profile.name == "legacy"
        with pytest.raises(Refused) as caught:
            await life.finish()
        assert refusal(caught) == "EINVAL"
        assert emulator.append(RECORDS[0]).number == 7


async def test_stage_while_held_is_eacces() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        emulator.kernel.request(Request(Operation.DELETE_STAGED))
        await life.execute(hold=True)
        for operation, code in (
            (Request(Operation.STAGE), errno.EACCES),
            (Request(Operation.DELETE_FIRST, 1), errno.ESTALE),
        ):
            with pytest.raises(Refused) as caught:
                emulator.kernel.request(operation)
            assert caught.value.errno == code


@pytest.mark.parametrize("name", ["v4", "v5", "mainline"])
async def test_some_drafts_refuse_only_what_was_copied(name: str) -> None:
    """Suspended alone, by a reboot without a kexec, v4 and v5 delete."""
    config = replace(BARE, profile=lookup(name))
    for hold in (True, False):
        async with machine(FakeDevice(), config) as (emulator, life):
            if hold:
                await life.execute(hold=True)
            else:
                emulator.queue.suspended = True
            code = 0
            try:
                emulator.kernel.request(Request(Operation.DELETE_STAGED))
            except Refused as refused:
                code = refused.errno
            assert code == (errno.ESTALE if hold or name == "mainline" else 0)


async def test_two_kexecs_in_a_row() -> None:
    device = FakeDevice()
    async with machine(device, EmulatorConfig()) as (emulator, life):
        for turn in (1, 2):
            await life.execute()
            assert emulator.kernel.start.kexecs == turn
        records = current(emulator)
        assert records[1:5] == RECORDS
        assert [one for one in records if one == record(AGGREGATE)] == 3 * [record(AGGREGATE)]
        assert len(records) == 1 + 4 + 3 + 3 == emulator.queue.totals.added
        assert emulator.kernel.start.carried == 10
        assert emulator.kernel.start.carried_in_all == 17
        await emulator.wait_extended(len(records), 20)
        values = replayed(records)
        assert {name: device.pcrs[name][10] for name in NAMES} == values


async def test_what_waits_for_a_hung_tpm_is_extended_after_the_kexec(
    expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing hangs; boot_aggregate is of zeros; nothing is extended twice or left out."""
    monkeypatch.setattr("imafs.emulator.restart.TPM_WAIT", 0.05)
    expected_logs.expect("boot_aggregate is made of zeros, as in a kernel")
    expected_logs.allow("extending failed")
    device = FakeDevice()
    device.pcrs["sha256"][0] = b"\x07" * 32
    async with machine(device, EmulatorConfig()) as (emulator, life):
        await emulator.wait_extended(5, 20)
        device.hang()
        calls = len(device.calls)
        emulator.append(record(ng(10, b"/waits")))
        await until(lambda: device.calls[calls:] == ["extend"])
        for number in range(600):
            emulator.append(record(ng(10, b"/behind/%d" % number)))
        await life.execute()
        assert emulator.queue.pending == 1 + 600 + 3
        more = record(ng(10, b"/after"))
        emulator.append(more)
        records = current(emulator)
        # PCR 0 is no zero, but could not be read.
        assert records[-2] == record(AGGREGATE)
        assert records[-1] == more
        device.answer()
        assert await emulator.wait_extended(len(records), 20)
        assert len(device.entries) == len(records)
        assert {name: device.pcrs[name][10] for name in NAMES} == replayed(records)
        assert emulator.extender.failures.mismatch is None


async def test_a_batch_in_flight_is_confirmed_to_the_next_kernel() -> None:
    device = FakeDevice()
    async with machine(device) as (emulator, life):
        await emulator.wait_extended(4, 20)
        device.hang()
        calls = len(device.calls)
        emulator.append(record(ng(10, b"/flies")))
        await until(lambda: device.calls[calls:] == ["extend"])
        await life.execute()
        assert emulator.queue.pending == 3
        device.answer()
        assert await emulator.wait_extended(7, 20)
        assert len(device.entries) == 7
        assert {name: device.pcrs[name][10] for name in NAMES} == replayed(current(emulator))


async def test_who_waits_over_a_kexec_gets_his_answer() -> None:
    device = FakeDevice()
    async with machine(device) as (emulator, life):
        await emulator.wait_extended(4, 20)
        device.hang()
        calls = len(device.calls)
        async with trio.open_nursery() as nursery:
            receipts = []

            async def measure() -> None:
                receipts.append(await emulator.measure(record(ng(10, b"/waits")), wait=20))

            nursery.start_soon(measure)
            nursery.start_soon(emulator.wait_added, 7)
            await until(lambda: device.calls[calls:] == ["extend"])
            await life.execute()
            device.answer()
        assert receipts[0].extended
        assert receipts[0].number == 5


async def test_a_loaded_list_says_what_was_loaded_for_kexec() -> None:
    made = Emulator(BARE, FakeDevice()).kernel
    load = made.critical_data(kexec.LOAD, kexec.event(8192, 1, 1))
    execute = made.critical_data(kexec.EXECUTE, kexec.event(8192, 1, 1))
    aggregate = record(AGGREGATE)
    other = record(ng(10, b"/bin/boot_aggregate"))
    nonsense = made.critical_data(kexec.LOAD, b"kexec_segment_size=x;")
    image = kexec.Image(8192)
    for records, expected in (
        ([aggregate, load, *RECORDS], image),
        ([aggregate, load, other], image),
        ([aggregate, load, execute], None),
        ([load, aggregate, *RECORDS], None),
        ([aggregate, nonsense], None),
        ([], None),
    ):
        emulator = Emulator(BARE, FakeDevice())
        await emulator.start(records)
        assert emulator.kernel.image == expected


async def test_kernels_before_critical_data_copy_their_list_at_load(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.expect("1 of 5 records were not carried over: this kernel copies .* at load")
    config = replace(BARE, profile=lookup("6.1"))
    emulator = Emulator(config, FakeDevice())
    await emulator.start(RECORDS)
    async with running(emulator):
        life = Lifecycle(emulator)
        life.load()
        emulator.append(record(ng(10, b"/late")))
        await life.execute()
        assert current(emulator) == RECORDS


async def test_what_such_a_kernel_deletes_after_load_appears_again() -> None:
    config = replace(BARE, profile=lookup("flush-2020"))
    emulator = Emulator(config, FakeDevice())
    await emulator.start(RECORDS)
    async with running(emulator):
        life = Lifecycle(emulator)
        life.load()
        emulator.kernel.request(Request(Operation.DELETE_FIRST, 3))
        found = await life.execute()
        assert found == kexec.Crossing(4, 4)
        assert current(emulator) == RECORDS
        assert emulator.queue.totals.added == 4


@pytest.mark.parametrize(
    ("profile", "answers"),
    [
        ("mainline", {"A": errno.EEXIST, "D": errno.ESTALE, "N": errno.ESTALE}),
        ("v5", {"A": errno.EEXIST, "D": errno.ESTALE, "N": errno.ESTALE}),
        ("rfc-v2", {"A": errno.EEXIST, "D": None}),
    ],
)
async def test_drafts_answer_by_their_own_rules_while_a_kexec_is_held(
    profile: str, answers: dict[str, int | None]
) -> None:
    requests = {
        "A": Request(Operation.STAGE),
        "N": Request(Operation.DELETE_FIRST, 1),
        "D": Request(Operation.DELETE_STAGED),
    }
    async with machine(FakeDevice(), replace(BARE, profile=lookup(profile))) as (emulator, life):
        await life.execute(hold=True)
        for letter, code in answers.items():
            if code is None:
                emulator.kernel.request(requests[letter])
                continue
            with pytest.raises(Refused) as caught:
                emulator.kernel.request(requests[letter])
            assert caught.value.errno == code, letter
        # What is deleted after the copy appears again all the same.
        assert await life.finish() == kexec.Crossing(6, 6)
        assert current(emulator)[:4] == RECORDS


async def test_v5_may_stage_and_delete_what_was_not_copied_as_staged() -> None:
    async with machine(FakeDevice(), replace(BARE, profile=lookup("v5"))) as (emulator, life):
        emulator.kernel.request(Request(Operation.DELETE_STAGED))
        await life.execute(hold=True)
        emulator.kernel.request(Request(Operation.STAGE))
        emulator.kernel.request(Request(Operation.DELETE_STAGED))
        await life.finish()
        assert current(emulator)[:2] == RECORDS[2:]


@pytest.mark.parametrize("profile", ["snap", "rfc-v1"])
async def test_the_first_drafts_do_not_carry_what_is_staged(
    profile: str, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("2 of 6 records .*: this kernel does not carry staged records")
    async with machine(FakeDevice(), replace(BARE, profile=lookup(profile))) as (emulator, life):
        found = await life.execute()
        assert found is not None
        assert (found.carried, found.records) == (4, 6)
        assert current(emulator)[:2] == RECORDS[2:]


async def test_a_profile_that_cannot_run_is_refused_before_anything() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        boot, length = emulator.kernel, len(emulator.queue.current)
        with pytest.raises(UsageError, match="--export-root"):
            await life.execute(lookup("export-2020"))
        with pytest.raises(UsageError, match="--export-root"):
            await life.reboot(lookup("export-2020"))
        assert emulator.kernel is boot
        assert len(emulator.queue.current) == length
        assert not emulator.queue.suspended


@pytest.mark.parametrize("profile", [p.name for p in PROFILES if p.export is None])
async def test_every_profile_hands_over_to_every_other(
    profile: str, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("does not carry staged records")
    device = FakeDevice()
    async with machine(device) as (emulator, life):
        await life.execute(lookup(profile))
        assert emulator.kernel.config.profile.name == profile
        assert current(emulator)[:4] == RECORDS
        await life.execute(lookup("mainline"))
        records = current(emulator)
        assert records[:4] == RECORDS
        assert len(records) == emulator.queue.totals.added
        await emulator.wait_extended(len(records), 20)
        assert {name: device.pcrs[name][10] for name in NAMES} == replayed(records)


async def test_a_policy_decides_about_the_critical_data() -> None:
    def rules(*lines: bytes) -> Policy:
        return Policy(tuple(rule for line in lines if (rule := parse(line)) is not None))

    for policy, names, pcr in (
        (rules(b"measure func=CRITICAL_DATA label=selinux"), [], 10),
        (rules(b"measure func=CRITICAL_DATA"), [kexec.LOAD, kexec.EXECUTE], 10),
        (
            rules(b"measure func=CRITICAL_DATA label=ima_kexec pcr=12"),
            [kexec.LOAD, kexec.EXECUTE],
            12,
        ),
    ):
        async with machine(FakeDevice(), replace(BARE, policy=policy)) as (emulator, life):
            await life.execute()
            records = current(emulator)
            kexecs = [r for r in records if set(buffers([r])) & {kexec.LOAD, kexec.EXECUTE}]
            assert list(buffers(kexecs)) == names
            assert {r.pcr for r in kexecs} <= {pcr}
            assert emulator.kernel.policy is policy


async def test_the_buffer_is_what_is_there() -> None:
    async with machine(FakeDevice()) as (_, life):
        data, count = life.buffer()
        assert count == 4
        assert [parsed.record for parsed in decode(data)] == RECORDS


async def test_reboot_suspends_and_begins_anew() -> None:
    device = FakeDevice()
    async with machine(device, EmulatorConfig()) as (emulator, life):
        old = emulator.queue
        device.hang()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.reboot)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Refused) as caught:
                emulator.append(record(ng(10, b"/too/late")))
            assert refusal(caught) == "ENODEV"
            device.answer()
        assert emulator.queue is not old
        assert current(emulator) == [record(AGGREGATE)]
        assert emulator.kernel.start.number == 2
        assert emulator.queue.totals.added == 1
        await emulator.wait_extended(1, 20)
        assert device.entries == [entry(AGGREGATE, *NAMES)]


async def test_a_reboot_ends_a_held_kexec_and_boots_the_first_profile() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        await life.execute(lookup("legacy"))
        await life.execute(hold=True)
        await life.reboot()
        assert life.held is None
        assert emulator.kernel.config.profile.name == "mainline"
        await life.reboot(lookup("legacy"))
        assert emulator.kernel.config.profile.name == "legacy"
        await emulator.reset()
        assert emulator.kernel.config.profile.name == "mainline"
        assert emulator.kernel.start.number == 4


async def test_a_reboot_that_fails_changes_nothing() -> None:
    class Fixed(FakeDevice):
        def reset(self) -> None:
            raise TpmError("only a swtpm of ours can be reset")

    device = Fixed()
    async with machine(device) as (emulator, life):
        boot = emulator.kernel
        with pytest.raises(TpmError, match="only a swtpm"):
            await life.reboot()
        assert emulator.kernel is boot
        assert emulator.append(record(ng(10, b"/goes/on"))).number == 5


async def test_a_reboot_that_is_given_up_changes_nothing(expected_logs: ExpectedLogs) -> None:
    # The TPM comes to the reset later all the same.
    expected_logs.expect("somebody else extended or reset them")
    device = FakeDevice()
    async with machine(device) as (emulator, life):
        await emulator.wait_extended(len(LIST), 20)
        boot = emulator.kernel
        device.hang()
        with trio.CancelScope() as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(life.reboot)
                await until(lambda: "reset" in device.calls)
                patience.cancel()
        assert emulator.kernel is boot
        assert emulator.append(record(ng(10, b"/goes/on"))).number == 5
        device.answer()
        await emulator.wait_extended(5, 20)


async def test_critical_data_that_cannot_be_built_holds_nothing_up() -> None:
    # Template ima has no digest of SHA-256: -EINVAL, which a kernel only logs.
    rule = parse(b"measure func=CRITICAL_DATA template=ima")
    assert rule is not None
    config = EmulatorConfig(profile=lookup("trim-v2"), policy=Policy((rule,)))
    async with machine(FakeDevice(), config) as (emulator, life):
        before = len(emulator.queue.current)
        told: list[int] = []
        emulator.changes.hear(lambda: told.append(1))
        grammar = next(e.request.grammar for e in emulator.kernel.entries if e.request)
        assert grammar is not None
        assert emulator.kernel.write(grammar, b"02", 0) == 2
        assert len(emulator.queue.current) == before - 2
        emulator.kernel.config = replace(emulator.kernel.config, profile=lookup("mainline"))
        life.load()
        await life.execute()
        assert told.pop() == 1
        writer = PolicyWriter(emulator)
        await writer.write(b"measure func=CRITICAL_DATA template=ima\n", 0)
        writer.close()
        assert told == [1]
        assert not buffers(current(emulator))


async def test_suspended_by_hand_there_is_no_kexec() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        emulator.queue.suspended = True
        with pytest.raises(Refused) as caught:
            await life.execute()
        assert refusal(caught) == "EBUSY"
        assert "resume first" in str(caught.value)


async def test_open_files_count_no_more() -> None:
    async with machine(FakeDevice()) as (emulator, life):
        emulator.kernel.accounting.open(1, write=True)
        await life.execute()
        emulator.kernel.accounting.open(2, write=True)
        await life.reboot()
        emulator.kernel.accounting.open(3, write=False)


def answered(*texts: bytes) -> list[tuple[bytes, bytes]]:
    """Name and buffer of the ima-buf records that 7.2.13 made for these command lines."""
    seen: list[tuple[bytes, bytes]] = []
    for text in texts:
        if text and (b"kexec-cmdline", text) not in seen:  # else a duplicate
            seen.append((b"kexec-cmdline", text))
        seen.append((b"kexec_load", b""))
    return seen


@pytest.mark.parametrize(
    ("rules", "measured"),
    [
        ([b"measure func=KEXEC_CMDLINE"], True),
        ([b"measure func=KEXEC_CMDLINE", b"dont_measure func=KEXEC_CMDLINE uid=1"], True),
        ([b"dont_measure func=KEXEC_CMDLINE", b"measure func=KEXEC_CMDLINE"], False),
        ([b"measure func=KEXEC_CMDLINE fsmagic=0x1 pcr=12 template=ima-sig"], False),
        ([b"measure mask=MAY_READ"], False),
        (None, False),
    ],
)
async def test_the_next_kernels_command_line_is_measured_by_its_rule(
    rules: list[bytes] | None, measured: bool
) -> None:
    texts = [b"root=/dev/vda quiet", b"root=/dev/vda quiet", b"", b"a  b\tc", b"x\xc3\xa9"]
    policy = None
    if rules is not None:
        found = [parse(rule) for rule in (b"measure func=CRITICAL_DATA", *rules)]
        policy = Policy(tuple(rule for rule in found if rule is not None))
    async with machine(FakeDevice(), replace(BARE, policy=policy)) as (emulator, lifecycle):
        before = len(emulator.queue.current)
        for text in texts:
            lifecycle.load(text)
        content = b"".join(emulator.queue.current.pieces(emulator.queue.sha1_view))
        made = [parsed.record for parsed in Reader(content, 20)][before:]
        split = [one.template.split(one.data)[1:] for one in made]
        names = [(name[:-1], buf if name == b"kexec-cmdline\0" else b"") for name, buf in split]
        wanted = answered(*texts)
        assert names == [one for one in wanted if measured or one[0] == b"kexec_load"]
        assert {one.template.label for one in made} == {"ima-buf"}
