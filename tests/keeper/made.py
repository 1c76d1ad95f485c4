# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Records as a kernel's SHA-1 binary list has them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from imafs.formats.algorithms import SHA1
from imafs.formats.binary import Record, encode
from imafs.formats.templates import TEMPLATES
from imafs.keeper.catalogue import Catalogue
from imafs.keeper.chunks import Absent
from imafs.lists.banks import View

T = TypeVar("T")


def waited(catalogue: Catalogue, look: Callable[[], T]) -> T:
    """What ``look`` returns, with the chunks that it needs read meanwhile."""
    kept = []
    while True:
        try:
            return look()
        except Absent as absent:
            kept.append(catalogue.hold(absent, catalogue.reading(absent)()))


def pieces(catalogue: Catalogue, view: View) -> Iterator[bytes]:
    """All that a catalogue has, run by run."""
    at = 0
    while (found := waited(catalogue, partial(catalogue.run, view, at))) is not None:
        run, first = found
        yield bytes(run.data[run.offsets[first] : run.offsets[-1]])
        at += len(run.offsets) - 1 - first
    assert at == len(catalogue)


def record(name: str, pcr: int = 10, *, digest: bytes | None = None) -> bytes:
    """One of template ima-ng."""
    template = TEMPLATES["ima-ng"]
    digest = SHA1.digest(name.encode()) * 2 if digest is None else digest
    parts = [b"sha256:\0" + digest[:32].ljust(32, b"\0"), name.encode() + b"\0"]
    data = template.join(parts)
    return encode(Record(pcr, template, data), template.digest(data, SHA1))


def violation(name: str, pcr: int = 10) -> bytes:
    """The record of a violation: zeros where others have digests."""
    template = TEMPLATES["ima-ng"]
    data = template.join([b"sha256:\0" + bytes(32), name.encode() + b"\0"])
    return encode(Record(pcr, template, data, violation=True), bytes(20))


def some(rng: random.Random, number: int, first: int) -> list[bytes]:
    """``number`` records, the numbers in their names from ``first`` on."""
    return [
        violation(f"/v/{at}")
        if rng.random() < 0.1
        else record(f"/f/{at}" + "x" * rng.randrange(40))
        for at in range(first, first + number)
    ]
