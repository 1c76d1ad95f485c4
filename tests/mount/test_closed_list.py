# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What FUSE cannot copy, row by row: equal to the kernel, or different as documented."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import stat
import struct
import termios
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from imafs.fuse.operations import HIDDEN
from imafs.host import mounts
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon
from tests.mount.fixtures import booted as booted
from tests.support import ROOT, run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

LIBC = ctypes.CDLL(None, use_errno=True)


def code(call: Callable[[], object]) -> str:
    """ok, or the errno's name."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def mapped(descriptor: int, flags: int) -> int:
    """The address of a page of a file (Python's mmap looks at st_size first)."""
    LIBC.mmap.restype = ctypes.c_void_p
    address: int | None = LIBC.mmap(None, 4096, mmap.PROT_READ, flags, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


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
    assert code(lambda: mapped(reader, mmap.MAP_SHARED)) == "ENODEV"


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
    daemon.path(COUNT).stat()  # a RELEASE would be before it in the queue
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
    address = mapped(descriptor, mmap.MAP_PRIVATE)
    os.close(descriptor)
    # To touch it is SIGBUS (test_files.py).
    assert code(lambda: os.open(daemon.path(BINARY), os.O_WRONLY)) == "EBUSY"
    LIBC.munmap(ctypes.c_void_p(address), 4096)
    os.close(os.open(daemon.path(BINARY), os.O_WRONLY))


def test_splice_is_refused_as_this_machine_does_it(daemon: Daemon, reader: int) -> None:
    """Kernel: EINVAL. Nowhere an empty or a shorter list; tests/conformance/test_twin.py."""
    out, into = os.pipe()
    try:
        said = code(lambda: os.splice(reader, into, 60000, offset_src=0))
        assert said in {"EINVAL", "EIO", "ok"}
        assert said != "ok" or os.read(out, 60000) == daemon.read()
    finally:
        os.close(out)
        os.close(into)


def test_splice_behind_an_end_that_was_asked_for(daemon: Daemon) -> None:
    """Kernel: EINVAL. The answer of SEEK_END is the size that Linux then keeps; no list has one."""
    out, into = os.pipe()
    count = os.open(daemon.path("violations"), os.O_RDONLY)
    try:
        assert os.lseek(count, 0, os.SEEK_END) == 0
        assert os.splice(count, into, 4096, offset_src=0) == 0
        os.close(os.open(daemon.path("violations"), os.O_RDONLY))
        assert code(lambda: os.splice(count, into, 4096, offset_src=0)) in {"EINVAL", "EIO", "ok"}
        assert os.pread(count, 64, 0) == b"0\n"
    finally:
        for descriptor in (out, into, count):
            os.close(descriptor)


def test_epoll_ctl_succeeds(reader: int) -> None:
    """Kernel: EPERM."""
    with select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN)


def test_a_read_lease_is_given(reader: int) -> None:
    """Kernel: EINVAL."""
    assert code(lambda: fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)) == "ok"
    fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_readv_is_one_read(daemon: Daemon) -> None:
    """Kernel: a read per part, so more than a page in all."""
    daemon.generate(200)
    parts = [bytearray(100), bytearray(5000), bytearray(4096), bytearray(60000)]
    descriptor = os.open(daemon.path(ASCII), os.O_RDONLY)
    try:
        got = os.readv(descriptor, parts)
        whole = os.pread(descriptor, 70000, 0)
    finally:
        os.close(descriptor)
    assert b"".join(parts)[:got] == whole
    assert 3000 < got <= 4096


def test_pwrite_is_a_write(daemon: Daemon, writer: int) -> None:
    """Kernel: ESPIPE."""
    assert os.pwrite(writer, b"1\n", 77) == 2
    assert daemon.count() == 50


def test_a_write_of_0_bytes_never_arrives(daemon: Daemon, writer: int) -> None:
    """Kernel: EINVAL."""
    assert os.write(writer, b"") == 0
    assert daemon.count() == 51


def test_a_bad_pointer_is_efault_whatever_the_length(writer: int) -> None:
    """Kernel: EINVAL where the length is no request's."""
    assert LIBC.write(writer, ctypes.c_void_p(1), ctypes.c_size_t(5000)) == -1
    assert errno.errorcode[ctypes.get_errno()] == "EFAULT"


def test_writev_arrives_merged(daemon: Daemon, writer: int) -> None:
    """Kernel: one call per segment, here two of which the second is EINVAL."""
    assert os.writev(writer, [b"1", b"0\n"]) == 3
    assert daemon.count() == 41
    # Kernel: two requests.
    assert code(lambda: os.writev(writer, [b"1\n", b"1\n"])) == "EINVAL"
    assert daemon.count() == 41


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


def test_statfs_answers_fuse(daemon: Daemon) -> None:
    """Kernel: 0x73636673."""
    buffer = ctypes.create_string_buffer(256)
    assert LIBC.statfs(os.fsencode(daemon.dir), buffer) == 0
    assert struct.unpack_from("l", buffer)[0] == 0x65735546
    assert os.statvfs(daemon.dir).f_namemax == 255


