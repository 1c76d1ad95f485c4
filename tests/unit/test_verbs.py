# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Operations over an emulator in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from imafs.control import verbs
from imafs.control.verbs import Verbs
from imafs.engine.emulator import Receipt
from tests.unit.engine_fake import FakeDevice, booted

WAIT = 0.25


async def test_all_files_of_a_request_wait_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM that hangs is waited for once, not once for each file."""
    for number in range(4):
        (tmp_path / f"{number}").write_text(f"{number}")
    waits: list[float] = []
    device = FakeDevice()
    monkeypatch.setattr(verbs, "EXTEND_WAIT", WAIT)
    async with booted(device) as emulator:
        device.hang()
        wait_for = emulator.wait_for

        async def noted(receipt: Receipt, seconds: float) -> bool:
            waits.append(seconds)
            return await wait_for(receipt, seconds)

        monkeypatch.setattr(emulator, "wait_for", noted)
        handler = Verbs(emulator, lambda: None, {}).measure
        answer = await handler({"paths": [str(tmp_path)]}, lambda done, total: None)
    rows = answer["measured"]
    assert isinstance(rows, list)
    assert [row["extended"] for row in rows] == [False] * 4
    assert 0 < waits[0] <= WAIT
    assert waits[1:] == pytest.approx([0.0] * 3, abs=0.001)
