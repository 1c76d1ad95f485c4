# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Who may be asked: never whoever put a socket where one's own should be."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imafs.cli.main import main
from imafs.control import paths, peers
from imafs.control.peers import Peer
from imafs.errors import ControlError, UntrustedError
from imafs.verbs.client import ControlClient
from tests.support import require
from tests.unit.control_fake import handler, in_thread, serving

STRANGER = 12345


class Planted:
    """A socket on which another user listens; ``heard`` is what clients told it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        # SO_PEERCRED is of the moment of listen(2).
        os.seteuid(STRANGER)
        try:
            self._socket.listen()
        finally:
            os.seteuid(0)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                while piece := connection.recv(4096):
                    self.heard += piece
                    if piece == b"end":
                        return
                    connection.sendall(b'{"ok": true, "id": 1}\n')

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
            last.sendall(b"end")
            self._thread.join()
        self._socket.close()


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Planted]:
    require("root")
    one = Planted(tmp_path / "planted.sock")
    yield one
    one.close()
    assert one.heard == b"end"


Words = Callable[[str], list[str]]
COMMANDS: tuple[tuple[str, Words], ...] = (
    ("ctl status", lambda s: ["ctl", "--control", s, "status"]),
    ("ctl measure", lambda s: ["ctl", "measure", "--control", s, "/etc/passwd"]),
    (
        "ctl critical-data",
        lambda s: (
            [
                "ctl",
                "critical-data",
                *("--control", s, "--label", "l", "--name", "n", "--data", "00"),
            ]
        ),
    ),
    ("ctl stop", lambda s: ["ctl", "stop", "--control", s]),
    ("status", lambda s: ["status", "--control", s]),
    ("status --watch", lambda s: ["status", "--control", s, "--watch", "--json"]),
    ("verify", lambda s: ["verify", __file__, "--control", s]),
    ("record", lambda s: ["record", "/", "-o", f"{s}.tar", "--control", s]),
)


@pytest.mark.parametrize("words", [w for _, w in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_root_asks_nobody_else(
    words: Words, planted: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(words(str(planted.path)))
    printed = capsys.readouterr()
    assert (code, printed.out) == (6, "")
    assert printed.err == (
        f"imafs: {planted.path}: uid {STRANGER} listens there, not root: not asked; where that is "
        f"whom you mean, add --control {planted.path} --uid {STRANGER}\n"
    )


def test_the_environment_s_socket_is_no_exception(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(paths.VARIABLE, str(planted.path))
    for words in (["ctl", "status"], ["status"]):
        assert main(words) == 6
        assert f"uid {STRANGER} listens there" in capsys.readouterr().err


def test_a_named_uid_is_asked_and_no_other(tmp_path: Path) -> None:
    require("root")
    one = Planted(tmp_path / "s")
    try:
        with pytest.raises(UntrustedError, match=f"uid {STRANGER} listens there, not uid 7"):
            ControlClient(one.path, uid=7)
        with ControlClient(one.path, uid=STRANGER) as client:
            assert client.peer.uid == STRANGER
            assert client.hello() == {}
        assert b"hello" in one.heard
        assert main(["ctl", "--control", str(one.path), "--uid", str(STRANGER), "status"]) == 0
        assert main(["ctl", "status", "--control", str(one.path), "--uid", str(STRANGER)]) == 0
        assert main(["status", "--control", str(one.path), "--uid", "7"]) == 6
    finally:
        one.close()


@pytest.mark.parametrize(
    "words",
    [
        ["ctl", "--uid", "7", "status"],
        ["status", "--uid", "7"],
        ["umount", "/nonexistent", "--uid", "7"],
        ["verify", __file__, "--uid", "7"],
    ],
)
def test_a_uid_without_a_socket(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody's word is taken for a mount's because a user was named."""
    assert main(words) == 2
    assert "--uid names who listens at --control SOCKET: give both" in capsys.readouterr().err


def test_a_socket_beside_a_mount_does_not_count(planted: Planted) -> None:
    """Else anybody could make root choose between two."""
    mountpoint = str(planted.path).removesuffix(".sock")
    assert paths.find_beside([mountpoint]) == []


async def test_an_own_daemon_is_asked(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", {"status": handler()}):
        client = await in_thread(lambda: ControlClient(tmp_path / "s"))
        assert (client.peer.uid, client.peer.pid) == (os.geteuid(), os.getpid())
        client.close()


WHOLE = "         0          0 4294967295\n"
ROOTLESS = "         0       1000          1\n         1     100000      65536\n"
OWN = "      1000       1000          1\n"


@pytest.mark.parametrize(
    ("euid", "uid", "uid_map", "ours"),
    [
        (0, 0, WHOLE, True),
        (0, 1000, WHOLE, False),
        (1000, 0, WHOLE, True),
        (1000, 1000, WHOLE, True),
        (1000, 1001, WHOLE, False),
        (65534, 65534, WHOLE, True),  # nobody, who is somebody here
        (0, 0, OWN, True),
        (0, 65534, ROOTLESS, False),
        (1000, 65534, OWN, False),
        (65534, 65534, OWN, False),  # all who have no number here, perhaps not we
        (65534, 65534, ROOTLESS, False),
        (65534, 0, OWN, True),
    ],
)
def test_whose_daemon_is_ours(
    euid: int, uid: int, uid_map: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"/proc/self/uid_map": uid_map, "/proc/sys/kernel/overflowuid": "65534\n"}
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(Path, "read_text", lambda self: texts[str(self)])
    assert peers.is_ours(uid) is ours


def test_somebody_outside_of_the_namespace_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "is_anybody", lambda uid: uid == 65534)
    with pytest.raises(ControlError, match="outside of this user namespace") as caught:
        peers.check_listener("/s", Peer(0, 65534, 0), None)
    assert caught.value.errno == errno.EPERM
