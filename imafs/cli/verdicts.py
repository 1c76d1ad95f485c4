# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""How a verdict on a list and its PCRs reads, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from imafs.attest.explain import Explanation
from imafs.attest.verify import LOCALITIES, Finding, Value, Verdict
from imafs.cli import pcrsource
from imafs.text import counted

_NOT_FRESH = "the PCR is not what it is without any record"
_ZERO = (
    "these PCRs are zero: nothing was extended to them. Is it another TPM, was it reset, or is it "
    "behind?"
)
_DELETED = "were records deleted? Give what was kept of them first, in order"
_FIRMWARE = (
    "held the firmware's value before (PCR 0 to 9): the list alone cannot lead there, and a "
    "difference says nothing about it"
)
_LOCALITY = "cannot be extended by IMA: a TPM takes it from other localities only"
_NO_PCR = "cannot be extended by IMA: no TPM has it"


def lines(
    verdict: Verdict,
    *,
    adopted: bool = False,
    why: Explanation | None = None,
    unproven: int = 0,
) -> list[str]:
    """The verdict for people. ``why`` is what else was found out about the list.

    ``unproven`` violations were made again from text.
    """
    pcrs = ", ".join(f"{bank}:{pcr}" for bank, pcr in verdict.compared) or "none"
    counts = f"{counted(verdict.records, 'record')} of bank {verdict.bank}, "
    counts += counted(verdict.violations, "violation")
    out = [f"{counts}; compared PCRs: {pcrs}"] if verdict.records else ["the list is empty"]
    if verdict.matched is not None:
        excess = f", {verdict.excess} in excess" if verdict.excess else ""
        out.append(f"match after record {verdict.matched}{excess}")
        notes = list(_notes(verdict.findings))
        agree = [f for f in verdict.findings if f.value is Value.MATCHES]
        if len(agree) < len(verdict.compared):
            notes.insert(0, f"{_pcrs(agree)}: matches")
        if why is not None:
            notes.append(why.said)
        if unproven:
            notes.append(
                f"{counted(unproven, 'violation')} of an ASCII list: no digest proves their names"
            )
        return [*out, *(f"  {note}" for note in notes)]
    if not verdict.findings:
        return [*out, "there are no PCRs to compare with: nothing confirms the list"]
    if verdict.records and not verdict.compared:
        return [*out, "the PCR values hold no PCR that a record of the list went to"]
    return [*out, *_mismatch(verdict, adopted, why)]


def _mismatch(verdict: Verdict, adopted: bool, why: Explanation | None) -> Iterator[str]:
    found = verdict.findings
    agree = [f for f in found if f.value is Value.MATCHES]
    wrong = verdict.mismatches
    if not verdict.records:
        yield _NOT_FRESH
    elif wrong and not agree and all(f.value is Value.ZERO for f in wrong):
        yield _ZERO
        return
    elif not wrong and len({f.after for f in agree}) > 1:
        yield "each of these PCRs fits a part of the list, but not the same: were they read apart?"
    elif agree or verdict.padded:
        yield "the list does not lead to all of these PCRs"
    else:
        yield "no part of the list leads to these PCRs"
    for finding in found:
        if finding.value is Value.MATCHES:
            yield f"  {_name(finding)} matches after record {finding.after}"
    yield from (f"  {line}" for line in _notes(found))
    for finding in wrong:
        yield f"  {_wrong(finding)}"
    if verdict.padded:
        yield f"  padded: --padded-banks {','.join(verdict.padded)}"
    if any(f.value is Value.ZERO for f in wrong):
        banks = ",".join(dict.fromkeys(f.bank for f in agree))
        if banks:
            yield f"  --banks {banks} leaves it at what was extended"
    if why is not None:
        yield f"  {why.said}"
    if adopted:
        yield f"  {pcrsource.ADOPTED}"
    elif why is None and (not verdict.records or any(f.value is Value.DIFFERS for f in wrong)):
        yield f"  {_DELETED}"


def _wrong(finding: Finding) -> str:
    if finding.value is Value.ZERO:
        return f"{_name(finding)} is zero: nothing was extended to it"
    if finding.value is Value.PADDED:
        return f"{_name(finding)} is what zero-padded SHA-1 gives after record {finding.after}"
    return (
        f"{_name(finding)} is {finding.actual.hex()}, the whole list gives {finding.replayed.hex()}"
    )


def _name(finding: Finding) -> str:
    return f"{finding.bank}:{finding.pcr}"


def _notes(found: Iterable[Finding]) -> Iterator[str]:
    """PCRs that decide nothing, those of one kind in one line."""
    texts: dict[str, list[Finding]] = {}
    for finding in found:
        text = _note(finding)
        if text is not None:
            texts.setdefault(text, []).append(finding)
    for text, some in texts.items():
        yield f"{_pcrs(some)}: {text}"


def _note(finding: Finding) -> str | None:
    if finding.value is Value.FIRMWARE:
        return _FIRMWARE
    if finding.value is Value.NOT_EXTENDED:
        return _LOCALITY if finding.pcr in LOCALITIES else _NO_PCR
    if finding.value is Value.UNKNOWN and finding.records:
        return "not compared: no value of it is given"
    return None


def _pcrs(found: Iterable[Finding]) -> str:
    """``sha1:0, sha1:4``, of all banks ``PCR 0, 4``, of many ``PCR 24 to 63``."""
    by_pcr: dict[int, list[str]] = {}
    for finding in found:
        by_pcr.setdefault(finding.pcr, []).append(finding.bank)
    banks = {bank for some in by_pcr.values() for bank in some}
    if all(len(some) == len(banks) for some in by_pcr.values()):
        return f"PCR {_ranges(sorted(by_pcr))}"
    return ", ".join(f"{bank}:{pcr}" for pcr, some in sorted(by_pcr.items()) for bank in some)


def _ranges(numbers: list[int]) -> str:
    """``1, 3 to 5``."""
    runs = []
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)))
    return ", ".join(runs)


def as_object(verdict: Verdict, why: Explanation | None = None) -> dict[str, object]:
    """The verdict for programs: what a JSON object has."""
    return {
        "bank": verdict.bank,
        "records": verdict.records,
        "violations": verdict.violations,
        "matched": verdict.matched,
        "excess": verdict.excess,
        "compared": [f"{bank}:{pcr}" for bank, pcr in verdict.compared],
        "mismatches": [
            {"bank": m.bank, "pcr": m.pcr, "actual": m.actual.hex(), "replayed": m.replayed.hex()}
            for m in verdict.mismatches
        ],
        "padded": list(verdict.padded),
        "why": None if why is None else {"kind": why.kind, "said": why.said},
        "pcrs": [
            {
                "bank": f.bank,
                "pcr": f.pcr,
                "value": f.value.value,
                "after": f.after,
                "records": f.records,
                "actual": f.actual.hex() or None,
                "replayed": f.replayed.hex(),
            }
            for f in verdict.findings
        ],
    }
