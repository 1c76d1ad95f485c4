# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the self-test of a mount leaves behind in the list of a kernel that measures it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imafs.fuse import selftest


def test_no_file_is_written_while_it_is_open_for_reading_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IMA takes that for a violation (open for reading, then for writing: ToMToU)."""
    (tmp_path / selftest.NAME).write_bytes(selftest.CONTENT)
    modes = []
    really = os.open

    def watched(path: str, flags: int) -> int:
        modes.append(flags & os.O_ACCMODE)
        return really(path, flags)

    monkeypatch.setattr(os, "open", watched)
    selftest.run(str(tmp_path), hidden=False)
    assert os.O_WRONLY in modes
    assert os.O_RDONLY not in modes
