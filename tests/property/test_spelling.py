# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Words of requests: what is spelled is read as what was meant, in every profile."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from imafs.errors import Refused
from imafs.formats.algorithms import ALGORITHMS
from imafs.interface.grammar import (
    Digits,
    Grammar,
    Operation,
    PathName,
    PcrSet,
    PcrValue,
    Request,
    Signed,
    Staging,
    Totalled,
    parse,
)
from imafs.interface.kstrtox import LONG_MAX
from imafs.interface.profiles import PROFILES
from imafs.kernel.profile_play import grammars

#: Every one once.
GRAMMARS = list(dict.fromkeys(g for profile in PROFILES for g in grammars(profile)))


def requests(grammar: Grammar) -> st.SearchStrategy[Request]:
    """All that ``grammar`` takes."""
    if isinstance(grammar, PathName):
        path = st.binary(max_size=253).map(lambda rest: b"/" + rest.replace(b"\0", b"0"))
        # A newline at the very end of the longest path is not seen.
        paths = path.filter(lambda one: len(one) < 254 or not one.endswith(b"\n"))
        return paths.map(lambda one: Request(Operation.EXPORT, path=one))
    if isinstance(grammar, PcrSet):
        value = st.sampled_from(ALGORITHMS).flatmap(
            lambda algorithm: st.builds(
                PcrValue,
                st.integers(0, 23),
                st.just(algorithm.name),
                st.binary(min_size=algorithm.digest_size, max_size=algorithm.digest_size),
            )
        )
        values = st.lists(value, min_size=1, max_size=4).map(tuple)
        return values.map(lambda all_: Request(Operation.DELETE_MATCHING, values=all_))
    if isinstance(grammar, Staging):
        return st.one_of(*_staging(grammar))
    most = 10**11 - 1 if isinstance(grammar, Digits | Signed) and grammar.longest < 20 else LONG_MAX
    # T and N together have 30 characters and a newline.
    most = 10**14 if isinstance(grammar, Totalled) else most
    return st.integers(0, most).map(lambda number: Request(Operation.DELETE_FIRST, number))


def _staging(grammar: Staging) -> list[st.SearchStrategy[Request]]:
    found = [st.just(Request(operation)) for _, operation in grammar.letters]
    least = 0 if grammar.zero else 1
    numbers = st.integers(least, grammar.largest).filter(lambda n: n != grammar.everything)
    for operation in (grammar.number, grammar.minus):
        if operation is not None:
            found.append(st.builds(Request, st.just(operation), numbers))
            if grammar.everything is not None:
                found.append(st.just(Request(operation)))
    return found


@given(data=st.data(), total=st.integers(0, 10**14))
def test_what_is_spelled_is_read_as_meant(data: st.DataObject, total: int) -> None:
    for grammar in GRAMMARS:
        request = data.draw(requests(grammar), label=grammar.text)
        words = grammar.spell(request, total)
        assert words is not None
        assert parse(grammar, words, 0, trimmed=total) == request


@given(
    words=st.one_of(
        st.from_regex(rb"\A[-+]?(0x)?[0-9]{1,20}\n?\Z"),
        st.from_regex(rb"\A[0-9]{1,12}:[0-9]{1,12}\n?\Z"),
        st.sampled_from([b"A\n", b"D\n", b"0\n", b"1\n", b"/x\n", b"/x", b"/x\n\n"]),
        st.binary(max_size=40),
    )
)
def test_what_is_read_can_be_spelled(words: bytes) -> None:
    for grammar in GRAMMARS:
        with suppress(Refused):
            request = parse(grammar, words, 0, trimmed=None)
            total = int(words.partition(b":")[0]) if isinstance(grammar, Totalled) else 0
            again = grammar.spell(request, total)
            assert again is not None
            assert parse(grammar, again, 0, trimmed=None) == request


def test_what_a_profile_does_not_take_has_no_words() -> None:
    everything = [Request(operation, number) for operation in Operation for number in (None, 3)]
    spoken = {
        profile.name: sum(
            any(grammar.spell(one) is not None for grammar in grammars(profile))
            for one in everything
            if one.operation not in (Operation.EXPORT, Operation.DELETE_MATCHING)
        )
        for profile in PROFILES
    }
    # A, D and N; rfc-v2 has -N and "all" for both numbers, rfc-v1 for its one.
    assert spoken == {
        **dict.fromkeys(("mainline", "v5", "v4", "v3"), 3),
        **{"rfc-v2": 5, "rfc-v1": 3, "snap": 2, "legacy": 0, "legacy-single": 0},
        **dict.fromkeys(("trim-v5", "trim-v4", "trim-v3", "trim-v2", "trim-v1", "flush-2020"), 1),
        **dict.fromkeys(("pcrs-2025", "export-2020", "export-2019", "export-rfc"), 0),
    }
