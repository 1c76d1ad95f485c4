# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``--from [BANK:]VALUE``: what a PCR had before the first record of a list."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from imafs.attest.pcrvalues import Collected
from imafs.errors import FormatError
from imafs.lists.replay import PcrValues


def start(text: str) -> tuple[str | None, str]:
    """A bank, None where the size of the value says it, and digits."""
    bank, colon, digits = text.rpartition(":")
    found = Collected(None)
    try:
        found.add(bank if colon else None, 0, digits, f"{text!r}")
    except FormatError as error:
        raise argparse.ArgumentTypeError(error.reason) from None
    return (bank if colon else None), digits


def values(given: Sequence[tuple[str | None, str]], pcr: int) -> PcrValues:
    """The values that were given, of ``pcr``."""
    found = Collected(None)
    for bank, digits in given:
        found.add(bank, pcr, digits, "--from")
    return found.values
