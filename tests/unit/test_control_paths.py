# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Names of control sockets and the search for living ones."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imafs.cli import leftovers
from imafs.control import paths, peers
from imafs.errors import ControlError
from tests.support import ROOT


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ordinary user's directory for sockets, not made yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path / "imafs"


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for listener in opened:
        listener.close()


def listen(path: Path, listeners: list[socket.socket]) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listeners.append(listener)
    listener.bind(str(path))
    listener.listen()


@pytest.mark.parametrize(
    ("mountpoint", "name"),
    [
        ("/mnt/ima", "mnt-ima.sock"),
        ("/", "-.sock"),
        ("/a-b/c%", "a%2db-c%25.sock"),
        ("/.hidden/.x", "%2ehidden-.x.sock"),
        ("/with space/ü", "with%20space-%c3%bc.sock"),
        ("/nul\udcff", "nul%ff.sock"),
        ("/~home", "%7ehome.sock"),
    ],
)
def test_readable_names(runtime: Path, mountpoint: str, name: str) -> None:
    assert paths.default_socket(mountpoint) == runtime / name
    assert paths.mountpoint_of(name) == mountpoint


NAMES = st.binary(min_size=1, max_size=12).map(
    lambda b: b.replace(b"\0", b"_").replace(b"/", b"_").replace(b".", b"_")
)


