# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Archives that want more than they are: refused, in a process of their own."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import resource
import tarfile
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from imafs.errors import FormatError, NotThereError
from imafs.sources import recording, tarball, unpack
from imafs.sources.load import load
from imafs.sources.recording import CURRENT, lists_of
from imafs.sources.tarball import BrokenError, Entry, Limits, Stream, walk
from tests.support import ROOT

LIST = f"a/{CURRENT}"
GIB = 1 << 30


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def xz_of_zeros(before: bytes, zeros: int, after: bytes = bytes(1024)) -> bytes:
    """An archive in which so many zeros stand somewhere: streams one after the other."""
    return lzma.compress(before) + _zeros() * (zeros >> 26) + lzma.compress(after)


@cache
def _zeros() -> bytes:
    return lzma.compress(bytes(1 << 26), preset=0)


def plain_archive(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


HUGE: dict[str, Callable[[], bytes]] = {
    "pax header": lambda: xz_of_zeros(header(b"x", GIB), GIB),
    "global header": lambda: xz_of_zeros(header(b"g", GIB), GIB),
    "long name": lambda: xz_of_zeros(header(b"L", GIB), GIB),
    "long link": lambda: xz_of_zeros(header(b"K", GIB), GIB),
    "file": lambda: xz_of_zeros(header(b"0", GIB, LIST), GIB),
    "another file": lambda: xz_of_zeros(header(b"0", GIB, "a/junk"), GIB),
    "end": lambda: xz_of_zeros(b"", GIB),
    "list": lambda: xz_of_zeros(b"\n\0\0\0", GIB),
    "gzip": lambda: gzip.compress(header(b"x", GIB) + bytes(50 << 20), 1),
    "bzip2": lambda: bz2.compress(header(b"x", GIB) + bytes(50 << 20), 1),
    "twice": lambda: gzip.compress(xz_of_zeros(header(b"x", GIB), GIB)),
    "members": lambda: gzip.compress(header(b"0", 1, "x") * 2 * unpack.MOST_ENTRIES),
    "extended": lambda: gzip.compress((header(b"L", 1) + bytes(512)) * 100_000),
    "sparse": lambda: gzip.compress(header(b"S", 8 << 40, LIST)),
    "size": lambda: gzip.compress(header(b"0", 8 << 40, LIST)),
}


@pytest.fixture(scope="module", params=HUGE)
def huge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "archive"
    path.write_bytes(HUGE[request.param]())
    return path


def test_a_small_archive_takes_little(huge: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            load(str(huge))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert str(huge) in str(caught.value)
    now = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # In KiB: the largest child until now, this one among them. Until it executes its program
    # it shares our memory (vfork), whose peak counts as its own.
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert now == before or now < 200 << 10 or now <= ours < 1 << 20


def test_a_dictionary_that_is_larger_than_any_list_needs(tmp_path: Path) -> None:
    data = plain_archive((LIST, b"x"))
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1536 << 20, "preset": 0}]
    for content in (data, data * 1000):
        path = tmp_path / "list.tar.xz"
        path.write_bytes(_declaring_a_large_dictionary(content, filters))
        with pytest.raises(FormatError, match="to unpack it takes more memory than 128 MiB"):
            lists_of(str(path))


def _declaring_a_large_dictionary(content: bytes, filters: list[dict[str, int]]) -> bytes:
    """The byte of the block header that says it (xz's format, 5.3.1), with its CRC32."""
    small = bytearray(lzma.compress(content, filters=[{**filters[0], "dict_size": 4096}]))
    start, size = 12, (small[12] + 1) * 4
    place = small.index(b"\x21\x01", start, start + size) + 2
    small[place] = 37  # 1.5 GiB
    import zlib

    check = zlib.crc32(bytes(small[start : start + size - 4]))
    small[start + size - 4 : start + size] = check.to_bytes(4, "little")
    return bytes(small)


