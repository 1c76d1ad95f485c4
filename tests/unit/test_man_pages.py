# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The manual pages are what scripts/man makes of the parsers, and groff finds no fault."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.cli.main import build_parser
from imafs.errors import FileError, ImafsError
from tests.support import ROOT, require, run

MAN = ROOT / "docs" / "man"
PAGES = sorted(path.name for path in MAN.glob("*"))


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="ascii") for path in directory.iterdir()}


def test_pages_are_up_to_date(tmp_path: Path) -> None:
    """Run scripts/man after a change of a parser, of an exit code or of the version."""
    run([sys.executable, ROOT / "scripts" / "man", tmp_path])
    assert contents(tmp_path) == contents(MAN)


def test_the_readme_has_every_exit_code() -> None:
    page = (MAN / "imafs.1").read_text().partition(".SH EXIT STATUS\n")[2]
    codes = re.findall(r"^\\fB(\d+)\\fR$", page, re.MULTILINE)
    assert codes[-2:] == ["130", "141"]
    told = (ROOT / "README.md").read_text().partition("Exit codes: ")[2].partition("\n\n")[0]
    for code in codes:
        assert re.search(rf"(^|,\s){code} \w", told), code


def test_no_two_exit_codes_are_the_same() -> None:
    own = [k for k in ImafsError.__subclasses__() if k.__module__ == ImafsError.__module__]
    codes = [kind.exit_code for kind in own if kind is not FileError]
    assert sorted(codes) == list(range(2, len(codes) + 2))


def test_pages_that_are_none_any_more_go(tmp_path: Path) -> None:
    (tmp_path / "imafs-gone.1").touch()
    (tmp_path / "other.1").touch()
    run([sys.executable, ROOT / "scripts" / "man", tmp_path])
    assert sorted(contents(tmp_path)) == sorted([*PAGES, "other.1"])


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from leaves(choice)
        else:
            yield action


def test_every_command_and_option_is_told() -> None:
    """Asked of the pages' text, not of the generator."""
    top = next(
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert [f"imafs-{name}.1" for name in sorted(top.choices)] == PAGES[:-1]
    for name, parser in top.choices.items():
        text = (MAN / f"imafs-{name}.1").read_text().replace("\\-", "-")
        for action in leaves(parser):
            for option in action.option_strings:
                if option not in {"-h", "--help"}:
                    assert f"\\fB{option}\\fR" in text, (name, option)


@pytest.mark.parametrize("name", PAGES)
def test_groff_finds_no_fault(name: str) -> None:
    require("groff")
    done = run(["groff", "-man", "-Tutf8", "-ww", str(MAN / name)], env={"GROFF_NO_SGR": "1"})
    assert done.stderr == ""
    shown = re.sub(r".\x08", "", done.stdout)
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert f"\n{heading}\n" in shown
    assert "\\f" not in shown