def test_fionread_is_of_the_size_that_is_kept(reader: int) -> None:
    """Kernel: 0 minus the position."""
    os.lseek(reader, 40, os.SEEK_SET)
    answer = fcntl.ioctl(reader, termios.FIONREAD, struct.pack("i", -1))
    assert struct.unpack("i", answer)[0] == HIDDEN - 40


def test_append_is_behind_the_size_that_is_kept(daemon: Daemon) -> None:
    """Kernel: at 0. Under ``ulimit -f`` the writer gets SIGXFSZ and nothing is staged."""
    script = 'ulimit -f 8; echo A >> "$0"'
    staged = str(daemon.path(f"{ASCII}_staged"))
    assert run(["sh", "-c", script, staged], check=False).returncode == -signal.SIGXFSZ
    assert daemon.count() == 1
    run(["sh", "-c", 'echo A >> "$0"', staged])
    assert daemon.count() == 0


def test_statx_that_may_not_ask_shows_the_size_that_is_kept(daemon: Daemon) -> None:
    """Kernel: 0."""
    at_statx_dont_sync, statx_size, at_fdcwd = 0x4000, 0x200, -100
    buffer = ctypes.create_string_buffer(256)
    path = os.fsencode(daemon.path(f"{BINARY}_sha1"))
    os.close(os.open(path, os.O_RDONLY))
    assert LIBC.statx(at_fdcwd, path, at_statx_dont_sync, statx_size, buffer) == 0
    assert struct.unpack_from("Q", buffer, 40)[0] == HIDDEN


def test_proc_mounts_differs_in_the_type_only(daemon: Daemon) -> None:
    """Kernel: ``securityfs DIR securityfs``."""
    mount = mounts.top(str(daemon.dir))
    assert mount is not None
    assert (mount.source, mount.fstype) == ("securityfs", "fuse.imafs")


#: Calls in README's table -> where they are measured.
MEASURED: dict[str, tuple[Callable[..., None], ...]] = {
    "splice, sendfile": (test_splice_is_refused_as_this_machine_does_it,),
    "splice of `violations`, counts or `policy` after lseek SEEK_END on the same descriptor": (
        test_splice_behind_an_end_that_was_asked_for,
    ),
    "mmap MAP_PRIVATE": (test_mmap_private_succeeds_and_holds_the_file,),
    "readv": (test_readv_is_one_read,),
    "epoll_ctl, a read lease (F_SETLEASE)": (
        test_epoll_ctl_succeeds,
        test_a_read_lease_is_given,
    ),
    "pwrite": (test_pwrite_is_a_write,),
    "write of 0 bytes": (test_a_write_of_0_bytes_never_arrives,),
    "write from a bad pointer": (test_a_bad_pointer_is_efault_whatever_the_length,),
    "writev of two requests": (test_writev_arrives_merged,),
    "lseek SEEK_CUR after a write": (test_the_position_moves_with_a_write_and_reads_are_right,),
    "pread at exactly the position after a write": (
        test_pread_at_the_believed_position_is_taken_for_the_next_read,
    ),
    "FIONREAD, statx with AT_STATX_DONT_SYNC": (
        test_fionread_is_of_the_size_that_is_kept,
        test_statx_that_may_not_ask_shows_the_size_that_is_kept,
    ),
    "`echo A >> FILE` under `ulimit -f`": (test_append_is_behind_the_size_that_is_kept,),
    "statfs type, type in /proc/mounts": (
        test_statfs_answers_fuse,
        test_proc_mounts_differs_in_the_type_only,
    ),
}
#: Rows that are about something else than one call on a file, or an option, tested elsewhere.
ELSEWHERE = {
    "list and PCR",
    "A, D, N while records are being extended",
    "a large record's neighbours, reading at a position",
    "processes over a kexec or a reboot",
    "kexec with no kernel loaded",
    "owner of the files",
    "resource manager of the TPM",
    "a second writer closed by another task",
    "who may use the TPM",
    "policy",
    "a write to `policy` without newline, writev",
    "template `evm-sig`",
    "an errno above 511 (`-N` of trim-v3)",
    "watched files",
    "writers outside the daemon's pid namespace",
    "reading with `--large-reads`",
    "`--st-size actual`, for tar and rsync",
}


def test_every_call_of_the_readme_is_measured() -> None:
    """And nothing is measured here as different that the README keeps to itself."""
    text = (ROOT / "README.md").read_text()
    table = text.partition("| what | a kernel | imafs |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]
    assert set(rows) == set(MEASURED) | ELSEWHERE
    different = {name for name, test in globals().items() if "Kernel: " in (test.__doc__ or "")}
    measured = {test.__name__ for tests in MEASURED.values() for test in tests}
    assert different == measured