def test_what_unpacks_is_bounded_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "list.tar.xz"
    path.write_bytes(lzma.compress(plain_archive((LIST, b"list"))))
    with path.open("rb") as file, unpack.opened(file.fileno()) as found:
        child = found._process.pid
        limits = Path(f"/proc/{child}/limits").read_text()
        assert b"-I" in Path(f"/proc/{child}/cmdline").read_bytes() or os.geteuid()
        assert os.readlink(f"/proc/{child}/cwd") == "/"
        rows = {line[:25].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
        assert rows["Max address space"] == [str(unpack._SPACE)] * 2
        assert int(rows["Max cpu time"][1]) < 120
        assert rows["Max open files"] == rows["Max processes"] == ["0", "0"]
        status = dict(re.findall(r"(\w+):[ \t]*(.*)", Path(f"/proc/{child}/status").read_text()))
        assert status["NoNewPrivs"] == "1"
        if os.geteuid() == 0:
            assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].strip() == ""
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert found.read([0], 10) == [b"list"]


def test_more_than_any_offset_is_a_cut_archive(tmp_path: Path) -> None:
    """A size of 88 bits, as GNU's binary numbers can be."""
    for size in (1 << 80, (1 << 63) - 1, 1 << 40):
        block = bytearray(header(b"0", 0, "a/junk"))
        block[124:136] = b"\x80" + size.to_bytes(11, "big")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        path = tmp_path / "list.tar"
        path.write_bytes(block + bytes(1024))
        with pytest.raises(FormatError, match=r"the archive is cut: a/junk is not whole"):
            lists_of(str(path))


def test_an_error_does_not_repeat_megabytes_of_names(tmp_path: Path) -> None:
    path = tmp_path / "list.tar.gz"
    names = [f"{number}/{'n' * 3000}\x1b/{CURRENT}" for number in range(500)]
    path.write_bytes(gzip.compress(plain_archive(*((name, b"") for name in names))))
    for moment in (None, "zz"):
        with pytest.raises((FormatError, NotThereError)) as caught:
            lists_of(str(path), moment)
        assert "0/nnn" in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 3000


def test_a_killed_process_is_told(tmp_path: Path) -> None:
    path = tmp_path / "list.tar.xz"
    path.write_bytes(lzma.compress(plain_archive((LIST, b"list"))))
    with path.open("rb") as file, unpack.opened(file.fileno()) as found:
        found._process.kill()
        found._process.wait()
        with pytest.raises(FormatError, match="or it was killed"):
            found.read([0], 10)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_forms_that_people_make(tmp_path: Path, form: int, pack: Callable[[bytes], bytes]) -> None:
    name = f"{'d' * 90}/{'e' * 50}/{CURRENT}"
    data = plain_archive((f"{'d' * 90}/other-\xe4", b"y" * 700), (name, b"x" * 513), form=form)
    path = tmp_path / "archive"
    path.write_bytes(pack(data))
    assert lists_of(str(path)) == (b"", b"x" * 513)
    # Two streams one after the other, as from pigz or cat; zeros behind.
    half = len(data) // 2
    path.write_bytes(pack(data[:half]) + pack(data[half:]))
    assert lists_of(str(path)) == (b"", b"x" * 513)
    if pack is not bytes:
        path.write_bytes(pack(data) + bytes(8))
        assert lists_of(str(path)) == (b"", b"x" * 513)
        path.write_bytes(pack(data) + b"rest")
        with pytest.raises(FormatError, match=r"something else follows"):
            lists_of(str(path))


def test_a_compressed_list_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.gz"
    path.write_bytes(gzip.compress(b"\n\0\0\0" + b"x" * 1000))
    assert lists_of(str(path)) == (b"", b"\n\0\0\0" + b"x" * 1000)


def test_names_that_are_in_it_twice(tmp_path: Path) -> None:
    path = tmp_path / "list.tar"
    path.write_bytes(plain_archive((LIST, b"x"), (f"./{LIST}", b"y")))
    with pytest.raises(FormatError, match=f"{LIST} is in it twice"):
        lists_of(str(path))


