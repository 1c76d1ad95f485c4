# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs verify LIST``: does the list explain the PCRs?"""

from __future__ import annotations

import argparse
import json
import sys

from imafs.attest.verify import Verdict, bank_named, verify
from imafs.cli import pcrsource
from imafs.cli.inputs import read_bytes
from imafs.cli.progress import bar
from imafs.errors import FormatError

#: Exit code where the list does not lead to the PCRs.
MISMATCH = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "verify",
        help="replay a list against PCR values",
        description="Checks every template digest of a binary list, replays it in every bank and "
        "compares with PCR values: says after which record they match and how many records are in "
        "excess. Exit codes: 0 they match, 3 the list is malformed or a template digest wrong, "
        f"{MISMATCH} no part of the list leads to the PCRs.",
    )
    parser.add_argument(
        "lists",
        metavar="LIST",
        nargs="+",
        help="binary lists in their order: what was deleted before, staged, current; - is stdin",
    )
    parser.add_argument("--bank", metavar="ALG", help="bank of the list (found by its digests)")
    parser.add_argument(
        "--padded-banks", metavar="ALG,...", default="", help="banks that hold zero-padded SHA-1"
    )
    pcrsource.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    # The PCRs first: a list that is read later may have more, never fewer records.
    actual = pcrsource.reader(args, args.lists[0])()
    data = b"".join(read_bytes(path) for path in args.lists)
    padded = tuple(name for name in args.padded_banks.split(",") if name)
    source = ", ".join(args.lists)
    with bar(sys.stderr) as progress:
        try:
            verdict = verify(
                data, actual, bank=bank_named(args.bank), padded=padded, progress=progress
            )
        except FormatError as error:
            raise FormatError(
                error.reason, record=error.record, offset=error.offset, source=source
            ) from None
    print(json.dumps(_object(verdict)) if args.json else "\n".join(_lines(verdict)))
    return 0 if verdict.matched is not None else MISMATCH


def _lines(verdict: Verdict) -> list[str]:
    pcrs = ", ".join(f"{bank}:{pcr}" for bank, pcr in verdict.compared) or "none"
    counts = f"{verdict.records} records of bank {verdict.bank}, {verdict.violations} violations"
    lines = [f"{counts}; compared PCRs: {pcrs}"]
    if verdict.matched is not None:
        excess = f", {verdict.excess} in excess" if verdict.excess else ""
        return [*lines, f"match after record {verdict.matched}{excess}"]
    lines.append("no part of the list leads to these PCRs")
    lines += [
        f"  {m.bank}:{m.pcr} is {m.actual.hex()}, the whole list gives {m.replayed.hex()}"
        for m in verdict.mismatches
    ]
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
