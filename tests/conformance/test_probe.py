# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""probe.py against probe.c: the same script on the same plain files gives the same lines."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conformance import names, oracle, verbs
from tests.conformance.measuring import TABLE, long_name
from tests.support import ROOT, require, run

HERE = Path(__file__).parent
SCRIPT = (HERE / "every-verb.script").read_text()

#: Answers that depend on the machine's memory at that moment.
UNSTABLE = {"slab"}


def prepare(top: Path) -> None:
    """A directory with files that look a little like IMA's."""
    directory = top / "d"
    directory.mkdir(mode=0o755)
    contents = {
        "ascii_runtime_measurements_sha1": "10 abc\n20 def\n" * 300,
        "violations": "0\n",
        "runtime_measurements_count": "44\n",
        "policy": "x\ny\n",
    }
    for name, content in contents.items():
        (directory / name).write_text(content)
        (directory / name).chmod(0o640)
    (directory / "ascii_runtime_measurements").symlink_to("ascii_runtime_measurements_sha1")


def left_over(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, owner and content of every file below ``top``."""
    found = {}
    for directory, _, files in os.walk(top):
        for name in files:
            path = Path(directory, name)
            status = path.lstat()
            content = b"" if path.is_symlink() else path.read_bytes()
            content = content.replace(os.fsencode(top), b"@")
            found[str(path.relative_to(top))] = (status.st_mode, status.st_uid, content)
    return found


def test_same_lines_and_same_files(tmp_path: Path) -> None:
    require("root", "gcc")
    program = tmp_path / "probe"
    oracle.build_probe(program)
    results = []
    for command in ([str(program)], [sys.executable, "-P", "-m", "tests.conformance.probe"]):
        with tempfile.TemporaryDirectory(prefix="imafs-probe-") as name:
            top = Path(name)
            top.chmod(0o755)
            prepare(top)
            script = SCRIPT.replace("@", name)
            done = run([*command, top / "d"], stdin=script, cwd=ROOT)
            # The directory's name, and the order of its entries, are its own.
            answers = done.stdout.replace(name, "@")
            answers = re.sub(r"(?<=^lsorder -> ).*$", _sorted, answers, flags=re.MULTILINE)
            results.append((answers, left_over(top)))
    ours, theirs = results[1], results[0]
    assert ours[0].splitlines() == theirs[0].splitlines()
    assert ours[1] == theirs[1]


def _sorted(match: re.Match[str]) -> str:
    return " ".join(sorted(match[0].split(" ")))


def test_every_verb_is_in_the_script() -> None:
    used = {line.split()[0] for line in SCRIPT.splitlines() if line and line[0] not in "#}"}
    assert {*verbs.TABLE, *names.TABLE, *TABLE} - used == UNSTABLE


@pytest.mark.parametrize("size", [229, 230, 231, 400, 401, 4000, 4095])
def test_long_names_have_the_size_that_is_asked_for(size: int) -> None:
    directories, path = long_name("/q/some-question/l", size)
    assert len(path) == size
    assert not path.endswith("/")
    assert all(path.startswith(f"{directory}/") for directory in directories)
