# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs profiles``: the tables of README and docs are its output, and say what is played."""

from __future__ import annotations

import json
import re

import pytest

from imafs.cli.main import main
from imafs.interface.profiles import PROFILES
from imafs.kernel import profile_table
from tests.support import ROOT

Output = pytest.CaptureFixture[str]


def between(path: str, marker: str) -> str:
    text = (ROOT / path).read_text()
    return text.split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->")[0]


def test_the_readme_has_the_list(capsys: Output) -> None:
    """imafs profiles --markdown, between the markers."""
    assert main(["profiles", "--markdown"]) == 0
    assert between("README.md", "profiles") == capsys.readouterr().out


def test_the_document_has_the_comparison(capsys: Output) -> None:
    """imafs profiles --all --markdown, between the markers."""
    assert main(["profiles", "--all", "--markdown"]) == 0
    assert between("docs/profiles.md", "comparison") == capsys.readouterr().out


def test_json_has_every_row_of_every_profile(capsys: Output) -> None:
    assert main(["profiles", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found] == [profile.name for profile in PROFILES]
    for each, profile in zip(found, PROFILES, strict=True):
        assert list(each["facts"]) == list(profile_table.ROWS)
        assert each["facts"] == profile_table.facts(profile)
        assert tuple(each["aliases"]) == profile.aliases


def test_names_and_aliases_are_compared(capsys: Output) -> None:
    assert main(["profiles", "7.3", "trim-v2", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | mainline | trim-v2 |"
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines[2:]}
    assert rows["newline"] == ["needed", "EINVAL |"]
    assert "export" not in rows, "a row that neither has anything to say to"


def test_columns_fit_the_terminal(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["profiles", "mainline", "v5", "v3"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    words = re.sub(r"\s+", " ", text)
    assert "N on the originals" in words


def test_every_profile_is_in_one_series() -> None:
    names = [profile.name for _, group in profile_table.series() for profile in group]
    assert sorted(names) == sorted(profile.name for profile in PROFILES)


def test_an_unknown_profile_is_refused(capsys: Output) -> None:
    assert main(["profiles", "v99"]) == 2
    assert "'v99'" in capsys.readouterr().err
