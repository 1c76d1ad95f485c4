# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Many clients: who makes room for whom, and a daemon without a descriptor left."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from imafs.control import connections, peers, wire
from imafs.control.peers import Peer
from imafs.control.server import ProgressCallback
from tests.support import ExpectedLogs
from tests.unit.control_fake import handler, serving

STATUS: Mapping[str, object] = {"op": "status"}
MADE_ROOM = r"WARNING imafs.control: uid 0 has 3 connections: .* idle longest is closed"


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_OF_ONE", 3)
    monkeypatch.setattr(peers, "peer_of", lambda _: Peer(7, 0, 0))


@pytest.mark.usefixtures("three")
async def test_the_one_that_is_idle_longest_makes_room(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect(MADE_ROOM)  # once, for all that follow
    async with serving(tmp_path / "s", {"status": handler()}) as connect:
        first, second, third = [await connect() for _ in range(3)]
        for talk in (first, second, third, first):
            assert (await talk.ask(STATUS))["ok"] is True
        more = [await connect() for _ in range(2)]
        for talk in more:
            assert (await talk.ask(STATUS))["ok"] is True
        assert await second.answer() is None
        assert await third.answer() is None
        assert (await first.ask(STATUS))["ok"] is True
        assert (await more[0].ask(STATUS))["ok"] is True


@pytest.mark.usefixtures("three")
async def test_those_that_wait_for_answers_stay(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect(r"WARNING imafs.control: uid 0 has 3 connections, and all of them wait")
    go_on = trio.Event()

    async def wait(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, object]:
        await go_on.wait()
        return {}

    async with serving(tmp_path / "s", {"wait": wait}) as connect:
        talks = [await connect() for _ in range(3)]
        for talk in talks:
            await talk.send({"op": "wait"})
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            answer = await (await connect()).answer()
            assert answer is not None
            assert (answer["ok"], answer["errno"]) == (False, "EAGAIN")
        go_on.set()
        for talk in talks:
            assert (await talk.answer()) == {"ok": True}


async def test_users_have_a_share_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_OF_ONE", 1)
    monkeypatch.setattr(peers, "is_ours", lambda uid: True)
    async with serving(tmp_path / "s", {"status": handler()}) as connect:
        talks = []
        for uid in range(3):
            monkeypatch.setattr(peers, "peer_of", lambda _, uid=uid: Peer(7, uid, 0))
            talks.append(await connect())
            assert (await talks[-1].ask(STATUS))["ok"] is True
        for talk in talks:
            assert (await talk.ask(STATUS))["ok"] is True


async def test_without_descriptors_the_idle_make_room_and_the_rest_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect(r"WARNING imafs.control: no more clients: Too many open files; .*")
    monkeypatch.setattr(connections, "PAUSE", 0.001)
    accept, failures = trio.SocketListener.accept, 0

    async def exhausted(self: trio.SocketListener) -> trio.SocketStream:
        nonlocal failures
        if failures > 0:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", exhausted)
    async with serving(tmp_path / "s", {"status": handler()}) as connect:
        first = await connect()
        assert (await first.ask(STATUS))["ok"] is True
        await trio.testing.wait_all_tasks_blocked()
        failures = 5
        second = await connect()  # the one that is accepted meanwhile
        third = await connect()
        assert (await third.ask(STATUS))["ok"] is True
        assert await first.answer() is None
        assert second is not third


async def test_long_requests_at_a_time(tmp_path: Path) -> None:
    """Each takes nine times the memory that is usual."""
    half = b"0" * (wire.LONG_REQUEST + 1)
    async with serving(tmp_path / "s", {"status": handler()}) as connect:
        talks = [await connect() for _ in range(connections.MOST_LONG + 1)]
        for talk in talks[:-1]:
            await talk.send(half)
            await trio.testing.wait_all_tasks_blocked()
        answer = await talks[-1].ask(half)
        assert answer["errno"] == "EAGAIN"
        await talks[0].stream.aclose()
        again = await connect()
        assert (await again.ask(STATUS))["ok"] is True
