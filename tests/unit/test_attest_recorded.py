# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Bundles of real kernels: their lists and their PCRs as recorded, quoted by a TPM of paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from imafs.attest.bundle import Bundle
from imafs.attest.evidence import check
from imafs.attest.firmware import Boot
from imafs.attest.kinds import Kind
from tests.conformance.recordings import Moment, load, names
from tests.papertpm import IDS, PaperTpm

CURRENT = "binary_runtime_measurements"
STAGED = f"{CURRENT}_staged"
#: Banks of Linux 6.1 that hold zero-padded SHA-1, by the beginning of a recording's name.
PADDED = {"6.1.0": ("sha384", "sha512")}


def moments() -> list[Moment]:
    """Those with PCRs, and with the whole list that leads to them."""
    return [
        moment
        for name in names()
        for moment in load(name).moments()
        if moment.pcrs and CURRENT in moment.files and moment.files[CURRENT]
    ]


def machine(moment: Moment) -> PaperTpm:
    banks = tuple(bank for bank in moment.pcrs if bank in IDS)
    made = PaperTpm(banks=banks)
    for bank in banks:
        made.pcrs[bank].update(moment.pcrs[bank])
    return made


def bundle(moment: Moment, quoting: PaperTpm, pcrs: Sequence[int]) -> Bundle:
    made = quoting.bundle(selection=quoting.selection(*pcrs), manifest=False)
    return replace(made, records=moment.files.get(STAGED, b"") + moment.files[CURRENT])


def padded(moment: Moment) -> tuple[str, ...]:
    banks = next((b for name, b in PADDED.items() if moment.recording.startswith(name)), ())
    return tuple(bank for bank in banks if bank in moment.pcrs)


def test_there_are_enough() -> None:
    assert len(moments()) > 20
    assert len({moment.recording for moment in moments()}) > 10


@pytest.mark.parametrize("moment", moments(), ids=str)
def test_a_kernels_list_is_accepted(moment: Moment) -> None:
    quoting = machine(moment)
    demand = quoting.demand(padded=padded(moment))
    # The records of the quotes' own time are all of them, and PCRs 0 to 9 explain the first.
    found = check(bundle(moment, quoting, range(12)), demand)
    assert (found.kind, found.excess, found.boot) == (Kind.OK, 0, Boot.MATCHES), found.said
    if padded(moment):
        assert check(bundle(moment, quoting, range(12)), quoting.demand()).kind is Kind.UNPROVEN


@pytest.mark.parametrize("moment", moments(), ids=str)
def test_a_kernels_list_without_its_last_record_is_refused(moment: Moment) -> None:
    from imafs.formats.binary import Reader, order_of

    quoting = machine(moment)
    whole = bundle(moment, quoting, (10, 11))
    order = order_of(whole.records, 20)
    starts = [p.start for p in Reader(whole.records, 20, order, opaque=True)]
    cut = replace(whole, records=whole.records[: starts[-1]])
    demand = quoting.demand(padded=padded(moment))
    assert check(cut, demand).kind in (Kind.MISMATCH, Kind.UNPROVEN)
    assert not check(cut, demand).kind.accepted
