# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs mount``'s command line: which DIR, which files, which options go together."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from imafs.cli import mount
from imafs.cli.daemon import Plan
from imafs.cli.main import build_parser, main
from imafs.errors import FormatError, UsageError
from imafs.interface.profiles import PROFILES
from imafs.sources import load
from tests.crash.collected import made

Output = pytest.CaptureFixture[str]


def planned(monkeypatch: pytest.MonkeyPatch, *words: str) -> Plan:
    """The plan that the daemon is run with."""
    plans: list[Plan] = []

    def take(plan: Plan) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr("imafs.cli.daemon.run", take)
    assert main(["mount", *words]) == 0
    return plans[0]


@pytest.mark.parametrize(
    ("words", "directory", "measured"),
    [
        ("D", "D", ""),
        ("D --measure a", "D", "a"),
        ("D --measure a b", "D", "a b"),
        ("--measure a D", "D", "a"),
        ("--measure a b D", "D", "a b"),
        ("--measure a --measure b D", "D", "a b"),
        ("--measure a D --measure b", "D", "a b"),
        ("--measure a --measure b --adopt D", "D", "a b"),
        ("--measure a b --adopt D", "D", "a b"),
        ("D --measure a --measure b c", "D", "a b c"),
        ("--adopt D --measure a b --no-boot-aggregate", "D", "a b"),
    ],
)
def test_measure_and_dir_in_any_order(
    monkeypatch: pytest.MonkeyPatch, words: str, directory: str, measured: str
) -> None:
    plan = planned(monkeypatch, *words.split())
    assert plan.directory == directory
    assert plan.measure == [os.path.abspath(path) for path in measured.split()]


