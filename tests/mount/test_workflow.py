# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The workflow of the kernel's document: one descriptor to stage, read and delete."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from tests.mount.daemon import ASCII, BINARY, Daemon, read_to_end
from tests.mount.fixtures import booted as booted
from tests.support import run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

SHELL = 'exec 3<>"$1"; echo A >&3 || exit 1; cat <&3; echo D >&3 || exit 2'


def shell_workflow(staged: Path, output: Path) -> bytes:
    run(["bash", "-c", f'{{ {SHELL}; }} > "$2"', "bash", str(staged), str(output)])
    return output.read_bytes()


@pytest.mark.parametrize("records", [1, 30, 5000])
@pytest.mark.parametrize("name", [ASCII, BINARY, f"{ASCII}_sha256", f"{BINARY}_sha512"])
def test_stage_read_delete_in_a_shell(
    daemon: Daemon, tmp_path: Path, name: str, records: int
) -> None:
    daemon.generate(records - 1)
    before = daemon.read(name)
    if name == BINARY:
        assert daemon.count() == records
    assert shell_workflow(daemon.path(f"{name}_staged"), tmp_path / "out") == before
    assert daemon.count() == 0
    assert daemon.read(name) == b""
    assert daemon.read(f"{name}_staged") == b""
    daemon.assert_replays()


def test_rounds_on_one_descriptor_lose_nothing(daemon: Daemon) -> None:
    """Several rounds, each byte in exactly one of them, while records are added in between."""
    collected = b""
    everything = hashlib.sha256()
    descriptor = os.open(daemon.path(f"{BINARY}_staged"), os.O_RDWR)
    try:
        for number in range(20):
            if number:
                daemon.generate(number * 7)
            os.write(descriptor, b"A\n")
            os.lseek(descriptor, 0, os.SEEK_SET)
            piece = read_to_end(descriptor, size=1000 + number)
            os.write(descriptor, b"D\n")
            everything.update(piece)
            collected += piece
    finally:
        os.close(descriptor)
    daemon.generate(5)
    saved = daemon.place.base / "collected"
    saved.write_bytes(collected + daemon.read())
    daemon.assert_replays()
    # A list that was torn or lost a byte does not load, or does not replay to the PCRs.
    environment = daemon.environment()
    again = run(
        ["evmctl", "ima_measurement", str(saved)],
        env=environment,
    )
    assert "Matched per TPM bank calculated digest(s)" in again.stdout + again.stderr


def test_read_after_write_on_one_descriptor(daemon: Daemon) -> None:
    """FUSE moves the position with a write, the kernel does not: the daemon takes it back."""
    daemon.generate(10)
    before = daemon.read(ASCII)
    descriptor = os.open(daemon.path(f"{ASCII}_staged"), os.O_RDWR)
    try:
        assert os.write(descriptor, b"A\n") == 2
        first = os.read(descriptor, 100)
        assert first == before[:100]
        # A refused request moves nothing, an accepted one does not either.
        with pytest.raises(OSError, match="exists") as caught:
            os.write(descriptor, b"A\n")
        assert caught.value.errno == errno.EEXIST
        assert first + read_to_end(descriptor, 333) == before
        # An absolute position is absolute again.
        assert os.lseek(descriptor, 7, os.SEEK_SET) == 7
        assert read_to_end(descriptor, 4096) == before[7:]
        assert os.pread(descriptor, 50, 20) == before[20:70]
        os.write(descriptor, b"D\n")
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert os.read(descriptor, 100) == b""
    finally:
        os.close(descriptor)


def test_the_continued_read_after_delete_skips_records_as_in_a_kernel(
    daemon: Daemon,
) -> None:
    """The cursor is a record index: after reading K and deleting N, reading goes on at K."""
    daemon.generate(99)
    lines = daemon.read(ASCII).splitlines(keepends=True)
    descriptor = os.open(daemon.path(ASCII), os.O_RDWR)
    try:
        # Not a page at a page's boundary: that one is filled for the page cache's sake.
        first = os.read(descriptor, 5000).splitlines(keepends=True)
        read = len(first)
        assert first == lines[:read]
        assert os.write(descriptor, b"10\n") == 3
        assert read_to_end(descriptor) == b"".join(lines[10 + read :])
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert read_to_end(descriptor) == b"".join(lines[10:])
    finally:
        os.close(descriptor)


def test_append_after_an_earlier_write(daemon: Daemon) -> None:
    """``>>`` arrives with the grown size as offset: positions of writes mean nothing."""
    daemon.generate(9)
    script = 'for n in 1 2 3; do echo $n >> "$1" || exit $n; done; echo 1 > "$1"; echo 1 >> "$1"'
    run(["bash", "-c", script, "bash", str(daemon.path(BINARY))])
    assert daemon.count() == 10 - 8


def test_many_writes_on_one_descriptor(daemon: Daemon) -> None:
    daemon.generate(99)
    for flags in (0, os.O_APPEND):
        descriptor = os.open(daemon.path(BINARY), os.O_WRONLY | flags)
        for _ in range(20):
            assert os.write(descriptor, b"2\n") == 2
        os.close(descriptor)
    assert daemon.count() == 100 - 80


def test_flush_is_not_close(daemon: Daemon) -> None:
    """close() of a duplicate flushes; the lock goes with the last one."""
    descriptor = os.open(daemon.path(BINARY), os.O_WRONLY)
    os.close(os.dup(descriptor))
    with pytest.raises(OSError, match="busy"):
        os.open(daemon.path(BINARY), os.O_RDONLY)
    assert os.write(descriptor, b"1\n") == 2
    os.close(descriptor)
    os.close(os.open(daemon.path(BINARY), os.O_RDONLY))


def test_the_shell_redirection(daemon: Daemon) -> None:
    """OPEN(O_TRUNC), FLUSH, WRITE, FLUSH, RELEASE; the errno reaches the shell."""
    staged = daemon.path(f"{ASCII}_staged")
    script = 'echo A > "$1" && ! echo A > "$1" && echo D > "$1" && ! echo D > "$1"'
    result = run(["bash", "-c", script, "bash", str(staged)])
    assert "File exists" in result.stderr
    assert "No such file or directory" in result.stderr
    assert daemon.count() == 0
