# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Disks that give bytes no more, or never answer: EIO for what lies there, and for nothing else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from imafs.errors import DegradedError, Refused, StoreBrokenError
from imafs.keeper import archive as archives
from imafs.keeper import reading
from imafs.keeper.archive import Batch
from imafs.keeper.facts import Anchor, LifeFacts, Mode
from imafs.keeper.store import BankFile, Life, Store, open_store
from imafs.keeper.worker import Pool
from tests.keeper import made
from tests.keeper.diskmodel import RecordingDisk
from tests.keeper.process import Keepers
from tests.mount.daemon import imafs
from tests.mount.fixtures import Starter
from tests.support import ROOT, ExpectedLogs, run

BINARY, ASCII = "binary_runtime_measurements_sha1", "ascii_runtime_measurements_sha256"
BANKS = (BankFile("sha1", 20), BankFile("sha256", 32))
MODES = {bank.name: Mode.REAL for bank in BANKS}
#: Records of a segment here: two chunks.
SEGMENT = 4000
PAGE = 4096


def filled(place: Path, boot: str) -> tuple[Store, Life, list[bytes]]:
    """A store of two full segments and an open one; the kernel's boot_aggregate is not in it."""
    store = open_store(str(place))
    life = store.begin(LifeFacts(1, boot, MODES, "little", None, whole=True), BANKS)
    records = [made.record(f"/usr/bin/{number:08d}") for number in range(2 * SEGMENT + 100)]
    for at in range(0, len(records), SEGMENT):
        part = records[at : at + SEGMENT]
        life.archive.commit(Batch(b"".join(part), len(part), "before", modes=MODES))
    life.archive.commit(Batch(b"", 0, boot, modes=MODES))
    zeros = {bank.name: {10: bytes(bank.size)} for bank in BANKS}
    life.archive.mark(Anchor(len(records), zeros, "a test"))
    return store, life, records


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", SEGMENT)


