# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A directory that is kept and is no kernel's, or of a kernel that has what others have not.

Its files are plain ones: nothing is mounted, and no TPM answers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from imafs.errors import NotThereError, Refused
from imafs.formats.algorithms import SHA1
from imafs.formats.binary import Record, encode
from imafs.formats.templates import TEMPLATES
from imafs.keeper import source as sources
from imafs.keeper.archive import Archive
from imafs.keeper.collector import Collector, Settings, State
from imafs.keeper.records import listed
from imafs.keeper.source import NoPcrs, Place, Source, TooLongError
from tests.keeper.machine import collecting
from tests.keeper.made import record
from tests.support import ExpectedLogs, wait_for_async

LIST, COUNT = "binary_runtime_measurements_sha1", "runtime_measurements_count"
STAGED = f"{LIST}_staged"
WAIT = 30.0


def long_record(size: int) -> bytes:
    """A buffer of ``size`` bytes."""
    template = TEMPLATES["ima-buf"]
    data = template.join([b"sha256:\0" + bytes(32), b"buffer\0", b"x" * size])
    return encode(Record(10, template, data), template.digest(data, SHA1))


@pytest.fixture(autouse=True)
def usual(expected_logs: ExpectedLogs) -> None:
    """What a keeper tells in every test of these."""
    for line in ("unverified: no PCRs", "degraded: ", "joining: a list has more"):
        expected_logs.allow(line)
    expected_logs.allow("a reader gets EIO|no more is written to it")


class Kernel(Source):
    """One without ``_staged`` files: N takes records from the head of the file."""

    def __init__(self, place: Path, *records: bytes) -> None:
        place.mkdir()
        self.place = place
        self.looks = 0
        (place / "boot_id").write_text("boot\n")
        self.put(*records)
        super().__init__(Place(str(place), str(place / "boot_id"), None), NoPcrs())

    def put(self, *records: bytes) -> None:
        """The list is these."""
        (self.place / LIST).write_bytes(b"".join(records))
        (self.place / COUNT).write_text(f"{len(records)}\n")

    def current(self, most: int | None = None, begin: int = 0) -> bytes:
        self.looks += 1
        return super().current(most, begin)

    @property
    def data(self) -> bytes:
        """The list."""
        return (self.place / LIST).read_bytes()

    def delete_first(self, number: int) -> int:
        k = listed(self.data)
        self.put(*(k.record(at) for at in range(number, len(k))))
        return 0


@asynccontextmanager
async def keeping(kernel: Source, store: Path) -> AsyncIterator[Collector]:
    settings = Settings(records=20_000, age=3600.0, keep_free=0.0)
    async with collecting(kernel, store, settings) as collector:
        await collector.looked()
        yield collector


async def test_a_record_longer_than_a_piece_hides_nothing(tmp_path: Path) -> None:
    """Without ``_staged`` files lists are read in pieces: what is cut is not the end."""
    longest = long_record(3 << 20)
    kernel = Kernel(tmp_path / "ima", record("boot_aggregate"))
    async with keeping(kernel, tmp_path / "store") as collector:
        await collector.fresh()
        kernel.put(longest, record("/behind"))
        catalogue = await collector.fresh()
        assert len(catalogue) == 3
        await collector.flush()
        assert kernel.data == b""
        assert catalogue.stored == 3


async def test_a_long_first_list_begins_with_a_record_longer_than_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imafs.keeper.joining.WHOLE", 2)
    kernel = Kernel(tmp_path / "ima", long_record(3 << 20), record("/b"), record("/c"))
    async with keeping(kernel, tmp_path / "store") as collector:
        await collector.flush()
        assert kernel.data == b""
        assert collector.catalogue is not None
        assert collector.catalogue.stored == 3


