# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What files look like and how they read: sizes, modes, timeouts, positions."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.mount.callers import USER_1000, tries
from tests.mount.daemon import ASCII, BINARY, COUNT, VIOLATIONS, Daemon
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


@pytest.fixture(params=["default", "large-reads"])
def faithful(request: pytest.FixtureRequest, start: Starter) -> Daemon:
    """A daemon that shows sizes as a kernel does, with a list of many pages."""
    daemon = start(*(["--large-reads"] if request.param == "large-reads" else []))
    daemon.generate(1000)
    return daemon


@pytest.fixture
def true_sizes(start: Starter) -> Daemon:
    """A daemon with true sizes, and a list of many pages."""
    daemon = start("--st-size", "actual")
    daemon.generate(1000)
    return daemon


def splice_refused(call: Callable[[], object]) -> None:
    """EINVAL, as a kernel's; EIO where FUSE of Linux 7.x makes that of it."""
    with pytest.raises(OSError, match=r"Invalid argument|Input/output error"):
        call()


def test_every_size_is_0(faithful: Daemon) -> None:
    with faithful.path(ASCII).open("rb", buffering=0) as reader:
        for name in (*faithful.lists(), COUNT, VIOLATIONS, "policy"):
            assert faithful.path(name).stat().st_size == 0, name
        assert os.fstat(reader.fileno()).st_size == 0
        assert len(reader.read(4096) or b"") > 0
        assert os.fstat(reader.fileno()).st_size == 0


def test_actual_size(true_sizes: Daemon) -> None:
    for name, content in true_sizes.lists().items():
        assert true_sizes.path(name).stat().st_size == len(content), name
    assert true_sizes.call("status")["sizes"] == {"shown": "true", "why": "--st-size actual"}
    assert "every read is filled: --st-size actual" in true_sizes.ctl("status")


@pytest.mark.parametrize("name", [ASCII, f"{BINARY}_sha256_staged", COUNT, "policy"])
def test_splice_is_refused_and_never_short(faithful: Daemon, name: str) -> None:
    source = os.open(faithful.path(name), os.O_RDONLY)
    out, into = os.pipe()
    for _ in range(3):
        splice_refused(lambda: os.splice(source, into, 4096, offset_src=0))
        splice_refused(lambda: os.sendfile(into, source, 0, 1 << 20))
        os.fstat(source)  # each look at the size takes it away and must not
        faithful.path(name).stat()
    for descriptor in (source, out, into):
        os.close(descriptor)


def test_true_sizes_refuse_splice_too(true_sizes: Daemon) -> None:
    """A page of an earlier moment would be a list that no kernel had."""
    test_splice_is_refused_and_never_short(true_sizes, ASCII)


