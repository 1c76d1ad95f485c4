# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Random walks of a keeper through everything that may happen (:mod:`keepermodel`)."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.property.keepermodel import Broken, Walk, setting

#: What must have come up in so many walks, or they say nothing.
SEEN = (
    *("crash", "killed", "kexec", "cut", "reboot", "foreign", "foreign extend", "disk error"),
    *("hibernation", "rolled back", "served", "refused"),
    *("found same life", "found new life", "found gap", "found pcr diverged", "found pcr reset"),
    *("found rolled back", "found suspended", "found undecided"),
)


def walked(seeds: range) -> Counter[str]:
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


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(98))
def test_many_walks(part: int) -> None:
    walked(range(2_000 + part * 1_000, 2_000 + (part + 1) * 1_000))
