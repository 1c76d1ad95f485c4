# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The contracts of pyproject.toml (import-linter): kept, and each broken by a planted import."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT, run

CONTRACTS: list[dict[str, object]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]["contracts"]

#: Contract, file, an import that breaks it.
PLANTED = [
    ("layers", "imafs/formats/planted.py", "import imafs.kernel.queue"),
    ("layers", "imafs/kernel/planted.py", "from imafs.tpm import swtpm\nimport imafs.emulator"),
    ("layers", "imafs/interface/planted.py", "def f():\n    from imafs.kernel import queue"),
    ("layers", "imafs/lists/planted.py", "import imafs.interface.grammar"),
    ("layers", "imafs/attest/planted.py", "from ..kernel import queue"),
    ("layers", "imafs/host/planted.py", "import imafs.lists.packed"),
    ("layers", "imafs/fuse/planted.py", "import imafs.control.wire"),
    ("layers", "imafs/fuse/planted.py", "import imafs.keeper"),
    ("layers", "imafs/fuse/planted.py", "def f():\n    from imafs.emulator import files"),
    ("layers", "imafs/control/planted.py", "import imafs.verbs.table"),
    ("layers", "imafs/emulator/planted.py", "import imafs.keeper"),
    ("layers", "imafs/sources/planted.py", "import imafs.cli.options"),
    ("layers", "imafs/text.py", "import imafs.formats.fields"),
    ("layers", "imafs/cellar/__init__.py", ""),
    ("acyclic", "imafs/tpm/commands.py", "import imafs.tpm.swtpm"),
    ("acyclic", "imafs/errors.py", "def f():\n    import imafs.cli.main"),
    ("keeper", "imafs/keeper/planted.py", "import imafs.kernel.queue"),
    ("keeper", "imafs/keeper/planted.py", "def f():\n    from imafs import emulator"),
    ("keeper", "imafs/keeper/planted.py", "import imafs.verbs"),
    ("watch", "imafs/sources/watch/child/planted.py", "import imafs.sources.watch.daemon.watcher"),
    (
        "watch",
        "imafs/sources/watch/daemon/planted.py",
        "def f():\n    from imafs.sources.watch.child import task",
    ),
    ("watch", "imafs/sources/watch/scope.py", "import imafs.sources.watch.daemon.filesystems"),
    ("listener", "imafs/sources/watch/child/planted.py", "import trio"),
    ("listener", "imafs/sources/watch/child/planted.py", "import imafs.emulator.emulator"),
    ("control", "imafs/control/planted.py", "from imafs.verbs.table import TABLE"),
    ("control", "imafs/control/planted.py", "def f():\n    import imafs.keeper.facts"),
    ("control", "imafs/control/planted.py", "from imafs.interface import profiles"),
    ("pure", "imafs/lists/planted.py", "from imafs.disk import read_whole"),
    ("pure", "imafs/formats/planted.py", "import os.path"),
    ("pure", "imafs/interface/planted.py", "def f():\n    import time"),
    ("pure", "imafs/kernel/planted.py", "import imafs.host.linux"),
]


def lint(place: Path, *arguments: str) -> tuple[int, str]:
    """Status and output of the linter in ``place``."""
    path = os.pathsep.join([str(ROOT / ".venv/bin"), os.environ["PATH"]])
    tool = shutil.which("lint-imports", path=path)
    assert tool is not None
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    found = run([tool, "--no-cache", *arguments], check=False, cwd=place, env=environment)
    return found.returncode, found.stdout


def test_kept() -> None:
    status, text = lint(ROOT)
    assert status == 0, text
    assert f"{len(CONTRACTS)} kept, 0 broken" in text


def test_every_contract_has_a_planted_violation() -> None:
    assert {planted[0] for planted in PLANTED} == {one["id"] for one in CONTRACTS}


@pytest.mark.parametrize(("contract", "path", "text"), PLANTED)
def test_planted(contract: str, path: str, text: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "imafs", tmp_path / "imafs", ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / path).parent.mkdir(exist_ok=True)
    with (tmp_path / path).open("a") as file:
        file.write(f"\n{text}\n")
    status, text = lint(tmp_path, "--contract", contract)
    assert status != 0, text
