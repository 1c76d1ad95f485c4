# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which stores a reboot empties: real mounts, overlays of overlays, layers that nobody sees."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.host import mount_table
from imafs.keeper import lasting
from imafs.keeper.store import open_store
from tests.support import run

pytestmark = [pytest.mark.root, pytest.mark.mount]


class Mounts:
    """Mounts below a directory, taken away at the end."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self._place, self._stack, self._count = place, stack, 0

    def directory(self, name: str = "") -> Path:
        """A new one."""
        self._count += 1
        found = self._place / (name or str(self._count))
        found.mkdir()
        return found

    def mount(
        self, kind: str, options: str = "", what: Path | str = "none", at: Path | None = None
    ) -> Path:
        """A file system of a kind."""
        where = at or self.directory()
        words = ["-o", options] if options else []
        done = subprocess.run(
            ["mount", "-t", kind, *words, what, where], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"mount -t {kind}: {done.stderr.strip()}")
        self._stack.callback(run, ["umount", "--lazy", where])
        return where

    def overlay(self, upper: Path, *, name: str = "upper", more: str = "") -> Path:
        """An overlay whose upper layer is in a directory."""
        work = upper / "work"
        (upper / name).mkdir()
        work.mkdir()
        escaped = str(upper / name).replace("\\", "\\\\").replace(",", "\\,")
        words = [f"lowerdir={self.directory()}", f"upperdir={escaped}"]
        return self.mount("overlay", ",".join([*words, f"workdir={work}"]) + more)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    with ExitStack() as stack:
        yield Mounts(tmp_path, stack)


def judged(place: Path) -> str | None:
    """Of a store in a directory."""
    store = str(place / "store")
    opened = open_store(store)
    try:
        return lasting.volatile(store)
    finally:
        opened.close()


def on_a_disk(place: Path) -> Path:
    if judged(place) is not None:
        pytest.skip("the directory of the tests is on no disk")
    return place


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_memory_and_an_overlay_over_it(kind: str, mounts: Mounts) -> None:
    memory = mounts.mount(kind, "mode=755")
    assert f"is on {kind}," in (judged(memory) or "")
    if kind == "ramfs":
        return  # it has no xattrs, which an overlay needs
    assert "lies over tmpfs," in (judged(mounts.overlay(memory)) or "")


@pytest.mark.parametrize("name", ["with blank", "with,comma", "with\\backslash"])
def test_a_name_that_the_table_escapes(name: str, mounts: Mounts) -> None:
    memory = mounts.mount("tmpfs")
    assert "lies over tmpfs," in (judged(mounts.overlay(memory, name=name)) or "")


def test_a_part_of_an_overlay(mounts: Mounts) -> None:
    over = mounts.overlay(mounts.mount("tmpfs"))
    (over / "a" / "b").mkdir(parents=True)
    part = mounts.mount("none", "bind", over / "a")
    (part / "b" / "c").mkdir()
    assert "lies over tmpfs," in (judged(part / "b" / "c") or "")


def test_an_overlay_over_an_overlay(mounts: Mounts) -> None:
    """Linux 6.18 takes none for an upper layer."""
    memory = mounts.mount("tmpfs")
    first = mounts.overlay(memory)
    assert "lies over tmpfs," in (judged(mounts.overlay(first)) or "")


def test_an_overlay_over_a_disk(mounts: Mounts) -> None:
    place = on_a_disk(mounts.directory())
    first = mounts.overlay(place)
    assert judged(first) is None
    assert judged(mounts.overlay(mounts.directory(), more=",volatile")) is not None
    memory = mounts.mount("tmpfs", at=mounts.directory())
    assert "is on tmpfs," in (judged(memory) or "")


def test_the_store_below_a_mount_that_another_covers(mounts: Mounts) -> None:
    """By the path alone the tmpfs below would be taken for the store's."""
    outer = mounts.directory("outer")
    (outer / "inner").mkdir()
    mounts.mount("tmpfs", at=outer / "inner")
    disk = on_a_disk(mounts.directory("disk"))
    (disk / "inner").mkdir()
    subprocess.run(["mount", "--bind", disk, outer], check=True)
    try:
        assert judged(outer / "inner") is None
    finally:
        subprocess.run(["umount", outer], check=True)


def test_a_disk_in_a_file_of_a_memory(mounts: Mounts) -> None:
    """A loop device; and an overlay over that."""
    file = mounts.mount("tmpfs") / "disk"
    with file.open("wb") as disk:
        disk.truncate(16 << 20)
    run(["mkfs.ext4", "-q", file])
    place = mounts.mount("ext4", "loop", file)
    assert "lies over tmpfs," in (judged(place) or "")
    upper = mounts.overlay(place)
    assert "lies over tmpfs," in (judged(upper) or "")


@pytest.mark.parametrize("then", ["nothing", "a disk"])
def test_an_upper_layer_that_no_path_leads_to(then: str, mounts: Mounts, tmp_path: Path) -> None:
    """As of a root that is an overlay, whose tmpfs the initrd has unmounted; and of a container."""
    memory = mounts.directory("memory")
    subprocess.run(["mount", "-t", "tmpfs", "none", memory], check=True)
    try:
        over = mounts.overlay(memory)
    finally:
        subprocess.run(["umount", "--lazy", memory], check=True)
    if then == "a disk":
        (memory / "upper").mkdir()
    assert "no disk that is seen from here" in (judged(over) or "")
    place = on_a_disk(mounts.directory("place"))
    over = mounts.overlay(place)
    os.rename(place, tmp_path / "elsewhere")
    assert judged(over) is None


@pytest.mark.parametrize(
    ("device", "why"),
    [("ram0", "memory of ram0"), ("zram1", "memory of zram1"), ("dm-0", "memory of zram1")],
)
def test_devices_that_are_memory(device: str, why: str, tmp_path: Path) -> None:
    """By the directories that sysfs has of them."""
    for name in ("ram0", "zram1", "zram1/zram1p1", "sda", "dm-0/slaves", "dm-1/slaves"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "zram1/zram1p1/partition").write_text("1\n")
    (tmp_path / "dm-0/slaves/sda").symlink_to(tmp_path / "sda")
    (tmp_path / "dm-0/slaves/zram1p1").symlink_to(tmp_path / "zram1/zram1p1")
    (tmp_path / "dm-1/slaves/sda").symlink_to(tmp_path / "sda")
    assert why in (lasting._of_block(str(tmp_path / device), "lock", 8) or "")
    assert lasting._of_block(str(tmp_path / "dm-1"), "lock", 8) is None


def test_options_of_a_mount() -> None:
    options = rb"rw,lowerdir=/l,upperdir=/a\040b\054c\134,workdir=/w,volatile,x=1=2"
    assert mount_table.option(options, b"upperdir") == b"/a b,c\\"
    assert mount_table.option(options, b"x") == b"1=2"
    assert mount_table.option(options, b"volatile") is None
    assert mount_table.option(options, b"upper") is None
