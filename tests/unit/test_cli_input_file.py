# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that commands read: no fifo without a writer and no device holds them up."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from imafs.cli import input_file
from imafs.cli.input_file import read_bytes
from imafs.errors import FileError


def test_a_fifo_without_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "_PATIENCE", 0)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileError, match="fifo: nobody writes into this fifo") as caught:
        read_bytes(str(tmp_path / "fifo"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("patience", [0, 5])
def test_a_fifo_with_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """Also one that is slower than our patience."""
    monkeypatch.setattr(input_file, "_PATIENCE", patience)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDWR)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=held) as writer:
        thread = threading.Thread(target=writer.communicate, args=(b"list" * 50_000,))
        # Closed once the reader is there: what is in a fifo goes with its last end.
        descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.close(held)
        thread.start()
        assert read_bytes(str(fifo)) == b"list" * 50_000
        thread.join()
        os.close(descriptor)


def test_a_pipe_of_a_shell() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"list")
    os.close(writing)
    assert read_bytes(f"/dev/fd/{reading}") == b"list"
    assert read_bytes(f"/dev/fd/{reading}") == b""
    os.close(reading)


def test_devices(tmp_path: Path) -> None:
    assert read_bytes("/dev/null") == b""
    with pytest.raises(FileError, match="/dev/zero: is a device"):
        read_bytes("/dev/zero")


def test_what_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "_MOST", 10)
    (tmp_path / "list").write_bytes(b"x" * 11)
    with pytest.raises(FileError, match="is larger than"):
        read_bytes(str(tmp_path / "list"))
