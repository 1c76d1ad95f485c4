# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which event a write is: the request that it is in the grammar of its file, in every profile."""

from __future__ import annotations

import pytest

from imafs.interface.grammar import Grammar, Operation, PcrValue, Request, asked
from imafs.interface.profiles import PROFILES, Profile, lookup
from imafs.scenarios.events import EVENTS, REQUESTS

_SET = b"pcr10:sha1:" + bytes(20)

#: profile -> file that takes requests -> words and what they are. A number and a letter mean
#: in one draft what they do not in the next.
TABLE: dict[str, dict[str, dict[bytes, str | None]]] = {
    "mainline": {
        "current": {b"5\n": "trim", b"+5\n": "trim", b"A\n": None, b"D\n": None, b"5": None},
        "staged": {b"A\n": "stage", b"D\n": "delete", b"5\n": None, b"A": None, b"-5\n": None},
    },
    "v5": {
        "current": {b"A\n": "stage", b"5\n": "trim", b"D\n": None, b"0\n": None},
        "staged": {b"D\n": "delete", b"A\n": None, b"5\n": None},
    },
    "v4": {"staged": {b"A\n": "stage", b"D\n": "delete", b"5\n": "trim", b"-5\n": None}},
    "v3": {"staged": {b"A\n": "stage", b"D\n": "delete", b"5\n": "delete", b"0x5\n": None}},
    "rfc-v2": {
        "staged": {
            **{b"A\n": "stage", b"D\n": "delete", b"5\n": "stage", b"0x5\n": "stage"},
            **{b"-5\n": "trim", b"9223372036854775807\n": "stage", b"-0x5\n": "trim"},
        }
    },
    "rfc-v1": {
        "staged": {
            **{b"A\n": "stage", b"D\n": "delete", b"5\n": "stage", b"5": None, b"55": "stage"},
            **{b"18446744073709551615\n": "stage", b"-5\n": None, b"A\nrest": "stage"},
        }
    },
    "snap": {"staged": {b"0\n": "stage", b"1\n": "delete", b"A\n": None, b"2\n": None}},
    "trim-v5": {"ima_trim_log": {b"7:3\n": "trim", b"0:3": "trim", b"3\n": None, b"7:\n": None}},
    "trim-v4": {"ima_trim_log": {b"7:3\n": "trim", b"3\n": None, b"A\n": None}},
    "trim-v3": {"ima_trim_log": {b"3\n": "trim", b"-3\n": None, b"7:3\n": None}},
    "trim-v2": {"ima_trim_log": {b"03": "trim", b"3\n": None}},
    "trim-v1": {"ima_trim_log": {b"03": "trim", b"3\n": None, b"A\n": None}},
    "pcrs-2025": {"pcrs": {_SET: "trim", _SET + _SET: "trim", _SET[:-1]: None, b"5\n": None}},
    "flush-2020": {"flush_measurements": {b"3": "trim", b"0x3\n": "trim", b"-3\n": None}},
    **{
        name: {"list_name": {b"/tmp/list\n": "export", b"/tmp/list": "export", b"list\n": None}}
        for name in ("export-2020", "export-2019", "export-rfc")
    },
    "legacy": {},
    "legacy-single": {},
}


def grammars(profile: Profile) -> dict[str, Grammar]:
    """The grammar of every file that takes requests."""
    found = {"current": profile.current.grammar}
    if profile.staged is not None:
        found["staged"] = profile.staged.grammar
    found |= {file.name: file.grammar for file in profile.requests}
    return {name: grammar for name, grammar in found.items() if grammar is not None}


def event(grammar: Grammar, data: bytes) -> str | None:
    operation = asked(grammar, data)
    return None if operation is None else REQUESTS[operation]


@pytest.mark.parametrize("name", TABLE)
def test_every_request_of_every_profile_gives_its_event(name: str) -> None:
    found = grammars(lookup(name))
    assert found.keys() == TABLE[name].keys()
    for file, rows in TABLE[name].items():
        assert {data: event(found[file], data) for data in rows} == rows


def test_the_table_has_every_profile_and_every_request_of_it() -> None:
    assert set(TABLE) == {profile.name for profile in PROFILES}
    several = (PcrValue(10, "sha1", bytes(20)),)
    for profile in PROFILES:
        for file, grammar in grammars(profile).items():
            requests = [
                *(Request(operation, number) for operation in Operation for number in (None, 5)),
                Request(Operation.EXPORT, path=b"/tmp/list"),
                Request(Operation.DELETE_MATCHING, values=several),
            ]
            spoken = {REQUESTS[one.operation] for one in requests if grammar.spell(one)}
            told = set(TABLE[profile.name][file].values()) - {None}
            assert spoken == told, (profile.name, file)


def test_a_request_that_the_state_refuses_is_one_all_the_same() -> None:
    """``refused trim`` is due where another total is the right one."""
    grammar = grammars(lookup("trim-v5"))["ima_trim_log"]
    assert event(grammar, b"999:1\n") == "trim"


def test_every_request_has_its_three_events() -> None:
    assert set(REQUESTS) == set(Operation)
    for what in REQUESTS.values():
        assert {f"{phase} {what}" for phase in ("before", "after", "refused")} <= set(EVENTS)
