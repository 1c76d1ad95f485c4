# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Evidence on a machine: what is said where the list leads to no quote."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from imafs.attest import quote
from imafs.attest.bundle import Gap
from imafs.attest.gather import TRIES, Asked, Held, Kept, gather
from imafs.errors import MismatchError
from imafs.tpm.quoting import Quoted
from tests.papertpm import IDS, NONCE, PaperTpm


def quoter(machine: PaperTpm) -> Callable[[bytes, quote.Selection], Quoted]:
    names = {number: name for name, number in IDS.items()}

    def ask(nonce: bytes, selection: quote.Selection) -> Quoted:
        chosen: dict[str, Sequence[int]] = {names[bank]: pcrs for bank, pcrs in selection}
        message = machine.message(nonce, chosen)
        values = {(IDS[bank], n): machine.pcrs[bank][n] for bank in chosen for n in chosen[bank]}
        return Quoted(message, machine.sign(message), machine.area, values, values)

    return ask


@pytest.fixture
def machine() -> PaperTpm:
    machine = PaperTpm()
    machine.files(b"/a", b"/b")
    return machine


def test_what_the_keeper_says_is_asked_when_the_list_was_read(machine: PaperTpm) -> None:
    steps: list[str] = []

    def read(clock: quote.Clock) -> Held:
        steps.append("read")
        return Held(machine.list())

    def kept() -> Kept:
        steps.append("kept")
        return Kept("000002-x", ("x", "y"), diverged=(1,))

    made = gather(Asked(NONCE), quoter(machine), read, kept=kept)
    assert made.manifest is not None
    assert (made.manifest.life, made.manifest.boot_ids) == ("000002-x", ("x", "y"))
    assert (made.manifest.diverged, steps) == ((1,), ["read", "kept"])


def test_who_keeps_the_records_is_asked_behind_each_quote_and_told_the_boot(
    machine: PaperTpm,
) -> None:
    """A record is in the list and not yet in the PCR, and the machine is booted again meanwhile."""
    boots: list[int] = []
    quoted = quoter(machine)

    def ask(nonce: bytes, selection: quote.Selection) -> Quoted:
        answer = quoted(nonce, selection)
        if not boots:  # behind the first quote
            machine.reboot()
            machine.files(b"/c", b"/d")
        return answer

    def held(clock: quote.Clock) -> Held:
        boots.append(clock.reset_count)
        return Held(machine.list(), since=2)

    made = gather(Asked(NONCE), ask, held, pause=lambda seconds: None)
    assert boots == [7, 8]
    assert made.manifest is not None
    assert (made.manifest.first, made.manifest.count) == (2, 1)
    assert made.records == machine.list(2)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (Kept(gaps=(Gap(2),), diverged=(3,)), "records are missing behind record 2 of this life"),
        (Kept(diverged=(3,), resets=(1,)), "the PCR diverged at record 3 of this life"),
        (Kept(resets=(1, 2)), "the PCR began anew behind record 2 of this life"),
        (Kept(), f"After {TRIES} tries this is no lag"),
    ],
    ids=["gap", "diverged", "reset", "unknown"],
)
def test_a_list_that_leads_nowhere(machine: PaperTpm, kept: Kept, says: str) -> None:
    machine.pcrs["sha256"][10] = bytes(32)
    pauses: list[float] = []
    with pytest.raises(MismatchError, match=says):
        gather(
            *(Asked(NONCE), quoter(machine), lambda clock: Held(machine.list())),
            kept=lambda: kept,
            pause=pauses.append,
        )
    assert len(pauses) == TRIES - 1