@given(st.lists(NAMES, min_size=1, max_size=30))
def test_every_name_fits_and_is_reversible_or_cut(parts: list[bytes]) -> None:
    mountpoint = os.fsdecode(b"/nowhere.here/" + b"/".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        path = paths.default_socket(mountpoint)
    assert path.parent == Path("/run/imafs")
    assert len(os.fsencode(path)) <= paths.SUN_PATH_MAX
    back = paths.mountpoint_of(path.name)
    assert back == mountpoint or (
        back.startswith("...") and os.fsencode(mountpoint).endswith(os.fsencode(back[3:]))
    )


def test_long_names_differ_by_their_hash(runtime: Path) -> None:
    one = paths.default_socket("/one/" + "x" * 300)
    two = paths.default_socket("/two/" + "x" * 300)
    assert one != two
    assert len(os.fsencode(one)) <= paths.SUN_PATH_MAX


def test_links_are_resolved(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert paths.default_socket(tmp_path / "link") == paths.default_socket(tmp_path / "real")


def test_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.socket_directory() == Path("/run/imafs")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        with pytest.raises(ControlError, match="--control SOCKET"):
            paths.socket_directory()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "d" * 100)
    with pytest.raises(ControlError, match="too long"):
        paths.default_socket("/mnt")


def _belongs_to(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """/run and /run/imafs are of ``uid``, or seem to be."""
    real = os.stat(ROOT)
    info = os.stat_result((*real[:4], uid, *real[5:10]))
    for name in ("stat", "lstat"):
        monkeypatch.setattr(Path, name, lambda path, **_: info)


def test_root_of_a_user_namespace_is_a_plain_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """There root's /run/imafs is the overflow uid's, and closed."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("IMAFS_SOCKET_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    _belongs_to(monkeypatch, 65534)
    assert paths.socket_directory() == Path("/run/user/1000/imafs")
    assert "XDG_RUNTIME_DIR" in paths.advice()
    _belongs_to(monkeypatch, 0)
    assert paths.socket_directory() == Path("/run/imafs")
    assert "XDG_RUNTIME_DIR" not in paths.advice()


def test_sockets_beside_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: list[socket.socket]
) -> None:
    """Where a user has no runtime directory."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for variable in ("XDG_RUNTIME_DIR", "IMAFS_CONTROL", "IMAFS_SOCKET_DIR"):
        monkeypatch.delenv(variable, raising=False)
    a, b, nothing = (str(tmp_path / name) for name in ("a", "b", "nothing"))
    with pytest.raises(ControlError, match=r"beside a mount of this user .*is it mounted"):
        paths.the_socket([nothing])
    listen(paths.beside(a), listeners)
    assert paths.the_socket([a, nothing]) == paths.beside(a)
    listen(paths.beside(b), listeners)
    with pytest.raises(ControlError, match=f"choose with --control SOCKET: {a} .*, {b} "):
        paths.the_socket([a, b])


def test_directory_is_made_and_tightened(tmp_path: Path) -> None:
    directory = tmp_path / "imafs"
    paths.prepare_directory(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    directory.chmod(0o755)
    paths.prepare_directory(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_roots_directory_can_be_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a keeper's view in it, which is for the group of agents; nobody else looks into it."""
    directory = tmp_path / "imafs"
    monkeypatch.setattr(paths, "_ROOTS", directory)
    directory.mkdir()
    for before, after in ((0o755, 0o711), (0o777, 0o711), (0o711, 0o711), (0o700, 0o700)):
        directory.chmod(before)
        paths.prepare_directory(directory)
        assert stat.S_IMODE(directory.stat().st_mode) == after


def test_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ControlError, match="not a directory of this user"):
        paths.prepare_directory(tmp_path / "link")
    with pytest.raises(ControlError, match="No such file"):
        paths.prepare_directory(tmp_path / "no" / "such")
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="File exists"):
        paths.prepare_directory(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ControlError, match="not a directory of this user"):
        paths.prepare_directory(tmp_path)


def test_find(runtime: Path, listeners: list[socket.socket]) -> None:
    assert paths.find_sockets() == []
    with pytest.raises(ControlError, match=r"no imafs listens in .*--control"):
        paths.the_socket()
    runtime.mkdir()
    listen(runtime / "mnt-a.sock", listeners)
    listen(runtime / "stale.sock", listeners)
    listeners.pop().close()
    (runtime / "file.sock").touch()
    (runtime / "other").touch()
    only = paths.FoundSocket(runtime / "mnt-a.sock", "/mnt/a", os.getpid())
    assert paths.find_sockets() == [only]
    assert paths.the_socket() == only.path
    listen(runtime / "mnt-b.sock", listeners)
    with pytest.raises(ControlError) as caught:
        paths.the_socket()
    assert str(caught.value).startswith(
        "2 imafs are mounted, choose with --control SOCKET: /mnt/a ("
    )
    assert f"/mnt/b ({runtime}/mnt-b.sock)" in str(caught.value)


def test_listener_of_a_full_backlog_lives(tmp_path: Path, listeners: list[socket.socket]) -> None:
    path = tmp_path / "s"
    listen(path, listeners)
    listeners[0].listen(0)
    waiting = socket.socket(socket.AF_UNIX)
    listeners.append(waiting)
    waiting.connect(str(path))
    who = paths.listener(path)
    assert who is not None
    assert str(who) == "another process"


def test_what_is_no_socket(tmp_path: Path) -> None:
    assert paths.listener(tmp_path / "nothing") is None
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(ControlError, match="exists and is not a socket"):
            paths.listener(tmp_path / name)
    with pytest.raises(ControlError, match="too long"):
        paths.listener(tmp_path / ("x" * 120))


def test_the_variables_of_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: list[socket.socket]
) -> None:
    """$IMAFS_SOCKET_DIR is where sockets are, $IMAFS_CONTROL the one that is asked."""
    monkeypatch.setenv("IMAFS_SOCKET_DIR", str(tmp_path))
    assert paths.default_socket("/mnt/ima") == tmp_path / "mnt-ima.sock"
    listen(tmp_path / "a.sock", listeners)
    assert paths.the_socket() == tmp_path / "a.sock"
    monkeypatch.setenv("IMAFS_CONTROL", "/elsewhere.sock")
    assert paths.the_socket() == Path("/elsewhere.sock")
    monkeypatch.setenv("IMAFS_SOCKET_DIR", "relative")
    assert paths.socket_directory() != Path("relative")


def test_sockets_that_are_another_users_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user namespace shows the mounts of all, with sockets beside them that are closed to us."""
    with socket.socket(socket.AF_UNIX) as theirs, socket.socket(socket.AF_UNIX) as ours:
        for sock, name in ((theirs, "theirs"), (ours, "ours")):
            sock.bind(str(tmp_path / f"{name}.sock"))
            sock.listen()
        listener = paths.listener

        def closed(path: Path) -> peers.Peer | None:
            if path.stem == "theirs":
                raise ControlError(f"{path}: Permission denied")
            return listener(path)

        monkeypatch.setattr(paths, "listener", closed)
        found = paths.find_beside([str(tmp_path / "theirs"), str(tmp_path / "ours")])
        assert [one.path.stem for one in found] == ["ours"]
        assert leftovers.remove_dead_socket(tmp_path / "theirs.sock") == []


def test_names_with_line_ends_forge_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody's socket stands in /proc/net/unix, by the name that he gave it."""
    monkeypatch.chdir(tmp_path)
    real = tmp_path / "real.sock"
    with socket.socket(socket.AF_UNIX) as theirs, socket.socket(socket.AF_UNIX) as ours:
        theirs.bind("x\na: b c no-number d e f g")
        theirs.listen()
        ours.bind(str(real))
        ours.listen()
        assert real in paths.of_process(os.getpid())
