# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A store on a file system of its own, to which something happens: read-only, full, unmounted."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keeper.process import Keeper, Keepers
from tests.mount.daemon import BINARY, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import run, wait_for
from tests.watch.disk import Disk

pytestmark = [pytest.mark.mount, pytest.mark.swtpm, pytest.mark.root]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """An ext4 of 256 MiB on a loop device."""
    disk = Disk()
    try:
        yield disk
    finally:
        disk.close()


def kept(start: Starter, keepers: Keepers, disk: Disk) -> tuple[Daemon, Daemon, Keeper]:
    """A kernel, one of the same records that nobody trims, and a keeper with its store there."""
    kernel, untrimmed = start("--banks", "sha1,sha256"), start("--banks", "sha1,sha256")
    config = kernel.place.base / "keeper.toml"
    config.write_text('[stage]\nrecords = 10\n[store]\nkeep_free = "0%"\n')
    keeper = keepers(kernel, "--config", config, store=disk.root / "store")
    keeper.logs.allow("degraded|joining|gets EIO|no more is written to it")
    both(40, kernel, untrimmed)
    keeper.emptied(kernel)
    return kernel, untrimmed, keeper


def both(count: int, *kernels: Daemon) -> None:
    for kernel in kernels:
        kernel.generate(count)


def deleted(kernel: Daemon) -> int:
    number = kernel.group("records")["deleted"]
    assert isinstance(number, int)
    return number


def fill(disk: Disk) -> None:
    """Until nothing fits any more, for root either."""
    with (disk.root / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017


def give_room(disk: Disk) -> None:
    """ext4 gives the blocks of a file back with its next journal, seconds later."""
    (disk.root / "filler").unlink()
    os.sync()

    def is_there() -> bool:
        found = os.statvfs(disk.root)
        return found.f_bavail * found.f_frsize > 64 << 20

    wait_for(is_there, 60, "there is room again")


def read_only(disk: Disk) -> None:
    """By force, as an error of the disk has it (errors=remount-ro): files are open for writing."""
    run(["mount", "-o", "remount,abort", disk.root])


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_disk_that_takes_nothing_deletes_nothing(
    start: Starter, keepers: Keepers, disk: Disk, what: str
) -> None:
    """The view goes on; once there is room again what had to wait is stored."""
    kernel, untrimmed, keeper = kept(start, keepers, disk)
    before = deleted(kernel)
    (fill if what == "full" else read_only)(disk)
    both(30, kernel, untrimmed)
    assert keeper.read(BINARY) == untrimmed.read(BINARY)
    status = keeper.until("it is told", state="degraded")
    assert ("are free" if what == "full" else "Read-only") in status["why"]
    flushed = imafs("keep", "flush", "--store", keeper.store, check=False)
    assert flushed.returncode == 11, flushed.stderr
    both(30, kernel, untrimmed)
    assert keeper.read(BINARY) == untrimmed.read(BINARY)
    assert deleted(kernel) == before
    if what == "full":
        give_room(disk)
        keeper.emptied(kernel)
        assert deleted(kernel) > before
        assert keeper.read(BINARY) == untrimmed.read(BINARY)
    keeper.terminate()
    verified = imafs("keep", "verify", "--store", keeper.store)
    assert f"{101 if what == 'full' else 41} records" in verified.stdout


def test_a_keeper_begins_on_a_disk_that_takes_nothing(
    start: Starter, keepers: Keepers, disk: Disk
) -> None:
    """A start writes the journal anew, and knows nothing before. Until then it shows no list,
    rather than one whose end it does not know, and says why."""
    kernel, untrimmed, keeper = kept(start, keepers, disk)
    keeper.terminate()
    both(30, kernel, untrimmed)
    before = deleted(kernel)
    fill(disk)
    config = kernel.place.base / "keeper.toml"
    again = keepers(kernel, "--config", config, of=keeper, allow="degraded|joining")
    status = again.until("it is told", state="degraded")
    assert "No space left on device" in status["why"]
    assert status["view"] == "refused"
    assert not list(again.view.glob("*measurements*"))
    assert deleted(kernel) == before
    give_room(disk)
    again.emptied(kernel)
    assert again.read(BINARY) == untrimmed.read(BINARY)


def test_a_store_that_is_unmounted_below_the_keeper(
    start: Starter, keepers: Keepers, disk: Disk
) -> None:
    """Plain umount is EBUSY. Behind a lazy one a reader gets the whole list, or EIO; what was
    deleted from the kernel is on that disk when it is mounted again."""
    kernel, untrimmed, keeper = kept(start, keepers, disk)
    keeper.logs.allow("damaged|somebody|No such file|no keeper|read again|broken")
    assert "busy" in run(["umount", disk.root], check=False).stderr
    descriptor = os.open(keeper.view / BINARY, os.O_RDONLY)
    run(["umount", "--lazy", disk.root])
    try:
        both(30, kernel, untrimmed)
        truth = untrimmed.read(BINARY)
        for _ in range(3):
            assert whole_or_refused(keeper.view / BINARY, truth)
        assert truth.startswith(os.pread(descriptor, 4096, 0))
    finally:
        os.close(descriptor)
    both(30, kernel, untrimmed)
    assert not (disk.root / "store" / "lives").exists(), "a store below the place of the mount"
    keeper.kill()
    run(["mount", "-o", "loop", disk.base / "image", disk.root])
    again = keepers(kernel, of=keeper, allow="joining")
    again.until("it is kept again", state="idle")
    assert again.read(BINARY) == untrimmed.read(BINARY)
    assert again.status()["alarms"] == {}


def whole_or_refused(path: Path, truth: bytes) -> bool:
    try:
        return path.read_bytes() == truth
    except OSError as error:
        return error.errno == errno.EIO