@pytest.mark.parametrize("words", ["", "--measure a", "--measure a --measure b", "--adopt"])
def test_dir_is_missing(words: str, capsys: Output) -> None:
    assert main(["mount", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error == ("imafs: the following arguments are required: DIR (see imafs mount --help)\n")


def test_usage_shows_that_dir_is_required(capsys: Output) -> None:
    assert main(["mount", "--help"]) == 0
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert usage.endswith(" DIR")
    assert "[DIR]" not in usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--load-bank sha1", "--load-bank"),
        ("--load f --load-bank none", "'none'"),
        ("--load f --load-bank wp512", "wp512"),
        ("--profile legacy --no-staging", "--no-staging: profile legacy"),
        ("--profile legacy-single --no-staging", "--no-staging: profile legacy-single"),
        ("--template ima-ng --template-fmt d-ng|n-ng", "--template and --template-fmt"),
        ("--tpm none --tpm-state s", "--tpm-state"),
        ("--tpm swtpm:port=1 --tpm-state s", "--tpm-state"),
        ("--allow-hardware-tpm", "--allow-hardware-tpm"),
        ("--tpm none --allow-hardware-tpm", "--allow-hardware-tpm"),
        ("--tpm none --adopt", "--adopt"),
        ("--tpm none --padded-banks sha384", "--padded-banks"),
        ("--padded-banks sha1", "--padded-banks: 'sha1' is not padded"),
        ("--padded-banks sha384,none", "--padded-banks: 'none' is no PCR bank; there are: sha1"),
        ("--banks sha1,none", "--banks: 'none' is no PCR bank; there are: sha1"),
        ("--banks sha1,sha256,sha1", "--banks: a bank is named twice"),
        ("--banks md5", "--banks: 'md5' is no PCR bank"),
    ],
)
def test_options_without_effect_are_refused(words: str, said: str, capsys: Output) -> None:
    assert main(["mount", "/D", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("imafs: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    "words",
    [
        "--load f --load-bank sha256",
        "--template ima-sig",
        "--template-fmt d-ng|n-ng",
        "--tpm-state s --banks sha256",
        "--tpm device:/dev/tpm0 --allow-hardware-tpm --adopt --banks sha256",
    ],
)
def test_options_that_go_together(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    assert planned(monkeypatch, "D", *words.split()).directory == "D"


def test_the_default_template(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(monkeypatch, "D").config.template.label == "ima-ng"


def test_help_tells_every_profile_and_its_aliases(capsys: Output) -> None:
    assert main(["mount", "--help"]) == 0
    text = "".join(capsys.readouterr().out.split())  # lines break at hyphens too
    for profile in PROFILES:
        aliases = f"({','.join(profile.aliases)})" if profile.aliases else ""
        assert f"{profile.name}{aliases}" in text


def test_nothing_is_abbreviated(capsys: Output) -> None:
    """--background is looked for by its name: an abbreviation started daemons without end."""
    assert main(["mount", "D", "--backgr"]) == 2
    assert "unrecognized arguments: --backgr" in capsys.readouterr().err


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """``parser`` and all below it."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found += parsers(below)
    return found


@pytest.mark.parametrize("parser", parsers(build_parser()), ids=lambda parser: parser.prog)
def test_a_mistake_shows_the_usage_of_its_own_command(
    parser: argparse.ArgumentParser, capsys: Output
) -> None:
    words = parser.prog.split()[1:]
    # With what it requires, so that the unknown option is the only mistake.
    needed = [
        word
        for action in parser._actions
        if action.required
        and not isinstance(action, argparse._SubParsersAction)
        and action.nargs != argparse.REMAINDER  # a command, which would be run
        for word in (*action.option_strings[-1:], "1")
    ]
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        needed.append("none-such")
    assert main([*words, *needed, "--none-such"]) == 2
    error = capsys.readouterr().err
    *usage, mistake = error.splitlines()
    assert mistake.startswith("imafs: ")
    assert mistake.endswith(f"(see {parser.prog} --help)")
    assert len(usage) <= 3, "what was wrong stands out"
    if usage:
        assert usage[0].startswith(f"usage: {parser.prog} ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["mount", "D", "--watch-deadline", "x"], "'x' is no number of seconds from 0.1 to 60"),
        (["mount", "D", "--watch-deadline", "61"], "'61' is no number of seconds from 0.1 to 60"),
        (["status", "--watch", "x"], "'x' is no number of seconds above 0, up to a day"),
        (["status", "--watch", "0"], "'0' is no number of seconds above 0, up to a day"),
    ],
)
def test_seconds_that_are_none(words: list[str], text: str, capsys: Output) -> None:
    assert main(words) == 2
    assert text in capsys.readouterr().err


def test_a_wrong_bank_is_named_with_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(made(1) + made(2))
    with pytest.raises(FormatError, match="a list of bank sha1, not sha256") as caught:
        load.load(str(path), "sha256")
    assert caught.value.source == str(path)
    with pytest.raises(UsageError, match="'none' is no bank of a list"):
        load.load(str(path), "none")


def test_a_list_of_violations_alone_asks_for_its_bank(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"".join(made(n)[:4] + bytes(20) + made(n)[24:] for n in range(3)))
    with pytest.raises(FormatError, match=r"with --bank \(imafs mount: --load-bank\)"):
        load.load(str(path))
    # Where the named bank cannot be proved wrong, the place is what is said.
    with pytest.raises(FormatError, match="record 0, byte "):
        load.load(str(path), "sha256")
    assert len(load.load(str(path), "sha1").records) == 3


@pytest.mark.parametrize("text", ["", "K", "1T", "-1", "1.5M"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--cache"):
        mount.size(text)


@pytest.mark.parametrize("option", ["--banks", "--padded-banks"])
def test_no_bank_at_all(option: str, capsys: Output) -> None:
    assert main(["mount", "/D", option, ""]) == 2
    assert capsys.readouterr().err.startswith(f"imafs: {option}: '' is no PCR bank")


@pytest.mark.parametrize(
    ("words", "algorithm", "template", "said"),
    [
        ("--hash sha512 --template ima", "sha512", "ima-ng", "template does not support hash alg"),
        ("--template ima --hash sha512", "sha1", "ima", 'invalid hash algorithm "sha512"'),
        ("--template ima", "sha1", "ima", 'invalid hash algorithm "sha256"'),
        ("--template-fmt " + "|".join(["d-ng"] * 16), "sha256", "ima-ng", "too many fields"),
        ("--template-fmt " + "|".join(["d-ng"] * 15), "sha256", "|".join(["d-ng"] * 15), ""),
    ],
)
def test_hash_and_template_in_their_order(
    monkeypatch: pytest.MonkeyPatch, words: str, algorithm: str, template: str, said: str
) -> None:
    plan = planned(monkeypatch, "D", *words.split())
    assert plan.config.algorithm.name == algorithm
    assert plan.config.template.label == template
    assert plan.said[:1] == () if not said else said in plan.said[0]


def test_what_a_kernel_does_not_take_is_said_before_the_background(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr("imafs.cli.background.start", lambda *_: 0)
    assert main(["mount", "D", "--background", "--template", "ima", "--hash", "sha512"]) == 0
    assert "imafs: invalid hash algorithm" in capsys.readouterr().err
