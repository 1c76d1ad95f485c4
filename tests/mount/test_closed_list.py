# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What FUSE cannot copy, row by row: equal to the kernel, or different as documented."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
import struct
import termios
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from imafs.fuse import mountinfo
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

LIBC = ctypes.CDLL(None, use_errno=True)


def code(call: Callable[[], object]) -> str:
    """ok, or the errno's name."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@pytest.fixture
def reader(daemon: Daemon) -> Iterator[int]:
    daemon.generate(50)
    descriptor = os.open(daemon.path(BINARY), os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def writer(daemon: Daemon) -> Iterator[int]:
    """O_RDWR on the ASCII list of 51 records."""
    daemon.generate(50)
    descriptor = os.open(daemon.path(ASCII), os.O_RDWR)
    yield descriptor
    os.close(descriptor)


# Equal to a kernel


def test_mmap_shared_is_enodev(reader: int) -> None:
    assert code(lambda: mmap.mmap(reader, 100, mmap.MAP_SHARED, mmap.PROT_READ)) == "ENODEV"


def test_poll_answers_at_once(reader: int) -> None:
    poll = select.poll()
    poll.register(reader, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(reader, select.POLLIN | select.POLLOUT)]


def test_fsync_is_einval(writer: int) -> None:
    assert code(lambda: os.fsync(writer)) == "EINVAL"
    assert code(lambda: os.fdatasync(writer)) == "EINVAL"


def test_o_direct_is_einval_and_takes_no_lock(daemon: Daemon) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        assert code(partial(os.open, daemon.path(BINARY), flags | os.O_DIRECT)) == "EINVAL"
    status = daemon.call("status")
    assert (status["readers"], status["writer"]) == ([], None)


def test_a_new_name_is_eacces(daemon: Daemon) -> None:
    new = daemon.path("new")
    for flags in (os.O_WRONLY, os.O_RDONLY, os.O_RDWR | os.O_EXCL, os.O_WRONLY | os.O_TRUNC):
        assert code(partial(os.open, new, flags | os.O_CREAT, 0o600)) == "EACCES"
    assert code(lambda: os.open(new, os.O_RDONLY)) == "ENOENT"
    assert code(lambda: os.open(daemon.path(COUNT), os.O_CREAT | os.O_EXCL)) == "EEXIST"
    assert not new.exists()


def test_changes_of_the_directory_are_eperm(daemon: Daemon) -> None:
    new, old = daemon.path("new"), daemon.path(COUNT)
    before = os.listdir(daemon.dir)
    calls: dict[str, Callable[[], object]] = {
        "mkdir": lambda: os.mkdir(new),
        "symlink": lambda: os.symlink("x", new),
        "mknod": lambda: os.mknod(new, stat.S_IFIFO | 0o600),
        "mknod file": lambda: os.mknod(new, stat.S_IFREG | 0o600),
        "link": lambda: os.link(old, new),
        "unlink": lambda: os.unlink(old),
        "unlink link": lambda: os.unlink(daemon.path(BINARY)),
        "rename": lambda: os.rename(old, new),
        "rename over": lambda: os.rename(old, daemon.path("violations")),
    }
    # mknod(2) of a regular file goes by ->create, which securityfs has not (vfs_create).
    expected = dict.fromkeys(calls, "EPERM") | {"mknod file": "EACCES"}
    assert {name: code(call) for name, call in calls.items()} == expected
    assert os.listdir(daemon.dir) == before


def test_readdir_is_in_reverse_order_of_creation(daemon: Daemon) -> None:
    names = os.listdir(daemon.dir)  # os.listdir does not sort
    assert names[:3] == ["policy", "violations", COUNT]
    assert names[3:7] == [ASCII, BINARY, f"{ASCII}_staged", f"{BINARY}_staged"]
    assert names[7] == f"{BINARY}_sha512_staged"
    assert names[-2:] == [f"{BINARY}_sha1", f"{ASCII}_sha1"]
    assert len(names) == 23


# Different, as documented


def test_mmap_private_succeeds_and_holds_the_file(daemon: Daemon) -> None:
    """Kernel: ENODEV."""
    descriptor = os.open(daemon.path(BINARY), os.O_RDONLY)
    mapping = mmap.mmap(descriptor, 100, mmap.MAP_PRIVATE, mmap.PROT_READ)
    os.close(descriptor)
    # mmap keeps a duplicate of its own; the mapping alone would hold the file as well.
    assert mapping[:100] == daemon.read()[:100]
    assert code(lambda: os.open(daemon.path(BINARY), os.O_WRONLY)) == "EBUSY"
    mapping.close()
    os.close(os.open(daemon.path(BINARY), os.O_WRONLY))


def test_epoll_ctl_succeeds(reader: int) -> None:
    """Kernel: EPERM."""
    with select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN)


def test_pwrite_is_a_write(daemon: Daemon, writer: int) -> None:
    """Kernel: ESPIPE."""
    assert os.pwrite(writer, b"1\n", 77) == 2
    assert daemon.count() == 50


def test_a_write_of_0_bytes_never_arrives(daemon: Daemon, writer: int) -> None:
    """Kernel: EINVAL."""
    assert os.write(writer, b"") == 0
    assert daemon.count() == 51


def test_writev_arrives_merged(daemon: Daemon, writer: int) -> None:
    """Kernel: one call per segment, here two of which the second is EINVAL."""
    assert os.writev(writer, [b"1", b"0\n"]) == 3
    assert daemon.count() == 41
    # Kernel: two requests.
    assert code(lambda: os.writev(writer, [b"1\n", b"1\n"])) == "EINVAL"
    assert daemon.count() == 41


def test_seek_to_the_end_gives_the_size(daemon: Daemon, reader: int) -> None:
    """Kernel: EINVAL."""
    size = daemon.path(BINARY).stat().st_size
    assert os.lseek(reader, 0, os.SEEK_END) == size
    assert os.read(reader, 100) == b""
    assert os.lseek(reader, 0, os.SEEK_HOLE) == size


def test_the_position_moves_with_a_write_and_reads_are_right(writer: int) -> None:
    """Kernel: unmoved. Reads see the kernel's position."""
    whole = os.pread(writer, 4000, 0)
    assert os.lseek(writer, 0, os.SEEK_CUR) == 0
    assert os.write(writer, b"1\n") == 2
    assert os.lseek(writer, 0, os.SEEK_CUR) == 2
    assert os.read(writer, 100) == whole[whole.index(b"\n") + 1 :][:100]


