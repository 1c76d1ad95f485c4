# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The server's socket: who is let in, whose file it is, and of what mode."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio

from imafs.control import peers, wire
from imafs.control.server import serve
from imafs.errors import ControlError
from imafs.host import locks
from tests.support import ExpectedLogs, run
from tests.unit.control_fake import handler, serving, table_of

STATUS: Mapping[str, object] = {"op": "status"}
HANDLERS = {"status": handler()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


# Who is let in.


async def test_other_users_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect(r"WARNING imafs.control: process 7 of uid 12345 was refused")
    async with serving(path, HANDLERS) as connect:
        monkeypatch.setattr(peers, "peer_of", lambda _: peers.Peer(7, 12345, 0))
        talk = await connect()
        answer = await talk.answer()
        assert answer is not None
        assert (answer["ok"], answer["errno"]) == (False, "EPERM")
        assert await talk.answer() is None
        await talk.send(STATUS)  # no EPIPE: clients write before they read
        # Another user's daemon still answers root.
        monkeypatch.setattr(peers, "peer_of", lambda _: peers.Peer(7, 0, 0))
        assert (await (await connect()).ask(STATUS))["ok"] is True


@pytest.fixture
def open_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"op":"status"}\\n')
print(s.recv(1000).decode(), end="")
"""


@pytest.mark.root
async def test_a_real_other_user_is_refused(
    open_directory: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect(r"process \d+ of uid 65534 was refused")
    path = open_directory / "s"
    # The base interpreter: another user may have no way to a virtual environment's.
    python = os.path.realpath(sys.executable)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-I"]

    def ask() -> tuple[int, str, str]:
        done = run([*as_nobody, "-c", ASK, path], check=False, cwd="/")
        return done.returncode, done.stdout, done.stderr

    async with serving(path, HANDLERS):
        code, out, err = await trio.to_thread.run_sync(ask)
        assert (code, out) == (1, "")
        assert "PermissionError" in err  # the socket's mode
        path.chmod(0o666)
        code, out, err = await trio.to_thread.run_sync(ask)
        assert (code, err) == (0, "")
        assert wire.decode(out.encode())["errno"] == "EPERM"  # SO_PEERCRED


# The socket file.


async def test_socket_has_its_mode_from_the_beginning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    listen = socket.socket.listen

    def watched(self: socket.socket, backlog: int = 0) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))  # bound: nothing has changed it since
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", watched)
    umask = os.umask(0)
    try:
        async with serving(path, HANDLERS):
            modes.append(stat.S_IMODE(path.stat().st_mode))
    finally:
        os.umask(umask)
    assert modes == [0o600, 0o600]
    assert not path.exists()


async def test_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path, HANDLERS) as connect:
        assert (await (await connect()).ask(STATUS))["ok"] is True


async def test_living_socket_is_refused_with_its_listener(path: Path) -> None:
    async with serving(path, HANDLERS) as connect:
        await refused(path, f"process {os.getpid()} of uid .* listens there")
        assert (await (await connect()).ask(STATUS))["ok"] is True
        # A link to it is not taken for a stale one.
        link = path.with_name("link")
        link.symlink_to(path)
        await refused(link, "listens there")


async def test_of_two_servers_at_once_one_wins(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    won: list[int] = []
    lost: list[BaseException] = []

    async def one() -> None:
        try:
            async with serving(path, HANDLERS):
                won.append(path.stat().st_ino)
                await both.wait()
        except* ControlError as group:
            lost.append(group)
            both.set()

    both = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert (len(won), len(lost)) == (1, 1)


async def test_only_our_own_socket_is_removed(path: Path) -> None:
    async with serving(path, HANDLERS):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    path.unlink()
    async with serving(path, HANDLERS):
        path.unlink()


async def refused(path: Path, text: str) -> None:
    """No server starts on ``path``."""
    with trio.fail_after(60), pytest.raises(ControlError, match=text):
        await serve(path, table_of(HANDLERS), HANDLERS)


async def test_places_where_no_socket_can_be(path: Path) -> None:
    path.write_text("precious")
    await refused(path, "exists and is not a socket")
    assert path.read_text() == "precious"
    await refused(path.parent / "no" / "s", "No such file")
    await refused(path.parent / ("x" * 108), "too long for a socket")


async def test_directory_locked_by_another_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SECONDS", 0.05)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        await refused(path, "locked by another process")
        assert not path.exists()
    finally:
        os.close(descriptor)
    async with serving(path, HANDLERS) as connect:
        assert (await (await connect()).ask(STATUS))["ok"] is True
