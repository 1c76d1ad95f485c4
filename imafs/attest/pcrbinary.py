# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values as tpm2-tools write them in binary.

``tpm2_quote -o`` and ``tpm2_pcrread -F serialized -o`` write which banks and PCRs, then their
values (:func:`imafs.attest.quote.parse_pcrs`). ``tpm2_pcrread -o`` and ``tss2_pcrread`` alone
write values that belong to nobody: 84 bytes are PCRs 10 of SHA-1 and SHA-256 with one more, or
something else.
"""

from __future__ import annotations

import re

from imafs.attest import quote
from imafs.attest.pcrvalues import Collected
from imafs.errors import FormatError

#: What no text has. Escape sequences of a terminal may be in one.
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")

RAW = (
    "is binary, such as tpm2_pcrread -o and tss2_pcrread write: it does not say of which banks and "
    "PCRs the values are. Keep what tpm2_pcrread prints (tpm2_pcrread > FILE), or add -F "
    "serialized"
)


def is_binary(data: bytes) -> bool:
    """Whether this is no text."""
    return not data.startswith((b"\xff\xfe", b"\xfe\xff")) and bool(_CONTROL.search(data))


def collect(data: bytes, found: Collected) -> None:
    """Adds the values of serialized PCRs. Raises :class:`FormatError` for anything else."""
    try:
        banks = quote.parse_pcrs(data).by_bank()
    except FormatError:
        banks = {}
    rows = [(bank, pcr, value) for bank, row in banks.items() for pcr, value in row.items()]
    if not rows:
        raise FormatError(RAW, source=found.source)
    for bank, pcr, value in rows:
        found.add(bank, pcr, value.hex(), f"{bank}:{pcr}")
