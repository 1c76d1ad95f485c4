# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One keeper takes over from another while records arrive, and somebody reads."""

from __future__ import annotations

import errno
import json
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.keeper.process import Keeper, Keepers
from tests.keeper.test_untrimmed import Arriving, files, piece
from tests.mount.daemon import BINARY, imafs
from tests.mount.fixtures import Starter
from tests.support import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
WAIT = 120.0
#: What a reader sees of a keeper that has ended. ECONNABORTED: a request was under way.
_AWAY = {errno.ENOTCONN, errno.ECONNABORTED}


class Holding:
    """Somebody who reads on by a descriptor for as long as it answers, and by the next one from the
    same place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.data = bytearray()
        #: How often it opened the list, and which errors it had.
        self.opened = 0
        self.errors: set[int] = set()

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                descriptor = os.open(self._path, os.O_RDONLY)
            except OSError as error:
                self.errors.add(error.errno or 0)
                continue
            self.opened += 1
            try:
                while not self._ended.is_set():
                    self.data += os.pread(descriptor, 1 << 16, len(self.data))
            except OSError as error:
                self.errors.add(error.errno or 0)
            finally:
                with suppress(OSError):  # close() flushes: of a dead mount ENOTCONN
                    os.close(descriptor)

    def __enter__(self) -> Holding:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.mark.long
@pytest.mark.parametrize(
    ("cover", "options"),
    [
        pytest.param(False, (), id="staging"),
        pytest.param(True, (), id="cover", marks=pytest.mark.root),
        pytest.param(False, ("--no-staging",), id="no staging", marks=pytest.mark.nightly),
    ],
)
def test_an_upgrade_while_records_arrive(
    start: Starter, keepers: Keepers, cover: bool, options: tuple[str, ...]
) -> None:
    """SIGTERM, and the next one on the same store and place, as `systemctl restart` has it: a
    record is neither lost nor there twice, and no reader sees a list that is not the beginning of
    the whole one."""
    kernel = start("--banks", "sha1,sha256", *options)
    untrimmed = start("--banks", "sha1,sha256")

    def keeper_of(of: Keeper | None) -> Keeper:
        # A look whose last record was a violation tells nothing: there are others behind it.
        allow = "will be covered|undecided"
        return keepers(kernel, of=of, records=40, cover=cover, allow=allow)

    keeper = keeper_of(None)
    with Arriving(kernel) as arriving, Holding(keeper.view / BINARY) as reader:
        for _ in range(3):
            pieces, opened, read = arriving.pieces, reader.opened, len(reader.data)
            wait_for(lambda: arriving.pieces > pieces + 3, WAIT, "records arrive")  # noqa: B023
            wait_for(lambda: len(reader.data) > read, WAIT, "it reads on")  # noqa: B023
            keeper.terminate()
            keeper = keeper_of(keeper)
            wait_for(lambda: reader.opened > opened, WAIT, "it has opened the list")  # noqa: B023
        pieces = arriving.pieces
        wait_for(lambda: arriving.pieces > pieces + 3, WAIT, "records arrive")
    for number in range(arriving.pieces):
        piece(untrimmed, number)
    truth = {name: untrimmed.read(name) for name in files(untrimmed.dir)}
    assert {name: keeper.read(name) for name in truth} == truth
    assert truth[BINARY].startswith(reader.data)
    # Without a cover the directory is empty in between.
    assert reader.errors <= _AWAY | (set() if cover else {errno.ENOENT})
    assert reader.opened > 3
    status = keeper.emptied(kernel)
    assert (status["alarms"], status["life"], status["gaps"]) == ({}, 1, [])
    assert "as they were stored" in imafs("keep", "verify", "--store", keeper.store).stdout


def test_a_store_of_a_newer_format_is_left_alone(start: Starter, keepers: Keepers) -> None:
    """In one line, by everything that reads it."""
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    kernel.generate(5)
    keeper.emptied(kernel)
    keeper.stop()
    (keeper.store / "store.json").write_text(json.dumps({"format": 2}))
    before = {path: path.read_bytes() for path in keeper.store.rglob("*") if path.is_file()}
    out = keeper.store.with_name("out")
    for words in (
        ["--source", kernel.dir, "--mount", keeper.view],
        ["--source", kernel.dir],
        ["verify"],
        ["verify", "--all"],
        ["export", "-o", out],
    ):
        result = imafs("keep", *words, "--store", keeper.store, check=False)
        line = f"imafs: {keeper.store}: format 2; this imafs reads format 1: use a newer one\n"
        assert (result.returncode, result.stdout) == (12, "")
        assert result.stderr.splitlines(keepends=True)[-1:] == [line]
        assert "Traceback" not in result.stderr
    assert not out.exists()
    now = {path: path.read_bytes() for path in keeper.store.rglob("*") if path.is_file()}
    assert now == before