def test_pread_at_the_believed_position_is_taken_for_the_next_read(writer: int) -> None:
    """Kernel: absolute."""
    lines = os.pread(writer, 4000, 0).splitlines(keepends=True)
    rest = b"".join(lines[1:])
    assert os.write(writer, b"1\n") == 2
    assert os.pread(writer, 10, 3) == rest[3:13]
    assert os.pread(writer, 10, 2) == rest[:10], "a kernel: rest[2:12]"


def test_splice_and_sendfile_work(daemon: Daemon, reader: int) -> None:
    """Kernel: EINVAL; clients fall back to read there."""
    whole = daemon.read()
    out, into = os.pipe()
    assert os.splice(reader, into, 1000, offset_src=0) == 1000
    assert os.read(out, 1000) == whole[:1000]
    assert os.sendfile(into, reader, 500, 1000) == 1000
    assert os.read(out, 1000) == whole[500:1500]
    os.close(out)
    os.close(into)


def test_statfs_answers_fuse(daemon: Daemon) -> None:
    """Kernel: 0x73636673."""
    buffer = ctypes.create_string_buffer(256)
    assert LIBC.statfs(os.fsencode(daemon.dir), buffer) == 0
    assert struct.unpack_from("l", buffer)[0] == 0x65735546
    assert os.statvfs(daemon.dir).f_namemax == 255


def test_fionread_is_size_minus_position(daemon: Daemon, reader: int) -> None:
    """Kernel: 0."""
    size = daemon.path(BINARY).stat().st_size
    os.lseek(reader, 40, os.SEEK_SET)
    answer = fcntl.ioctl(reader, termios.FIONREAD, struct.pack("i", -1))
    assert struct.unpack("i", answer)[0] == size - 40


def test_proc_mounts_differs_in_the_type_only(daemon: Daemon) -> None:
    """Kernel: ``securityfs DIR securityfs``."""
    mount = mountinfo.top(str(daemon.dir))
    assert mount is not None
    assert (mount.source, mount.fstype) == ("securityfs", "fuse.imafs")
