# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A TPM that cannot even be connected to: how many threads wait for it, and who is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.errors import TpmError
from imafs.tpm import channel as channels
from imafs.tpm.channel import TpmChannel
from tests.property.builders import record
from tests.property.reference import ng
from tests.support import ExpectedLogs
from tests.unit.emulator_fake import DEADLINE, FakeDevice, running, until


class Silent(FakeDevice):
    """Neither a command nor a connection is answered until it ``talks``."""

    def __init__(self) -> None:
        super().__init__()
        self.talks = threading.Event()
        self.talks.set()
        self.connecting = 0

    def reconnect(self) -> None:
        self.connecting += 1
        assert self.talks.wait(2 * DEADLINE)
        super().reconnect()

    def work(self) -> int:
        assert self.talks.wait(2 * DEADLINE)
        return 5


@pytest.fixture
def device() -> Iterator[Silent]:
    made = Silent()
    yield made
    made.talks.set()


async def refused(channel: TpmChannel, device: Silent, deadline: float = 0.02) -> str:
    with pytest.raises(TpmError) as caught:
        await channel.call(device.work, deadline=deadline)
    return str(caught.value)


async def all_hang(channel: TpmChannel, device: Silent) -> None:
    """No thread is left for a call. One more is not sure to be taken by each: the way there, a
    connection that is made at once, may last as long as the deadline."""
    with trio.fail_after(DEADLINE):
        while channel._calls.available_tokens:
            await refused(channel, device)
    assert channel._calls.borrowed_tokens == channels.MOST


async def silenced(device: Silent) -> TpmChannel:
    """A channel on which one call hangs, and then one connection."""
    channel = TpmChannel(device)
    device.talks.clear()
    for _ in range(2):
        assert "did not answer within" in await refused(channel, device)
    await until(lambda: device.connecting)
    return channel


async def test_whoever_asks_a_silent_tpm_again_is_answered_at_once(device: Silent) -> None:
    channel = await silenced(device)
    shared = trio.to_thread.current_default_thread_limiter()
    with trio.fail_after(DEADLINE):
        for _ in range(60):
            assert await refused(channel, device, 2 * DEADLINE) == "the TPM does not answer"
    assert device.connecting == 1
    assert shared.borrowed_tokens == 0, "files are hashed in other threads"
    device.talks.set()
    await until(lambda: not channel._reconnects.borrowed_tokens)
    assert await channel.call(device.work) == 5
    assert not channel.broken


async def test_a_connection_that_is_lost_for_ever_is_not_waited_for_for_ever(
    device: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = await silenced(device)
    monkeypatch.setattr(channels, "PATIENCE", 0.0)
    assert "did not answer within" in await refused(channel, device)
    await until(lambda: device.connecting == 2)
    # The peer is there again; the first two will never know.
    assert channel._reconnects.borrowed_tokens == 2
    talks, device.talks = device.talks, threading.Event()
    device.talks.set()
    assert await channel.call(device.work) == 5
    talks.set()


async def test_a_patient_caller_waits_behind_a_connection_that_hangs(device: Silent) -> None:
    channel = await silenced(device)
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await channel.call(device.work, deadline=DEADLINE, patient=True))

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(channel._lock.locked)
            device.talks.set()
    assert answers == [5]


async def test_patience_ends_with_the_deadline(device: Silent) -> None:
    channel = await silenced(device)
    with pytest.raises(TpmError, match=r"did not answer within 0\.1 s"):
        await channel.call(device.work, deadline=0.1, patient=True)
    assert device.connecting == 1


async def test_a_patient_caller_waits_for_calls_that_hang(
    device: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = TpmChannel(device)
    device.talks.clear()
    monkeypatch.setattr(device, "reconnect", lambda: None)
    await all_hang(channel, device)
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(channel.call, device.work, deadline=DEADLINE, patient=True))
            await until(channel._lock.locked)
            device.talks.set()
    assert not channel.broken


async def test_calls_that_hang_are_bounded(device: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM that takes every connection and answers nothing else."""
    channel = TpmChannel(device)
    device.talks.clear()
    monkeypatch.setattr(device, "reconnect", lambda: None)
    await all_hang(channel, device)
    assert await refused(channel, device, 2 * DEADLINE) == "the TPM does not answer"
    device.talks.set()
    await until(lambda: not channel._calls.borrowed_tokens)
    assert await channel.call(device.work) == 5


async def test_records_are_extended_as_soon_as_the_tpm_is_there_again(
    device: Silent, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    """Not after the pause that the extender has come to by then."""
    expected_logs.expect("extending failed")
    monkeypatch.setattr("imafs.emulator.extender._RETRY_FIRST", 10 * DEADLINE)
    defaults = TpmChannel.call.__kwdefaults__
    assert defaults is not None
    emulator = Emulator(EmulatorConfig(boot_aggregate=False), device)
    await emulator.start()
    monkeypatch.setitem(defaults, "deadline", 0.02)
    async with running(emulator):
        device.talks.clear()
        device.hang()
        emulator.append(record(ng(10, b"/a")))
        await until(lambda: emulator.extender.failures.extend)
        await refused(emulator.channel, device)
        await until(lambda: device.connecting)
        device.answer()
        monkeypatch.setitem(defaults, "deadline", DEADLINE)
        device.talks.set()
        await until(lambda: not emulator.queue.pending)
