# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Requests through the files: refusals in order, suspend, reset, and hostile input."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import socket
import stat

import pytest

from imafs.errors import Refused
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


STAGED = f"{ASCII}_sha256_staged"


def test_order_of_refusals(daemon: Daemon) -> None:
    assert daemon.write(STAGED, b"D\n") == "ENOENT"
    assert daemon.write(STAGED, b"A\n") == "ok"
    assert daemon.write(STAGED, b"A\n") == "EEXIST"
    daemon.generate(3)
    assert daemon.write(STAGED, b"A\n") == "EEXIST"
    # Delete N is about the current list, with something staged too.
    assert daemon.write(BINARY, b"4\n") == "ENOENT"
    assert daemon.write(BINARY, b"3\n") == "ok"
    assert daemon.write(BINARY, b"1\n") == "ENOENT"
    assert daemon.write(STAGED, b"D\n") == "ok"
    assert daemon.write(STAGED, b"A\n") == "ENOENT"


def test_an_errno_that_fuse_cannot_carry_is_einval(start: Starter) -> None:
    """An answer of more than 511 would leave the writer waiting, out of reach of SIGKILL."""
    daemon = start("--profile", "trim-v3", "--tpm", "none")
    script = 'printf -- "-%s\\n" "$1" > "$2"'
    for number, said in ((511, "Unknown error 511"), (512, "Invalid"), (4095, "Invalid")):
        words = ["bash", "-c", script, "sh", str(number), str(daemon.path("ima_trim_log"))]
        assert said in run(words, check=False, deadline=10).stderr


def test_suspended(daemon: Daemon) -> None:
    """As after the reboot notifier: A EACCES, D and N ESTALE, measurements ENODEV."""
    daemon.generate(9)
    assert daemon.write(STAGED, b"A\n") == "ok"
    daemon.generate(5)
    before = daemon.lists()
    daemon.call("suspend")
    assert daemon.write(STAGED, b"D\n") == "ESTALE"
    assert daemon.write(BINARY, b"1\n") == "ESTALE"
    assert daemon.write(STAGED, b"A\n") == "EEXIST", "comes before EACCES"
    assert daemon.write(BINARY, b"6\n") == "ENOENT", "comes before ESTALE"
    for op, options in (
        ("measure", {"digest": "sha256:" + "00" * 32, "name": "x"}),
        ("generate", {"count": 3}),
        ("critical_data", {"label": "l", "name": "n", "data": "00"}),
    ):
        with pytest.raises(Refused) as caught:
            daemon.call(op, **options)
        assert caught.value.errno == errno.ENODEV
    assert daemon.lists() == before
    assert daemon.call("status")["suspended"] is True
    daemon.call("resume")
    assert daemon.write(STAGED, b"D\n") == "ok"
    daemon.call("suspend")
    assert daemon.write(STAGED, b"D\n") == "ENOENT", "comes before ESTALE"
    assert daemon.write(STAGED, b"A\n") == "EACCES"
    daemon.call("resume")
    assert daemon.write(STAGED, b"A\n") == "ok"
    daemon.assert_replays()


def test_a_violation_while_suspended_is_counted(daemon: Daemon) -> None:
    """Counted before anything can fail (ima_api.c:149), and not recorded."""
    daemon.call("suspend")
    with pytest.raises(Refused) as caught:
        daemon.call("violation", name="/v")
    assert caught.value.errno == errno.ENODEV
    assert daemon.read("violations") == b"1\n"
    assert daemon.count() == 1


def test_reset_keeps_the_mount(daemon: Daemon) -> None:
    first = daemon.read(ASCII)
    reader = os.open(daemon.path(ASCII), os.O_RDONLY)
    daemon.generate(20)
    daemon.call("violation", name="/v")
    assert len(os.read(reader, 4096)) > len(first)
    daemon.call("reset")
    assert daemon.read(ASCII) == first
    assert daemon.read("violations") == b"0\n"
    assert daemon.count() == 1
    # A descriptor of the kernel before: never somebody else's list.
    os.lseek(reader, 0, os.SEEK_SET)
    with pytest.raises(OSError, match="No such device"):
        os.read(reader, 4096)
    os.close(reader)
    assert daemon.write(STAGED, b"A\n") == "ok"
    daemon.call("reset")
    assert daemon.read(STAGED) == b""
    daemon.generate(3)
    daemon.assert_replays()
    assert daemon.count() == 4


# Hostile input

#: What a request that is obeyed looks like: these are left out.
OBEYED = re.compile(rb"[AD]\n|\+?[0-9]+\n?(\0.*)?\n?", re.DOTALL)


