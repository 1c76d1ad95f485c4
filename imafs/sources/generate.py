# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Synthetic load: distinct records without files behind them."""

from __future__ import annotations

from collections.abc import Iterator
from os import fsencode

from imafs.formats.algorithms import SHA1, HashAlgorithm
from imafs.formats.fields import Measurement

#: What generated names begin with unless told otherwise.
PREFIX = "/usr/lib/imafs/generated/"


def generate(
    count: int,
    algorithm: HashAlgorithm,
    *,
    prefix: str = PREFIX,
    start: int = 0,
    want_sha1: bool = False,
) -> Iterator[Measurement]:
    """``count`` measurements named ``<prefix><number>``; the name is the content hashed.

    ``start`` is the first number: the same prefix and number is the same record.
    """
    make, begin = algorithm.constructor(), fsencode(prefix)
    for number in range(start, start + count):
        name = begin + b"%08d" % number
        digest = make(name).digest()
        yield Measurement(name, algorithm, digest, sha1=SHA1.digest(name) if want_sha1 else None)
