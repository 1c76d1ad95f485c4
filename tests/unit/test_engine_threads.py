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

from imafs.engine import threads
from imafs.engine.config import EmulatorConfig
from imafs.engine.emulator import Emulator
from imafs.errors import Refused
from imafs.sources import judging
from imafs.tpm import NoTpm
from tests.unit.engine_fake import DEADLINE


async def _measure() -> object:
    emulator = Emulator(EmulatorConfig(boot_aggregate=False), NoTpm())
    return await judging.judge(emulator, __file__, judging.root_read)


async def _read_policy() -> object:
    emulator = Emulator(EmulatorConfig(boot_aggregate=False), NoTpm())
    return await judging.read_policy(emulator, os.fsencode(__file__))


@pytest.mark.parametrize("request_", [_measure, _read_policy])
async def test_without_a_free_thread_a_request_ends(
    request_: Callable[[], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "WAIT", 0.02)
    limiter = trio.to_thread.current_default_thread_limiter()
    monkeypatch.setattr(limiter, "total_tokens", 1)
    over = threading.Event()
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run, partial(over.wait, DEADLINE))
            while not limiter.borrowed_tokens:
                await trio.lowlevel.checkpoint()
            with pytest.raises(Refused, match="all threads are held up") as caught:
                await request_()
            assert caught.value.errno == errno.EAGAIN
            over.set()
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
        mock_clock.jump(10 * threads.WAIT)
        await trio.testing.wait_all_tasks_blocked()
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        assert await threads.run(work) == 5
