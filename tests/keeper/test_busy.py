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
