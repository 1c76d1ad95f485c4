# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Every command of the README runs as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from imafs.verbs.table import TABLE
from tests.mount.daemon import ALONE
from tests.support import ROOT, require

#: Commands of the README that have a test of their own, and which.
ELSEWHERE = {
    "scripts/start": "tests/mount/test_start.py",
    "scripts/test": "the command that runs this test",
}


def _commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```$", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("# ") for line in lines), "a console block shows commands only"
    return [line[2:] for line in lines]


def test_elsewhere_is_in_the_readme() -> None:
    assert set(ELSEWHERE) <= set(_commands())


@pytest.mark.root
@pytest.mark.mount
@pytest.mark.swtpm
@pytest.mark.long
def test_the_readme_session(tmp_path: Path) -> None:
    require("root", "/dev/fuse", "fusermount3", "swtpm", "tpm2_pcrread", "unshare")
    commands = [command for command in _commands() if command not in ELSEWHERE]
    script = tmp_path / "session.sh"
    # A mount namespace with a /run and a /mnt of its own: whatever this machine has
    # mounted there, the README's paths are taken literally.
    lines = ["set -eu", ALONE, "mount -t tmpfs tmpfs /run", "mount -t tmpfs tmpfs /mnt"]
    lines += ["trap 'umount -l /mnt/ima 2>/dev/null || true' EXIT"]
    for number, command in enumerate(commands):
        lines += [f"echo '@@{number}'", command]
    script.write_text("\n".join([*lines, "echo @@end", ""]))
    venv = shlex.quote(str(ROOT / ".venv/bin"))
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"PATH={venv}:$PATH bash {script}"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = re.split(r"^@@(?:\d+|end)\n", done.stdout, flags=re.M)[1:-1]
    said = dict(zip(commands, outputs, strict=True))
    first = said["cat /mnt/ima/ascii_runtime_measurements"]
    assert len(commands) > 10
    # The same command stands twice: the dictionary keeps the later one, the list
    # after `generate 5` and `echo 2`.
    assert [line.split()[-1][-8:] for line in first.splitlines()] == [
        "00000002",
        "00000003",
        "00000004",
    ]
    staged = said["cat <&3"].splitlines()
    assert [line.split()[-1] for line in staged] == [
        "boot_aggregate",
        "/usr/bin/env",
        "/usr/bin/id",
    ]
    assert said["cat /mnt/ima/runtime_measurements_count"] == "0\n"
    assert "already measured" in said["imafs ctl measure /usr/bin/env"]
    assert "replay" in said["imafs ctl status"]
    (pcrs,) = (said[command] for command in commands if command.endswith("pcrread sha256:10"))
    assert "sha256" in pcrs


def test_every_verb_is_named() -> None:
    text = (ROOT / "README.md").read_text().partition("| verbs of `imafs ctl`")[2]
    rows = text.partition("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", rows)) == {op.verb for op in TABLE.values()}


def test_the_table_of_operations_is_the_servers() -> None:
    text = (ROOT / "docs/ctl.md").read_text()
    table = text.partition("<!-- ops -->\n")[2].partition("<!-- /ops -->")[0]
    assert table.strip() == TABLE.markdown().strip()
