# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs verify LIST``: does the list explain the PCRs?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Mapping

from imafs.attest.verify import DEFAULT_PCR, Verdict, verify
from imafs.cli import options, pcrsource
from imafs.cli.counted import counted
from imafs.cli.inputs import read_bytes
from imafs.cli.progress import bar
from imafs.errors import FormatError, MismatchError, UsageError
from imafs.formats.algorithms import Bank
from imafs.formats.binary import detect, read, refuse_other_bank
from imafs.text import lines_shown

_NOT_FRESH = "the PCR is not what it is without any record"
_ZERO = (
    "these PCRs are zero: nothing was extended to them. Is it another TPM, was it reset, or is it "
    "behind?"
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "verify",
        help="replay a list against PCR values",
        description="Checks every template digest of a binary list, replays it in every bank and "
        "compares with PCR values: says after which record they match and how many records are in "
        "excess. Exit codes: 0 they match, 3 the list is malformed or a template digest wrong, "
        f"{MismatchError.exit_code} no part of the list leads to the PCRs.",
    )
    parser.add_argument(
        "lists",
        metavar="LIST",
        nargs="+",
        help="binary lists in their order: what was deleted before, staged, current; - is stdin",
    )
    parser.add_argument(
        "--bank", type=options.bank, metavar="ALG", help="bank of the list (found by its digests)"
    )
    options.add_padded_banks(parser)
    parser.add_argument(
        "--pcr",
        type=options.pcr,
        metavar="N",
        default=DEFAULT_PCR,
        help="the PCR of records without a rule's own (CONFIG_IMA_MEASURE_PCR_IDX, 10): compared "
        "also where no record of the list went to it",
    )
    pcrsource.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    if [*args.lists, args.pcrs].count("-") > 1:
        raise UsageError("- is standard input, which can be read once")
    for path in args.lists:
        _must_be_there(path)
    # The PCRs first: a list that is read later may have more, never fewer records.
    actual = pcrsource.reader(args, args.lists[0])()
    lists = {path: read_bytes(path) for path in args.lists}
    bank = _one_bank(lists, args.bank)
    with bar(sys.stderr) as progress:
        try:
            verdict = verify(
                b"".join(lists[path] for path in args.lists),
                actual.values,
                bank=bank,
                padded=args.padded_banks,
                pcr=args.pcr,
                progress=progress,
            )
        except FormatError as error:
            raise _placed(error, lists, bank) from None
    lines = _lines(verdict, actual)
    print(json.dumps(_object(verdict)) if args.json else lines_shown("\n".join(lines)))
    return 0 if verdict.matched is not None else MismatchError.exit_code


def _must_be_there(path: str) -> None:
    """A list that is missing is said before PCRs that are missing. Raises as read_bytes."""
    try:
        if path != "-":
            os.stat(path)
    except OSError:
        read_bytes(path)  # says why


def _one_bank(lists: Mapping[str, bytes], named: Bank | None) -> Bank | None:
    """The bank of all lists, None where none says it. Raises :class:`FormatError`."""
    if named is not None:
        for path, data in lists.items():
            refuse_other_bank(data, named, path)
        return named
    first: tuple[str, Bank] | None = None
    for path, data in lists.items():
        try:
            bank = detect(data) if data else None
        except FormatError:  # only violations, or malformed: that is found where it is replayed
            continue
        if bank is not None and first is not None and bank.name != first[1].name:
            raise FormatError(
                f"a list of bank {bank.name}, but {first[0]} is one of {first[1].name}: "
                "lists that follow each other are of one bank",
                source=path,
            )
        if bank is not None and first is None:
            first = path, bank
    return None if first is None else first[1]


def _placed(error: FormatError, lists: Mapping[str, bytes], bank: Bank | None) -> FormatError:
    """``error`` with the list and the place in it."""
    for path, data in lists.items():
        try:
            deque(read(data, bank), maxlen=0)
        except FormatError as own:
            return own.at(path)
    return error.at(", ".join(lists))


def _lines(verdict: Verdict, actual: pcrsource.Reading) -> list[str]:
    pcrs = ", ".join(f"{bank}:{pcr}" for bank, pcr in verdict.compared) or "none"
    counts = f"{counted(verdict.records, 'record')} of bank {verdict.bank}, "
    counts += counted(verdict.violations, "violation")
    lines = [f"{counts}; compared PCRs: {pcrs}"] if verdict.records else ["the list is empty"]
    if verdict.matched is not None:
        excess = f", {verdict.excess} in excess" if verdict.excess else ""
        return [*lines, f"match after record {verdict.matched}{excess}"]
    if verdict.records and not verdict.compared:
        return [*lines, "the PCR values hold no PCR that a record of the list went to"]
    if verdict.mismatches and not any(any(m.actual) for m in verdict.mismatches):
        lines.append(_ZERO)
        return lines
    lines.append("no part of the list leads to these PCRs" if verdict.records else _NOT_FRESH)
    lines += [
        f"  {m.bank}:{m.pcr} is {m.actual.hex()}, the whole list gives {m.replayed.hex()}"
        for m in verdict.mismatches
    ]
    if actual.adopted:
        lines.append(f"  {pcrsource.ADOPTED}")
    else:
        lines.append("  were records deleted? Give what was kept of them first, in order")
    return lines


def _object(verdict: Verdict) -> dict[str, object]:
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
    }
