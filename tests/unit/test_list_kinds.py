# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Lists that were called forged, malformed or out of range: what ``imafs list`` says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imafs.cli.main import main
from tests.conformance.recordings import DATA

LISTS = DATA / "lists"
KERNEL = DATA / "pcrs-0-to-63-7.2.13"

Output = pytest.CaptureFixture[str]


def listed(output: Output, *words: str | Path, code: int = 0) -> tuple[list[str], str]:
    assert main(["list", *map(str, words)]) == code
    printed = output.readouterr()
    return printed.out.splitlines(), printed.err


@pytest.mark.parametrize("words", [[], ["--bank", "sm3"], ["--bank", "sm3_256"]])
def test_a_list_of_an_sm3_bank(words: list[str], capsys: Output) -> None:
    lines, said = listed(capsys, LISTS / "sm3", *words)
    assert len(lines) == 5
    assert said == ""
    assert "bank        sm3" in listed(capsys, LISTS / "sm3", *words, "--stats")[0]
    other, _ = listed(capsys, LISTS / "sm3", "--to", "sm3_256")
    assert other == lines


def test_a_list_with_records_of_pcr_0_to_63(capsys: Output) -> None:
    path = KERNEL / "list.bin"
    stats, said = listed(capsys, path, "--stats")
    assert said == ""
    assert "records     17" in stats
    lines, _ = listed(capsys, path)
    assert {int(line.split()[0]) for line in lines} >= {0, 4, 9, 10, 17, 22, 23, 24, 40, 63}
    assert listed(capsys, path, "--pcr", "63")[0] == [lines[-1]]


def test_a_big_endian_list(capsys: Output) -> None:
    lines, said = listed(capsys, LISTS / "big-endian")
    assert said == ""
    assert [line.split()[-1] for line in lines] == ["boot_aggregate", "/usr/bin/ls"]
    assert "form        binary, big endian" in listed(capsys, LISTS / "big-endian", "--stats")[0]


@pytest.mark.parametrize(
    "words", [[], ["--json"], ["--stats"], ["--first", "3"], ["--grep", "toolX"]]
)
def test_a_tampered_list(words: list[str], capsys: Output) -> None:
    lines, said = listed(capsys, LISTS / "tampered", *words, code=3)
    where = "record 4, byte 404 (/usr/bin/toolX): the sha1 template digest "
    assert said.startswith(f"imafs: {LISTS / 'tampered'}: {where}")
    assert "is not that of the template data" in said
    if words == ["--json"]:
        assert [json.loads(line).get("fault", "")[:4] for line in lines] == ["", "", "", "", "the "]
    elif words == ["--stats"]:
        assert "faults      1" in lines
    elif words == ["--first", "3"]:
        assert [line[0] for line in lines] == ["1"] * 3
    else:
        assert lines[-1].startswith("! 10 2f6f3ea8")
        assert lines[-1].endswith(" /usr/bin/toolX")
    rest, _ = listed(capsys, LISTS / "tampered", "--keep-going", code=3)
    assert [line[0] for line in rest] == ["1", "1", "1", "1", "!", "1"]
