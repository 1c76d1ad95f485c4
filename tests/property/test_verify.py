# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Verifying a list against PCR values, compared with trying every prefix by hand."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from imafs.attest.verify import verify
from tests.property.builders import banks
from tests.property.reference import WIDTHS, Rec, binary_list, ng

Values = dict[str, dict[int, bytes]]


def pcrs(recs: list[Rec], tpm: tuple[str, ...] = ("sha1", "sha256")) -> Values:
    """PCR 10 and 11 after these records, by hand."""
    out = {name: {pcr: bytes(WIDTHS[name]) for pcr in (10, 11)} for name in tpm}
    for rec in recs:
        for name in tpm:
            digest = b"\xff" * WIDTHS[name] if rec.violation else rec.digest(name)
            out[name][rec.pcr] = hashlib.new(name, out[name][rec.pcr] + digest).digest()
    return out


@given(st.lists(st.sampled_from([10, 10, 11]), max_size=8), st.data())
def test_against_trying_every_prefix(numbers: list[int], data: st.DataObject) -> None:
    recs = [ng(pcr, b"/%d" % number) for number, pcr in enumerate(numbers)]
    place = st.integers(0, len(recs))
    # PCR 10 and 11 usually from one moment, now and then from two.
    first = data.draw(place)
    second = data.draw(st.one_of(st.just(first), place))
    actual = pcrs(recs[:first])
    for name in actual:
        actual[name][11] = pcrs(recs[:second])[name][11]
    used = {rec.pcr for rec in recs} | {10}

    def equal(count: int) -> bool:
        values = pcrs(recs[:count])
        return all(values[name][pcr] == actual[name][pcr] for name in values for pcr in used)

    # Nothing extended confirms a list without records only.
    counts = range(1, len(recs) + 1) if recs else [0]
    expected = next((count for count in counts if equal(count)), None)
    assert verify(binary_list(recs, "sha1"), actual, bank=banks("sha1")[0]).matched == expected
