# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Threads for requests: who waits for one, and how long."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.errors import Refused
from imafs.host import bounded_thread
from imafs.sources import measure_file
from imafs.tpm import NoTpm
from tests.unit.emulator_fake import DEADLINE


async def _measure() -> object:
    emulator = Emulator(EmulatorConfig(boot_aggregate=False), NoTpm())
    return await measure_file.judge(emulator, __file__, measure_file.root_read)


async def _read_policy() -> object:
    emulator = Emulator(EmulatorConfig(boot_aggregate=False), NoTpm())
    return await measure_file.read_policy(emulator, os.fsencode(__file__))


@pytest.mark.parametrize("request_", [_measure, _read_policy])
async def test_without_a_free_thread_a_request_ends(
    request_: Callable[[], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = bounded_thread.limiter()
    monkeypatch.setattr(limiter, "total_tokens", 1)
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        over.wait(DEADLINE)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bounded_thread.run, work)
            while not begun.is_set():
                await trio.lowlevel.checkpoint()
            # Not before: the one that holds the thread may take its time to begin.
            monkeypatch.setattr(bounded_thread, "WAIT", 0.02)
            with pytest.raises(Refused, match="all threads are held up") as caught:
                await request_()
            assert caught.value.errno == errno.EAGAIN
            over.set()
        monkeypatch.undo()
        assert await request_()


async def test_work_itself_takes_as_long_as_it_takes(mock_clock: MockClock) -> None:
    begun, over = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        assert over.wait(DEADLINE)
        return 5

    async def later() -> None:
        while not begun.is_set():
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10 * bounded_thread.WAIT)
        await trio.testing.wait_all_tasks_blocked()
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        assert await bounded_thread.run(work) == 5


async def test_nothing_else_uses_these_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own work goes on beside as many that hang as there can be."""
    over = threading.Event()
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            for _ in range(bounded_thread.MOST + 5):
                nursery.start_soon(bounded_thread.run, partial(over.wait, DEADLINE))
            while bounded_thread.limiter().available_tokens:
                await trio.lowlevel.checkpoint()
            assert await trio.to_thread.run_sync(lambda: 5) == 5
            over.set()


async def test_silence_is_a_refusal_and_a_word_is_none() -> None:
    over, words = threading.Event(), trio.lowlevel.current_trio_token()
    heard: list[int] = []

    def chatty() -> int:
        for number in range(20):
            over.wait(0.01)
            bounded_thread.going_on()
            words.run_sync_soon(heard.append, number)
        return 7

    assert await bounded_thread.run(chatty, silence=5) == 7
    assert heard
    with pytest.raises(Refused, match="does not answer") as caught:
        await bounded_thread.run(partial(over.wait, DEADLINE), silence=0.05)
    assert caught.value.errno == errno.EAGAIN
    over.set()


async def test_abandoned_work_ends_between_two_pieces() -> None:
    begun, ended, pieces = threading.Event(), threading.Event(), 0

    def endless() -> None:
        nonlocal pieces
        try:
            while True:
                pieces += 1
                begun.set()
                bounded_thread.going_on()
        finally:
            ended.set()

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bounded_thread.run, endless)
            while not begun.is_set():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        while not ended.is_set():
            await trio.lowlevel.checkpoint()


def test_elsewhere_nothing_is_heard() -> None:
    bounded_thread.going_on()


def test_a_standstill_is_bounded_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    over, aborted = threading.Event(), threading.Event()
    place = bounded_thread.Standstill()

    def hangs() -> None:
        over.wait(DEADLINE)
        try:
            bounded_thread.going_on()
        finally:
            aborted.set()

    assert place.run(lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        place.run(lambda: os.stat("/nonexistent"))
    monkeypatch.setattr(bounded_thread, "STANDSTILL", 0.05)
    for match in ("silent for", "an earlier one"):
        with pytest.raises(Refused, match=match) as caught:
            place.run(hangs)
        assert caught.value.errno == errno.EAGAIN
    over.set()
    assert aborted.wait(DEADLINE)
    assert place._thread is not None
    place._thread.join(DEADLINE)
    monkeypatch.undo()
    assert place.run(lambda: 4) == 4