def test_copies_by_whoever_falls_back_to_read(faithful: Daemon, tmp_path: Path) -> None:
    for name in (ASCII, f"{BINARY}_sha256"):
        run(["cp", str(faithful.path(name)), str(tmp_path / "copy")])
        assert (tmp_path / "copy").read_bytes() == faithful.read(name)
        shutil.copyfile(faithful.path(name), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == faithful.read(name)


@pytest.mark.parametrize("name", [ASCII, f"{BINARY}_staged"])
def test_a_list_has_no_end_to_seek(faithful: Daemon, name: str) -> None:
    with faithful.path(name).open("rb", buffering=0) as reader:
        for whence in (os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(OSError, match="Invalid argument"):
                reader.seek(0, whence)


@pytest.mark.parametrize("name", [COUNT, VIOLATIONS, "policy"])
def test_a_text_ends_at_0(faithful: Daemon, name: str) -> None:
    """generic_file_llseek of a file of size 0."""
    with faithful.path(name).open("rb", buffering=0) as reader:
        assert reader.seek(0, os.SEEK_END) == 0
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(OSError, match="No such device or address"):
                reader.seek(0, whence)
        assert os.fstat(reader.fileno()).st_size == 0


@pytest.mark.parametrize("advice", ["SEQUENTIAL", "RANDOM", "WILLNEED", "DONTNEED"])
def test_advice_changes_nothing(faithful: Daemon, advice: str) -> None:
    """posix_fadvise: SEQUENTIAL is cat's and cp's; WILLNEED reads ahead whatever the setting."""
    whole = faithful.read(ASCII)
    with faithful.path(ASCII).open("rb", buffering=0) as reader, open(os.devnull, "wb") as out:
        os.posix_fadvise(reader.fileno(), 0, 0, getattr(os, f"POSIX_FADV_{advice}"))
        splice_refused(partial(os.sendfile, out.fileno(), reader.fileno(), 0, 4096))
        assert reader.readall() == whole


def test_no_page_of_a_private_mapping_is_served(faithful: Daemon) -> None:
    """A kernel refuses the mapping; where it succeeds its pages must not show zeros."""
    # In a process of its own: the pages are SIGBUS.
    script = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p; "
        "f = os.open(sys.argv[1], os.O_RDONLY); at = libc.mmap(None, 4096, 1, 2, f, 0); "
        "print('mapped', flush=True); print(ctypes.string_at(at, 4096))"
    )
    result = run([sys.executable, "-c", script, str(faithful.path(ASCII))], check=False)
    assert (result.returncode, result.stdout) == (-signal.SIGBUS, "mapped\n")


def test_splice_is_refused_after_another_truncated(daemon: Daemon) -> None:
    """O_TRUNC inside OPEN would make the kept size 0, and every splice empty with success."""
    with daemon.path(ASCII).open("rb", buffering=0) as reader, open(os.devnull, "wb") as out:
        for size in (None, 0, 9):
            if size is None:
                os.close(os.open(daemon.path(ASCII), os.O_RDONLY | os.O_TRUNC))
            else:
                os.truncate(daemon.path(ASCII), size)
            splice_refused(partial(os.sendfile, out.fileno(), reader.fileno(), 0, 4096))


def test_o_trunc_empties_nothing(daemon: Daemon) -> None:
    daemon.generate(5)
    before = daemon.lists()
    for name in (ASCII, f"{BINARY}_sha256_staged"):
        os.close(os.open(daemon.path(name), os.O_WRONLY | os.O_TRUNC))
    assert daemon.lists() == before


def test_truncate_is_accepted_without_effect(daemon: Daemon) -> None:
    daemon.generate(5)
    before = daemon.lists()
    for size in ("0", "100", "1000000"):
        run(["truncate", "--no-create", f"--size={size}", str(daemon.path(BINARY))])
        assert daemon.lists() == before
    descriptor = os.open(daemon.path(BINARY), os.O_RDWR)
    os.ftruncate(descriptor, 10)
    os.close(descriptor)
    assert daemon.lists() == before


def test_truncate_shows(daemon: Daemon) -> None:
    """simple_setattr sets the size that stat shows; the content stays."""
    before = daemon.read()
    run(["truncate", "--no-create", "--size=100", str(daemon.path(BINARY))])
    assert daemon.path(BINARY).stat().st_size == 100
    with daemon.path(BINARY).open("rb", buffering=0) as reader:
        assert os.fstat(reader.fileno()).st_size == 100
    assert daemon.read() == before


def test_chmod_shows_and_counts(daemon: Daemon) -> None:
    target = daemon.path(f"{ASCII}_sha1")
    run(["chmod", "0644", str(target)])
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert tries(target, USER_1000) == {"read": "ok", "write": "EACCES"}
    run(["chmod", "0660", str(target)])
    assert tries(target, USER_1000) == {"read": "EACCES", "write": "EACCES"}


def test_chown_shows_and_counts(daemon: Daemon) -> None:
    target = daemon.path(f"{ASCII}_sha1")
    run(["chown", "1000:1001", str(target)])
    assert (target.stat().st_uid, target.stat().st_gid) == (1000, 1001)
    # The owner may; without CAP_SYS_ADMIN still no writer.
    assert tries(target, USER_1000) == {"read": "ok", "write": "EPERM"}


def test_chmod_and_chown_are_the_owners(daemon: Daemon) -> None:
    for command in (["chmod", "0666"], ["chown", "1000"], ["truncate", "-s0"]):
        result = run([*USER_1000, *command, str(daemon.path(f"{ASCII}_sha1"))], check=False)
        assert result.returncode != 0
    assert stat.S_IMODE(daemon.path(ASCII).stat().st_mode) == 0o660
    assert daemon.path(ASCII).stat().st_uid == 0


def test_growth_shows_at_once(daemon: Daemon) -> None:
    """No timeouts, no page cache: count and content, by name and through descriptors."""
    with daemon.path(ASCII).open("rb", buffering=0) as reader:
        seen = reader.readall()
        for number in range(2, 30):
            daemon.call("generate", count=1)
            assert daemon.count() == number
            line = reader.read(4096)  # behind its end of file goes on with the new record
            assert line is not None
            seen += line
        assert seen == daemon.read(ASCII)


def test_growth_shows_at_once_in_true_sizes(true_sizes: Daemon) -> None:
    with true_sizes.path(ASCII).open("rb", buffering=0) as reader:
        for _ in range(9):
            true_sizes.call("generate", count=1)
            size = len(true_sizes.read(ASCII))
            assert true_sizes.path(ASCII).stat().st_size == size
            assert os.fstat(reader.fileno()).st_size == size
            assert reader.seek(0, os.SEEK_END) == size


def test_staging_shows_at_once_in_true_sizes(true_sizes: Daemon) -> None:
    daemon = true_sizes
    size = daemon.path(BINARY).stat().st_size
    staged = daemon.path(f"{BINARY}_staged")
    with staged.open("rb+", buffering=0) as writer:
        assert staged.stat().st_size == 0
        writer.write(b"A\n")
        assert staged.stat().st_size == size
        assert daemon.path(BINARY).stat().st_size == 0
        writer.write(b"D\n")
        assert staged.stat().st_size == 0


def test_seek_and_pread(daemon: Daemon) -> None:
    daemon.generate(300)
    whole = daemon.read(BINARY)
    descriptor = os.open(daemon.path(BINARY), os.O_RDONLY)
    for position in (0, 1, 4095, 4096, 5000, len(whole) - 1, len(whole), len(whole) + 10, 17):
        assert os.lseek(descriptor, position, os.SEEK_SET) == position
        assert os.read(descriptor, 100) == whole[position : position + 100]
        read = len(whole[position : position + 100])
        assert os.lseek(descriptor, -read, os.SEEK_CUR) == position
        assert os.pread(descriptor, 64, position) == whole[position : position + 64]
    with pytest.raises(OSError, match="Invalid argument"):
        os.lseek(descriptor, -1, os.SEEK_SET)
    os.close(descriptor)


def test_reads_are_short_as_seq_files_are(daemon: Daemon) -> None:
    """Whole records, less than a page, whatever the client asks for."""
    daemon.generate(300)
    descriptor = os.open(daemon.path(ASCII), os.O_RDONLY)
    pieces = []
    while piece := os.read(descriptor, 1 << 20):
        assert len(piece) < 4096
        assert piece.endswith(b"\n")
        pieces.append(piece)
    os.close(descriptor)
    assert b"".join(pieces) == daemon.read(ASCII)
    assert len(pieces) > 10


@pytest.mark.parametrize("options", [["--large-reads"], ["--st-size", "actual"]])
def test_large_reads_fill_every_request(start: Starter, options: list[str]) -> None:
    daemon = start(*options)
    daemon.generate(5000)
    descriptor = os.open(daemon.path(ASCII), os.O_RDONLY)
    first = os.read(descriptor, 1 << 18)
    assert len(first) == 1 << 18
    pieces = [first]
    while piece := os.read(descriptor, 100_001):
        pieces.append(piece)
    os.close(descriptor)
    assert all(len(piece) == 100_001 for piece in pieces[1:-1])
    assert b"".join(pieces) == daemon.read(ASCII)
    assert b"".join(pieces).count(b"\n") == 5001


def test_cache_zero_shows_the_same(start: Starter) -> None:
    daemon = start("--cache", "0", "--tpm", "none")
    usual = start("--tpm", "none")
    for one in (daemon, usual):
        one.generate(9000)
    assert daemon.lists() == usual.lists()


def test_record_larger_than_a_page(daemon: Daemon, tmp_path: Path) -> None:
    """Critical data of 100,000 bytes: the buffer doubles, then serves small records too."""
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 400)
    daemon.call("critical_data", label="test", name="large", file=str(data))
    daemon.generate(100)
    whole = daemon.read(ASCII)
    assert data.read_bytes().hex().encode() in whole
    for size in (100, 4096, 10_000, 1 << 20):
        descriptor = os.open(daemon.path(ASCII), os.O_RDONLY)
        pieces = []
        while piece := os.read(descriptor, size):
            pieces.append(piece)
        os.close(descriptor)
        assert b"".join(pieces) == whole
    daemon.assert_replays()


