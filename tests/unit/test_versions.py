# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The versions of scripts/setup: exact, complete, and within the ranges of pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT, run

LINES = (ROOT / "scripts/versions.txt").read_text().splitlines()
PINNED = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in LINES if not line.startswith("#"))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RANGES = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["dev"])
    if not text.startswith("imafs[")
]


@pytest.mark.parametrize("wanted", RANGES, ids=lambda wanted: str(wanted.name))
def test_every_library_of_the_project_has_a_version_within_its_range(wanted: Requirement) -> None:
    assert wanted.specifier.contains(PINNED[canonicalize_name(wanted.name)])


def test_versions_are_exact_and_name_no_place() -> None:
    for line in LINES:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)
    assert len(PINNED) == sum(not line.startswith("#") for line in LINES)
    assert "imafs" not in PINNED


#: A Python that only notes what it is asked, and makes environments of itself.
PYTHON = """#!/bin/sh
[ "$2" != pip ] || echo "$*" >>"$NOTES"
[ "$2" != venv ] || { mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; }
"""


def test_setup_installs_them_and_begins_anew_when_they_change(tmp_path: Path) -> None:
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    (tmp_path / "scripts").mkdir()
    programs.mkdir()
    for name in ("scripts/setup", "scripts/versions.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in (("python3", PYTHON), ("apt-get", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes)}

    def installs() -> list[str]:
        notes.write_text("")
        run([tmp_path / "scripts/setup"], env=env, cwd=tmp_path)
        return notes.read_text().splitlines()

    (first,) = installs()
    assert "--constraint scripts/versions.txt --editable .[dev]" in first
    assert installs() == []
    with (tmp_path / "scripts/versions.txt").open("a") as file:
        file.write("# another\n")
    assert len(installs()) == 1
    (tmp_path / "scripts/versions.txt").unlink()
    (without,) = installs()
    assert "--constraint" not in without
