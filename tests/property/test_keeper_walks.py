# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Random walks of a keeper through everything that may happen (:mod:`keepermodel`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.property.keepermodel import Broken, Walk, setting
from tests.support import may_take

#: What must have come up in so many walks, or they say nothing.
SEEN = (
    *("crash", "killed", "kexec", "cut", "reboot", "foreign", "foreign extend", "disk error"),
    *("hibernation", "rolled back", "served", "refused"),
    *("found same life", "found new life", "found gap", "found pcr diverged", "found pcr reset"),
    *("found rolled back", "found suspended", "found undecided"),
)


def walked(seeds: Iterable[int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            counts += Walk(seed, setting(seed)).run()
        except Broken as broken:
            pytest.fail(f"walk {seed}: {broken}")
    return counts


@pytest.mark.parametrize("part", range(8))
def test_walks(part: int) -> None:
    counts = walked(range(part * 250, (part + 1) * 250))
    assert not [what for what in SEEN if not counts[what]]


#: Walks that were not explained once: machines that hibernated or were restored from a snapshot and
#: made records again that are equal byte by byte to stored ones, and kernels without a TPM.
ONCE_UNEXPLAINED = (
    *(3025, 5378, 5680, 5789, 6889, 7711),
    *(8541, 10132, 12199, 13597, 13768),
    *(20110, 21471, 22386, 23197),
    *(1386, 25099, 26440),
)


@pytest.mark.parametrize("seed", ONCE_UNEXPLAINED)
def test_what_was_not_explained_once(seed: int) -> None:
    walked([seed])


#: Walks that are not explained yet: violations that are alike, of which some were pending when the
#: PCR began anew (56728, 60272); a carry that was cut in front of a record for a PCR that does not
#: decide, without which the list leads from zero to the one that does (61559).
UNEXPLAINED = {56728, 60272, 61559}


@pytest.mark.parametrize("seed", sorted(UNEXPLAINED))
def test_what_is_not_explained(seed: int) -> None:
    """They still end so: one that is mended is taken from the list."""
    with pytest.raises(Broken):
        Walk(seed, setting(seed)).run()


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(100))
def test_many_walks(part: int) -> None:
    may_take(900)
    first = part * 1_000
    walked(seed for seed in range(first, first + 1_000) if seed not in UNEXPLAINED)
