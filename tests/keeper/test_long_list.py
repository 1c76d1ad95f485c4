# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A list of very many very short records: it takes long, and everybody else goes on meanwhile."""

from __future__ import annotations

import socket
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from imafs.cli import keep_daemon
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1
from imafs.formats.binary import Reader, Record, encode
from imafs.formats.templates import TEMPLATES, named
from imafs.keeper.collector import Collector, Settings
from imafs.keeper.records import listed, replayed
from imafs.keeper.source import Source
from imafs.keeper.store import open_store
from imafs.lists.banks import View
from tests.keeper import made
from tests.keeper.paper import MODES, PaperKernel
from tests.support import DeadlineError, wait_for

WAIT = 120.0
#: Their bytes are looked at beside the event loop, in one piece.
MANY = 10_000
#: Seconds without a word, where one is due every tenth of a second: nobody else has a turn.
SILENCE = 1.0


class Looks:
    """Long looks at a list: each goes on when the service manager has heard one word more.

    In the event loop none can come meanwhile. ``starved``: so it was, and nothing waits any more.
    """

    def __init__(self, words: list[str], patience: float) -> None:
        self._words, self._patience = words, patience
        self.armed = self.starved = False
        self.waited = 0

    def begin(self, size: int) -> None:
        """Something looks at so many bytes of records."""
        if not self.armed or self.starved or size < MANY * 30:
            return
        known = len(self._words)
        try:
            wait_for(lambda: len(self._words) > known, self._patience, "the watchdog is fed")
            self.waited += 1
        except DeadlineError:
            self.starved = True

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All looks, from now on."""
        for name in ("ends", "walk"):
            real = getattr(Reader, name)

            def look(reader: Reader, *words: int, real: Callable[..., Any] = real) -> Any:
                self.begin(len(reader.data))
                return real(reader, *words)

            monkeypatch.setattr(Reader, name, look)


def tiny(number: int) -> bytes:
    """A record of 36 bytes."""
    template = named("x")
    data = number.to_bytes(3, "big")
    return encode(Record(10, template, data), template.digest(data, SHA1))


@contextmanager
def service_manager(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What it is told."""
    words: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(place))
        monkeypatch.setenv("NOTIFY_SOCKET", str(place))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")

        def listen() -> None:
            while (text := sock.recv(4096)) != b"end":
                words.append(text.decode())

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield words
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", str(place))
            thread.join()


async def looks(
    joins: bool, place: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> Looks:
    """Those of a keeper at a long list, between its question for it and the end of its commit."""
    kernel = PaperKernel()
    monkeypatch.setattr(kernel, "flushes", lambda: True)  # it takes no N: all is read at once
    monkeypatch.setattr(kernel, "view_measured", lambda: "no")
    with service_manager(place / "notify", monkeypatch) as words:
        found = Looks(words, patience)
        found.watch(monkeypatch)
        store = open_store(str(place / "store"))
        settings = Settings(records=1 << 30, age=3600.0, keep_free=0.0)
        collector = Collector(cast(Source, kernel), store, settings)

        def add() -> bytes:
            records = [tiny(number) for number in range(MANY)]
            data = b"".join(records)
            kernel._pcrs = replayed(kernel._pcrs, listed(data), MODES, 0, MANY)
            found.armed = True
            kernel._current += records
            return data

        try:
            data = add() if joins else b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_daemon._report, collector)
                nursery.start_soon(collector.run)
                with trio.fail_after(WAIT):
                    await collector.flush()
                    if not joins:
                        data = await trio.to_thread.run_sync(add)
                        await collector.flush()
                nursery.cancel_scope.cancel()
            found.armed = False
            catalogue = collector.catalogue
            assert catalogue is not None
            assert catalogue.stored == MANY + 1
            text = b"".join(made.pieces(catalogue, View(False, 0)))
            assert text == made.record("boot_aggregate") + data
            return found
        finally:
            with trio.CancelScope(shield=True):
                await collector.close()
            store.close()


@pytest.mark.parametrize("joins", [False, True], ids=["a cycle", "a join"])
async def test_the_watchdog_is_fed_while_a_long_list_is_taken(
    joins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the event loop 64 MiB of such records took 21 s; the service manager waits for 10."""
    found = await looks(joins, tmp_path, monkeypatch, WAIT / 2)
    assert not found.starved
    assert found.waited > 1


@pytest.mark.parametrize("joins", [False, True], ids=["a cycle", "a join"])
async def test_a_long_list_in_the_event_loop_is_caught(
    joins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imafs.keeper.keeping.AT_ONCE", 1 << 63)
    assert (await looks(joins, tmp_path, monkeypatch, SILENCE)).starved


def walked(data: bytes, width: int, **options: Any) -> array[int]:
    return array("Q", [row[-1] for row in Reader(data, width, **options).walk()])


def test_the_short_way_to_the_ends_of_records() -> None:
    """The same ends, and the same refusals, as of the walk."""
    ima = TEMPLATES["ima"]
    body = ima.join([bytes(20), b"/a"])
    records = [
        *(
            made.record("/a"),
            tiny(5),
            made.violation("/v"),
            encode(Record(10, ima, body), bytes(20)),
        ),
        *(made.record("/b"), tiny(6)),
    ]
    for first in range(len(records)):
        for last in range(first, len(records) + 1):
            data = b"".join(records[first:last])
            assert Reader(data, 20, opaque=True).ends() == walked(data, 20, opaque=True)
    whole = b"".join(records)
    for change in range(len(whole)):
        for bad in (whole[:change], whole[:change] + b"\xff" + whole[change + 1 :]):
            found: list[object] = []
            for way in (partial(walked, bad, 20, opaque=True), Reader(bad, 20, opaque=True).ends):
                try:
                    found.append(way())
                except FormatError as error:
                    found.append((str(error), error.record, error.offset))
            assert found[0] == found[1]


def test_a_list_of_as_many_templates_as_records_is_remembered_in_part() -> None:
    data = b"".join(
        encode(Record(10, named(f"t{number}"), b"x"), bytes(20)) for number in range(5000)
    )
    reader = Reader(data, 20, opaque=True)
    assert len(reader.ends()) == 5000
    assert len(reader._templates) <= 1024
