# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``scripts/start`` reaches its transcript, stays, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, require, run


@pytest.mark.root
@pytest.mark.mount
@pytest.mark.swtpm
@pytest.mark.parametrize("inside", [False, True], ids=["root", "namespace"])
def test_start_shows_a_session_and_ends_on_ctrl_c(tmp_path: Path, inside: bool) -> None:
    """Also as it calls itself in a user namespace: its socket is then named for other shells."""
    require("root", "/dev/fuse", "fusermount3", "swtpm")
    place = tmp_path / "ima"
    files = tmp_path / "files"
    files.mkdir()
    (files / "one").write_text("1")
    (files / "two").write_text("2")
    child = subprocess.Popen(
        [str(ROOT / "scripts/start"), str(place), str(files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        env={**os.environ, "IMAFS_START_NAMESPACE": "yes" if inside else ""},
    )
    seen: list[str] = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            seen.append(line)
            if line.startswith("Ctrl-C"):
                break
        text = "".join(seen)
        assert "\n3\n" in text  # boot_aggregate and two files
        assert re.search(
            "^10 [0-9a-f]{12}… ima-ng .* /usr/lib/imafs/generated/00000002$", text, re.M
        )
        assert re.search("^PCR .* sha512 [0-9a-f]{12}…: all records since boot replay", text, re.M)
        assert (f"\n    export IMAFS_CONTROL={place}.sock\n" in text) is inside
        assert ("nsenter " in text) is inside
        assert os.path.ismount(place)
        # A terminal sends SIGINT to the whole foreground group.
        os.killpg(child.pid, signal.SIGINT)
        rest, _ = child.communicate(timeout=60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
    assert child.returncode == 0, "".join(seen) + rest
    assert not place.exists()


@pytest.mark.parametrize(
    ("word", "status", "text"),
    [
        ("--help", 0, "scripts/start [DIR [PATH...]]\nscripts/start keeper\n\n"),
        ("-x", 2, "start: -x is no directory: scripts/start [DIR [PATH...]]\n"),
    ],
)
def test_options_are_no_directories(word: str, status: int, text: str, tmp_path: Path) -> None:
    done = run([str(ROOT / "scripts/start"), word], check=False, cwd=tmp_path)
    assert done.returncode == status
    assert (done.stderr if status else done.stdout).startswith(text)
