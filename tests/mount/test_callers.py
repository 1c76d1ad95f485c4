# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Who may read and who may write: mode bits, CAP_SYS_ADMIN, namespaces."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from imafs.testing.mounted import Home
from tests.mount.callers import (
    CHILD_PIDS,
    NO_SYS_ADMIN,
    USER_1000,
    USER_1000_GROUP_0,
    USER_NAMESPACE,
    tries,
)
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

ALL = {"read": "ok", "write": "ok"}
READ_ONLY = {"read": "ok", "write": "EPERM"}
NOTHING = {"read": "EACCES", "write": "EACCES"}
OUTSIDE = "outside the daemon's pid namespace"


def test_root(daemon: Daemon) -> None:
    assert tries(daemon.path(BINARY)) == ALL


def test_uid_1000_is_eacces(daemon: Daemon) -> None:
    """default_permissions: the mode bits are the kernel's business."""
    for name in (ASCII, BINARY, f"{BINARY}_sha256", COUNT, "violations"):
        assert tries(daemon.path(name), USER_1000) == NOTHING


def test_uid_1000_of_group_root_is_eperm(daemon: Daemon) -> None:
    assert tries(daemon.path(BINARY), USER_1000_GROUP_0) == READ_ONLY


def test_root_without_cap_sys_admin(daemon: Daemon) -> None:
    assert tries(daemon.path(BINARY), NO_SYS_ADMIN) == READ_ONLY
    with daemon.path(f"{BINARY}_sha1").open("rb"):  # EPERM comes before EBUSY
        assert tries(daemon.path(BINARY), NO_SYS_ADMIN) == READ_ONLY


def test_root_of_a_user_namespace(daemon: Daemon) -> None:
    """CapEff says all capabilities there, and they mean nothing here."""
    assert tries(daemon.path(BINARY), USER_NAMESPACE) == READ_ONLY


def test_user_1000_as_root_of_a_user_namespace(daemon: Daemon) -> None:
    assert tries(daemon.path(BINARY), (*USER_1000, *USER_NAMESPACE)) == NOTHING


def test_a_child_pid_namespace_is_visible(daemon: Daemon) -> None:
    """The daemon sees callers of the pid namespaces below its own."""
    assert tries(daemon.path(BINARY), CHILD_PIDS) == ALL
    assert tries(daemon.path(BINARY), (*CHILD_PIDS, *NO_SYS_ADMIN)) == READ_ONLY
    assert OUTSIDE not in daemon.log()


@pytest.fixture
def shared(start: Starter) -> Home:
    """A place whose mounts are seen in the mount namespaces that are made from ours."""
    place = start.place()
    run(["mount", "--bind", str(place.base), str(place.base)])
    run(["mount", "--make-shared", str(place.base)])
    return place


def test_a_caller_outside_the_pid_namespace(start: Starter, shared: Home) -> None:
    """pid 0 in the request: reads, EPERM for writing, one clear log line."""
    prefix = ("unshare", "--fork", "--pid", "--mount-proc", "--propagation", "unchanged")
    daemon = start(place=shared, prefix=prefix)
    assert tries(daemon.path(BINARY)) == READ_ONLY
    wait_for(lambda: OUTSIDE in daemon.log(), 60, "the log line")
    assert tries(daemon.path(ASCII)) == READ_ONLY
    # The release of what was just closed and the question come on two ways.
    wait_for(lambda: daemon.call("status")["readers"] == [], 60, "nobody reads any more")
    assert daemon.stop() == 0
    assert daemon.log().count(OUTSIDE) == 1, "whoever is outside could fill the disk"


def test_a_reader_outside_shows_as_pid_0(start: Starter, shared: Home) -> None:
    prefix = ("unshare", "--fork", "--pid", "--mount-proc", "--propagation", "unchanged")
    daemon = start(place=shared, prefix=prefix)
    with daemon.path(BINARY).open("rb"):
        assert daemon.call("status")["readers"] == [{"pid": 0, "name": None}]


def test_a_daemon_whose_proc_is_of_another_pid_namespace(start: Starter, shared: Home) -> None:
    """Its /proc shows other numbers than its own: whoever has the number there is not the caller.

    A kernel asks the caller's own credentials: a root without CAP_SYS_ADMIN is EPERM.
    """
    daemon = start("--tpm", "none", place=shared, prefix=("unshare", "--fork", "--pid"))
    inside = ("nsenter", f"--pid=/proc/{daemon.process.pid}/ns/pid_for_children")
    result = tries(daemon.path(BINARY), (*inside, *NO_SYS_ADMIN))
    assert result == READ_ONLY


def drop_sys_admin() -> None:
    """From the calling thread only, for good (capset(2) is per thread)."""
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    words = list(struct.unpack("6I", data.raw))
    words[0] &= ~(1 << 21)
    assert libc.capset(header, ctypes.create_string_buffer(struct.pack("6I", *words))) == 0


def in_thread(path: Path, flags: int, *, drop: bool = False) -> str:
    """What a thread's open gives: ok or the errno's name."""
    outcome = []

    def body() -> None:
        if drop:
            drop_sys_admin()
        try:
            os.close(os.open(path, flags))
        except OSError as error:
            outcome.append(errno.errorcode[error.errno or 0])
        else:
            outcome.append("ok")

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return outcome[0]


def test_capabilities_are_the_threads_own(daemon: Daemon) -> None:
    assert in_thread(daemon.path(BINARY), os.O_WRONLY, drop=True) == "EPERM"
    assert in_thread(daemon.path(BINARY), os.O_RDONLY, drop=True) == "ok"
    assert in_thread(daemon.path(BINARY), os.O_WRONLY) == "ok"


def test_the_same_writer_is_the_same_thread(daemon: Daemon) -> None:
    first = os.open(daemon.path(BINARY), os.O_WRONLY)
    second = os.open(daemon.path(f"{ASCII}_staged"), os.O_RDWR)
    assert in_thread(daemon.path(BINARY), os.O_WRONLY) == "EBUSY"
    assert in_thread(daemon.path(BINARY), os.O_RDONLY) == "EBUSY"
    with pytest.raises(OSError, match="busy"):  # the writer's own reader too
        os.open(daemon.path(BINARY), os.O_RDONLY)
    os.close(first)
    assert in_thread(daemon.path(BINARY), os.O_WRONLY) == "EBUSY"
    os.close(second)
    assert in_thread(daemon.path(BINARY), os.O_WRONLY) == "ok"


def test_one_counter_for_all_lists_and_none_for_the_counters(daemon: Daemon) -> None:
    reader = os.open(daemon.path(f"{ASCII}_sha512_staged"), os.O_RDONLY)
    with pytest.raises(OSError, match="busy"):
        os.open(daemon.path(BINARY), os.O_WRONLY)
    os.close(reader)
    with daemon.path(COUNT).open("rb"), daemon.path("violations").open("rb"):
        writer = os.open(daemon.path(BINARY), os.O_WRONLY)
        assert daemon.count() == 1
        with daemon.path("violations").open("rb") as file:
            assert file.read() == b"0\n"
        os.close(writer)


def test_o_nonblock_never_waits(daemon: Daemon) -> None:
    with daemon.path(BINARY).open("rb"), pytest.raises(OSError, match="busy"):
        os.open(daemon.path(BINARY), os.O_WRONLY | os.O_NONBLOCK)
