# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs status``: once, and again and again on a terminal and elsewhere."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import pytest

from imafs.cli.main import main
from imafs.cli.status import Screen
from imafs.control.server import ProgressCallback
from tests.support import ROOT, kill_group, wait_for
from tests.unit.control_fake import handler, in_thread, serving

DEADLINE = 60.0
STATUS: dict[str, object] = {"version": "1", "mountpoint": "/mnt", "profile": "mainline"}


async def test_one_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    async with serving(path, {"status": handler(STATUS)}):
        words = ["status", "--control", str(path)]
        assert await in_thread(lambda: main(words)) == 0
        assert capsys.readouterr().out.startswith("imafs       1 on /mnt, profile mainline\n")
        assert await in_thread(lambda: main([*words, "--json"])) == 0
        assert json.loads(capsys.readouterr().out)["mountpoint"] == "/mnt"


async def test_the_only_daemon_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imafs.control.paths.socket_directory", lambda: tmp_path)
    # Whatever else this machine has mounted.
    monkeypatch.setattr("imafs.cli.find_daemon._own_mounts", lambda: iter(()))
    assert main(["status"]) == 6
    assert "no imafs listens" in capsys.readouterr().err
    async with serving(tmp_path / "mnt-a.sock", {"status": handler(STATUS)}):
        assert await in_thread(lambda: main(["status"])) == 0


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "inf", "86401"])
def test_times_that_are_none(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--control", "/nonexistent", f"--watch={seconds}"]) == 2
    assert "--watch" in capsys.readouterr().err


class Looks:
    """A handler that counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(
        self, options: Mapping[str, object], progress: ProgressCallback
    ) -> dict[str, object]:
        self.count += 1
        return {**STATUS, "violations": self.count}


def watching(path: Path, output: int, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "imafs", "status", "--control", str(path), *words]
    return subprocess.Popen(
        [*command, "--watch", "0.01"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def interrupted_after(
    process: subprocess.Popen[bytes], descriptor: int, end: bytes
) -> tuple[int, bytes]:
    """What came until ``end`` was there, when Ctrl-C followed; the exit status."""
    text = b""

    def arrived() -> bool:
        nonlocal text
        if select.select([descriptor], [], [], 0.1)[0]:
            text += os.read(descriptor, 65536)
        return end in text

    try:
        wait_for(arrived, DEADLINE, f"{end!r} is shown")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE)
        assert errors == b""
    finally:
        kill_group(process)
        process.communicate()
        os.close(descriptor)
    return process.returncode, text


@pytest.mark.parametrize("as_json", [False, True])
async def test_watch_into_a_pipe_is_a_block_per_look(tmp_path: Path, as_json: bool) -> None:
    path, looks = tmp_path / "s", Looks()
    reading, writing = os.pipe()
    async with serving(path, {"status": looks}):
        process = watching(path, writing, *(["--json"] if as_json else []))
        os.close(writing)
        end = b'"violations": 3' if as_json else b"violations  3\n"
        status, text = await in_thread(lambda: interrupted_after(process, reading, end))
    assert status == 0
    assert b"\x1b" not in text
    if as_json:
        lines = [json.loads(line) for line in text.decode().splitlines(keepends=True)[:2]]
        assert [line["violations"] for line in lines] == [1, 2]
    else:
        blocks = text.decode().split("\n\n")
        assert [block.splitlines()[5] for block in blocks[:2]] == ["violations  1", "violations  2"]


async def test_watch_on_a_terminal_is_drawn_in_place(tmp_path: Path) -> None:
    path, looks = tmp_path / "s", Looks()
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    async with serving(path, {"status": looks}):
        process = watching(path, writing)
        os.close(writing)
        status, text = await in_thread(
            lambda: interrupted_after(process, reading, b"violations  3\r\n")
        )
    assert status == 0
    height = text.split(b"\x1b")[0].count(b"\n")
    assert height > 5
    assert text.count(f"\r\x1b[{height}A\x1b[J".encode()) >= 2


async def test_watch_ends_with_the_daemon(tmp_path: Path) -> None:
    """And says so: what is shown would be a state of the past."""
    path = tmp_path / "s"
    reading, writing = os.pipe()
    async with serving(path, {"status": handler(STATUS)}):
        process = watching(path, writing)
        os.close(writing)
        await in_thread(lambda: os.read(reading, 65536))
    try:
        _, errors = await in_thread(lambda: process.communicate(timeout=DEADLINE))
    finally:
        kill_group(process)
        process.communicate()
        os.close(reading)
    assert process.returncode == 6
    assert errors.startswith(b"imafs: ")
    assert errors.count(b"\n") == 1


# Drawing


def draw(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], *blocks: list[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(size[0]))
    monkeypatch.setenv("LINES", str(size[1]))
    stream = io.StringIO()
    screen = Screen(stream)
    for block in blocks:
        screen.draw(block)
    return stream.getvalue()


def test_rows_of_wrapped_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ["1234567890", "12345678901", "", "123456789012345678901"]
    drawn = draw(monkeypatch, (10, 20), first, ["x"])
    assert drawn == "\n".join(first) + "\n\r\x1b[7A\x1b[Jx\n"


def test_a_block_that_is_too_high_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(monkeypatch, (10, 4), ["a", "b", "c", "d", "e"], ["f"])
    assert drawn == "a\nb\nc\n\r\x1b[3A\x1b[Jf\n"


def test_a_terminal_that_became_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines above the top cannot be reached, and narrow terminals wrap what is there."""
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setenv("LINES", "20")
    stream = io.StringIO()
    screen = Screen(stream)
    screen.draw(["1234567890", "b", "c"])
    monkeypatch.setenv("COLUMNS", "5")
    screen.draw(["1234567890", "b", "c"])
    assert stream.getvalue().count("\r\x1b[4A\x1b[J") == 1
    monkeypatch.setenv("LINES", "4")
    screen.draw(["x"])
    assert stream.getvalue().endswith("\r\x1b[3A\x1b[Jx\n")
