# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a verifier reads from an enemy, as fuzz targets; the corpus lies beside this file.

``corpus/*.tar`` are bundles of a machine whose key is in them; a fuzzed one is accepted only
where it says the same as one of these.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from imafs.attest import bundle, firmware, quote, reference, signatures, state
from imafs.attest.evidence import judge_bundle
from imafs.attest.judgement import Demand
from imafs.errors import FormatError
from imafs.formats.binary import Reader

CORPUS = Path(__file__).resolve().parent / "corpus"
NONCE = bytes.fromhex("0badc0de")


def meaning(data: bytes) -> list[tuple[object, ...]]:
    """What a bundle says of the records: of a violation no digest proves the template data, and
    of no record the template's name. Raises :class:`FormatError`."""
    found = bundle.decode(data)
    order = "little" if found.manifest is None else found.manifest.order
    return [
        (p.record.pcr, p.record.violation, b"" if p.record.violation else p.record.data)
        for p in Reader(found.records, 20, order, opaque=True)
    ]


_SEEDS = [path.read_bytes() for path in sorted(CORPUS.glob("*.tar"))]
_KEYS = tuple(
    signatures.read_key(key, "corpus")
    for key in {bundle.decode(seed).key for seed in _SEEDS}
    if key is not None
)
_DEMAND = Demand(NONCE, datetime(2026, 11, 30, tzinfo=UTC), _KEYS)
_MEANT = [meaning(seed) for seed in _SEEDS]


def bundles(data: bytes) -> None:
    """The whole way to a verdict."""
    found = judge_bundle(data, _DEMAND)
    assert found.said.isprintable()
    if found.kind.accepted:
        assert meaning(data)[: found.records] in _MEANT, found


def pieces(data: bytes) -> None:
    """Each parser alone: what is behind a signature is hard to reach for a fuzzer."""
    for parse in (
        *(quote.parse_quote, quote.parse_signature, quote.parse_public, quote.parse_pcrs),
        *(bundle.parse_manifest, firmware.read),
    ):
        with suppress(FormatError):
            parse(data)
    for read in (
        *(signatures.read_key, signatures.read_certificates, reference.read, state.decode),
    ):
        with suppress(FormatError):
            read(data, "fuzz")
