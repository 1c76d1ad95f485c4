# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which places are refused because another user can change them."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imafs.control import paths
from imafs.emulator.audit_log import open_log
from imafs.emulator.export_files import _parent
from imafs.errors import ControlError, FileError, ImafsError, Refused, UsageError
from imafs.host import logs, ownership
from imafs.host.ownership import ForeignError
from imafs.sources import recording
from imafs.testing.mounted import Mounted
from imafs.tpm import open_device
from imafs.verbs.restart import _write

OTHER = 12345

pytestmark = pytest.mark.root


class Places:
    """Below a directory of ours: one of another user, lax ones, a sticky one, links."""

    def __init__(self, base: Path) -> None:
        self.secret = base / "secret"
        self.secret.write_text("root's")
        for name, mode, owner in (
            ("own", 0o755, 0),
            ("others", 0o755, OTHER),
            ("lax", 0o777, 0),
            ("group", 0o775, 0),
            ("sticky", 0o1777, 0),
        ):
            place = base / name
            (place / "below").mkdir(parents=True)
            os.chown(place, owner, OTHER if name == "group" else 0)
            place.chmod(mode)
        (base / "link").symlink_to("own")
        (base / "planted").symlink_to("own")
        os.chown(base / "planted", OTHER, OTHER, follow_symlinks=False)
        self.base = base


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


REFUSED = ["others", "lax", "group", "planted", "others/below", "lax/below", "own/../lax/below"]
TAKEN = ["own", "sticky", "link", "own/below", "sticky/below", "link/below", "own/./../own"]


@pytest.mark.parametrize("where", REFUSED)
def test_refused(places: Places, where: str) -> None:
    with pytest.raises(ForeignError, match=r"belongs to|can write in") as caught:
        ownership.check(places.base / where / "x", "-o")
    assert str(caught.value).startswith(f"-o {places.base}/{where}/x: ")
    assert (caught.value.exit_code, caught.value.errno) == (2, errno.EACCES)


@pytest.mark.parametrize("where", TAKEN)
def test_taken(places: Places, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ownership.check(places.base / where / "x")
    monkeypatch.chdir(places.base / where)
    with ownership.parent("x") as (directory, name):
        assert os.path.samestat(os.fstat(directory), (places.base / where).stat())
        assert name == b"x"


def test_paths_that_lead_nowhere(places: Places) -> None:
    (places.base / "circle").symlink_to("circle")
    for path, code in (("none/x", errno.ENOENT), ("secret/x", errno.ENOTDIR)):
        with pytest.raises(FileError) as caught:
            ownership.check(places.base / path)
        assert caught.value.errno == code
    with pytest.raises(FileError) as caught:
        ownership.check(places.base / "circle" / "x")
    assert caught.value.errno == errno.ELOOP


def test_no_descriptor_is_left_open(places: Places) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for where in (*REFUSED, *TAKEN, "none", "secret"):
        try:
            ownership.check(places.base / where / "x")
        except ImafsError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def plant(place: Path, target: Path, kind: str) -> Path:
    """What another user puts into a sticky directory under a name that we will open."""
    name = place / "planted"
    if kind == "symlink":
        name.symlink_to(target)
    elif kind == "hardlink":
        name.hardlink_to(target)
        return name
    elif kind == "fifo":
        os.mkfifo(name)
    else:
        name.write_text("theirs")
    os.chown(name, OTHER, OTHER, follow_symlinks=False)
    return name


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "file"])
def test_planted_log_files(places: Places, kind: str) -> None:
    name = plant(places.base / "sticky", places.secret, kind)
    with pytest.raises(UsageError, match=f"--log-file {name}: "):
        logs.configure(str(name))
    assert places.secret.read_text() == "root's"


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "file"])
def test_planted_audit_logs(places: Places, kind: str) -> None:
    name = plant(places.base / "sticky", places.secret, kind)
    with pytest.raises(UsageError, match=f"--audit-log {name}: "):
        open_log(str(name), "--audit-log")
    assert places.secret.read_text() == "root's"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "file"])