def test_random_bytes_change_nothing(daemon: Daemon) -> None:
    """Every writable file: EINVAL each time, the same lists, the same daemon."""
    daemon.generate(9)
    assert daemon.write(STAGED, b"A\n") == "ok"
    daemon.generate(9)
    before = daemon.lists()
    chance = random.Random(20261122)
    names = [n for n in os.listdir(daemon.dir) if daemon.path(n).stat().st_mode & stat.S_IWUSR]
    alphabets = [bytes(range(256)), b"AD\n\0", b"0123456789+-x \n\0", b"AD0\n"]
    for name in names:
        if name == "policy":
            continue
        descriptor = os.open(daemon.path(name), os.O_WRONLY)
        for _ in range(120):
            size = chance.choice([1, 2, 2, 3, 5, 20, 21, 22, 4096, 200_000])
            alphabet = chance.choice(alphabets)
            data = bytes(chance.choices(alphabet, k=min(size, 4096)))
            data = data * (1 + size // 4097)
            if chance.random() < 0.7:
                data = data[:-1] + b"\n"
            if OBEYED.fullmatch(data):
                continue
            with pytest.raises(OSError, match="Invalid argument"):
                os.write(descriptor, data)
        os.close(descriptor)
    assert daemon.lists() == before
    daemon.assert_replays()
    assert "Traceback" not in daemon.log()


def test_odd_names_and_calls(daemon: Daemon) -> None:
    """Names of any bytes, extended attributes, ioctl, fallocate, odd flags."""
    chance = random.Random(7)
    for size in (1, 10, 100, 255):
        odd = bytes(chance.choices([b for b in range(1, 256) if b != 0x2F], k=size))
        assert not os.path.exists(os.path.join(os.fsencode(daemon.dir), odd))
    path = daemon.path(f"{BINARY}_sha1")
    for name in ("user.x", "security.ima", "trusted.x"):
        with pytest.raises(OSError, match="supported"):
            os.setxattr(path, name, b"x")
        with pytest.raises(OSError, match="supported"):
            os.getxattr(path, name)
    writer = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match="Invalid argument"):  # the C library writes a NUL instead
        os.posix_fallocate(writer, 0, 1000)
    os.close(writer)
    for flags in (os.O_PATH, os.O_NOATIME, os.O_NONBLOCK | os.O_SYNC, os.O_CLOEXEC, os.O_ASYNC):
        os.close(os.open(path, flags))
    with pytest.raises(OSError, match="Not a directory"):
        os.open(path, os.O_DIRECTORY)
    with pytest.raises(OSError, match="symbolic links"):
        os.open(daemon.path(BINARY), os.O_NOFOLLOW)
    with pytest.raises(OSError, match="Is a directory"):
        os.open(daemon.dir, os.O_WRONLY)
    with pytest.raises(OSError, match="not supported"):
        os.open(daemon.dir, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert daemon.count() == 1
    assert (daemon.call("status")["readers"], daemon.call("status")["writer"]) == ([], None)


def test_a_name_longer_than_name_max(daemon: Daemon) -> None:
    """simple_lookup refuses above NAME_MAX; FUSE itself above 1024 only."""
    for size in (256, 1000, 1100):
        with pytest.raises(OSError, match="too long"):
            os.stat(daemon.path("n" * size))


def test_o_path_holds_nothing(daemon: Daemon) -> None:
    held = os.open(daemon.path(BINARY), os.O_PATH)
    assert daemon.write(BINARY, b"1\n") == "ok"
    os.close(held)


def test_thousands_of_readers(daemon: Daemon) -> None:
    """All of them count, and the last one gives the lock back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = 3000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number + 500), max(hard, number + 500)))
    readers: list[int] = []
    try:
        readers += [os.open(daemon.path(BINARY), os.O_RDONLY) for _ in range(number)]
        listed = daemon.call("status")["readers"]
        assert isinstance(listed, list)
        assert len(listed) == number
        with pytest.raises(OSError, match="busy"):
            os.open(daemon.path(BINARY), os.O_WRONLY)
    finally:
        for descriptor in readers:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert daemon.write(BINARY, b"1\n") == "ok"


def test_a_descriptor_sent_to_another_process(daemon: Daemon) -> None:
    """SCM_RIGHTS: the lock stays until the receiver closes."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        received = socket.recv_fds(theirs, 1, 1)[1]
        os.write(received[0], b"1\n")
        theirs.send(b"x")
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    writer = os.open(daemon.path(BINARY), os.O_WRONLY)
    socket.send_fds(ours, [b"x"], [writer])
    assert ours.recv(1) == b"x"
    os.close(writer)
    assert daemon.count() == 0
    with pytest.raises(OSError, match="busy"):
        os.open(daemon.path(BINARY), os.O_RDONLY)
    ours.close()
    os.waitpid(child, 0)
    os.close(os.open(daemon.path(BINARY), os.O_RDONLY))


def test_hostile_bytes_on_the_control_socket(daemon: Daemon) -> None:
    """Refused or hung up on; the mount does not notice."""
    before = daemon.lists()
    chance = random.Random(11)
    for data in (b"\n", b"{}\n", b"[]\n", b'{"op":1}\n', chance.randbytes(5000), b"{" * 100_000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(daemon.control))
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                continue
    assert daemon.lists() == before
    assert "Traceback" not in daemon.log()


def test_growth_while_a_reader_waits(daemon: Daemon) -> None:
    """An agent that holds its descriptor gets each record once, in order."""
    descriptor = os.open(daemon.path(ASCII), os.O_RDONLY)
    collected = b""
    for number in range(10):
        daemon.call("generate", count=number * 11)
        while piece := os.read(descriptor, 65536):
            collected += piece
    os.close(descriptor)
    assert collected == daemon.read(ASCII)
    assert daemon.read(COUNT) == b"496\n"
