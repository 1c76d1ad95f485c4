# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that change while a writer holds them: measured as often as Linux 7.2.13 does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.fixtures import Starter
from tests.support import ROOT, run
from tests.watch.disk import Disk
from tests.watch.looking import status

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

SCRIPT = Path(__file__).parent / "truncated.sh"
#: The same of a tmpfs and of an ext4.
ANSWERS = ROOT / "tests/data/truncated-7.2.13.txt"


@pytest.fixture(params=["ext4", "tmpfs"])
def place(disk: Disk, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on the file system that is asked for."""
    if request.param == "ext4":
        yield disk.root
        return
    point = disk.base / "tmpfs"
    point.mkdir()
    run(["mount", "-t", "tmpfs", "none", point])
    yield point
    run(["umount", "--lazy", point])


def test_truncated(place: Path, disk: Disk, start: Starter) -> None:
    rules = disk.base / "policy"
    rules.write_text("measure func=FILE_CHECK mask=MAY_READ uid=0\n")
    emulator = start("--watch", str(place), "--policy", str(rules))
    listed = str(emulator.dir / "ascii_runtime_measurements")
    printed = run(["sh", SCRIPT], cwd=place, env={"L": listed}).stdout.splitlines()
    # One of them prints what it reads.
    assert [line for line in printed if ": dig " in line] == ANSWERS.read_text().splitlines()
    assert status(emulator)["hidden"] == 0
