# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Why there was a violation, and whose: the audit record of a kernel."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from imafs.sources.watch.daemon.filesystems import super_block
from tests.mount.fixtures import Starter
from tests.support import run, wait_for
from tests.watch.disk import Disk

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]


def records(log: Path, number: int) -> list[str]:
    """The lines of so many violations."""

    def found() -> list[str]:
        return [line for line in log.read_text().splitlines() if "type=1804 " in line]

    wait_for(lambda: len(found()) >= number, 60, "the records are written")
    return found()


def test_who_and_which(start: Starter, disk: Disk, tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    start("--watch", str(disk.root), "--audit-log", str(log))
    file, spaced = disk.file("file"), disk.file("with space")
    device = super_block(file.stat().st_dev, "ext4").decode()
    assert re.fullmatch(r"loop\d+", device)
    for path in (file, spaced):
        with path.open("rb"):
            run(["sh", "-c", ': >> "$0"', path])
    with file.open("ab"):
        run(["cat", file])
    first, second, third = records(log, 3)
    login, session = (Path("/proc/self", name).read_text() for name in ("loginuid", "sessionid"))
    own = f"auid={login} ses={session}"
    tail = f'dev="{device}" ino={file.stat().st_ino} res=1 errno=0'
    expected = f'uid=0 {own} op=invalid_pcr cause=ToMToU comm="sh" name="{file}" {tail}'
    assert re.search(r": pid=[1-9]\d* " + re.escape(expected) + "$", first)
    assert f"name={os.fsencode(spaced).hex().upper()} dev=" in second
    assert f'cause=open_writers comm="cat" name="{file}" {tail}' in third


def test_names_of_super_blocks() -> None:
    """Of file systems without a block device, as a kernel names them."""
    assert super_block(os.makedev(0, 52), "tmpfs") == b"tmpfs"
    assert super_block(os.makedev(0, 52), "nfs4") == b"0:52"
