# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The server with made-up handlers: order, refusals, slow and vanished clients."""

from __future__ import annotations

import errno
import select
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imafs import __version__
from imafs.control import server, wire
from imafs.control.ops import HELLO, Table
from imafs.control.server import Handler, ProgressCallback, serve
from imafs.errors import FormatError, Refused, TpmError
from tests.support import ExpectedLogs, wait_for_async
from tests.unit.control_fake import Talk, handler, serving, table_of

STATUS: Mapping[str, object] = {"op": "status"}
HANDLERS = {"status": handler(), "violation": handler(), "generate": handler()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def test_hello(path: Path) -> None:
    async with serving(path, HANDLERS, {"mountpoint": "/mnt"}) as connect:
        answer = await (await connect()).ask({"op": "hello"})
    offered = answer.pop("ops")
    expected = {"ok": True, "imafs": __version__, "protocol": 1, "mountpoint": "/mnt"}
    assert answer == expected
    assert isinstance(offered, dict)
    assert set(offered) == {"hello", *HANDLERS}
    assert offered["violation"]["options"] == {
        "name": {"type": "str", "required": True, "help": "name in the record"}
    }


async def test_requests_are_answered_in_order_with_their_ids(path: Path) -> None:
    async with serving(path, HANDLERS) as connect:
        talk = await connect()
        requests = [{"op": "violation", "name": str(n), "id": n} for n in range(300)]
        await talk.send(b"".join(wire.encode(r) for r in requests), STATUS)
        for n in range(300):
            assert await talk.answer() == {"ok": True, "options": {"name": str(n)}, "id": n}
        assert await talk.answer() == {"ok": True, "options": {}}


async def test_refusals_name_the_place_and_the_connection_goes_on(path: Path) -> None:
    bad = [
        (b"{\n", "column 2: malformed JSON"),
        (b"\n", "column 1: malformed JSON"),
        (b'{"op":"fly"}\n', "unknown operation 'fly'"),
        (b'{"op":"status","x":1}\n', "unknown option 'x'"),
        (b'{"op":"violation","name":1}\n', "name: expected a string"),
        (b'{"op":"violation"}\n', "name: missing"),
    ]
    async with serving(path, HANDLERS) as connect:
        talk = await connect()
        for line, text in bad:
            answer = await talk.ask(line)
            assert (answer["ok"], answer["errno"]) == (False, "EINVAL")
            assert text in str(answer["error"])
        assert await talk.ask({**STATUS, "id": "x"}) == {"ok": True, "options": {}, "id": "x"}


@pytest.mark.parametrize(
    ("error", "name", "code"),
    [
        (Refused(errno.ENOENT, "no such record"), "ENOENT", 7),
        (FormatError("short", record=2, offset=9), "EINVAL", 3),
        (TpmError("gone"), "EIO", 4),
    ],
)
async def test_errors_of_imafs_are_answered(
    path: Path, error: Exception, name: str, code: int
) -> None:
    async with serving(path, {"status": handler(error=error)}) as connect:
        answer = await (await connect()).ask(STATUS)
    assert answer == {"ok": False, "errno": name, "error": str(error), "exit_code": code}


@pytest.mark.parametrize(
    "broken",
    [handler(error=RuntimeError("a bug")), handler({"x": b"bytes"}), handler({"x": float("nan")})],
)
async def test_a_bug_is_logged_and_answered(
    path: Path, broken: server.Handler, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect(r"ERROR imafs.control: operation generate failed\nTraceback")
    async with serving(path, {**HANDLERS, "generate": broken}) as connect:
        talk = await connect()
        answer = await talk.ask({"op": "generate", "count": 1, "id": 1})
        assert (answer["ok"], answer["errno"], answer["id"]) == (False, "EIO", 1)
        assert (await talk.ask(STATUS))["ok"] is True


@pytest.mark.parametrize("handlers", [{}, {"status": handler()}, {**HANDLERS, "fly": handler()}])
async def test_a_table_and_its_handlers_fit(path: Path, handlers: Mapping[str, Handler]) -> None:
    """What a table says is offered is carried out: it is checked before anybody can ask."""
    with pytest.raises(ValueError, match="operations without a handler"):
        await serve(path, table_of(HANDLERS), handlers)


async def test_hello_is_the_servers_own(path: Path) -> None:
    with pytest.raises(ValueError, match="hello"):
        await serve(path, Table(), {"hello": handler()})
    async with serving(path, {}) as connect:
        answer = await (await connect()).ask({"op": "hello"})
    assert answer["ops"] == {"hello": HELLO.describe()}


@pytest.mark.parametrize("size", [wire.MAX_REQUEST, 3 * wire.MAX_REQUEST])
async def test_line_too_long_is_answered_and_closed(path: Path, size: int) -> None:
    async with serving(path, HANDLERS) as connect:
        talk = await connect()
        answer = await talk.ask(b"x" * size)
        assert (answer["ok"], answer["errno"]) == (False, "EINVAL")
        assert "longer than 9437184 bytes" in str(answer["error"])
        assert await talk.answer() is None
        await talk.stream.aclose()
        assert (await (await connect()).ask(STATUS))["ok"] is True


async def test_longest_line_is_taken(path: Path) -> None:
    request = {"op": "critical_data", "label": "l", "name": "n", "data": ""}
    room = wire.MAX_REQUEST - len(wire.encode(request))
    data, name = "0" * (room & ~1), "n" * (1 + room % 2)
    async with serving(path, {"critical_data": handler()}) as connect:
        answer = await (await connect()).ask({**request, "data": data, "name": name})
    assert answer["options"] == {"label": "l", "name": name, "data": data}


async def test_last_line_needs_no_end(path: Path) -> None:
    async with serving(path, HANDLERS) as connect:
        talk = await connect()
        await talk.send(b'{"op":"status"}')
        await talk.stream.send_eof()
        assert await talk.answer() == {"ok": True, "options": {}}
        assert await talk.answer() is None


async def test_idle_connections_do_not_matter(path: Path) -> None:
    async with serving(path, HANDLERS) as connect:
        idle = [await connect() for _ in range(200)]
        await idle[0].send(b'{"op":')  # half a request is idle too
        assert (await (await connect()).ask(STATUS))["ok"] is True
        assert (await idle[199].ask(STATUS))["ok"] is True


async def test_client_that_never_reads_is_cut_off_and_blocks_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SEND_SECONDS", 0.3)
    async with serving(path, {**HANDLERS, "status": handler({"x": "y" * (1 << 22)})}) as connect:
        deaf = await connect()
        await deaf.send(STATUS)
        other = await connect()
        assert (await other.ask({"op": "violation", "name": "n"}))["ok"] is True
        await wait_for_async(lambda: hung_up(deaf), 60, "the deaf client is cut off")
        assert (await other.ask({"op": "violation", "name": "n"}))["ok"] is True


async def hung_up(talk: Talk) -> bool:
    """Whether the server has closed the connection, without reading from it."""
    poll = select.poll()
    poll.register(talk.stream.socket.fileno(), 0)
    await trio.lowlevel.checkpoint()
    return bool(poll.poll(0))


async def test_progress(path: Path) -> None:
    async def generate(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, int]:
        for done in range(1000):
            progress(done, 1000)
            await trio.lowlevel.checkpoint()
        progress(1000, 1000)
        return {"count": 1000}

    async with serving(path, {**HANDLERS, "generate": generate}) as connect:
        talk = await connect()
        await talk.send({"op": "generate", "count": 1, "id": 5, "progress": True})
        seen = []
        while "ok" not in (line := await talk.answer() or {"ok": None}):
            assert line["id"] == 5
            seen.append(line["progress"])
        assert line == {"ok": True, "count": 1000, "id": 5}
        assert 1 <= len(seen) < 100
        assert seen[-1] == {"done": 1000, "total": 1000}
        # Not asked for: none is sent.
        assert (await talk.ask({"op": "generate", "count": 1}))["ok"] is True


async def test_progress_to_a_deaf_client_does_not_hold_the_handler(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(server, "PROGRESS_SECONDS", 0)

    full, go = trio.Event(), trio.Event()

    async def load(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, int]:
        with trio.move_on_after(0.6):  # some hundred lines fill the socket's buffer
            while True:
                progress(2**62, 2**62)
                await trio.lowlevel.checkpoint()
        full.set()
        await go.wait()
        return {}

    async with serving(path, {**HANDLERS, "load": load}) as connect:
        deaf = await connect()
        await deaf.send({"op": "load", "file": "/f", "progress": True})
        assert (await (await connect()).ask(STATUS))["ok"] is True
        await full.wait()
        # It hears again, but the line that was broken off must not be followed by another.
        received = b""
        while select.select([deaf.stream.socket], [], [], 0)[0]:
            received += await deaf.stream.receive_some(65536)
        go.set()
        while more := await deaf.stream.receive_some(65536):
            received += more
        assert received.count(b"progress") > 100
        assert b'"ok"' not in received


class Hanging:
    """A handler that only cancellation ends."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.ended = trio.Event()

    async def __call__(
        self, options: Mapping[str, object], progress: ProgressCallback
    ) -> dict[str, object]:
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()


async def test_wait_ends_when_its_client_hangs_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANGUP_SECONDS", 0.01)
    hanging = Hanging()
    async with serving(path, {**HANDLERS, "wait": hanging}) as connect:
        talk = await connect()
        await talk.send({"op": "wait"}, STATUS)  # a pipelined request hides no hang-up
        await hanging.begun.wait()
        await talk.stream.aclose()
        await hanging.ended.wait()
        assert (await (await connect()).ask(STATUS))["ok"] is True


async def test_half_closed_client_is_still_answered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANGUP_SECONDS", 0.01)

    async def wait(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, object]:
        await trio.sleep(0.1)  # ten looks at the hang-up
        return {}

    async with serving(path, {"wait": wait}) as connect:
        talk = await connect()
        await talk.send({"op": "wait"})
        await talk.stream.send_eof()
        assert await talk.answer() == {"ok": True}


async def test_other_operations_go_on_without_their_client(path: Path) -> None:
    begun, go, ended = trio.Event(), trio.Event(), trio.Event()

    async def reset(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, object]:
        begun.set()
        await go.wait()
        ended.set()
        return {}

    async with serving(path, {"reset": reset}) as connect:
        talk = await connect()
        await talk.send({"op": "reset"})
        await begun.wait()
        await talk.stream.aclose()
        go.set()
        await ended.wait()


READING = (
    {"op": "measure", "paths": ["/f"]},
    {"op": "load", "file": "/f"},
    {"op": "critical_data", "label": "l", "name": "n", "file": "/f"},
    {"op": "scenario", "file": "/f"},
    {"op": "kexec_buffer", "file": "/f"},
)


@pytest.mark.parametrize("request_", READING, ids=lambda request: request["op"])
@pytest.mark.parametrize("through", [False, True])
async def test_what_reads_files_ends_with_its_client_until_it_must_not(
    path: Path, request_: dict[str, object], through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANGUP_SECONDS", 0.01)
    begun, go, ended, cut = trio.Event(), trio.Event(), trio.Event(), trio.Event()
    hangups: list[trio.CancelScope] = []

    async def handle(
        options: Mapping[str, object], progress: ProgressCallback
    ) -> dict[str, object]:
        hangups.append(server._hangup.get())
        if through:
            server.carry_through()
        begun.set()
        try:
            await go.wait()
        except trio.Cancelled:
            cut.set()
            raise
        ended.set()
        return {}

    async with serving(path, {str(request_["op"]): handle}) as connect:
        talk = await connect()
        await talk.send(request_)
        await begun.wait()
        await talk.stream.aclose()
        if through:
            # Another client's whole life later it is still there.
            assert (await (await connect()).ask({"op": "hello"}))["ok"] is True
            assert hangups[0].cancel_called  # nobody looks out for it any more
            go.set()
            await ended.wait()
            assert not cut.is_set()
        else:
            await cut.wait()


def test_carry_through_outside_of_a_request() -> None:
    server.carry_through()


async def test_stop_is_answered_before_the_end(path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def stop(
            options: Mapping[str, object], progress: ProgressCallback
        ) -> dict[str, object]:
            nursery.cancel_scope.cancel()
            return {}

        await nursery.start(serve, path, table_of({"stop": stop}), {"stop": stop})
        talk = Talk(await trio.open_unix_socket(str(path)))
        with trio.CancelScope(shield=True):
            async with talk.stream:
                await talk.send({"op": "stop"})
                assert await talk.answer() == {"ok": True}
                assert await talk.answer() is None
    assert not path.exists()


async def test_end_cuts_hanging_requests(path: Path) -> None:
    hanging = Hanging()
    async with serving(path, {"wait": hanging}) as connect:
        talk = await connect()
        await talk.send({"op": "wait"})
        await hanging.begun.wait()
    assert hanging.ended.is_set()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_random_lines_never_kill_the_server(lines: list[bytes]) -> None:
    async def play() -> None:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "s")
            async with serving(path, HANDLERS) as connect:
                talk = await connect()
                await talk.send(b"\n".join(lines))
                await talk.stream.send_eof()
                while (answer := await talk.answer()) is not None:
                    assert answer["ok"] is False
                    assert answer["errno"] == "EINVAL"
                assert (await (await connect()).ask(STATUS))["ok"] is True

    trio.run(play)


async def test_others_have_turns_while_a_long_answer_is_encoded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"path": f"/{number}"} for number in range(100 * wire.ROWS)]
    turns = 0
    seen = set()
    made = wire.pieces

    def looked_at(message: Mapping[str, object]) -> Iterator[bytes]:
        for piece in made(message):
            seen.add(turns)
            yield piece

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    monkeypatch.setattr(wire, "pieces", looked_at)
    async with serving(path, {"status": handler({"rows": rows})}) as connect:
        client = await connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            answer = await client.ask(STATUS)
            nursery.cancel_scope.cancel()
    assert answer["rows"] == rows
    assert len(seen) > 50
