# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The policy language under any input: only Refused leaves the parser, and text comes back."""

from __future__ import annotations

import errno
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from imafs.errors import Refused
from imafs.kernel.policy.language import Words, parse
from imafs.kernel.policy.match import Access, Policy
from imafs.kernel.policy.policy_file import Closed, PolicyConfig, PolicyFile, file_rules
from imafs.kernel.policy.rules import FUNCTIONS, LSM, MASKS, Action, Rule

_NAMES = (
    *("func", "mask", "fsmagic", "fsname", "fs_subtype", "fsuuid", "keyrings", "label"),
    *("digest_type", "appraise_type", "appraise_flag", "appraise_algos", "pcr", "template"),
    *LSM,
)
_VALUES = st.one_of(
    st.sampled_from([*FUNCTIONS, *MASKS, *(f"^{mask}" for mask in MASKS)]),
    st.sampled_from(["verity", "imasig", "sigv3", "imasig|modsig", "sha256,sha1", "ima-sig"]),
    st.sampled_from(["8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6", ".ima|.evm", "d-ng|n-ng", "0x9fa0"]),
    st.integers(0, 2**32).map(str),
    st.text("aäx0|=^#\x7f", min_size=0, max_size=70),
)
_TOKENS = st.one_of(
    st.sampled_from([action.value for action in Action]),
    st.just("permit_directio"),
    st.builds("{}={}".format, st.sampled_from(_NAMES), _VALUES),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["uid", "euid", "gid", "egid", "fowner", "fgroup"]),
        st.sampled_from("=<>"),
        st.one_of(st.integers(0, 2**31 - 1).map(str), st.text(max_size=5)),
    ),
)
_LINES = st.builds(
    lambda action, tokens: " ".join([action, *tokens]).encode("utf-8", "surrogatepass"),
    st.sampled_from([action.value for action in Action]),
    st.lists(_TOKENS, max_size=6),
)
_WORDS = st.builds(Words, lsm=st.booleans(), modsig=st.booleans(), keys=st.booleans())


def attempt(line: bytes, words: Words, *, custom: bool = False) -> Rule | None:
    """The rule, or None; anything but the kernel's two errnos fails the test."""
    code = None
    try:
        return parse(line, words, custom=custom)
    except Refused as refused:
        code = refused.errno
    assert code in (errno.EINVAL, errno.ERANGE)
    return None


@given(st.binary(max_size=200), _WORDS, st.booleans())
def test_any_bytes(line: bytes, words: Words, custom: bool) -> None:
    attempt(line, words, custom=custom)


@settings(max_examples=400)
@given(_LINES, _WORDS)
def test_what_is_printed_is_parsed_to_the_same_text(line: bytes, words: Words) -> None:
    rule = attempt(line, words)
    if rule is None:
        return
    text = rule.encoded()
    assert text.endswith(b" \n")
    again = parse(text, words)
    assert again is not None
    assert again.encoded() == text
    # What was cut (names of 64 bytes on) and types that hide another are the only losses.
    if not re.search(rb"fs(name|_subtype)=\S{63}", text) and not rule.sigv3:
        assert again == rule
    assert parse(Policy((rule,)).source(), words) == rule


@given(st.lists(_LINES, max_size=4), st.lists(_LINES, max_size=4))
def test_a_session_is_taken_whole_or_not_at_all(first: list[bytes], second: list[bytes]) -> None:
    file = PolicyFile(PolicyConfig())
    shown = b""
    for lines in (first, second):
        file.open_write()
        good = True
        for line in lines:
            try:
                assert file.write(file.accept(line, 0)) <= len(line) + 1
            except Refused:
                good = False
        before, rules = shown, len(file.active.rules) if file.active else 0
        if file.close_write() is Closed.FAILED:
            assert not good or not lines or file.text() == before
            assert file.text() == before
        else:
            assert good
            shown = file.text()
            assert shown.startswith(before)
            assert file.active is not None
            assert len(file.active.rules) > rules


def by_lines(content: bytes, words: Words) -> list[Rule] | int:
    """As the kernel takes line after line off the rest (``ima_read_policy``), or the errno."""
    rules = []
    while content:
        line = content.split(b"\0", 1)[0].split(b"\n", 1)[0]
        try:
            rule = parse(line, words)
        except Refused as refused:
            return refused.errno
        rules += [rule] if rule is not None else []
        end = content[len(line) :][:1]
        if not end or (end == b"\0" and len(content) > len(line) + 1):
            return errno.EINVAL
        content = content[len(line) + 1 :]
    return rules


@given(
    st.lists(st.one_of(_LINES, st.sampled_from([b"", b"# c", b" "])), max_size=5),
    st.sampled_from([b"\n", b"\n\n", b"\0", b""]),
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(b"\0\n")), max_size=1),
    _WORDS,
)
def test_a_file_is_its_lines(
    lines: list[bytes], last: bytes, changes: list[tuple[int, int]], words: Words
) -> None:
    content = bytearray(b"\n".join(lines) + last)
    for at, byte in changes:
        content[at : at + 1] = bytes((byte,))
    expected = by_lines(bytes(content), words)
    found: list[Rule] | int
    try:
        found = file_rules(bytes(content), words, custom=False)
    except Refused as refused:
        found = refused.errno
    assert found == expected


@given(st.lists(_LINES, max_size=8), st.sampled_from(FUNCTIONS), st.integers(0, 15))
def test_the_first_matching_rule_decides(lines: list[bytes], func: str, mask: int) -> None:
    rules = tuple(rule for line in lines if (rule := attempt(line, Words())) is not None)
    access = Access(func, mask, label="a")
    decision = Policy(rules).decide(access)
    single = [Policy((rule,)).decide(access) for rule in rules]
    first = next((n for n, one in enumerate(single, 1) if one.rule is not None), 0)
    assert decision.number == first
    if first:
        assert decision.measure == single[first - 1].measure
        assert decision.rule is rules[first - 1]
