# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Programs that read the lists: every one of them gets every byte."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.mount.daemon import ASCII, BINARY, Daemon
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import require, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


OPTIONS = {
    "short reads": [],
    "large reads": ["--large-reads"],
    "true sizes": ["--st-size", "actual"],
}


@pytest.fixture(scope="module", params=OPTIONS)
def shared(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One for all that only read."""
    with Daemon(*OPTIONS[request.param]) as daemon:
        yield daemon


@pytest.fixture
def filled(shared: Daemon) -> Daemon:
    """About 160 kB of ASCII: many pages, more than one readahead window."""
    if shared.count() != 1001:
        shared.boot_anew()
        shared.generate(1000)
    return shared


def shows_sizes(daemon: Daemon) -> bool:
    """Whether programs that trust the size find one."""
    return daemon.path(ASCII).stat().st_size > 0


def output(command: Sequence[str | os.PathLike[str]]) -> bytes:
    """stdout as bytes."""
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    return done.stdout


FILES = [ASCII, BINARY, f"{BINARY}_sha256"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "command",
    [
        "cat",
        "busybox cat",
        "dd bs=97 status=none if=",
        "dd bs=4096 status=none if=",
        "dd bs=1M status=none if=",
        "busybox dd bs=512 status=none if=",
        "head -c 100000000",
        "tail -c +1",
        "busybox tail -c +1",
        "sed -n p",
        "od -An -v -tx1",
        "busybox hexdump -v -e '1/1 \"%02x\"'",
    ],
)
def test_to_stdout(filled: Daemon, command: str, name: str) -> None:
    words = command.split(" ")
    if words[0] == "busybox":
        require("busybox")
    whole = filled.read(name)
    if "hexdump" in words:
        words = ["busybox", "hexdump", "-v", "-e", '1/1 "%02x"']
    path = str(filled.path(name))
    if words[-1] == "if=":
        words[-1] += path
    else:
        words.append(path)
    got = output(words)
    if "od" in words or "hexdump" in words:
        got = bytes.fromhex(got.decode())
    if "sed" in words and not whole.endswith(b"\n"):
        got = got.removesuffix(b"\n") if len(got) > len(whole) else got
    assert got == whole


@pytest.mark.parametrize("name", FILES)
def test_dd_byte_by_byte(daemon: Daemon, name: str) -> None:
    daemon.generate(100)
    assert output(["dd", "bs=1", "status=none", f"if={daemon.path(name)}"]) == daemon.read(name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "command", ["cp", "cp --sparse=never --reflink=never", "busybox cp", "install", "rsync -L"]
)
def test_to_a_file(filled: Daemon, tmp_path: Path, command: str, name: str) -> None:
    words = command.split()
    require(words[0])
    run([*words, str(filled.path(name)), str(tmp_path / "copy")])
    if words[0] == "rsync" and not shows_sizes(filled):
        assert (tmp_path / "copy").read_bytes() == b"", "as on a kernel"
        return
    assert (tmp_path / "copy").read_bytes() == filled.read(name)
    run(["cmp", str(filled.path(name)), str(tmp_path / "copy")])


def test_shutil(filled: Daemon, tmp_path: Path) -> None:
    for function in (shutil.copyfile, shutil.copy, shutil.copy2):
        function(filled.path(ASCII), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == filled.read(ASCII)
    assert filled.path(ASCII).read_bytes() == filled.read(ASCII)
    with filled.path(ASCII).open() as file:
        assert len(file.readlines()) == 1001


@pytest.mark.parametrize("tar", ["tar", "busybox tar"])
def test_tar(filled: Daemon, tmp_path: Path, tar: str) -> None:
    """The member has the size that stat said: none, as on a kernel, unless sizes are true."""
    archive = tmp_path / "archive.tar"
    words = [*tar.split(), "-C", str(filled.dir), "-chf", str(archive)]
    done = run([*words, ASCII, f"{BINARY}_sha256"], check=False)
    with tarfile.open(archive) as opened:
        for name in (ASCII, f"{BINARY}_sha256"):
            member = opened.extractfile(name)
            assert member is not None
            assert member.read() == (filled.read(name) if shows_sizes(filled) else b"")
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["head -n 5", "tail -n 5", "busybox head -n 5"])
def test_lines(filled: Daemon, command: str) -> None:
    lines = filled.read(ASCII).splitlines(keepends=True)
    expected = {
        "head": lines[:5],
        "tail": lines[-5:],
        "busybox": lines[:5],
    }[command.split()[0]]
    assert output([*command.split(), filled.path(ASCII)]) == b"".join(expected)


def test_tac(filled: Daemon) -> None:
    """It seeks to the end, which is refused: so it reads all first."""
    lines = filled.read(ASCII).splitlines(keepends=True)
    assert output(["tac", filled.path(ASCII)]) == b"".join(lines[::-1])


def test_grep_and_wc(filled: Daemon) -> None:
    whole = filled.read(ASCII)
    assert output(["grep", "-c", "ima-ng", filled.path(ASCII)]) == b"1001\n"
    assert output(["busybox", "grep", "-c", "ima-ng", filled.path(ASCII)]) == b"1001\n"
    assert output(["wc", "-l", filled.path(ASCII)]).split()[0] == b"1001"
    # wc -c trusts st_size where it can.
    assert output(["wc", "-c", filled.path(ASCII)]).split()[0] == str(len(whole)).encode()
    assert output(["busybox", "wc", "-c", filled.path(ASCII)]).split()[0] == (
        str(len(whole)).encode()
    )
    digest = hashlib.sha256(whole).hexdigest().encode()
    assert output(["sha256sum", filled.path(ASCII)]).split()[0] == digest


def test_cmp_and_diff(filled: Daemon) -> None:
    assert output(["cmp", filled.path(ASCII), filled.path(f"{ASCII}_sha1")]) == b""
    assert output(["diff", filled.path(ASCII), filled.path(f"{ASCII}_sha1")]) == b""


def grown(file: Path, size: int) -> bool:
    """Whether ``file`` has ``size`` bytes or more."""
    return file.stat().st_size >= size


@pytest.mark.parametrize("command", ["tail -f", "tail -F", "busybox tail -f"])
def test_tail_follows(start: Starter, tmp_path: Path, command: str) -> None:
    """Records that are added while it runs appear, each once, in order.

    With true sizes: GNU tail takes a file whose size stays 0 for one that does not grow.
    """
    daemon = start("--st-size", "actual")
    daemon.generate(30)
    got = tmp_path / "got"
    words = [*command.split(), "-c", "+1", str(daemon.path(ASCII))]
    if words[0] == "tail":
        words.insert(1, "--sleep-interval=0.05")
    with got.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.PIPE)
    try:
        for added in (0, 1, 70, 200):
            daemon.generate(added)
            whole = daemon.read(ASCII)
            wait_for(partial(grown, got, len(whole)), 60, f"{command}: all")
            assert got.read_bytes() == whole
    finally:
        process.kill()
        err = process.communicate()[1]
    assert err == b""


def test_unbuffered_small_reads(filled: Daemon) -> None:
    """strongSwan's way: reads of 4, 20 and n bytes, and lseek from the current position."""
    whole = filled.read(BINARY)
    descriptor = os.open(filled.path(BINARY), os.O_RDONLY)
    rebuilt = b""
    number = 0
    while head := os.read(descriptor, 4):
        digest = os.read(descriptor, 20)
        length = os.read(descriptor, 4)
        name = os.read(descriptor, int.from_bytes(length, "little"))
        size = os.read(descriptor, 4)
        os.lseek(descriptor, 0, os.SEEK_CUR)
        data = os.read(descriptor, int.from_bytes(size, "little"))
        rebuilt += head + digest + length + name + size + data
        number += 1
    os.close(descriptor)
    assert (number, rebuilt) == (1001, whole)


def test_agent_with_offsets(filled: Daemon) -> None:
    """Keylime's way: one descriptor for life, a remembered offset, seek and read to the end."""
    descriptor = os.open(filled.path(ASCII), os.O_RDONLY)
    offset, collected = 0, b""
    for added in (0, 5, 100, 3):
        filled.generate(added)
        os.lseek(descriptor, offset, os.SEEK_SET)
        piece = b""
        while more := os.read(descriptor, 8192):
            piece += more
        collected += piece
        offset += len(piece)
    os.close(descriptor)
    assert collected == filled.read(ASCII)
