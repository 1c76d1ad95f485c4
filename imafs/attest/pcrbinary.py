# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values as tpm2-tools write them in binary.

``tpm2_quote -o`` and ``tpm2_pcrread -F serialized -o`` write the structures of tpm2-tss as they
are in memory, little endian (tpm2-tools 5.4 lib/pcr.c, ``pcr_fwrite_serialized``): which banks and
PCRs, then their values. ``tpm2_pcrread -o`` and ``tss2_pcrread`` alone write values that belong to
nobody: 84 bytes are PCRs 10 of SHA-1 and SHA-256 with one more, or something else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from imafs.attest.pcrvalues import Collected, bank_by_id
from imafs.errors import FormatError

#: TPML_PCR_SELECTION: a count and 16 TPMS_PCR_SELECTION (hash, size, bitmap of 4 bytes, a pad).
_SELECTION = struct.Struct("<HB4sx")
_SELECTIONS = 16
#: TPML_DIGEST: a count and 8 TPM2B_DIGEST of a size and 64 bytes.
_DIGEST = struct.Struct("<H64s")
_DIGESTS = 8
_COUNT = struct.Struct("<I")
_HEAD = _COUNT.size + _SELECTIONS * _SELECTION.size + _COUNT.size
_PIECE = _COUNT.size + _DIGESTS * _DIGEST.size
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
        places, values = list(_selected(data)), list(_values(data))
    except (struct.error, ValueError):
        raise FormatError(RAW, source=found.source) from None
    if not places or len(places) != len(values):
        raise FormatError(RAW, source=found.source)
    for (bank, pcr), value in zip(places, values, strict=True):
        found.add(bank, pcr, value.hex(), f"{bank}:{pcr}")


def _selected(data: bytes) -> Iterator[tuple[str, int]]:
    """Bank and PCR of each value, in their order. Raises ValueError, struct.error."""
    (count,) = _COUNT.unpack_from(data)
    if count > _SELECTIONS:
        raise ValueError
    for number in range(count):
        identifier, size, bitmap = _SELECTION.unpack_from(
            data, _COUNT.size + number * _SELECTION.size
        )
        bank = bank_by_id(identifier)
        if bank is None or size > len(bitmap):
            raise ValueError
        for pcr in range(8 * size):
            if bitmap[pcr // 8] >> pcr % 8 & 1:
                yield bank, pcr


def _values(data: bytes) -> Iterator[bytes]:
    (pieces,) = _COUNT.unpack_from(data, _HEAD - _COUNT.size)
    if len(data) != _HEAD + pieces * _PIECE:
        raise ValueError
    for at in range(_HEAD, len(data), _PIECE):
        (count,) = _COUNT.unpack_from(data, at)
        if count > _DIGESTS:
            raise ValueError
        for number in range(count):
            size, value = _DIGEST.unpack_from(data, at + _COUNT.size + number * _DIGEST.size)
            if size > len(value):
                raise ValueError
            yield value[:size]