def test_planted_kexec_buffers(places: Places, kind: str) -> None:
    name = plant(places.base / "sticky", places.secret, kind)
    with pytest.raises(UsageError, match=r"is no regular file|it belongs to uid"):
        _write(str(name), b"buffer")
    assert places.secret.read_text() == "root's"


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "file"])
def test_planted_recordings(places: Places, kind: str) -> None:
    """Of another user: refused. A link of our own file's is replaced, not followed."""
    name = plant(places.base / "sticky", places.secret, kind)
    target = name.rename(name.with_name("x.tar"))
    if kind != "hardlink":
        with pytest.raises(UsageError, match="it belongs to uid"):
            recording.write(EMPTY, str(target), {})
    else:
        recording.write(EMPTY, str(target), {})
    assert places.secret.read_text() == "root's"


EMPTY = recording.Snapshot({}, {}, {}, {}, None)


@pytest.mark.parametrize("where", ["others", "lax", "group", "planted"])
class TestUses:
    """Each use of a path refuses such a directory, and changes nothing."""

    def test_log_file(self, places: Places, where: str) -> None:
        self.refused(places, where, lambda path: logs.configure(str(path)))

    def test_audit_log(self, places: Places, where: str) -> None:
        self.refused(places, where, lambda path: open_log(str(path), "--audit-log"))

    def test_recording(self, places: Places, where: str) -> None:
        def write(path: Path) -> None:
            recording.write(EMPTY, f"{path}.tar", {})

        self.refused(places, where, write)
        self.refused(places, where, lambda path: recording.check_place(f"{path}.tar"))

    def test_kexec_buffer(self, places: Places, where: str) -> None:
        self.refused(places, where, lambda path: _write(str(path), b"buffer"))

    def test_control_socket(self, places: Places, where: str) -> None:
        self.refused(places, where, paths.check_socket)
        self.refused(places, where, paths.prepare_directory)

    def test_tpm_state(self, places: Places, where: str) -> None:
        self.refused(places, where, lambda path: open_device("swtpm", state_dir=path))

    def test_export(self, places: Places, where: str) -> None:
        def export(path: Path) -> None:
            with _parent(os.fsencode(places.base), os.fsencode(path)):
                pass

        if where != "planted":  # no link is followed below --export-root
            self.refused(places, where, export)

    def test_temporary(self, places: Places, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(places.base / where))
        self.refused(places, where, lambda path: open_device("swtpm"))
        self.refused(places, where, lambda path: Mounted(["--tpm", "none"]))

    @staticmethod
    def refused(places: Places, where: str, use: Callable[[Path], object]) -> None:
        with pytest.raises((UsageError, ControlError, Refused), match=r"belongs to|can write in"):
            use(places.base / where / "x")
        assert os.listdir(places.base / where) == ["below"]