def test_a_hard_link_is_its_file(tmp_path: Path) -> None:
    path = tmp_path / "list.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a/binary_runtime_measurements_sha1")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        info = tarfile.TarInfo(LIST)
        info.type, info.linkname = tarfile.LNKTYPE, "a/binary_runtime_measurements_sha1"
        tar.addfile(info)
    assert lists_of(str(path)) == (b"", b"abc")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"S"])
def test_what_is_no_file(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "list.tar"
    path.write_bytes(header(kind, 0, LIST) + bytes(1024))
    with pytest.raises(FormatError, match="is no file, and no link to one in it"):
        lists_of(str(path))


LIMITS = Limits(entries=100, output=1 << 20, memory=1 << 26)


def entries(path: Path, data: bytes) -> list[Entry]:
    path.write_bytes(data)
    with path.open("rb") as file:
        return [entry for entry, _ in walk(Stream(file.fileno(), LIMITS))]


@pytest.mark.parametrize(
    "said",
    [b"9 path=a", b"xx path=ab\n", b"0 path=ab\n", b"99 path=ab\n", b"11 pathxab\n", b"5 =\n" * 9],
)
def test_extended_headers_without_sense(tmp_path: Path, said: bytes) -> None:
    block = header(b"x", len(said)) + said + bytes(-len(said) % 512)
    with pytest.raises(BrokenError, match="makes no sense"):
        entries(tmp_path / "x", block + header(b"0", 0) + bytes(1024))


@pytest.mark.parametrize("size", [b"-1", b"9" * 30, b"1e3"])
def test_sizes_without_sense(tmp_path: Path, size: bytes) -> None:
    record = b" size=%s\n" % size
    said = b"%d%s" % (len(record) + 2, record)
    block = header(b"x", len(said)) + said + bytes(-len(said) % 512)
    with pytest.raises(BrokenError, match="makes no sense"):
        entries(tmp_path / "x", block + header(b"0", 0) + bytes(1024))


def test_every_cut_of_an_archive_is_refused(tmp_path: Path) -> None:
    data = plain_archive(("a/b", b"x" * 600), (f"{'n' * 120}/c", b"y"))
    whole = entries(tmp_path / "x", data)
    end = data.rindex(b"y") // 512 * 512 + 512
    for size in range(0, len(data), 37):
        if size >= end + 512:
            assert entries(tmp_path / "x", data[:size]) == whole
        else:
            with pytest.raises(BrokenError):
                entries(tmp_path / "x", data[:size])


def test_recordings_of_real_kernels_are_read() -> None:
    """Names, links and sizes as real recordings have them; tarfile is the reference."""
    for path in sorted((ROOT / "tests" / "data").glob("*.tar.xz")):
        with tarfile.open(path) as tar:
            expected = [(m.name, m.size, m.isreg(), m.linkname) for m in tar]
        with path.open("rb") as file, unpack.opened(file.fileno()) as found:
            assert found.entries is not None
            shown = [(e.name, e.size, e.kind == "file", e.target) for e in found.entries]
            assert shown == expected, path
            if path.name == "7.3.4-kexec.tar.xz":
                with tarfile.open(path) as tar:
                    members = [m for m in tar if m.isreg()][:5]
                    wanted = [e.name for e in found.entries]
                    numbers = [wanted.index(m.name) for m in members]
                    contents = []
                    for member in members:
                        read = tar.extractfile(member)
                        assert read is not None
                        contents.append(read.read())
                assert found.read(numbers, recording.MOST) == contents


def test_a_plain_list_is_not_packed(tmp_path: Path) -> None:
    for data in (b"", b"\n\0\0\0", b"\n\0\0\0" + bytes(600), b"10 " + b"a" * 600):
        (tmp_path / "list").write_bytes(data)
        with (tmp_path / "list").open("rb") as file:
            assert not unpack.is_packed(file.fileno()), data
    assert tarball.compression(b"\x28\xb5\x2f\xfd....") == "zstd"
