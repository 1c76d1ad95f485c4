# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Clients of the control socket that misbehave: nothing else suffers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from imafs.control.wire import MAX_REQUEST
from tests.mount.daemon import ASCII, BINARY, Daemon
from tests.mount.fixtures import booted as booted
from tests.support import run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


@contextmanager
def readers_go_on(daemon: Daemon) -> Iterator[None]:
    """Around the misbehaviour: lists are read all the time, none hangs, and A, D answered."""
    daemon.generate(50)
    ended = threading.Event()
    rounds = [0]
    wrong: list[Exception] = []

    def read() -> None:
        while not ended.is_set() or rounds[0] < 3:
            try:
                assert len(daemon.read(ASCII).splitlines()) >= 51
            except (OSError, AssertionError) as error:
                wrong.append(error)
                return
            rounds[0] += 1

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
    assert not thread.is_alive(), "a reader hangs"
    assert wrong == []
    script = 'echo A > "$1" && cat "$1" > /dev/null && echo D > "$1"'
    run(["sh", "-c", script, "sh", str(daemon.path(f"{BINARY}_staged"))], deadline=60)
    daemon.generate(3)
    daemon.assert_replays()
    assert "Traceback" not in daemon.log()


def connect(daemon: Daemon) -> socket.socket:
    """A connection on which nothing takes longer than a minute."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(daemon.control))
    return sock


def answer(sock: socket.socket) -> dict[str, object]:
    """The next line, as the object that it is."""
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(65536)
        assert piece, f"hung up after {line!r}"
        line += piece
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


MALFORMED = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"hello"',
    b"{}",
    b'{"op": 1}',
    b'{"op": null}',
    b'{"op": "none"}',
    b'{"op": "generate"}',
    b'{"op": "generate", "count": "1"}',
    b'{"op": "generate", "count": -1}',
    b'{"op": "generate", "count": true}',
    b'{"op": "generate", "count": 1e3}',
    b'{"op": "generate", "count": 1, "bogus": 1}',
    b'{"op": "measure", "paths": "/etc/passwd"}',
    b'{"op": "measure", "paths": [1]}',
    b'{"op": "measure", "digest": "sha256:zz", "name": "x"}',
    b'{"op": "critical_data", "label": "l", "name": "n", "data": "0"}',
    b'{"op": "load", "file": "/nonexistent"}',
    b'{"op": "load", "file": "/dev/null\\u0000"}',
    b'{"op": "wait", "records": []}',
    b'{"op": "hello", "op": 7}',
    b"\xff\xfe\x00",
    b'{"op": "hello"' + b" " * 100,
    b"[" * 5000,
    b'{"a":' * 5000,
    b"9" * 5000,
)


def test_malformed_requests_are_answered_and_change_nothing(daemon: Daemon) -> None:
    with readers_go_on(daemon), connect(daemon) as sock:
        before = daemon.count()
        for line in MALFORMED:
            sock.sendall(line + b"\n")
            said = answer(sock)
            assert said["ok"] is False, line[:80]
            assert isinstance(said["errno"], str)
            assert said["error"]
            assert "internal" not in str(said["error"]), line[:80]
        sock.sendall(b'{"op": "hello"}\n')
        assert answer(sock)["ok"] is True, "the connection is still good"
        assert daemon.count() == before


def test_the_longest_line(daemon: Daemon) -> None:
    """As long as allowed it is a request; a byte more and it is refused and hung up on."""
    with readers_go_on(daemon):
        request = b'{"op": "hello"'
        with connect(daemon) as sock:
            sock.sendall(request + b" " * (MAX_REQUEST - len(request) - 2) + b"}\n")
            assert answer(sock)["ok"] is True
        with connect(daemon) as sock:
            sock.sendall(b"x" * (MAX_REQUEST + 1))
            assert answer(sock)["ok"] is False
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        with ExitStack() as stack:
            for _ in range(20):  # unfinished ones, side by side, most of them refused
                with suppress(BrokenPipeError, ConnectionResetError):
                    stack.enter_context(connect(daemon)).sendall(b"x" * (MAX_REQUEST - 1))
            assert daemon.call("hello")


def test_200_idle_connections(daemon: Daemon) -> None:
    with readers_go_on(daemon), ExitStack() as stack:
        idle = [stack.enter_context(connect(daemon)) for _ in range(200)]
        daemon.generate(20)
        assert daemon.call("hello")
        idle[-1].sendall(b'{"op": "hello"}\n')
        assert answer(idle[-1])["ok"] is True


def test_a_client_that_never_reads(daemon: Daemon) -> None:
    """It is cut off once its answers fill the socket; nobody else waits for it."""
    with readers_go_on(daemon), ExitStack() as stack:
        deaf = [stack.enter_context(connect(daemon)) for _ in range(3)]
        for sock in deaf:
            sock.sendall(b'{"op": "hello"}\n' * 500)
        daemon.generate(20)
        assert daemon.call("status")
        wait_for(lambda: daemon.log().count("was cut off") == 3, 60, "all three are cut off")


def test_a_client_that_hangs_up_in_the_middle(daemon: Daemon) -> None:
    with readers_go_on(daemon):
        for request in (
            b'{"op": "gen',
            b'{"op": "wait", "records": 1000000}\n',
            b'{"op": "hello"}\n',
        ):
            for _ in range(20):
                with connect(daemon) as sock:
                    sock.sendall(request)
        daemon.generate(1)
