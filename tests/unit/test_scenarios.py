# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Scenario files: what they mean, and that a mistake is refused with its line."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imafs.cli.main import main
from imafs.control.ops import Options
from imafs.errors import FileError, FormatError, UsageError
from imafs.scenarios import library
from imafs.scenarios.events import Condition
from imafs.scenarios.script import Action, Scenario, Step, parse
from imafs.verbs.table import TABLE

WHOLE = """\
summary = "busy for a while"

[[step]]
when = "before open"
file = "*_staged"
writing = true
nth = 2
every = 3
do = [
    { op = "agent", action = "trim", count = 4 },
    { op = "tpm", behind = 3 },
]

[[step]]
when = "records"
records = 10
seconds = 0.5
do = [{ op = "generate", count = 3 }]
"""


def read(text: str) -> Scenario:
    return parse(text, "mine", TABLE.validate)


def test_a_whole_file() -> None:
    assert read(WHOLE) == Scenario(
        "mine",
        "busy for a while",
        (
            Step(
                Condition("before open", "*_staged", writing=True, nth=2, every=3),
                (
                    Action("agent", Options(action="trim", count=4)),
                    Action("tpm", Options(behind=3)),
                ),
            ),
            Step(
                Condition("records", records=10, seconds=0.5),
                (Action("generate", Options(count=3)),),
            ),
        ),
    )


STEP = '[[step]]\nwhen = "start"\ndo = [{ op = "repeat" }]\n'

#: text, line that must be named, what must be said
WRONG: list[tuple[str, int, str]] = [
    ("", 1, "at least one"),
    ("step = 3\n", 1, "at least one"),
    ("step = [3]\n", 1, "expected \\[\\[step\\]\\]"),
    (f"{STEP}\n[[step]]\ndo = [{{op = 'repeat'}}]\n", 5, "when: missing"),
    ('sumary = "x"\n' + STEP, 1, "unknown key 'sumary'"),
    ("summary = 3\n" + STEP, 1, "summary: expected a string"),
    (STEP + 'files = "x"\n', 4, "unknown key 'files'"),
    (STEP + STEP + "\n# nth = 1\nevry = 1\n", 9, "unknown key 'evry'"),
    ('[[step]]\nwhen = "before lunch"\ndo = [{op="repeat"}]\n', 2, "'before lunch' is no event"),
    ('[[step]]\nwhen = "after open"\n', 1, "do: expected a list"),
    ('[[step]]\nwhen = "after open"\ndo = []\n', 3, "do: expected a list"),
    ('[[step]]\nwhen = "after open"\ndo = ["repeat"]\n', 3, "expected { op"),
    ('[[step]]\nwhen = "after open"\ndo = [{op="fly"}]\n', 3, "unknown operation 'fly'"),
    ('[[step]]\nwhen = "after open"\ndo = [{op="status"}]\n', 3, "status is not for scenarios"),
    (
        '[[step]]\nwhen = "start"\ndo = [{op="kexec_buffer", file="/etc/passwd"}]\n',
        *(3, "kexec_buffer is not for scenarios"),
    ),
    (
        '[[step]]\nwhen = "after open"\ndo = [\n {op="repeat"},\n {op="tpm", behnd=3},\n]\n',
        5,
        "tpm: unknown option 'behnd'",
    ),
    (
        '[[step]]\nwhen = "after open"\ndo = [{op="generate", count="3"}]\n',
        3,
        "generate: count: expected an integer",
    ),
    ('[[step]]\nwhen = "after open"\nnth = 0\ndo = [{op="repeat"}]\n', 3, "0 is less than 1"),
    ('[[step]]\nwhen = "after open"\nnth = true\ndo = [{op="repeat"}]\n', 3, "expected an integer"),
    (STEP + "seconds = -1\n", 4, "not within 0"),
    (STEP + "seconds = nan\n", 4, "not within 0"),
    (STEP + "nth = 2\n", 4, "nth: a start is of no file"),
    (STEP + "records = 2\n", 4, "records: goes with"),
    ('[[step]]\nwhen = "records"\ndo = [{op="repeat"}]\n', 2, "needs records"),
    (
        '[[step]]\nwhen = "after read"\nwriting = true\ndo = [{op="repeat"}]\n',
        3,
        "only an open is for writing",
    ),
    ('[[step]]\nwhen = "after open"\nfile = ""\ndo = [{op="repeat"}]\n', 3, "file: expected"),
    (
        '[[step]]\nwhen = "after open"\nfile = "nope*"\ndo = [{op="repeat"}]\n',
        3,
        r"file: 'nope\*' matches no file of any profile",
    ),
    (
        '[[step]]\nwhen="start"\ndo=[\n{op="fault",operation="open",errno="EIO",files="nope*"}]',
        4,
        r"do: fault: files: 'nope\*' matches no file of any profile",
    ),
    # What a daemon would refuse whenever the step is due.
    (
        '[[step]]\nwhen="start"\ndo=[\n{op="fault",operation="open",errno="EBUSE"}]',
        4,
        "do: fault: errno: 'EBUSE' is no errno",
    ),
    ('[[step]]\nwhen="start"\ndo=[{op="agent",action="fly"}]', 3, "agent: action: 'fly' is no"),
    ('[[step]]\nwhen="start"\ndo=[{op="agent",action="trim"}]', 3, "a number goes with trim"),
    ('[[step]]\nwhen="start"\ndo=[{op="tpm",work=true,fail=1}]', 3, "tpm: work stands alone"),
    ('[[step]]\nwhen="start"\ndo=[{op="reboot",profile="v77"}]', 3, "unknown profile 'v77'"),
]


