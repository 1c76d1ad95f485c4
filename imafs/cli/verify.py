# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs verify LIST``: does the list explain the PCRs?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from imafs.attest import pcrfile
from imafs.attest.explain import explain, remark
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.attest.verify import Choice, Verdict, verify_parts
from imafs.cli import find_keeper, options, pcrsource, verdicts
from imafs.cli.given import Given, given
from imafs.cli.input_file import read_bytes, read_list
from imafs.cli.progress import bar
from imafs.errors import FileError, FormatError, MismatchError, UsageError
from imafs.lists.replay import PcrValues
from imafs.sources import moments, recording
from imafs.text import shown


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "verify",
        help="replay a list against PCR values",
        description="Checks every template digest of a list (binary of any bank and byte order, or "
        "ASCII), replays it in every bank and compares with PCR values: says after which record "
        "they match and how many records are in excess, and of every PCR what its value is. PCR 0 "
        "to 9 may hold what firmware extended before; no kernel extends 17 to 22, and none exist "
        "from 24 on: these decide nothing. A recording alone is compared with the PCRs in it, at "
        "every moment. Exit codes: 0 the others match, 3 the list is "
        f"malformed or a template digest wrong, {MismatchError.exit_code} the list does not lead "
        "to all of them.",
    )
    parser.add_argument(
        "lists",
        metavar="LIST",
        nargs="+",
        help="lists in their order: what was deleted before, staged, current; - is stdin",
    )
    parser.add_argument(
        "--bank",
        type=options.list_bank,
        metavar="ALG",
        help="bank of the list (found by its digests)",
    )
    parser.add_argument(
        "--template-fmt",
        type=options.template_fmt,
        metavar="FMT",
        help="fields of templates that are not known, as ima_template_fmt= takes them",
    )
    options.add_padded_banks(parser)
    parser.add_argument(
        "--banks",
        type=options.pcr_banks,
        metavar="ALG,...",
        help="compare only these banks of the PCR values (all that are given)",
    )
    parser.add_argument(
        "--pcrs-only",
        type=options.pcrs,
        metavar="N,...",
        help="compare only these PCRs (all to which records of the list went)",
    )
    parser.add_argument(
        "--pcr",
        type=options.pcr,
        metavar="N",
        default=DEFAULT_PCR,
        help="the PCR of records without a rule's own (CONFIG_IMA_MEASURE_PCR_IDX, 10): compared "
        "also where no record of the list went to it",
    )
    parser.add_argument(
        "--from",
        dest="begin",
        type=pcrsource.begin,
        action="append",
        metavar="[BANK:]VALUE",
        default=[],
        help="the PCR's value before the first record, in hexadecimal digits, where records in "
        "front of it are missing; once for each bank",
    )
    options.add_moment(parser)
    pcrsource.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    if [*args.lists, args.pcrs].count("-") > 1:
        raise UsageError("- is standard input, which can be read once")
    for path in args.lists:
        _must_be_there(path)
    if args.pcrs is None and args.tcti is None and args.control is None:
        kept = _moments(args)
        if kept:
            return max(_judge(args, moment) for moment in kept)
    return _judge(args, None)


def _moments(args: argparse.Namespace) -> Sequence[Kept]:
    """Every moment of a recording that is given alone, or the one that is named; or nothing."""
    if len(args.lists) > 1 or args.lists[0] == "-":
        return ()
    path = args.lists[0]
    found = [
        Kept(m.name, pcrfile.kept(m.pcrs, f"{path}: {m.name}/{moments.PCRS}"))
        for m in _moments_of(path)
        if args.moment is None or recording.is_called(m.name, args.moment)
    ]
    return found if len(found) > 1 else [Kept(None, kept.values) for kept in found]


def _moments_of(path: str) -> Sequence[moments.Moment]:
    try:
        return moments.of(path)
    except FileError as error:
        find_keeper.tell_if_kept(path, error)
        raise


@dataclass(frozen=True, slots=True)
class Kept:
    """PCRs of a recording's moment; ``name`` is said only where there are several."""

    name: str | None
    values: PcrValues


def _judge(args: argparse.Namespace, kept: Kept | None) -> int:
    """Says the verdict on lists and PCRs; those of a moment, if it is given."""
    # The PCRs first: a list that is read later may have more, never fewer records.
    if kept is None:
        actual = pcrsource.reader(args, args.lists[0])()
    else:
        actual = pcrsource.Reading(kept.values)
    moment = args.moment if kept is None or kept.name is None else kept.name
    lists = given(
        [(path, read_list(path, moment)) for path in args.lists], args.bank, args.template_fmt
    )
    begun = pcrsource.begun(args.begin, args.pcr)
    choice = Choice(args.padded_banks, args.pcr, args.pcrs_only, args.banks, begun)
    verdict = _verdict(lists, actual, choice)
    if verdict.matched is None:
        why = explain(lists.parts, lists.sizes(), lists.bank, actual.values, verdict, choice)
    else:
        why = remark(lists.parts, lists.bank, verdict)
    name = None if kept is None else kept.name
    if args.json:
        named = {} if name is None else {"moment": name}
        print(json.dumps(named | verdicts.as_object(verdict, why)))
    else:
        said = verdicts.lines(verdict, adopted=actual.adopted, why=why, unproven=lists.unproven)
        print("\n".join([*([f"{shown(name)}:"] if name is not None else []), *said]))
    return 0 if verdict.matched is not None else MismatchError.exit_code


def _verdict(lists: Given, actual: pcrsource.Reading, choice: Choice) -> Verdict:
    with bar(sys.stderr) as progress:
        try:
            return verify_parts(lists.parts, lists.bank, actual.values, choice, progress=progress)
        except FormatError as error:
            raise lists.placed(error) from None


def _must_be_there(path: str) -> None:
    """A list that is missing is said before PCRs that are missing. Raises as read_bytes."""
    try:
        if path != "-":
            os.stat(path)
    except OSError:
        read_bytes(path)  # says why
