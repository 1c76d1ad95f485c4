# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The look at requests before libfuse: the seam in pyfuse3, what it answers, and its limits."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.directory import ImaDirectory
from imafs.emulator.emulator import Emulator
from imafs.errors import MountError
from imafs.fuse import relay, selftest, session
from imafs.tpm import open_device
from tests.conformance import rawcalls
from tests.mount.callers import NO_SYS_ADMIN
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon, layers
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import ExpectedLogs, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root]

IOCTL = 39
EMPTY = "splice gave 0 bytes, not 6600 bytes"


class Relay(relay.Relay):
    """The last one that was made."""

    last: Relay

    def __init__(self) -> None:
        super().__init__()
        Relay.last = self


class Dawdling(Relay):
    """Gives everybody else a turn between the request and its handler."""

    async def _wait(self, descriptor: int) -> None:
        await super()._wait(descriptor)
        await trio.lowlevel.checkpoint()


class Turns(trio.abc.Instrument):
    """Opcodes of requests that lay before libfuse when a task's turn ended."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if Relay.last.staged:
            self.left.append(Relay.last.request.opcode)


@asynccontextmanager
async def mounted(place: Path) -> AsyncIterator[session.Mount]:
    """A mount that this process serves; others must ask from threads."""
    place.mkdir()
    emulator = Emulator(EmulatorConfig(), open_device("none"))
    await emulator.start()
    end = session.End(lambda: None)
    async with session.mounted(ImaDirectory(emulator, "ima"), str(place), end) as mount:
        yield mount


def ask_all(place: Path) -> None:
    """Requests of many kinds, one of which libfuse answers by itself."""
    assert COUNT in os.listdir(place)
    (place / COUNT).stat()
    assert (place / ASCII).read_bytes()
    with (place / f"{ASCII}_staged").open("rb+", buffering=0) as writer:
        with pytest.raises(OSError, match="Invalid argument"):
            writer.write(b"no request\n")
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            fcntl.ioctl(writer, 0x1234)
    with pytest.raises(FileExistsError):
        os.mkdir(place / COUNT)
    with pytest.raises(OSError, match="Permission denied"):
        os.close(os.open(place / "new", os.O_CREAT | os.O_WRONLY))


async def ask_and_watch(place: Path) -> list[int]:
    turns = Turns()
    async with mounted(place):
        trio.lowlevel.add_instrument(turns)
        try:
            for _ in range(20):
                await trio.to_thread.run_sync(ask_all, place)
                with (place.parent / "x").open("wb"):
                    pass
                (place.parent / "x").unlink()
        finally:
            trio.lowlevel.remove_instrument(turns)
    return turns.left


async def test_no_task_runs_between_request_and_handler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pyfuse3 has no checkpoint there (3.5): the relay would answer into its own file."""
    monkeypatch.setattr(session, "Relay", Relay)
    # libfuse answers an ioctl itself: that reply lies there until the next wait.
    assert set(await ask_and_watch(tmp_path / "ima")) <= {IOCTL}


async def test_a_checkpoint_there_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "Relay", Dawdling)
    assert set(await ask_and_watch(tmp_path / "ima")) > {IOCTL}


async def test_true_sizes_where_the_self_test_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    monkeypatch.setattr(
        selftest,
        "run",
        lambda path, *, hidden: selftest.Finding(EMPTY),
    )
    expected_logs.expect(f"the self-test failed .{EMPTY}.: sizes are true")
    place = tmp_path / "ima"

    def look() -> None:
        content = (place / ASCII).read_bytes()
        assert (place / ASCII).stat().st_size == len(content) > 0
        assert (place / COUNT).stat().st_size == 2
        with (place / ASCII).open("rb", buffering=0) as reader:
            assert reader.seek(0, os.SEEK_END) == len(content)
            with pytest.raises(OSError, match=r"Invalid argument|Input/output error"):
                os.sendfile(1, reader.fileno(), 0, 1)

    async with mounted(place) as mount:
        told = await mount.sizes()
        await trio.to_thread.run_sync(look)
    assert told == {
        "shown": "true",
        "why": f"the self-test failed: {EMPTY}",
    }


@pytest.mark.parametrize("why", ["read: Invalid argument", "open: Too many open files"])
async def test_no_mount_where_the_self_test_reads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str
) -> None:
    """Pages of the cache in its place would give lists with NULs in them, with success."""
    monkeypatch.setattr(selftest, "run", lambda path, *, hidden: selftest.Finding(why, reads=False))
    with pytest.RaisesGroup(pytest.RaisesExc(MountError, match=f"self-test .* failed: {why}")):
        async with mounted(tmp_path / "ima"):
            pytest.fail("it was mounted")  # pragma: no cover
    assert layers(tmp_path / "ima") == 0


