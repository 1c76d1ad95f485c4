# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper's session in the README runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.mount.daemon import ALONE
from tests.support import ROOT, require, run


@pytest.mark.root
@pytest.mark.mount
@pytest.mark.swtpm
@pytest.mark.long
def test_the_keepers_session(tmp_path: Path) -> None:
    require("root", "unshare")
    section = (ROOT / "README.md").read_text().partition("## The keeper\n")[2]
    session = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.S | re.M)[0]
    script = tmp_path / "session.sh"
    # Only the place of the store is another: it must not be that of somebody else's.
    session = session.replace("/var/tmp/kept", str(tmp_path / "kept"))
    head = ["set -eu", ALONE, "mount -t tmpfs tmpfs /run", "mount -t tmpfs tmpfs /mnt"]
    head += ["mkdir -p /mnt/ima"]
    script.write_text("\n".join([*head, session]))
    venv = shlex.quote(str(ROOT / ".venv/bin"))
    command = ["unshare", "-m", "bash", "-c", f"PATH={venv}:$PATH bash {script}"]
    said = run(command, deadline=240, cwd=ROOT).stdout
    assert re.search(r"^6\n6 records are stored\n0\n6\n", said, re.M), said
    assert "match after record 6" in said
    assert re.search(
        r"^records +6: 6 stored, 0 not yet, 6 deleted in the kernel \(looked at .*\)$", said, re.M
    ), said
    assert re.search(r"6 records in \d frames, as they were stored$", said, re.M), said
