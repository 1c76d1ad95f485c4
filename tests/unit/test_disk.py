# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that are read whole and written whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imafs import disk
from imafs.errors import FileError, UsageError


def test_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(3 << 20))
    assert disk.read_whole(str(file), 3 << 20) == bytes(3 << 20)
    with pytest.raises(UsageError, match="file: is larger than 2 MiB"):
        disk.read_whole(str(file), (3 << 20) - 1)
    assert disk.read_whole("/proc/self/cmdline", 1 << 20), "a file without a size"


@pytest.mark.parametrize("name", ["none", "fifo", "directory"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")  # must not wait for a writer
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileError) as caught:
        disk.read_whole(str(tmp_path / name), 1)
    assert caught.value.exit_code == UsageError.exit_code
    assert caught.value.errno == (errno.ENOENT if name == "none" else errno.EINVAL)


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in (b"first", b"second"):
        with disk.replacing(str(file), 0o640) as descriptor:
            disk.fill(descriptor, (text[:2], text[2:]))
            assert not file.exists() or file.read_bytes() == b"first"
        assert file.read_bytes() == text
    with pytest.raises(TypeError), disk.replacing(str(file), 0o640) as descriptor:
        disk.fill(descriptor, (b"third", "no bytes"))  # type: ignore[arg-type]
    assert file.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(OSError, match="directory"), disk.replacing(str(tmp_path), 0o640):
        pass
    assert tmp_path.is_dir()


def test_two_that_replace_the_same_file_do_not_mix(tmp_path: Path) -> None:
    """Nor does anybody who has prepared a link under a name that can be foreseen."""
    file, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".file.{os.getpid()}").symlink_to(victim)
    with disk.replacing(str(file), 0o600) as one, disk.replacing(str(file), 0o600) as two:
        disk.fill(one, (b"one",))
        disk.fill(two, (b"two two",))
    assert file.read_bytes() == b"one"
    assert victim.read_bytes() == b"precious"
    assert not file.is_symlink()


def test_in_a_directory_by_descriptor(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    try:
        with disk.replacing(b"file", 0o600, directory=directory) as descriptor:
            disk.fill(descriptor, (b"text",))
    finally:
        os.close(directory)
    assert (tmp_path / "file").read_bytes() == b"text"
