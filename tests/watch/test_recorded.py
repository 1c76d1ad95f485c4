# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The script on violations as Linux 7.2.13 answered it, by uses that are only watched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import ROOT, require, run

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]


def test_violations(tmp_path: Path) -> None:
    """open_writers, ToMToU, and what is measured because of them: answers, lists, PCRs."""
    require("cap_sys_admin", "/dev/loop-control", "mkfs.ext4", "unshare", "tpm2_pcrread")
    command = [
        "unshare",
        "--mount",
        sys.executable,
        "-P",
        "-m",
        "tests.watch.recorded",
        str(tmp_path),
    ]
    run(command, cwd=ROOT, deadline=90)
