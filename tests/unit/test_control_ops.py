# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The table of operations and the validation that follows from it."""

from __future__ import annotations

import pytest

from imafs.control.ops import RESERVED
from imafs.errors import UsageError
from imafs.verbs.table import TABLE

GOOD: list[tuple[str, dict[str, object]]] = [
    ("measure", {"paths": ["/a", "/b"]}),
    ("measure", {"paths": ["/a"], "name": "other"}),
    ("measure", {"digest": "sha256:00", "name": "x"}),
    ("measure", {"paths": ["/odd\udcff"]}),
    ("critical_data", {"label": "l", "name": "n", "data": ""}),
    ("critical_data", {"label": "l", "name": "n", "data": "00fF"}),
    ("generate", {"count": 0}),
    ("wait", {}),
    ("wait", {"records": 5, "extended": True, "timeout": 3}),
    ("status", {}),
]

BAD: list[tuple[str, dict[str, object], str]] = [
    ("fly", {}, "op: unknown operation 'fly'"),
    ("status", {"verbose": True}, "status: unknown option 'verbose'"),
    ("status", {"verbose": None}, "status: unknown option 'verbose'"),
    ("violation", {}, "violation: name: missing"),
    ("violation", {"name": None}, "violation: name: missing"),
    ("violation", {"name": 3}, "violation: name: expected a string, got an integer"),
    ("violation", {"name": "a\0b"}, "violation: name: contains a NUL character"),
    ("violation", {"name": "a\ud800"}, "violation: name: character 1 is a surrogate"),
    ("generate", {"count": True}, "generate: count: expected an integer, got a boolean"),
    ("generate", {"count": 1.0}, "generate: count: expected an integer, got a number"),
    ("generate", {"count": -1}, "generate: count: not within 0 and "),
    ("generate", {"count": 2**63}, "generate: count: not within 0 and "),
    ("wait", {"extended": 1}, "wait: extended: expected true or false, got an integer"),
    ("load", {"file": "relative"}, "load: file: not an absolute path"),
    ("load", {"file": ""}, "load: file: not an absolute path"),
    ("measure", {}, "measure: give exactly one of paths, digest"),
    ("measure", {"paths": ["/a"], "digest": "x", "name": "n"}, "measure: give exactly one of"),
    ("measure", {"paths": "/a"}, "measure: paths: expected a list of paths, got a string"),
    ("measure", {"paths": []}, "measure: paths: the list is empty"),
    ("measure", {"paths": ["/a", {}]}, "measure: paths: item 1: expected a string, got an object"),
    ("measure", {"paths": ["/a", "b"]}, "measure: paths: item 1: not an absolute path"),
    ("measure", {"paths": ["/a", "/b"], "name": "n"}, "measure: name: fits one path only, not 2"),
    ("measure", {"digest": "sha256:00"}, "measure: name: missing (digest needs it)"),
    ("critical_data", {"label": "l", "name": "n"}, "critical_data: give exactly one of file, data"),
    ("critical_data", {"label": "l", "name": "n", "data": "0"}, "data: not pairs of hexadecimal"),
    ("critical_data", {"label": "l", "name": "n", "data": "00\n"}, "data: not pairs of hexa"),
]


@pytest.mark.parametrize(("op", "options"), GOOD)
def test_good_options_come_back(op: str, options: dict[str, object]) -> None:
    assert TABLE.validate(op, options) == options


@pytest.mark.parametrize(("op", "options", "text"), BAD)
def test_bad_options_are_named(op: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TABLE.validate(op, options)
    assert text in str(caught.value)


def test_null_counts_as_left_out() -> None:
    assert TABLE.validate("load", {"file": "/f", "bank": None}) == {"file": "/f"}


def test_the_operations_are_these() -> None:
    assert set(TABLE) == {
        *("measure", "violation", "critical_data", "generate", "repeat", "load", "wait"),
        *("watch", "unwatch"),
        *("status", "suspend", "resume", "reset", "stop", "hello"),
        *("fault", "fault_clear", "fault_list", "tpm", "agent", "scenario", "scenario_end"),
        *("kexec_load", "kexec_execute", "kexec_finish", "kexec_buffer", "reboot"),
    }


def test_rules_speak_of_existing_options() -> None:
    for operation in TABLE.values():
        names = [option.name for option in operation.options]
        assert len(set(names)) == len(names)
        assert not RESERVED & set(names)
        mentioned = {*operation.exactly_one, *(name for pair in operation.needs for name in pair)}
        assert mentioned <= set(names)


def test_markdown_has_every_operation_and_option() -> None:
    rows = TABLE.markdown().splitlines()[2:]
    assert len(rows) == len(TABLE)
    for row, operation in zip(rows, TABLE.values(), strict=True):
        assert row.startswith(f"| `{operation.verb}")
        assert row.replace(r"\|", "").count("|") == 4  # an escaped one ends no cell
        for option in operation.options:
            assert f"`{option.name}` {option.kind.value}" in row
            assert option.cli in row.replace(r"\|", "|")