@pytest.mark.swtpm
class TestState:
    def test_a_planted_log_is_not_written_through(self, places: Places) -> None:
        """The place was lax when the link was made, and is not any more."""
        state = places.base / "state"
        state.mkdir(mode=0o700)
        for name in ("swtpm.log", "imafs.lock", "tpm2-00.permall"):
            (state / name).symlink_to(places.secret)
            os.chown(state / name, OTHER, OTHER, follow_symlinks=False)
            with pytest.raises(UsageError, match=f"{name} in it belongs to uid {OTHER}"):
                open_device("swtpm", state_dir=state)
            (state / name).unlink()
        assert places.secret.read_text() == "root's"

    def test_a_state_of_others_and_a_shared_one(self, places: Places) -> None:
        for where, said in (("others", "belongs to uid"), ("sticky", "everybody can write")):
            with pytest.raises(UsageError, match=said):
                open_device("swtpm", state_dir=places.base / where)

    def test_a_state_of_ours_in_a_sticky_directory(self, places: Places) -> None:
        state = places.base / "sticky" / "state"
        for _ in range(2):
            open_device("swtpm", state_dir=state).close()
        assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_users_private_group(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """umask 002, as distributions have it where every user has a group of his own."""
    import grp
    import pwd

    place = places.base / "home"
    place.mkdir()
    place.chmod(0o775)
    os.chown(place, OTHER, OTHER)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    user = pwd.struct_passwd(("ann", "x", OTHER, OTHER, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    for members, fine in (([], True), (["ann"], True), (["bob"], False)):
        group = grp.struct_group(("ann", "x", OTHER, members))
        monkeypatch.setattr(grp, "getgrgid", lambda gid, group=group: group)
        if fine:
            ownership.check(place / "x")
        else:
            with pytest.raises(ForeignError, match=f"the group {OTHER} can write"):
                ownership.check(place / "x")


def test_devices_and_what_is_open_already_are_logs(tmp_path: Path) -> None:
    for path in ("/dev/null", "/dev/stderr", "/proc/self/fd/2"):
        os.close(ownership.appending(path))


class TestLogFile:
    """Where there is no room, lines are counted and told later; nobody gets a traceback."""

    def test_a_full_disk(self, capfd: pytest.CaptureFixture[str]) -> None:
        handler = logs.LogFile(os.open("/dev/full", os.O_WRONLY))
        handler.emit(logging.makeLogRecord({"msg": "lost"}))
        handler.emit(logging.makeLogRecord({"msg": "lost too"}))
        handler.close()
        assert capfd.readouterr() == ("", "")

    def test_room_again(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        handler = logs.LogFile(ownership.appending(str(path)))
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        kept = os.dup(handler.stream.fileno())
        full = os.open("/dev/full", os.O_WRONLY)
        for number, place in enumerate((kept, full, full, kept)):
            os.dup2(place, handler.stream.fileno())
            record = {"msg": "line %d", "args": (number,), "levelname": "INFO"}
            handler.emit(logging.makeLogRecord(record))
        said = "WARNING 2 lines are missing here: there was no room for more"
        assert path.read_text().splitlines() == ["INFO line 0", said, "INFO line 3"]
        os.close(kept)
        os.close(full)
        handler.close()


@contextmanager
def served(place: Path, user: int, kind: int = stat.S_IFDIR) -> Iterator[None]:
    """A FUSE of ``user``'s at ``place`` that answers nobody; what asks it gets ENOTCONN."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode={kind:o},user_id={user},group_id={user},allow_other".encode()
    assert libc.mount(b"x", os.fsencode(place), b"fuse", 6, options) == 0, ctypes.get_errno()
    timer = threading.Timer(5, os.close, [device])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        assert libc.umount2(os.fsencode(place), 2) == 0
        with suppress(OSError):  # the timer has closed it
            os.close(device)


@pytest.mark.mount
def test_a_file_system_that_another_user_serves(places: Places) -> None:
    """It would say that all in it is root's, and show a link to any file of root's."""
    for place in (places.base / "own", places.base / "sticky" / "below"):
        with (
            served(place, OTHER),
            pytest.raises(ForeignError, match=f"uid {OTHER} serves the file system at "),
        ):
            ownership.check(place / "x")


@pytest.mark.mount
def test_a_file_that_another_user_serves(places: Places) -> None:
    place = places.base / "sticky" / "log"
    place.touch()
    with served(place, OTHER, stat.S_IFREG), pytest.raises(ForeignError, match="serves the file"):
        ownership.appending(str(place))
    with served(place, OTHER, stat.S_IFREG), pytest.raises(ForeignError, match="serves the file"):
        _write(str(place), b"buffer")


@pytest.mark.mount
def test_a_file_system_that_root_serves_is_asked(places: Places) -> None:
    with served(places.base / "own", 0), pytest.raises(FileError) as caught:
        ownership.check(places.base / "own" / "x")
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