def test_attributes_are_securityfs(daemon: Daemon) -> None:
    for name in os.listdir(daemon.dir):
        info = os.lstat(daemon.path(name))
        link = name in {ASCII, BINARY, f"{ASCII}_staged", f"{BINARY}_staged"}
        mode = 0o444 if link else 0o440 if name in {COUNT, VIOLATIONS} else 0o660
        mode = 0o600 if name == "policy" else mode
        assert stat.S_IMODE(info.st_mode) == mode, name
        assert stat.S_ISLNK(info.st_mode) == link
        assert (info.st_uid, info.st_gid, info.st_nlink) == (0, 0, 1)
        if link:
            family, _, staged = name.partition("_staged")
            suffix = "_staged" if "_staged" in name else ""
            assert os.readlink(daemon.path(name)) == f"{family}_sha1{suffix}"
            assert staged == ""
    root = daemon.dir.stat()
    assert stat.S_IMODE(root.st_mode) == 0o755
    assert root.st_nlink == 2


def test_counters_read_by_position(daemon: Daemon) -> None:
    daemon.generate(122)
    descriptor = os.open(daemon.path(COUNT), os.O_RDONLY)
    assert os.read(descriptor, 2) == b"12"
    assert os.read(descriptor, 10) == b"3\n"
    assert os.read(descriptor, 10) == b""
    assert os.pread(descriptor, 10, 1) == b"23\n"
    os.close(descriptor)
