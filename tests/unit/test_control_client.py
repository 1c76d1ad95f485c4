# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The synchronous client, against the server and against listeners that misbehave."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from imafs.control import wire
from imafs.control.client import Progress
from imafs.control.server import Handler, ProgressCallback
from imafs.errors import ControlError, FormatError, Refused, UsageError
from imafs.verbs.client import ControlClient
from imafs.verbs.table import TABLE
from tests.unit.control_fake import handler, in_thread, serving

CALLS: list[tuple[str, Callable[[ControlClient], Mapping[str, object]], dict[str, object]]] = [
    ("measure", lambda c: c.measure("/a", Path("/b")), {"paths": ["/a", "/b"]}),
    ("measure", lambda c: c.measure("/a", name="n"), {"paths": ["/a"], "name": "n"}),
    (
        "measure",
        lambda c: c.measure(digest="sha1:00", name="n"),
        {"digest": "sha1:00", "name": "n"},
    ),
    ("measure", lambda c: c.measure("/l/../a"), {"paths": ["/l/../a"]}),
    ("violation", lambda c: c.violation("n\udcff"), {"name": "n\udcff"}),
    (
        "critical_data",
        lambda c: c.critical_data("l", "n", data=b"\0\xff"),
        {"label": "l", "name": "n", "data": "00ff"},
    ),
    (
        "critical_data",
        lambda c: c.critical_data("l", "n", file="/f"),
        {"label": "l", "name": "n", "file": "/f"},
    ),
    ("generate", lambda c: c.generate(3, name="p"), {"count": 3, "name": "p"}),
    ("repeat", lambda c: c.repeat(), {}),
    ("load", lambda c: c.load("/f", bank="sha256"), {"file": "/f", "bank": "sha256"}),
    ("wait", lambda c: c.wait(records=4, extended=True), {"records": 4, "extended": True}),
    ("wait", lambda c: c.wait(timeout=2), {"timeout": 2}),
    ("status", lambda c: c.status(), {}),
    ("watch", lambda c: c.watch("/a", Path("/b")), {"paths": ["/a", "/b"]}),
    ("unwatch", lambda c: c.unwatch("/a"), {"paths": ["/a"]}),
    ("suspend", lambda c: c.suspend(), {}),
    ("resume", lambda c: c.resume(), {}),
    ("kexec_load", lambda c: c.kexec_load(), {}),
    ("kexec_execute", lambda c: c.kexec_execute(), {}),
    (
        "kexec_execute",
        lambda c: c.kexec_execute("legacy", no_carry=True, whole=True, hold=True),
        {"profile": "legacy", "no_carry": True, "whole": True, "hold": True},
    ),
    ("kexec_finish", lambda c: c.kexec_finish(), {}),
    ("kexec_buffer", lambda c: c.kexec_buffer("/f"), {"file": "/f"}),
    ("reboot", lambda c: c.reboot(), {}),
    ("reboot", lambda c: c.reboot("legacy"), {"profile": "legacy"}),
    ("reset", lambda c: c.reset(), {}),
    ("stop", lambda c: c.stop(), {}),
    (
        "fault",
        lambda c: c.fault("open", "EBUSY", files="*_staged", next=2, writing=True),
        {
            **{"operation": "open", "errno": "EBUSY", "files": "*_staged"},
            **{"next": 2, "writing": True},
        },
    ),
    ("fault_clear", lambda c: c.fault_clear(), {}),
    ("fault_clear", lambda c: c.fault_clear(3), {"fault": 3}),
    ("fault_list", lambda c: c.fault_list(), {}),
    ("tpm", lambda c: c.tpm(behind=3, hang=True), {"behind": 3, "hang": True}),
    ("agent", lambda c: c.agent("trim", 3), {"action": "trim", "count": 3}),
    ("scenario", lambda c: c.scenario("/s.toml"), {"file": "/s.toml"}),
    ("scenario", lambda c: c.scenario(name="reboot"), {"name": "reboot"}),
    ("scenario_end", lambda c: c.scenario_end(), {}),
]


