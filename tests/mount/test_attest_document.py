# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""docs/attest.md is true: its ten commands, its table of verdicts, the schema of the manifest."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from imafs.attest.kinds import Kind
from tests.mount.daemon import ALONE
from tests.papertpm import PaperTpm
from tests.schema import check
from tests.support import ROOT, require

DOCUMENT = ROOT / "docs" / "attest.md"


def _commands() -> list[str]:
    (block,) = re.findall(r"^```console\n(.*?)^```$", DOCUMENT.read_text(), flags=re.S | re.M)
    return [line.removeprefix("# ") for line in block.splitlines()]


@pytest.mark.root
@pytest.mark.mount
@pytest.mark.swtpm
def test_from_zero_to_a_verdict_in_ten_commands(tmp_path: Path) -> None:
    require("root", "/dev/fuse", "fusermount3", "swtpm", "tpm2_checkquote", "unshare")
    commands = _commands()
    assert len(commands) == 10
    script = tmp_path / "session.sh"
    lines = ["set -eu", ALONE, "mount -t tmpfs tmpfs /run", "mount -t tmpfs tmpfs /mnt"]
    lines += ["trap 'umount -l /mnt/ima 2>/dev/null || true' EXIT"]
    for command in commands:
        lines += ["echo '@@'", command]
    script.write_text("\n".join([*lines, ""]))
    venv = shlex.quote(str(ROOT / ".venv/bin"))
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"PATH={venv}:$PATH bash {script}"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.split(r"^@@\n", done.stdout, flags=re.M)[1:]
    assert said[4].startswith("/run/first.tar: ok: records 0 to 100\n")
    assert said[7].startswith("/run/second.tar: ok: records 101 to 120\n")


def test_the_table_has_every_verdict() -> None:
    """Written by hand would be another truth: docs/attest.md has what the kinds say."""
    rows = ["| code | verdict | what |", "|---|---|---|"]
    rows += [f"| {kind.code} | `{kind.word}` | {kind.meaning} |" for kind in Kind]
    found = re.search(
        r"<!-- verdicts -->\n(.*)\n<!-- /verdicts -->", DOCUMENT.read_text(), flags=re.S
    )
    assert found is not None
    assert found[1] == "\n".join(rows)


def test_manifests_are_of_the_schema() -> None:
    schema = json.loads((ROOT / "docs" / "bundle.schema.json").read_text())
    machine = PaperTpm()
    machine.files(b"/a")
    manifest = machine.bundle().manifest
    assert manifest is not None
    row = json.loads(manifest.encode())
    check(row, schema)
    wrong = [{k: v for k, v in row.items() if k != key} for key in row]
    for other in (*wrong, row | {"more": 1}, row | {"first": -1}, row | {"order": "middle"}):
        with pytest.raises(AssertionError):
            check(other, schema)
