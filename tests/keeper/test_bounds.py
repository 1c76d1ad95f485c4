# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Two invariants that no walk of the model sees: descriptors (I9) and memory (I13).

Each with planted bugs that it catches, as the walks have them for the others.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import tracemalloc
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imafs.keeper import source as sources
from imafs.keeper.archive import Batch
from imafs.keeper.catalogue import Catalogue
from imafs.keeper.facts import LifeFacts, Mode
from imafs.keeper.index import Table
from imafs.keeper.source import NoPcrs, Place, Source
from imafs.keeper.store import BankFile, open_store
from imafs.lists.banks import View
from tests.keeper.made import pieces, record

LIST, STAGED = "binary_runtime_measurements_sha1", "binary_runtime_measurements_sha1_staged"
MODES = {"sha1": Mode.REAL}
Patch = pytest.MonkeyPatch


class Broken(AssertionError):
    """The invariant does not hold."""


class Watched:
    """``os`` for the source: one descriptor for writing, and beside it a second one, that the same
    thread closes before it does anything else but read and write it.
    """

    def __init__(self) -> None:
        self.open_: dict[int, int] = {}
        self.opened = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            if not flags & os.O_CLOEXEC:
                raise Broken("I9: a child would have it too")
            self.opened += 1
            self.open_[descriptor] = threading.get_ident()
            if len(self.open_) > 2 or len(set(self.open_.values())) > 1:
                raise Broken(f"I9: {len(self.open_)} descriptors for writing")
        return descriptor

    def close(self, descriptor: int) -> None:
        if self.open_.pop(descriptor, threading.get_ident()) != threading.get_ident():
            raise Broken("I9: another thread closes it")
        os.close(descriptor)


@pytest.fixture
def kernel(tmp_path: Path) -> Source:
    """Files that look like a kernel's; what is written to them goes nowhere."""
    place = tmp_path / "ima"
    place.mkdir()
    for name in (LIST, STAGED):
        (place / name).write_bytes(record("/bin/a") + record("/bin/b"))
    (place / "runtime_measurements_count").write_text("2\n")
    return Source(Place(str(place)), NoPcrs())


def cycles(kernel: Source) -> int:
    """What a keeper does with its descriptors; how many it has opened for writing."""
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched()
        patch.setattr(sources, "os", watched)
        look = kernel.look()
        for _ in range(3):
            assert kernel.acquire()
            kernel.modes(look.banks)
            kernel.staged()
            kernel.current()
            kernel.delete_first(0)
            if len(watched.open_) != 1:
                raise Broken(f"I9: {len(watched.open_)} descriptors for writing at rest")
            kernel.release()
            if watched.open_:
                raise Broken("I9: the lists are not given back")
        return watched.opened


def leaks(original: Any) -> Any:
    def beside(self: Source, name: str, work: Callable[[int], Any]) -> Any:
        return work(
            vars(sources)["os"].open(f"{self._place.directory}/{name}", os.O_RDWR | os.O_CLOEXEC)
        )

    return beside


def elsewhere(original: Any) -> Any:
    def beside(self: Source, name: str, work: Callable[[int], Any]) -> Any:
        found: list[Any] = []

        def run() -> None:
            try:
                found.append(original(self, name, work))
            except AssertionError as error:
                found.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if isinstance(found[0], AssertionError):
            raise found[0]
        return found[0]

    return beside


def inherits(original: Any) -> Any:
    def acquire(self: Source) -> bool:
        self._descriptor = vars(sources)["os"].open(f"{self._place.directory}/{STAGED}", os.O_RDWR)
        return True

    return acquire


def test_one_descriptor_and_a_short_second_one(kernel: Source) -> None:
    # The lock; beside it one to see that it is of this series, one for a list, one for a deletion.
    assert cycles(kernel) == 3 * 4


@pytest.mark.parametrize(
    ("name", "made"),
    [
        pytest.param("_beside", leaks, id="the second one stays open"),
        pytest.param("_beside", elsewhere, id="the second one is another thread's"),
        pytest.param("release", lambda _: lambda self: None, id="the lists are never given back"),
        pytest.param("acquire", inherits, id="children have it too"),
    ],
)
def test_a_planted_bug_with_descriptors_is_caught(
    name: str, made: Callable[[Any], Any], kernel: Source, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Source, name, made(getattr(Source, name)))
    with pytest.raises(Broken, match="I9"):
        cycles(kernel)