async def test_every_method_asks_its_operation(tmp_path: Path) -> None:
    handlers = {name: handler({"op": name}) for name in TABLE if name != "hello"}

    def work() -> None:
        with ControlClient(tmp_path / "s") as client:
            for op, call, options in CALLS:
                assert call(client) == {"op": op, "options": options}
            assert client.hello()["protocol"] == 1

    async with serving(tmp_path / "s", handlers):
        await in_thread(work)
    assert {op for op, _, _ in CALLS} == set(handlers)


async def test_relative_paths_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def work() -> Mapping[str, object]:
        with ControlClient("s") as client:
            return client.measure("a")

    async with serving(tmp_path / "s", {"measure": handler()}):
        assert await in_thread(work) == {"options": {"paths": [f"{tmp_path}/a"]}}


@pytest.mark.parametrize(
    ("error", "number", "code"),
    [
        (Refused(errno.ENOENT, "no such thing"), errno.ENOENT, 7),
        (FormatError("short", record=1), errno.EINVAL, 3),
    ],
)
async def test_refusals(tmp_path: Path, error: Exception, number: int, code: int) -> None:
    def work() -> None:
        with ControlClient(tmp_path / "s") as client:
            with pytest.raises(Refused) as caught:
                client.reset()
            assert (caught.value.errno, str(caught.value)) == (number, str(error))
            assert caught.value.exit_code == code
            # A refusal is an answer: the connection goes on.
            assert client.call("status") == {"options": {}}

    handlers: dict[str, Handler] = {"reset": handler(error=error), "status": handler()}
    async with serving(tmp_path / "s", handlers):
        await in_thread(work)


async def test_server_refuses_what_the_client_lets_through(tmp_path: Path) -> None:
    def work() -> None:
        with ControlClient(tmp_path / "s") as client:
            with pytest.raises(Refused, match="unknown operation") as caught:
                client.call("fly", {"high": True})
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(UsageError, match="cannot be said in JSON"):
                client.call("violation", {"name": b"bytes"})
            assert client.call("status") == {"options": {}}
            with pytest.raises(Refused, match="line longer than"):
                client.violation("x" * wire.MAX_REQUEST)
            with pytest.raises(ControlError):
                client.status()

    async with serving(tmp_path / "s", {"status": handler()}):
        await in_thread(work)


async def test_progress(tmp_path: Path) -> None:
    async def load(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, object]:
        progress(2, 2)
        await trio.lowlevel.checkpoint()
        return {"records": 2}

    seen = []

    def work() -> Mapping[str, object]:
        with ControlClient(tmp_path / "s") as client:
            assert client.call("load", {"file": "/f"}) == {"records": 2}
            return client.load("/f", progress=lambda done, total: seen.append((done, total)))

    async with serving(tmp_path / "s", {"load": load}):
        assert await in_thread(work) == {"records": 2}
    assert seen == [(2, 2)]


async def test_exception_in_a_progress_callback_breaks_the_connection_off(tmp_path: Path) -> None:
    async def load(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, object]:
        progress(1, 2)
        await trio.lowlevel.checkpoint()
        return {}

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with ControlClient(tmp_path / "s") as client:
            with pytest.raises(KeyboardInterrupt):
                client.load("/f", progress=interrupted)
            with pytest.raises(ControlError, match="an earlier request was broken off"):
                client.status()

    async with serving(tmp_path / "s", {"load": load}):
        await in_thread(work)


async def test_deadline(tmp_path: Path) -> None:
    async def hang(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, object]:
        await trio.sleep_forever()
        return {}

    def work() -> None:
        with ControlClient(tmp_path / "s", deadline=0.1) as client:
            with pytest.raises(ControlError, match="status: no answer in time"):
                client.status()
            with pytest.raises(ControlError, match="broken off"):
                client.status()
        with (
            ControlClient(tmp_path / "s") as client,
            pytest.raises(ControlError, match="no answer in time"),
        ):
            client.generate(1, deadline=0.1)

    async with serving(tmp_path / "s", {"status": hang, "generate": hang}):
        await in_thread(work)


