# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""49 uses of files under ``tcb``: the list of Linux 7.2.13, record by record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.fixtures import Starter
from tests.support import require, run
from tests.watch import uses
from tests.watch.disk import Disk

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

#: The closed list of what differs -> why. "+": only here, "-": only in the kernel's list.
DIFFERENCES = {
    "+ 10 sha256:lib/read-by-user.so lib/read-by-user.so": (
        "an ELF file that is read cannot be told from one that ld.so maps: MMAP_CHECK"
    ),
    "- 10 sha256:7575a8016641bbe578342ab831273259674a3d0bf1ebcd946e13bea0587a044a mapped": (
        "mmap(PROT_EXEC) of what is no ELF file is not seen"
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("root", "gcc", "mkfs.ext4")
    folder = tmp_path_factory.mktemp("uses")
    uses.build(folder)
    return folder


@pytest.fixture
def used(built: Path) -> Iterator[Disk]:
    disk = Disk(uses.image(built))
    yield disk
    disk.close()


def test_uses(used: Disk, built: Path, start: Starter) -> None:
    emulator = start("--watch", str(used.root))
    (used.base / "use").write_bytes((built / "use").read_bytes())
    (used.base / "use").chmod(0o755)
    result = run(
        ["sh", uses.HERE / "uses.sh", used.base / "use"],
        cwd=used.root,
        env={"LONG": uses.LONG},
        check=False,
    )
    assert "read: 1:" in result.stderr, result.stderr  # the one that is no script
    records = uses.neutral(
        emulator.read("ascii_runtime_measurements_sha256"), str(used.root), uses.symbols(built)
    )
    kernel = uses.LIST.read_text().splitlines()
    different = {f"+ {record}" for record in records if record not in kernel}
    different |= {f"- {record}" for record in kernel if record not in records}
    assert different == DIFFERENCES.keys()
    # And in the same order, each as often.
    known = {line[2:] for line in DIFFERENCES}
    assert [r for r in records if r not in known] == [r for r in kernel if r not in known]
    assert emulator.read("violations") == b"2\n"
    status = emulator.group("watch")
    assert (status["errors"], status["late"], status["lost"]) == (0, 0, 0), status