# Memory

#: Records of a segment, in this test; their bytes; the cache of rendered forms.
SEGMENT, BATCH, CACHE = 2000, 500, 64 << 10
RECORDS = 40_000
#: Bytes of memory per stored record at most: of its place in a sealed segment nothing is kept, of a
#: chunk of 2,048 some objects.
PER_RECORD = 4.0


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many segments."""
    place = tmp_path_factory.mktemp("bounds") / "store"
    data = b"".join(record(f"/usr/lib/{number:08d}") for number in range(BATCH))
    store = open_store(str(place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imafs.keeper.archive.SEGMENT_RECORDS", SEGMENT)
        life = store.begin(LifeFacts(1, "boot", MODES, "little", None), (BankFile("sha1", 20),))
        for _ in range(RECORDS // BATCH):
            life.archive.commit(Batch(data, BATCH, "boot", modes=MODES))
        life.archive.close()
    store.close()
    return place


def memory(place: Path) -> int:
    """Bytes that a keeper holds of a store behind a full read of both forms, but for its cache."""
    tracemalloc.start()
    try:
        store = open_store(str(place))
        life = store.newest()
        assert life is not None
        catalogue = Catalogue(life.banks, store.read_at, CACHE)
        catalogue.begin(life.archive.sealed, life.archive.tail, life.archive.ledger.eras)
        for view in (View(False, 0), View(True, 0)):
            deque(pieces(catalogue, view), maxlen=0)
            assert len(catalogue) == RECORDS
        held = tracemalloc.get_traced_memory()[0]
        life.archive.close()
        store.close()
        return held
    finally:
        tracemalloc.stop()


def bounded(place: Path) -> None:
    held = memory(place)
    if held > PER_RECORD * RECORDS + 8 * CACHE:
        raise Broken(f"I13: {held / RECORDS:.1f} bytes of memory for each stored record")


def test_stored_records_take_no_memory(stored: Path) -> None:
    bounded(stored)


def kept(original: Any) -> Any:
    """The offsets of full segments stay in memory."""

    def decode(data: bytes, count: int, size: int) -> Table:
        found: Table = original(data, count, size)
        found.rows = [*found.rows]
        found.starts = Kept([*found.starts])
        found.starts.offsets = memoryview(data)[found.place(0)[0] :].tolist()
        return found

    return decode


class Kept(list[int]):
    """With something beside."""

    offsets: list[int]


def unbounded(original: Any) -> Any:
    def begin(self: Catalogue, banks: Any, read: Any, cache: int) -> None:
        original(self, banks, read, 1 << 30)

    return begin


#: Large things come and go, and a few of them stay: MiB that no file backs, and what stays.
COMING_AND_GOING = """
import re
from imafs.cli import keep_daemon
{first}
large = b"x" * (16 << 20)
del large
some = [b"x" * (300 << 10) for _ in range(300)]
few = some[::10]
del some
print(int(re.search(r"RssAnon:\\s+([0-9]+)", open("/proc/self/status").read())[1]) >> 10)
"""


@pytest.mark.parametrize(("first", "bounded"), [("keep_daemon.give_back()", True), ("", False)])
def test_freed_chunks_go_back_to_the_kernel(first: str, bounded: bool) -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt: it is not glibc")
    code = COMING_AND_GOING.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 60) is bounded, done.stdout


@pytest.mark.parametrize(
    ("owner", "name", "made"),
    [
        pytest.param(Table, "decode", kept, id="offsets of segments"),
        pytest.param(Catalogue, "__init__", unbounded, id="a cache without a limit"),
    ],
)
def test_a_planted_bug_with_memory_is_caught(
    owner: type, name: str, made: Callable[[Any], Any], stored: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(owner, name, made(getattr(owner, name)))
    with pytest.raises(Broken, match="I13"):
        bounded(stored)