# Listeners that are no daemon of ours.


@contextmanager
def listener(path: Path, *answers: bytes) -> Iterator[None]:
    """Reads one line, sends ``answers`` and hangs up."""

    def play() -> None:
        connection, _ = server.accept()
        with connection:
            if connection.recv(65536):
                for answer in answers:
                    connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(60)
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield
        finally:
            thread.join(60)


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([], "the daemon hung up before it answered"),
        ([b'{"ok":tr'], "the daemon hung up before it answered"),
        ([b"HTTP/1.1 400\n"], "not an answer: column 1: malformed JSON"),
        ([b"[]\n"], "not an answer: malformed request: not a JSON object"),
        ([b'{"ok":true,"id":99}\n'], "answer to another request: 99"),
        ([b'{"ok":1,"id":1}\n'], "neither ok nor refused"),
        ([b'{"id":1}\n'], "neither ok nor refused"),
    ],
)
def test_nonsense_is_no_answer(tmp_path: Path, answers: list[bytes], text: str) -> None:
    with (
        listener(tmp_path / "s", *answers),
        ControlClient(tmp_path / "s") as client,
        pytest.raises(ControlError) as caught,
    ):
        client.status()
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "number", "text"),
    [
        (b'{"ok":false,"errno":"ENOSPC","error":"full"}\n', errno.ENOSPC, "full"),
        (b'{"ok":false,"errno":"EWHAT","error":3}\n', errno.EIO, "refused without a reason"),
        (b'{"ok":false,"errno":"errorcode"}\n', errno.EIO, "refused without a reason"),
    ],
)
def test_odd_refusals(tmp_path: Path, answer: bytes, number: int, text: str) -> None:
    with (
        listener(tmp_path / "s", answer),
        ControlClient(tmp_path / "s") as client,
        pytest.raises(Refused) as caught,
    ):
        client.status()
    assert (caught.value.errno, str(caught.value)) == (number, text)
    assert caught.value.exit_code == Refused.exit_code


@pytest.mark.parametrize("code", [0, -1, 256, 2**70])
def test_a_refusal_never_ends_with_status_0(tmp_path: Path, code: int) -> None:
    answer = b'{"ok":false,"errno":"EIO","error":"no","exit_code":%d}\n' % code
    with (
        listener(tmp_path / "s", answer),
        ControlClient(tmp_path / "s") as client,
        pytest.raises(Refused) as caught,
    ):
        client.status()
    assert caught.value.exit_code == Refused.exit_code


def test_answers_in_pieces_with_strange_progress(tmp_path: Path) -> None:
    pieces = [
        b'{"progress":{"done":1}}\n{"progress":',
        b'{"done":1,"total":2}}\n{"ok":tr',
        b"ue}\n",
    ]
    seen = []
    with listener(tmp_path / "s", *pieces), ControlClient(tmp_path / "s") as client:
        seeing: Progress = lambda done, total: seen.append((done, total))  # noqa: E731
        answer = client.call("load", {"file": "/f"}, progress=seeing)
    assert answer == {}
    assert seen == [(1, 2)]


def test_last_words_are_read_even_if_nobody_listens_any_more(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        with ControlClient(tmp_path / "s") as client:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b'{"ok":false,"errno":"EPERM","error":"not you"}\n')
            with pytest.raises(Refused, match="not you"):
                client.status()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"nobody listens there \(No such file"):
        ControlClient(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(ControlError, match=r"nobody listens there \(Connection refused"):
        ControlClient(tmp_path / "s")
    with pytest.raises(ControlError, match="too long"):
        ControlClient(tmp_path / ("x" * 120))


def test_full_backlog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(tmp_path / "s"))
        server.listen(0)
        first.connect(str(tmp_path / "s"))
        with pytest.raises(ControlError, match="it accepts no connections"):
            ControlClient(tmp_path / "s", deadline=0.1)
