# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The firmware's log (``binary_bios_measurements``): what explains ``boot_aggregate``.

Formats: TCG PC Client Platform Firmware Profile, 10.2: TCG_PCR_EVENT (SHA-1) and, behind a
``Spec ID Event03``, TCG_PCR_EVENT2 with a digest per bank. All numbers are little endian.
boot_aggregate is the hash over PCR 0 to 9, before Linux 5.8 and with SHA-1 over 0 to 7
(ima_crypto.c, ``ima_calc_boot_aggregate_tfm``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from imafs.attest.quote import bank_name
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, HashAlgorithm, by_tpm_id
from imafs.lists.replay import PcrValues

_NO_ACTION = 3  # EV_NO_ACTION: extends nothing
_SPEC = b"Spec ID Event03\0"
_LOCALITY = b"StartupLocality\0"
_MOST_EVENTS = 100_000
#: PCRs of boot_aggregate, newest rule first.
AGGREGATED = (range(10), range(8))


class Boot(enum.Enum):
    """What is known of a boot_aggregate."""

    MATCHES = "matches"
    DIFFERS = "differs"
    #: Digests of zero: that kernel had no TPM.
    BYPASS = "no TPM"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Log:
    """PCRs as the log's events leave them, and how many events that are."""

    events: int
    pcrs: PcrValues


class _Take:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def bytes(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            raise FormatError(f"the log ends inside {what}", offset=self.at)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.bytes(size, what), "little")


def read(data: bytes) -> Log:
    """Replays a log. Raises :class:`FormatError`."""
    take = _Take(data)
    pcrs: dict[str, dict[int, bytes]] = {}
    sizes: dict[int, int] | None = None
    events = 0
    while take.at < len(data):
        begin = take.at
        pcr, kind = take.number(4, "a PCR number"), take.number(4, "an event's type")
        digests = _digests(take, sizes)
        event = take.bytes(take.number(4, "an event's size"), "an event")
        events += 1
        if pcr > 23 or events > _MOST_EVENTS:
            raise FormatError(f"PCR {pcr} in event {events}", offset=begin)
        if kind == _NO_ACTION:
            if begin == 0 and event.startswith(_SPEC):
                sizes = _sizes(event)
            elif event.startswith(_LOCALITY) and len(event) == 17 and pcr == 0:
                _begin(pcrs, sizes, event[16])
            continue
        for tpm_id, digest in digests.items():
            algorithm = by_tpm_id(tpm_id)
            if algorithm is not None and algorithm.available:
                values = pcrs.setdefault(bank_name(tpm_id), {})
                before = values.get(pcr, bytes(len(digest)))
                values[pcr] = algorithm.digest(before + digest)
    return Log(events, pcrs)


def _digests(take: _Take, sizes: Mapping[int, int] | None) -> dict[int, bytes]:
    if sizes is None:
        return {0x0004: take.bytes(20, "a digest")}
    count = take.number(4, "the number of digests")
    if count > len(sizes):
        raise FormatError(f"{count} digests of {len(sizes)} banks", offset=take.at - 4)
    found: dict[int, bytes] = {}
    for _ in range(count):
        tpm_id = take.number(2, "a digest's algorithm")
        if tpm_id not in sizes or tpm_id in found:
            raise FormatError(f"a digest of algorithm {tpm_id:#06x}", offset=take.at - 2)
        found[tpm_id] = take.bytes(sizes[tpm_id], "a digest")
    return found


def _sizes(event: bytes) -> dict[int, int]:
    """Digest sizes by TPM_ALG_ID from a TCG_EfiSpecIDEvent."""
    take = _Take(event)
    take.bytes(24, "Spec ID Event03")
    count = take.number(4, "the number of algorithms")
    if count > 16:
        raise FormatError(f"{count} algorithms", offset=take.at)
    found = {}
    for _ in range(count):
        tpm_id = take.number(2, "an algorithm")
        size = take.number(2, "a digest's size")
        known = by_tpm_id(tpm_id)
        if not 0 < size <= 64 or (known is not None and known.digest_size != size):
            raise FormatError(f"digests of {size} bytes for {tpm_id:#06x}", offset=take.at)
        found[tpm_id] = size
    return found


def _begin(pcrs: dict[str, dict[int, bytes]], sizes: Mapping[int, int] | None, last: int) -> None:
    """PCR 0 begins with the locality that started the TPM (part 1, 12.2.3.2.1)."""
    for tpm_id, size in (sizes or {0x0004: 20}).items():
        algorithm = by_tpm_id(tpm_id)
        if algorithm is not None:
            value = bytes(size - 1) + bytes([last])
            pcrs.setdefault(bank_name(tpm_id), {}).setdefault(0, value)


def boot_aggregate(
    algorithm: HashAlgorithm, digest: bytes, pcrs: PcrValues, *, complete: bool = False
) -> Boot:
    """Whether ``digest`` is the hash over these PCRs of the bank of ``algorithm``.

    ``complete``: PCRs that are not among them are zero (a log names only those that it extends).
    """
    if not any(digest):
        return Boot.BYPASS
    # Of a bank without a hash of its own SHA-1 is taken, and of SHA-1 there is only 0 to 7.
    values = pcrs.get(algorithm.name, {})
    known = False
    for wanted in AGGREGATED if algorithm is not SHA1 else AGGREGATED[::-1]:
        if not values or (not complete and any(pcr not in values for pcr in wanted)):
            continue
        known = True
        zero = bytes(algorithm.digest_size)
        if algorithm.digest(b"".join(values.get(pcr, zero) for pcr in wanted)) == digest:
            return Boot.MATCHES
    return Boot.DIFFERS if known else Boot.UNKNOWN
