# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What kexec and reboot print, also of a daemon of another version."""

from __future__ import annotations

import pytest

from imafs.cli import answers
from imafs.kernel.kexec import Crossing

BOOT = {"number": 2, "kexecs": 0, "carried": 0, "carried_in_all": 0, "lost": 0}


@pytest.mark.parametrize(
    ("group", "text"),
    [
        (BOOT, "number 2"),
        ({**BOOT, "kexecs": 3, "carried": 7}, "number 2, 3 kexecs, 7 records carried over"),
        (
            {**BOOT, "kexecs": 1, "carried": 7, "lost": 5},
            "number 2, 1 kexec, 7 records carried over, 5 LOST",
        ),
        ({**BOOT, "kexec_loaded": True}, "number 2; a kernel is loaded for kexec"),
        (
            {**BOOT, "kexec_loaded": True, "kexec_held": True},
            "number 2; a kexec is held: imafs ctl kexec-finish",
        ),
        ({}, "number -"),
    ],
)
def test_boot(group: dict[str, object], text: str) -> None:
    assert answers.boot_line(group) == text


def test_a_status_without_it_has_no_such_line() -> None:
    assert not [line for line in answers.status_lines({}) if line.startswith("boot")]
    assert "boot        number 2" in answers.status_lines({"boot": BOOT})


def test_lost_records_are_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    found = Crossing(9, 4, "the segment is full")
    answer = {"held": False, "profile": "v5", "records": 9, "carried": 4}
    answer |= {"lost": found.lost, "why": found.why}
    assert answers.show("kexec_execute", answer, as_json=False) == 0
    out, err = capsys.readouterr()
    assert out == "v5 runs, with 4 of 9 records carried over\n"
    assert err == "imafs: 5 records in PCRs and in no list: the segment is full\n"
