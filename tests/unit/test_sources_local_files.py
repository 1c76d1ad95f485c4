# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Measuring files of this machine."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from imafs.emulator.config import EmulatorConfig
from imafs.errors import Refused
from imafs.formats.algorithms import HashAlgorithm, by_name
from imafs.formats.fields import Measurement
from imafs.sources.local_files import describe, walk
from imafs.sources.measure_file import Judge, root_read
from tests.support import require

SHA256 = by_name("sha256")


def examine(path: str, algorithm: HashAlgorithm, *, name: bytes | None = None) -> Measurement:
    """While no policy is active."""
    config = EmulatorConfig(algorithm=algorithm)
    judged = Judge(None, config).use(path, root_read, name)
    assert judged.measurement is not None
    return judged.measurement


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_the_digest_of_the_content(tmp_path: Path, algorithm: str, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o640)
    found = examine(str(path), by_name(algorithm))
    assert found.digest == hashlib.new(algorithm, content).digest()
    assert found.algorithm.name == algorithm
    assert found.name == os.fsencode(path)
    assert (found.uid, found.gid, found.mode) == (os.getuid(), path.stat().st_gid, 0o100640)
    assert found.sha1 is None
    assert not found.violation


def test_the_sha1_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = describe(descriptor, b"/f", SHA256, want_sha1=True)
        read = describe(descriptor, b"/f", SHA256, want_sha1=True, content=b"content")
    finally:
        os.close(descriptor)
    assert found == read
    assert found.sha1 == hashlib.sha1(b"content").digest()


def test_another_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert examine(str(path), SHA256, name=b"/bin/\xff x").name == b"/bin/\xff x"


@pytest.mark.parametrize("name", [b"sp ace", b"new\nline", b"\xff\xfe", "größe".encode()])
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    Path(os.fsdecode(path)).write_bytes(b"x")
    assert examine(os.fsdecode(path), SHA256).name == path


@pytest.mark.parametrize("kind", [b"\x03", b"\x06"])
def test_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    """Of the file, or of its fs-verity digest."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    xattrs = {"security.ima": kind + b"\x02sig", "security.evm": b"\x05\x02evm"}
    monkeypatch.setattr(os, "getxattr", lambda _, name: xattrs[name])
    found = examine(str(path), SHA256)
    assert (found.signature, found.evm_signature) == (kind + b"\x02sig", b"\x05\x02evm")


@pytest.mark.parametrize("first", [b"", b"\x01", b"\x04", b"\x02"])
def test_an_xattr_that_is_no_signature_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    # 1: a digest, 4: a digest with algorithm, 2: EVM's HMAC (integrity.h).
    path = tmp_path / "file"
    path.write_bytes(b"")
    monkeypatch.setattr(os, "getxattr", lambda *_: first + bytes(20))
    found = examine(str(path), SHA256)
    assert (found.signature, found.evm_signature) == (b"", b"")


@pytest.mark.parametrize("code", [errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM])
def test_without_xattrs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "file"
    path.write_bytes(b"")
    monkeypatch.setattr(os, "getxattr", refuse)
    assert examine(str(path), SHA256).signature == b""


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # must not wait for a writer
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(Refused) as caught:
            examine(str(path), SHA256)
        assert caught.value.errno == errno.EINVAL
        assert str(path) in str(caught.value)


def test_errors_carry_their_errno(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, code in (("missing", errno.ENOENT), ("loop", errno.ELOOP), ("a/b", errno.ENOENT)):
        with pytest.raises(Refused) as caught:
            examine(str(tmp_path / name), SHA256)
        assert caught.value.errno == code
        assert name in str(caught.value)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    require("/proc/self/fd")
    path = tmp_path / "file"
    path.write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for target in (path, tmp_path, tmp_path / "missing"):
        try:
            examine(str(target), SHA256)
        except Refused:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_walk(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/x", "c/d/e", "z"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "link").symlink_to("z")
    (tmp_path / "folder").symlink_to("a")
    os.mkfifo(tmp_path / "b/fifo")
    found = [os.path.relpath(path, tmp_path) for path in walk([str(tmp_path)])]
    assert found == ["z", "a/x", "b/1", "b/2", "c/d/e"]


def test_walk_takes_named_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "z").write_bytes(b"")
    (tmp_path / "link").symlink_to("z")
    paths = [str(tmp_path / "link"), str(tmp_path / "z"), str(tmp_path / "z")]
    assert list(walk(paths)) == paths


def test_walk_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        list(walk([str(tmp_path), str(tmp_path / "missing")]))
    assert caught.value.errno == errno.ENOENT