@contextmanager
def bad(path: Path, begin: int, end: int, place: Path) -> Iterator[None]:
    """Bytes of a file are on a bad sector."""
    (place / "bad").mkdir()
    copy = place / "copy"
    copy.write_bytes(path.read_bytes())
    words = [sys.executable, "-P", "-m", "tests.keeper.bad_file", place / "bad", copy]
    with subprocess.Popen(
        [*map(str, words), str(begin), str(end)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            run(["mount", "--bind", place / "bad" / "file", path])
            try:
                yield
            finally:
                run(["umount", path])
        finally:
            server.send_signal(signal.SIGTERM)


@pytest.mark.root
@pytest.mark.mount
def test_a_bad_sector(start: Starter, keepers: Keepers, tmp_path: Path) -> None:
    """By a mapping it was SIGBUS, and the end of the keeper."""
    kernel = start("--banks", "sha1,sha256")
    boot = (kernel.dir / ".boot_id").read_text().strip()
    store, life, records = filled(kernel.place.base / "store", boot)
    life.archive.close()
    store.close()
    (first,) = (kernel.place.base / "store").glob("lives/*/000000000000.bin")
    # In the second chunk: the first is whole, and so is the next segment, and what lies around.
    chunk = sum(map(len, records[:2048]))
    begin = chunk + 3 * PAGE - chunk % PAGE
    later = sum(map(len, records[:SEGMENT]))
    with bad(first, begin, begin + 1, tmp_path):
        keeper = keepers(kernel, allow="pcr_diverged|damaged")
        whole = b"".join(records)
        descriptor = os.open(keeper.view / BINARY, os.O_RDONLY)
        try:
            for _ in range(2):
                found, number = read_on(descriptor)
                assert number == errno.EIO
                assert found == whole[: len(found)]
                assert begin - 2 * PAGE < len(found) <= begin
            assert os.pread(descriptor, 1000, later) == whole[later:][:1000]
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(descriptor, 100, begin + 10)
            behind = begin + 2 * PAGE
            assert os.pread(descriptor, 1000, behind) == whole[behind:][:1000]
        finally:
            os.close(descriptor)
        with pytest.raises(OSError, match="Input/output error"):
            keeper.read(ASCII)
        kernel.generate(100)
        status = keeper.emptied(kernel)
        place = f"Input/output error at byte {begin}"
        assert keeper.log().count(place) == 1
        assert place in str(status["alarms"])
        for command, options in (("verify", []), ("export", ["-o", str(tmp_path / "out")])):
            done = imafs("keep", command, *options, "--store", keeper.store, check=False)
            assert done.returncode == StoreBrokenError.exit_code
            assert place in done.stderr
            assert "Traceback" not in done.stderr
        keeper.terminate()
        # A start reads no full segment.
        keeper = keepers(kernel, of=keeper, allow="pcr_diverged|damaged")
        with pytest.raises(OSError, match="Input/output error"):
            keeper.read(BINARY)
    found = keeper.read(BINARY)
    assert first_difference(found[: len(whole)], whole) is None
    imafs("keep", "verify", "--store", keeper.store)


def first_difference(one: bytes, other: bytes) -> int | None:
    """The first byte in which they differ."""
    if one == other:
        return None
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


def read_on(descriptor: int) -> tuple[bytes, int]:
    """What an open file gives from its beginning on, and with which errno it ends."""
    found = b""
    try:
        while piece := os.pread(descriptor, 1 << 20, len(found)):
            found += piece
    except OSError as error:
        return found, error.errno or 0
    return found, 0


class BadDisk(RecordingDisk):
    """What begins with a name is not given from a byte on."""

    bad: tuple[str, int] = ("", 0)

    def _piece(self, descriptor: int, path: str, at: int, size: int) -> bytes:
        name, begin = self.bad
        if name and os.path.basename(path).startswith(name) and at + size > begin:
            raise OSError(errno.EIO, f"Input/output error at byte {max(at, begin)}", path)
        return super()._piece(descriptor, path, at, size)


@pytest.mark.parametrize(
    ("name", "begin", "kind"),
    [
        ("journal", 10, DegradedError),
        ("000000008000.bin", 0, DegradedError),
        ("000000000000.bin", 0, None),
        ("000000000000.idx", 100, None),
    ],
)
def test_recovery_on_a_bad_disk(
    name: str, begin: int, kind: type[Exception] | None, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    store, life, records = filled(tmp_path / "store", "boot")
    life.archive.close()
    store.close()
    (place,) = (tmp_path / "store" / "lives").iterdir()
    disk = BadDisk(str(tmp_path / "store" / "lives"))
    disk.bad = name, begin
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    expected_logs.allow("made anew")
    if kind is None:
        archive = archives.recover(disk, place.name)
        assert archive.end == len(records)
        archive.close()
    else:
        with pytest.raises(kind, match="Input/output error at byte"):
            archives.recover(disk, place.name)
        assert before == {path.name: path.read_bytes() for path in place.iterdir()}
    disk.bad = "", 0
    archive = archives.recover(disk, place.name)
    assert archive.end == len(records)
    archive.close()
    assert reading.Reading(str(tmp_path / "store"), place.name).verify().complaints == ()


async def test_a_disk_that_is_silent_holds_up_nobody_else() -> None:
    go_on = threading.Event()
    pool = Pool("reader", 2, 0.05)
    try:
        with pytest.raises(Refused):
            await pool.call("bad", go_on.wait)
        # It is not asked again, so that the other thread stays free.
        asked: list[int] = []
        with pytest.raises(Refused):
            await pool.call("bad", partial(asked.append, 1))
        assert asked == []
        with trio.fail_after(60):
            while await pool.call("good", lambda: 5) != 5:
                pass
        with pytest.raises(Refused):
            await pool.call("worse", go_on.wait)
        with pytest.raises(Refused):
            await pool.call("good", lambda: 5)
        go_on.set()
        with trio.fail_after(60):
            while True:
                try:
                    assert await pool.call("bad", lambda: 6) == 6
                    break
                except Refused:
                    await trio.lowlevel.checkpoint()
    finally:
        go_on.set()
        pool.end()
