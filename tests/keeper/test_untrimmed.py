# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The view is the list of a kernel that nobody ever trimmed, at every moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.keeper.process import Keepers
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon, read_to_end
from tests.mount.fixtures import Starter
from tests.support import require, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
WAIT = 60.0
BANKS = ("sha1", "sha256")
MOMENTS = 10


class Arriving:
    """Records that arrive as fast as they can, until it ends."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)
        #: Pieces that are in the list for sure, of 25 records and a violation each.
        self.pieces = 0

    def _work(self) -> None:
        while not self._end.is_set():
            self._one()

    def _one(self) -> None:
        piece(self._daemon, self.pieces)
        self.pieces += 1

    def __enter__(self) -> Arriving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def piece(daemon: Daemon, number: int) -> None:
    daemon.generate(25)
    daemon.call("violation", name=f"/var/log/{number}")


def files(directory: Path) -> list[str]:
    """Names of all lists, in all banks and forms."""
    names = [path.name for path in directory.glob("*_measurements*") if path.name != COUNT]
    return sorted(name for name in names if "staged" not in name)


@pytest.mark.long
def test_view_is_the_untrimmed_list_while_records_arrive(start: Starter, keepers: Keepers) -> None:
    """Byte for byte, all banks and forms: whole records, none that was there missing.

    And each read comes to an end of file.
    """
    options = ("--banks", ",".join(BANKS))
    kernel, untrimmed = start(*options), start(*options)
    keeper = keepers(kernel, records=40)
    shown: list[tuple[int, dict[str, bytes]]] = []
    with Arriving(kernel) as arriving:
        for moment in range(MOMENTS):
            wait_for(lambda: arriving.pieces > 3 * moment, WAIT, "records arrive")  # noqa: B023
            shown.append((arriving.pieces, {n: keeper.read(n) for n in files(keeper.view)}))
    for number in range(arriving.pieces):
        piece(untrimmed, number)
    truth = {name: untrimmed.read(name) for name in files(untrimmed.dir)}
    assert sorted(truth) == files(keeper.view)
    assert len(truth) == 2 * (len(BANKS) + 1)
    shown.append((arriving.pieces, {name: keeper.read(name) for name in truth}))
    before = 0
    for pieces, lists in shown:
        counts = set()
        for name, data in lists.items():
            assert truth[name].startswith(data), f"{name} at {pieces} pieces"
            if name.startswith("ascii"):
                assert data.endswith(b"\n")
                counts.add(data.count(b"\n"))
        # Each file was opened behind so many records, and none shows fewer than one before it.
        assert min(counts) >= max(1 + 26 * pieces, before)
        before = max(counts)
    assert shown[-1][1] == truth
    assert keeper.status()["batches_deleted"] > MOMENTS


@pytest.mark.long
def test_held_descriptors_read_on_over_a_hundred_deletions(
    start: Starter, keepers: Keepers
) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel, records=5)
    held = {name: os.open(keeper.view / name, os.O_RDONLY) for name in (BINARY, ASCII)}
    found = {name: read_to_end(descriptor) for name, descriptor in held.items()}
    begun = keeper.status()["batches_deleted"]
    try:
        for number in range(110):
            kernel.generate(7)
            found[BINARY] += read_to_end(held[BINARY])
            if number % 10 == 9:
                found[ASCII] += read_to_end(held[ASCII])
    finally:
        for descriptor in held.values():
            os.close(descriptor)
    assert keeper.status()["batches_deleted"] - begun > 100
    assert found == {name: keeper.read(name) for name in held}
    assert found[ASCII].count(b"\n") == 1 + 110 * 7


def test_evmctl_verifies_the_view(start: Starter, keepers: Keepers, tmp_path: Path) -> None:
    """ima-evm-utils replays it against the PCRs, with nearly all of it deleted in the kernel."""
    require("evmctl")
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel, records=20)
    for number in range(5):
        piece(kernel, number)
        keeper.read(BINARY)
    wait_for(lambda: kernel.count() < 20, WAIT, "the kernel's list is short")
    kernel.call("wait", extended=True)
    options = ["--ignore-violations"]
    for bank in ("sha1", "sha256"):
        values = {number: kernel.pcr(bank, number).hex() for number in range(24)}
        file = tmp_path / bank
        file.write_text("".join(f"PCR-{n:02d}: {value}\n" for n, value in values.items()))
        options += ["--pcrs", f"{bank},{file}"]
    run(["evmctl", "ima_measurement", *options, keeper.view / BINARY])
    keeper.stop()
    short = tmp_path / "short"
    short.write_bytes(kernel.read(BINARY))
    assert run(["evmctl", "ima_measurement", *options, short], check=False).returncode