@pytest.mark.parametrize(("text", "line", "reason"), WRONG)
def test_mistakes_are_refused_with_their_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        read(text)
    assert f"mine: line {line}: " in str(caught.value)


def test_what_is_no_toml() -> None:
    with pytest.raises(FormatError, match=r"mine: no TOML: .*line 2"):
        read("summary = 'x'\n[[step]\n")


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 100_000, "x = " + "9" * 5000, "x = 2026-02-30", "x = 1\nx = 2", "\0"],
    ids=["deep", "long", "date", "twice", "nul"],
)
def test_odd_toml_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(FormatError, match="mine: no TOML"):
        read(text)


def _mutated(draw: st.DrawFn) -> str:
    text = WHOLE
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        end = at + draw(st.integers(0, 12))
        text = text[:at] + draw(st.text(max_size=8) | st.sampled_from(PIECES)) + text[end:]
    return text


PIECES = ["[[step]]", "do = []", "{", "}", "when = 'start'", "-1", "1e400", "nan", '"""', "\n"]


@given(st.composite(_mutated)())
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_is_refused_or_read(text: str) -> None:
    """Nothing but FormatError, with a line that exists."""
    try:
        read(text)
    except FormatError as error:
        if (line := re.search(r"mine: line (\d+): ", str(error))) is not None:
            assert 1 <= int(line[1]) <= max(1, len(text.splitlines()))


def test_ready_ones_are_valid_and_say_what_they_are() -> None:
    assert len(library.names()) >= 10
    for name in library.names():
        scenario = library.ready(name, TABLE.validate)
        assert scenario.name == name
        assert 20 < len(scenario.summary) < 100, name


def test_paths_and_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(WHOLE)
    assert library.find(str(file), TABLE.validate) == read(WHOLE)
    with pytest.raises(UsageError, match="no ready scenario is called 'mine'; there are: "):
        library.find("mine", TABLE.validate)
    with pytest.raises(UsageError, match=r"'rebot' \(did you mean reboot\?\); there are: "):
        library.find("rebot", TABLE.validate)
    with pytest.raises(FileError, match="No such file") as caught:
        library.find(str(tmp_path / "other.toml"), TABLE.validate)
    assert caught.value.errno == errno.ENOENT


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenarios"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == library.names()
    assert main(["scenarios", library.names()[0]]) == 0
    assert capsys.readouterr().out == library.text_of(library.names()[0])
    file = tmp_path / "mine.toml"
    file.write_text(WHOLE)
    assert main(["scenarios", "--check", str(file)]) == 0
    assert capsys.readouterr().out == "mine: 2 steps\n"
    assert main(["scenarios", "--check", "reboot"]) == 0
    assert capsys.readouterr().out == "reboot: 1 step\n"
    assert main(["scenarios", "--check", "mine"]) == UsageError.exit_code
    assert "(a file has a / in its name, or ends in .toml)" in capsys.readouterr().err
    file.write_text(STEP + "x = 1\n")
    assert main(["scenarios", "--check", str(file)]) == FormatError.exit_code
    assert capsys.readouterr().err == f"imafs: {file}: line 4: unknown key 'x'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a." * 600 + "a = 1\n", "line 1: longer than 1024 characters"),
        ("\n[" + "a." * 600 + "a]\n", "line 2: longer than 1024 characters"),
        ("# padding\n" * 7000, "is larger than 64 KiB"),
    ],
)
def test_a_file_that_the_parser_would_choke_on(tmp_path: Path, text: str, said: str) -> None:
    """Of a key with 40,000 dots it makes 1.5 GB."""
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises((FormatError, UsageError), match=said):
        library.from_file(str(file), TABLE.validate)


def test_a_pattern_is_no_longer_than_a_name() -> None:
    """Each is compiled once, on the event loop."""
    with pytest.raises(FormatError, match="matches no file of any profile") as caught:
        read(WHOLE.replace("*_staged", "*" * 300))
    assert len(str(caught.value)) < 500