def test_a_limit_of_file_sizes_is_one_line(start: Starter) -> None:
    status, text = start.refused(prefix=["prlimit", "--fsize=1000000"])
    assert status == 5
    assert "no file in memory for requests: File too large" in text
    assert "Traceback" not in text


def test_the_file_of_the_self_test_is_gone(daemon: Daemon) -> None:
    assert not daemon.path(selftest.NAME).exists()
    assert selftest.NAME not in os.listdir(daemon.dir)
    status = daemon.call("status")
    assert (status["readers"], status["writer"]) == ([], None)
    assert status["sizes"] == {"shown": "zero", "why": None}
    assert "sizes       0, as a kernel shows them" in daemon.ctl("status")


# The self-test itself, on files of a plain file system.


def short(*_: object, **__: object) -> int:
    return 0


def test_the_self_test_wants_size_0(tmp_path: Path) -> None:
    (tmp_path / selftest.NAME).write_bytes(selftest.CONTENT)
    finding = selftest.run(str(tmp_path), hidden=True)
    assert finding == selftest.Finding("fstat gave 6600, not 0")


def test_the_self_test_wants_the_whole_content(tmp_path: Path) -> None:
    (tmp_path / selftest.NAME).write_bytes(selftest.CONTENT[:4096])
    finding = selftest.run(str(tmp_path), hidden=False)
    assert finding == selftest.Finding("read gave 4096 bytes, not 6600 bytes", reads=False)


def test_the_self_test_without_its_file(tmp_path: Path) -> None:
    finding = selftest.run(str(tmp_path), hidden=True)
    assert finding == selftest.Finding("open: No such file or directory", reads=False)


def test_the_self_test_takes_no_empty_splice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / selftest.NAME).write_bytes(selftest.CONTENT)
    monkeypatch.setattr(os, "splice", short)
    finding = selftest.run(str(tmp_path), hidden=False)
    assert finding == selftest.Finding(EMPTY)


def test_the_self_test_notices_a_truncation_that_empties(tmp_path: Path) -> None:
    (tmp_path / selftest.NAME).write_bytes(selftest.CONTENT)
    finding = selftest.run(str(tmp_path), hidden=False)
    assert finding == selftest.Finding(EMPTY)


# What the relay hands on, and what it answers.