async def test_a_list_beyond_the_limit_is_not_shown_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    """While nothing can be stored the kernel's list grows, and is read whole or not at all."""
    expected_logs.allow("too_long")
    kernel = Kernel(tmp_path / "ima", record("boot_aggregate"))

    def full(*_: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async with keeping(kernel, tmp_path / "store") as collector:
        await collector.flush()
        monkeypatch.setattr(Archive, "_write", full)
        kernel.put(*(record(f"/{number}") for number in range(100)))
        assert len(await collector.fresh()) == 101

        async def degraded() -> bool:
            return collector.state is State.DEGRADED

        await wait_for_async(degraded, WAIT, "nothing can be stored")
        monkeypatch.setattr(sources, "MOST", 5000)
        monkeypatch.setattr("imafs.keeper.collector.FRESH", 0.5)
        with pytest.raises(Refused):
            await collector.fresh()


def test_a_list_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST", 5000)
    kernel = Kernel(tmp_path / "ima", *(record(f"/{number}") for number in range(100)))
    (tmp_path / "ima" / STAGED).write_bytes(kernel.data)
    kernel.look()
    assert kernel.acquire()
    for read in (kernel.current, kernel.staged):
        with pytest.raises(Refused) as refused:
            read()
        assert refused.value.errno == errno.EFBIG
    piece = kernel.current(1000)
    assert kernel.data.startswith(piece)
    assert len(listed(piece)) > 10
    # One that grows between two looks is too long as well.
    with pytest.raises(TooLongError):
        kernel.current(None, len(kernel.data) - 1000)
    kernel.release()


@pytest.mark.parametrize("text", ["-1\n", "1_0\n", "", "x\n", "\u0663\n", "9" * 4000, "1\n2\n"])
def test_a_count_that_is_none(tmp_path: Path, text: str) -> None:
    kernel = Kernel(tmp_path / "ima")
    (tmp_path / "ima" / COUNT).write_text(text)
    with pytest.raises(Refused, match="is no number"):
        kernel.count()


def test_a_policy_without_end(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "ima")
    (tmp_path / "ima" / "policy").symlink_to("/dev/zero")
    assert kernel.view_measured() == "unknown"
    (tmp_path / "ima" / "policy").unlink()
    (tmp_path / "ima" / "policy").write_text("dont_measure fsmagic=0x1\n" * 1000 + "measure\n")
    assert kernel.view_measured() == "yes"


def test_a_directory_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of its names are looked at than an IMA directory may have."""
    monkeypatch.setattr(sources, "_FILES", 10)
    kernel = Kernel(tmp_path / "ima")
    for number in range(10):
        (tmp_path / "ima" / f"file-{number}").touch()
    with pytest.raises(NotThereError, match="more than 10 files"):
        kernel.look()


@pytest.mark.parametrize(
    "data",
    [
        record("/a")[:-1],
        record("/a") + b"\0\0\0",
        b"\x0a\0\0\0" + bytes(20) + b"\6\0\0\0ima-ng" + b"\xff\xff\xff\xff",
        b"\x0a\0\0\0" + bytes(20) + b"\xff\xff\xff\xff",
        b"\xff" * 5000,
        b"not a list\n",
    ],
    ids=["cut", "rest", "4 GiB of data", "4 GiB of a name", "ones", "text"],
)
async def test_what_is_no_list_is_refused_and_kept(tmp_path: Path, data: bytes) -> None:
    """Behind a good one too: nothing is deleted, and the view is EIO, not shorter."""
    kernel = Kernel(tmp_path / "ima", record("boot_aggregate"))
    async with keeping(kernel, tmp_path / "store") as collector:
        await collector.fresh()
        kernel.put(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imafs.keeper.collector.FRESH", 1.0)
            with pytest.raises(Refused):
                await collector.fresh()

        async def degraded() -> bool:
            return collector.state is State.DEGRADED

        await wait_for_async(degraded, WAIT, "the list was looked at")
        assert kernel.data == data
        # The reader has given up, and its wish is not asked again and again meanwhile.
        assert kernel.looks < 20
        kernel.put(record("/good"))

        async def mended() -> bool:
            return collector.state is State.IDLE

        await wait_for_async(mended, WAIT, "the list is looked at again")
        await collector.flush()
        assert collector.catalogue is not None
        assert collector.catalogue.stored == 2
