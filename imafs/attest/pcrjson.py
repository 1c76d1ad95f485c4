# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values in JSON, of whatever shape: objects by bank and number, or rows.

``{"sha256": {"10": HEX}}``, ``{"pcrs": {"10": HEX}, "hash_alg": "sha256"}`` and
``[{"pcr": 10, "bank": "sha256", "value": HEX}]`` (``imafs status --json``) and
``[{"nr": 10, "sha256": HEX}]`` (``systemd-analyze pcrs --json=short``) are read, and TCG's
``{"pcr": 10, "digests": [{"hashAlg": "sha256", "digest": HEX}]}``; digests may be base64, as
programs in Go write byte strings. What is no PCR value is passed over: attestations hold much
else. The records of an event log have the same shape as PCR values: a log is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from imafs.attest.pcrvalues import Collected, bank_named
from imafs.errors import FormatError

_NUMBER = re.compile(r"(?:pcr)?[-_ ]?0*(\d{1,2})", re.I)
_HEX = re.compile(r"(?:0[xX])?[0-9A-Fa-f]+(?:[ :][0-9A-Fa-f]+)*")
_PCR_KEYS = ("pcr", "nr", "index", "pcr_index", "pcrindex")
_BANK_KEYS = ("bank", "alg", "algorithm", "hash", "hash_alg", "hashalg", "digestalg", "digest_alg")
_VALUE_KEYS = ("value", "digest", "data", "hex")
#: What a record of an event log has beside its digests (TCG CEL, FAPI; EVM's eventlog in YAML).
_EVENT_KEYS = frozenset(
    {"recnum", "content", "content_type", "type", "event", "eventnum", "eventtype", "sub_event"}
)
#: Lengths of an array with all PCRs of a bank.
_PCRS = (16, 24)
#: TPM_ALG_ID and Go's crypto.Hash differ; only the first are accepted as numbers.
_TPM_IDS = {4: "sha1", 11: "sha256", 12: "sha384", 13: "sha512", 18: "sm3", 39: "sha3-256"}


def collect(node: object, found: Collected, bank: str | None = None) -> None:
    """Adds every PCR value in ``node``. Raises :class:`FormatError` for one of a wrong size."""
    if isinstance(node, list):
        for number, item in enumerate(node):
            if isinstance(item, str) and bank is not None and len(node) in _PCRS:
                _add(found, bank, number, item)
            else:
                collect(item, found, bank)
    elif isinstance(node, dict):
        keys = {str(key).lower(): value for key, value in node.items()}
        bank = _bank_of(keys) or bank
        if not _row(keys, found, bank):
            _members(node, found, bank)


def _members(node: Mapping[str, object], found: Collected, bank: str | None) -> None:
    for key, value in node.items():
        number = _NUMBER.fullmatch(key)
        if isinstance(value, str):
            if number:
                _add(found, bank, int(number[1]), value)
        else:
            collect(value, found, bank_named(key) or bank)


def _bank_of(keys: Mapping[str, object]) -> str | None:
    for key in _BANK_KEYS:
        named = keys.get(key)
        if isinstance(named, str) and bank_named(named):
            return bank_named(named)
        if isinstance(named, int) and named in _TPM_IDS:
            return _TPM_IDS[named]
    return None


def _row(keys: Mapping[str, object], found: Collected, bank: str | None) -> bool:
    """An object that is one value; one without a value (null: not read) is one too."""
    pcr = next((keys[key] for key in _PCR_KEYS if key in keys), None)
    value = next((keys[key] for key in _VALUE_KEYS if key in keys), None)
    number = _NUMBER.fullmatch(str(pcr)) if isinstance(pcr, int | str) else None
    if number is None:
        return False
    if isinstance(keys.get("digests"), list):
        _digests(keys, found, int(number[1]))
        return True
    if not any(key in keys for key in _VALUE_KEYS):
        return _by_bank(keys, found, int(number[1]))
    if isinstance(value, str):
        _add(found, bank, int(number[1]), value)
    return value is None or isinstance(value, str)


def _digests(keys: Mapping[str, object], found: Collected, pcr: int) -> None:
    """One PCR with a digest for each bank, or a record of a log. Raises :class:`FormatError`."""
    if _EVENT_KEYS & keys.keys():
        raise FormatError(
            "this is an event log: what extended PCRs, not their values; give what tpm2_pcrread "
            "prints",
            source=found.source,
        )
    digests = keys["digests"]
    assert isinstance(digests, list)
    for each in digests:
        if not isinstance(each, dict):
            continue
        named = {str(key).lower(): value for key, value in each.items()}
        value = next((named[key] for key in _VALUE_KEYS if key in named), None)
        if isinstance(value, str):
            _add(found, _bank_of(named), pcr, value)


def _by_bank(keys: Mapping[str, object], found: Collected, pcr: int) -> bool:
    """One PCR with a value for each bank: systemd-analyze pcrs --json."""
    named = {bank: v for key, v in keys.items() if (bank := bank_named(key)) is not None}
    for bank, value in named.items():
        if isinstance(value, str):
            _add(found, bank, pcr, value)
    return bool(named)


def _add(found: Collected, bank: str | None, pcr: int, text: str) -> None:
    where = f"PCR {pcr}"
    if _HEX.fullmatch(text.strip()):
        found.add(bank, pcr, text, where)
        return
    try:
        found.add(bank, pcr, base64.b64decode(text, validate=True).hex(), where)
    except binascii.Error:
        raise FormatError(f"{where}: neither hexadecimal nor base64", source=found.source) from None
