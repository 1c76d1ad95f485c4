# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The fuzz targets of bundles, on their corpus and a few hundred changes of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imafs.attest.bundle import decode
from tests.fuzz import bundles

SEEDS = sorted(bundles.CORPUS.glob("*.tar"))


def test_the_corpus_is_there() -> None:
    assert len(SEEDS) == 3


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_the_corpus_and_what_is_like_it(path: Path) -> None:
    seed = path.read_bytes()
    bundles.bundles(seed)
    chance = random.Random(8)
    found = decode(seed)
    inner = [found.message, found.signature, found.pcrs, found.key or b"", found.records]
    for number in range(150):
        for target, data in ((bundles.bundles, seed), (bundles.pieces, inner[number % 5])):
            changed = bytearray(data)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            target(bytes(changed))
