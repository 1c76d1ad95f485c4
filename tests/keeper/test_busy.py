# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Readers of a list that a keeper has open: they are told where the whole one is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.keeper.process import Keepers
from tests.mount.daemon import BINARY, imafs
from tests.mount.fixtures import Starter

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
ASCII = "ascii_runtime_measurements_sha256"


def test_every_reader_is_told_of_the_view(start: Starter, keepers: Keepers, tmp_path: Path) -> None:
    kernel = start("--banks", "sha1,sha256")
    link = tmp_path / "link"
    link.symlink_to(kernel.dir)
    keeper = keepers(kernel)
    ak: list[str | os.PathLike[str]] = [
        "--create-ak",
        tmp_path / "ak",
        "--nonce",
        "5eed",
        "-o",
        tmp_path / "bundle",
    ]
    words: list[list[str | os.PathLike[str]]] = [
        ["list", kernel.dir],
        ["list", kernel.dir / BINARY],
        ["list", link / ASCII],
        ["verify", link, "--control", kernel.control],
        ["verify", kernel.dir / ASCII, "--control", kernel.control],
        ["verify", kernel.dir / BINARY],
        ["verify", link],
        ["diff", kernel.dir / BINARY, kernel.dir],
        ["record", kernel.dir, "-o", tmp_path / "recording.tar"],
        ["attest", kernel.dir, *ak],
    ]
    for row in words:
        done = imafs(*row, check=False, deadline=60)
        assert done.returncode == 7, (row, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.endswith(f"the whole list is in {keeper.view}"), (row, line)


def test_a_list_that_somebody_else_has_is_busy_as_ever(
    start: Starter, keepers: Keepers, tmp_path: Path
) -> None:
    """Beside the keeper of another, one that is dead, and a writer that is no keeper."""
    kernel, other, third = start("--banks", "sha1"), start("--banks", "sha1"), start()
    keepers(other)
    dead = keepers(third)
    dead.kill()
    with open(kernel.dir / f"{BINARY}_staged", "r+b"):
        done = imafs("list", kernel.dir / BINARY, check=False)
        assert done.returncode == 7
        assert done.stderr == f"imafs: {kernel.dir / BINARY}: Device or resource busy\n"
    assert imafs("list", kernel.dir / BINARY).stdout


def _told(path: Path, archive: Path, control: str) -> list[tuple[int, str]]:
    """What every reader of a directory says that it cannot read."""
    words: list[list[str | os.PathLike[str]]] = [
        ["list", path],
        ["list", path / BINARY],
        ["verify", path / ASCII],
        ["diff", path / BINARY, path / ASCII],
        ["record", path, "-o", archive, "--control", control],
    ]
    found = [imafs(*row, check=False, deadline=60) for row in words]
    return [(done.returncode, done.stderr) for done in found]


def test_a_reader_of_a_view_that_is_refused_is_told_why(
    start: Starter, keepers: Keepers, tmp_path: Path
) -> None:
    kernel = start("--banks", "sha1,sha256")
    kernel.generate(3)
    (kernel.dir / BINARY).write_text("2\n")
    keeper = keepers(kernel)
    keeper.logs.allow("gap: records may be missing")
    keeper.logs.allow("gets EIO: records may be missing")
    keeper.logs.allow("further lines of this kind are left out")
    for code, said in _told(keeper.view, tmp_path / "recording.tar", kernel.control):
        assert code == 10, said
        assert said.startswith("imafs: the keeper refuses its view: records may be missing"), said


@pytest.mark.root
@pytest.mark.parametrize("cover", [False, True], ids=["mount", "cover"])
def test_a_reader_of_a_dead_view_is_told_so(
    start: Starter, keepers: Keepers, tmp_path: Path, cover: bool
) -> None:
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel, cover=cover, allow="will be covered")
    keeper.kill()
    for code, said in _told(keeper.view, tmp_path / "recording.tar", kernel.control):
        assert code == 6, said
        assert said.endswith("the keeper that shows it has ended; start it again\n"), said
    # The emulator below a dead cover lives: nothing tells anybody to take the cover away.
    done = imafs("record", keeper.view, "-o", tmp_path / "other.tar", check=False)
    assert done.returncode == 6
    assert ("umount" not in done.stderr) or not cover, done.stderr


@pytest.mark.root
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_a_view_is_no_source(start: Starter, keepers: Keepers, tmp_path: Path, alive: bool) -> None:
    """Not the view elsewhere, and not the cover of a kernel's directory."""
    kernel, other = start("--banks", "sha1"), start("--banks", "sha1")
    for keeper in (keepers(kernel), keepers(other, cover=True, allow="will be covered")):
        if not alive:
            keeper.kill()
        (view := tmp_path / f"view-{keeper.cover}").mkdir()
        done = imafs(
            *("keep", "--source", keeper.view),
            *("--store", tmp_path / "store", "--mount", view),
            check=False,
            deadline=60,
        )
        assert done.returncode == 2, done.stderr
        assert f"--source {keeper.view}: is the view of a keeper" in done.stderr
