# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""56 files that change while they are open: the records of Linux 7.2.13, in their order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.fixtures import Starter
from tests.support import require, run
from tests.watch import changes
from tests.watch.disk import Disk
from tests.watch.looking import status
from tests.watch.uses import neutral

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

#: The closed list of what differs -> why. "+": only here, "-": only in the kernel's list.
DIFFERENCES = {
    f"- {system} 10 sha256:{'0' * 64} f9": "a reader that has only mapped the file: no ToMToU"
    for system in changes.SYSTEMS
}


@pytest.fixture
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


@pytest.mark.parametrize(
    ("place", "system"), [(name, name) for name in changes.SYSTEMS], indirect=["place"]
)
def test_changes(place: Path, system: str, disk: Disk, start: Starter, tmp_path: Path) -> None:
    require("gcc")
    program = changes.build(tmp_path)
    rules = disk.base / "policy"
    rules.write_text(f"{changes.RULE}\n")
    emulator = start("--watch", str(place), "--policy", str(rules))
    with changes.SCRIPT.open("rb") as script:
        done = subprocess.run([program], stdin=script, cwd=place, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    listed = emulator.read("ascii_runtime_measurements_sha256")
    records = [f"{system} {record}" for record in neutral(listed, str(place), {})]
    kernel = [
        line for line in changes.RECORDS.read_text().splitlines() if line.split()[0] == system
    ]
    different = {f"+ {record}" for record in records if record not in kernel}
    different |= {f"- {record}" for record in kernel if record not in records}
    expected = {line for line in DIFFERENCES if line[2:].startswith(f"{system} ")}
    assert different == expected
    # And in the same order, each as often.
    known = {line[2:] for line in DIFFERENCES}
    assert [r for r in records if r not in known] == [r for r in kernel if r not in known]
    counts = status(emulator)
    troubles = ("errors", "late", "lost", "hidden", "unmeasured")
    assert [counts[name] for name in troubles] == [0] * len(troubles), counts
