# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What files look like and how they read: sizes, modes, timeouts, positions."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.mount.callers import USER_1000, tries
from tests.mount.daemon import ASCII, BINARY, COUNT, VIOLATIONS, Daemon
from tests.mount.fixtures import Starter
from tests.support import run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


# splice, sendfile and page faults read through the page cache even with direct_io (Linux
# 6.18 fuse_splice_read -> filemap_splice_read): whole pages, where a short answer means the
# end of the file. Answers as short as seq_file's would truncate the copy, with success.


@pytest.fixture(params=["default", "large-reads", "read-only sysfs"])
def filled(request: pytest.FixtureRequest, start: Starter) -> Daemon:
    """A daemon with a list of many pages; one that cannot switch readahead off among them."""
    if request.param == "default":
        daemon = start()
    elif request.param == "large-reads":
        daemon = start("--large-reads")
    else:
        place = start.place()
        run(["mount", "--bind", str(place.base), str(place.base)])
        run(["mount", "--make-shared", str(place.base)])
        script = 'mount -o remount,bind,ro /sys && exec "$@"'
        unshare = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh"]
        daemon = start(place=place, prefix=unshare)
        assert "unlike a kernel" in daemon.log()
    daemon.generate(1000)
    return daemon


def test_actual_size(daemon: Daemon) -> None:
    daemon.generate(100)
    for name, content in daemon.lists().items():
        assert daemon.path(name).stat().st_size == len(content), name


def test_sendfile_sees_every_byte(filled: Daemon, tmp_path: Path) -> None:
    for name in (ASCII, f"{BINARY}_sha256"):
        shutil.copyfile(filled.path(name), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == filled.read(name)


@pytest.mark.parametrize("size", [100, 4096, 65536])
def test_splice_sees_every_byte(filled: Daemon, size: int) -> None:
    source = os.open(filled.path(ASCII), os.O_RDONLY)
    out, into = os.pipe()
    copy = b""
    while moved := os.splice(source, into, size, offset_src=len(copy)):
        copy += os.read(out, moved)
    for descriptor in (source, out, into):
        os.close(descriptor)
    assert copy == filled.read(ASCII)


@pytest.mark.parametrize("advice", ["SEQUENTIAL", "RANDOM", "WILLNEED"])
def test_advice_changes_nothing(
    request: pytest.FixtureRequest, filled: Daemon, tmp_path: Path, advice: str
) -> None:
    """posix_fadvise: SEQUENTIAL is cat's and cp's; WILLNEED reads ahead whatever the setting."""
    if advice == "WILLNEED" and request.node.callspec.params["filled"] == "default":
        reason = "POSIX_FADV_WILLNEED asks for many pages (bdi io_pages): answered short"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    source = os.open(filled.path(ASCII), os.O_RDONLY)
    os.posix_fadvise(source, 0, 0, getattr(os, f"POSIX_FADV_{advice}"))
    with (tmp_path / "copy").open("wb") as target:
        at = 0
        while sent := os.sendfile(target.fileno(), source, at, 1 << 20):
            at += sent
    os.close(source)
    assert (tmp_path / "copy").read_bytes() == filled.read(ASCII)


def test_a_private_mapping_sees_every_byte(filled: Daemon) -> None:
    """A kernel refuses the mapping; where it succeeds it must not show zeros."""
    whole = filled.read(ASCII)
    # In a process of its own: pages behind the end of the file are SIGBUS.
    script = (
        "import mmap, os, sys; f = os.open(sys.argv[1], os.O_RDONLY); "
        "m = mmap.mmap(f, int(sys.argv[2]), mmap.MAP_PRIVATE, mmap.PROT_READ); "
        "sys.stdout.buffer.write(m[:])"
    )
    command = [sys.executable, "-c", script, str(filled.path(ASCII)), str(len(whole))]
    assert run(command).stdout.encode() == whole


def test_a_copy_after_growth(filled: Daemon, tmp_path: Path) -> None:
    """What the page cache kept of a shorter list is not the list."""
    with filled.path(ASCII).open("rb") as reader:
        for number in range(5):
            filled.generate(number * 13)
            with (tmp_path / "copy").open("wb") as target:
                os.fstat(reader.fileno())
                at = 0
                while sent := os.sendfile(target.fileno(), reader.fileno(), at, 1 << 23):
                    at += sent
            assert (tmp_path / "copy").read_bytes() == filled.read(ASCII)


def test_size_zero_as_a_kernel_says(start: Starter, tmp_path: Path) -> None:
    """--st-size zero: read(2) works, and splice clients read nothing with success."""
    daemon = start("--st-size", "zero")
    daemon.generate(100)
    assert all(daemon.path(name).stat().st_size == 0 for name in daemon.lists())
    assert len(daemon.read(ASCII).splitlines()) == 101
    assert run(["cat", str(daemon.path(ASCII))]).stdout.encode() == daemon.read(ASCII)
    source = os.open(daemon.path(ASCII), os.O_RDONLY)
    with (tmp_path / "copy").open("wb") as target:
        assert os.sendfile(target.fileno(), source, None, 1 << 20) == 0
    os.close(source)


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
        assert daemon.path(BINARY).stat().st_size == len(before[BINARY])
    descriptor = os.open(daemon.path(BINARY), os.O_RDWR)
    os.ftruncate(descriptor, 10)
    os.close(descriptor)
    assert daemon.lists() == before


def test_truncate_shows_with_size_zero(start: Starter) -> None:
    """simple_setattr sets the size that stat shows; the content stays."""
    daemon = start("--st-size", "zero")
    before = daemon.read()
    run(["truncate", "--no-create", "--size=100", str(daemon.path(BINARY))])
    assert daemon.path(BINARY).stat().st_size == 100
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
    """No timeouts, no page cache: size, count and content, by name and through descriptors."""
    with daemon.path(ASCII).open("rb", buffering=0) as reader:
        seen = reader.readall()
        for number in range(2, 30):
            daemon.call("generate", count=1)
            assert daemon.path(ASCII).stat().st_size == len(daemon.read(ASCII)) > len(seen)
            assert os.fstat(reader.fileno()).st_size == len(daemon.read(ASCII))
            assert daemon.count() == number
            line = reader.read(4096)  # behind its end of file goes on with the new record
            assert line is not None
            seen += line
        assert seen == daemon.read(ASCII)


def test_staging_shows_at_once(daemon: Daemon) -> None:
    daemon.generate(3)
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


def test_large_reads_fill_every_request(start: Starter) -> None:
    daemon = start("--large-reads")
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
