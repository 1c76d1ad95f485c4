# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Messages between watcher and listener."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imafs.errors import FormatError
from imafs.kernel.audit import Task
from imafs.sources.watch import messages
from imafs.sources.watch.messages import decode, encode

MESSAGES: tuple[messages.Message, ...] = (
    messages.Settings("sha256", True, ((1, 100), (2, 200)), "d-ng|n-ng"),
    messages.Rules(b"measure func=BPRM_CHECK \n"),
    messages.Watch(
        3,
        (b"/a", b"/b\xff\n"),
        (b"/a", b"/b\xff\n", b"/a/mnt"),
        (messages.FileSystem(2049, 0xEF53, "ext4", "", bytes(16), b"vda1"),),
        (b"/b\xff\n",),
        (b"/a/dead",),
        (b"/a",),
    ),
    messages.Watch(4, (), (), ()),
    messages.Done(7),
    messages.Forget(),
    messages.Ask(),
    messages.Watching(3, 22, ((b"/a/mnt", 22),)),
    messages.Use(8, b"/a/x", ((-1, ""), (11, "ima-sig")), 0, 5, 0o100644, b"d", b"", b"s", b""),
    messages.Missed(3, b"/a/x\n", "it cannot be read", -1),
    messages.Mounted(),
    messages.Violation(9, b"/a/x", "ToMToU"),
    messages.Violation(9, b"/a/x", "ToMToU", Task(7, 0, b"a b\n", 1000, 3), b"vda1", 12),
    messages.Counters(events=5, pid=12, ignoring=False, trouble="OSError(5)"),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message: messages.Message) -> None:
    assert decode(encode(message)) == message


def test_every_message_is_tested() -> None:
    kinds = set(messages.ToListener.__args__) | set(messages.ToWatcher.__args__)
    assert {type(message) for message in MESSAGES} == kinds


@given(st.binary(max_size=4200), st.integers(0, 2**63), st.sampled_from(["open_writers", "ToMToU"]))
def test_any_name(name: bytes, number: int, cause: str) -> None:
    message = messages.Violation(number, name, cause)
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_nonsense(packet: bytes) -> None:
    try:
        decode(packet)
    except FormatError:
        return
    raise AssertionError("nonsense was taken for a message")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@given(st.sampled_from(["Done", "Use", "Watch", "Settings", "None", ""]), st.lists(_JSON))
def test_wrong_values(name: str, values: list[object]) -> None:
    """No error but FormatError, whatever the values are."""
    try:
        decode(json.dumps([name, *values]).encode())
    except FormatError:
        return