def test_replies_are_handed_on_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks may have written into the memfd: Linux takes one reply per write."""
    mine, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session_end, _keep = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subject = relay.Relay()
    monkeypatch.setattr(subject, "_real", os.dup(mine.fileno()))
    monkeypatch.setattr(subject, "_session", session_end.fileno())
    request = struct.pack("=IIQQIIII", 40, IOCTL, 7, 1, 0, 0, 0, 0)
    subject._buffer[:40] = request
    subject._stage(40)
    assert os.read(session_end.fileno(), 1 << 16) == request
    replies = [struct.pack("=IiQ", 16, -38, 7), struct.pack("=IiQ", 21, 0, 8) + b"abcde"]
    for reply in replies:
        os.write(session_end.fileno(), reply)
    subject.restore()
    assert [kernel.recv(1 << 16) for _ in replies] == replies
    assert not os.get_inheritable(session_end.fileno())
    subject.close()
    for end in (mine, kernel, session_end, _keep):
        end.close()


@pytest.mark.swtpm
def test_neither_readahead_nor_atomic_truncation(daemon: Daemon) -> None:
    device = daemon.dir.stat().st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert knob.read_text() == "0\n"


@pytest.mark.swtpm
def test_no_child_has_the_descriptor_of_the_session(daemon: Daemon) -> None:
    """A child that outlives a killed daemon would keep its mount hanging, not ENOTCONN."""
    daemon.lists()
    pid = daemon.process.pid
    mine = fuse_descriptors(pid)
    assert len(mine) == 2
    for number in mine:
        flags = (Path(f"/proc/{pid}/fdinfo/{number}")).read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_CLOEXEC
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    assert children
    assert [fuse_descriptors(int(child)) for child in children] == [[]] * len(children)


def fuse_descriptors(pid: int) -> list[str]:
    """Those of /dev/fuse that a process has open."""
    base = f"/proc/{pid}/fd"
    return [number for number in os.listdir(base) if os.readlink(f"{base}/{number}") == "/dev/fuse"]


@pytest.mark.swtpm
def test_refused_pages_are_nobodys_business(daemon: Daemon) -> None:
    """They use up no fault: it strikes the next read(2)."""
    daemon.call("fault", operation="read", errno="EIO", next=1)
    out, into = os.pipe()
    with daemon.path(ASCII).open("rb", buffering=0) as reader:
        for _ in range(3):
            with pytest.raises(OSError, match=r"Invalid argument|Input/output error"):
                os.splice(reader.fileno(), into, 4096, offset_src=0)
            with pytest.raises(OSError, match="Invalid argument"):
                reader.seek(0, os.SEEK_END)
        with pytest.raises(OSError, match="Input/output error"):
            reader.read(4096)
        assert reader.read(4096)
    os.close(out)
    os.close(into)


@pytest.mark.swtpm
def test_calls_without_a_handler(daemon: Daemon) -> None:
    """They are answered, whatever else is under way."""
    with daemon.path(f"{ASCII}_staged").open("rb+", buffering=0) as file:
        calls: dict[str, Callable[[], object]] = {
            "ioctl": lambda: fcntl.ioctl(file, 0x1234),
            "fallocate": lambda: rawcalls.fallocate(file.fileno(), 10),
            "fsync": lambda: os.fsync(file),
        }
        found = {name: errno_of(call) for name, call in calls.items()}
    assert found == {"ioctl": "ENOTTY", "fallocate": "ENOTSUP", "fsync": "EINVAL"}


def errno_of(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@pytest.mark.swtpm
def test_the_daemon_ends_under_a_flood_of_reads(daemon: Daemon) -> None:
    """Reads that are answered at once must not keep the end from being heard."""
    daemon.generate(500)
    over = threading.Event()
    read = [0] * 4

    def flood(number: int) -> None:
        with suppress(OSError), daemon.path(ASCII).open("rb", buffering=0) as reader:
            while not over.is_set():
                read[number] += len(os.pread(reader.fileno(), 4096, 0))

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(len(read))]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: all(read), 60, "all read")
        daemon.process.terminate()
        assert daemon.wait() == 0
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("opener", ["root", "nobody"])
def test_a_write_is_judged_by_who_writes(start: Starter, tmp_path: Path, opener: str) -> None:
    """``export`` asks for CAP_SYS_ADMIN at the write: the opener may be somebody else."""
    daemon = start("--tpm", "none", "--profile", "export-2020", "--export-root", str(tmp_path))
    target = daemon.path("list_name")
    target.chmod(0o666)
    text = str(tmp_path / "list")
    script = 'exec 3> "$0"; {} sh -c "echo $1 | cat >&3"'
    drop = " ".join(NO_SYS_ADMIN)
    if opener == "root":
        done = run(["sh", "-c", script.format(drop), str(target), text], check=False)
        assert done.returncode != 0
        assert "Operation not permitted" in done.stderr
        return
    # A descriptor that somebody without the capability opened, passed on to root.
    ours, theirs = socket.socketpair()
    code = (
        "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[2])); "
        "f = os.open(sys.argv[1], os.O_WRONLY); socket.send_fds(s, [b'x'], [f])"
    )
    command = [*NO_SYS_ADMIN, "/usr/bin/python3", "-c", code, str(target), str(theirs.fileno())]
    subprocess.run(command, check=True, pass_fds=[theirs.fileno()], timeout=60)
    _, (descriptor, *_), _, _ = socket.recv_fds(ours, 1, 1)
    assert os.write(descriptor, text.encode()) == len(text)
    os.close(descriptor)
    ours.close()
    theirs.close()


@pytest.mark.swtpm
def test_zero_is_no_choice_any_more(start: Starter) -> None:
    status, text = start.refused("--st-size", "zero")
    assert status == 2
    assert "argument --st-size: zero is what every mount shows now: leave it out" in text


@pytest.mark.swtpm
def test_a_list_of_every_bank_by_both_ways_of_answering(daemon: Daemon) -> None:
    """Reads that the relay answers, and those of the handlers, which a fault asks for."""
    daemon.generate(700)
    at_once = daemon.lists()
    daemon.call("fault", operation="read", errno="EIO", files="policy")
    assert daemon.lists() == at_once
    with daemon.path(BINARY).open("rb", buffering=0) as reader:
        assert [len(piece) for piece in iter(lambda: reader.read(1 << 20), b"") if piece] == [
            len(piece) for piece in short_reads(daemon)
        ]


def short_reads(daemon: Daemon) -> list[bytes]:
    """What each read gives when the relay answers."""
    daemon.call("fault_clear")
    with daemon.path(BINARY).open("rb", buffering=0) as reader:
        return [piece for piece in iter(lambda: reader.read(1 << 20), b"") if piece]
