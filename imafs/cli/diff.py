# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs diff A B``: what two lists have not in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

from imafs.attest.compare import Difference, Side, compare, side
from imafs.cli import options
from imafs.cli.input_file import read_list
from imafs.errors import FormatError, MismatchError, UsageError
from imafs.formats.binary import Parsed
from imafs.formats.list_file import MeasurementList, parse
from imafs.formats.views import record_text
from imafs.text import counted, shown

#: Records of each kind that are printed, and characters of one.
_SHOWN = 20
_WIDTH = 160


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "diff",
        help="compare two measurement lists",
        description="Compares the records of two lists of any form and bank, a list with a "
        "recording's, a damaged one with a sound one: says where they differ first, which records "
        "are only in one, and which stand in another order. Exit codes: 0 the same records in the "
        f"same order, {MismatchError.exit_code} they differ, {FormatError.exit_code} one is "
        "malformed (what could be read of it is compared).",
    )
    parser.add_argument("a", metavar="A", help="a list, - for standard input")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "--bank",
        type=options.list_bank,
        metavar="ALG",
        help="bank of both lists, where their digests do not say it",
    )
    parser.add_argument(
        "--template-fmt",
        type=options.template_fmt,
        metavar="FMT",
        help="fields of templates that are not known, as ima_template_fmt= takes them",
    )
    parser.add_argument(
        "--all", action="store_true", help=f"print every record, not the first {_SHOWN} of a kind"
    )
    parser.add_argument("--json", action="store_true", help="print the difference as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    if args.a == args.b == "-":
        raise UsageError("- is standard input, which can be read once")
    names = (args.a, args.b)
    lists = [_read(name, args) for name in names]
    sides = [side(found) for found in lists]
    found = compare(sides[0].keys, sides[1].keys)
    if args.json:
        print(json.dumps(_object(found, lists, sides)))
    else:
        most = None if args.all else _SHOWN
        print("\n".join(map(shown, _lines(names, lists, sides, found, most))))
    if any(one.faults for one in sides):
        return FormatError.exit_code
    return 0 if found.same else MismatchError.exit_code


def _read(name: str, args: argparse.Namespace) -> MeasurementList:
    try:
        return parse(read_list(name), args.bank, args.template_fmt)
    except FormatError as error:
        raise error.at(error.source or name) from None


def _lines(
    names: Sequence[str],
    lists: Sequence[MeasurementList],
    sides: Sequence[Side],
    found: Difference,
    most: int | None,
) -> Iterator[str]:
    for name, one, own in zip(names, lists, sides, strict=True):
        yield f"{name}: {counted(len(own.records), 'record')} of bank {one.bank.name}"
        for fault in own.faults[:most]:
            yield f"  {fault.error()}"
    if found.same:
        yield "the same records in the same order"
        return
    yield from _first(names, sides, found)
    for name, own, numbers in zip(names, sides, found.only, strict=True):
        if numbers:
            yield f"only in {name}: {counted(len(numbers), 'record')}"
            yield from (f"  {number}: {_text(own.records[number])}" for number in numbers[:most])
            yield from _rest(len(numbers), most)
    if found.moved:
        yield f"in another order: {counted(len(found.moved), 'record')}"
        for here, there in found.moved[:most]:
            yield f"  {here}, there {there}: {_text(sides[0].records[here])}"
        yield from _rest(len(found.moved), most)


def _first(names: Sequence[str], sides: Sequence[Side], found: Difference) -> Iterator[str]:
    """The first difference, or how one list is a part of the other."""
    sizes = [len(own.records) for own in sides]
    short, long = (0, 1) if sizes[0] < sizes[1] else (1, 0)
    if found.first == sizes[short]:
        more = counted(sizes[long] - sizes[short], "record")
        yield f"{names[short]} is the beginning of {names[long]}, which has {more} more"
        return
    if sizes[short] and sides[long].keys[-sizes[short] :] == sides[short].keys:
        less = counted(sizes[long] - sizes[short], "record")
        yield f"{names[short]} is the end of {names[long]}: the first {less} are not in it"
        return
    yield f"the first difference is record {found.first}"
    for name, own in zip(names, sides, strict=True):
        assert found.first is not None
        yield f"  {name}: {_text(own.records[found.first])}"


def _rest(count: int, most: int | None) -> Iterator[str]:
    if most is not None and count > most:
        yield f"  and {count - most} more (--all)"


def _text(parsed: Parsed) -> str:
    """As the ASCII list has it, without the template digest, which is another in each bank."""
    record = parsed.record
    text = record_text(record.template, record.data).removesuffix("\n")
    return shown(f"{record.pcr}{text}".encode("latin-1"), _WIDTH)


def _object(
    found: Difference, lists: Sequence[MeasurementList], sides: Sequence[Side]
) -> dict[str, object]:
    return {
        "same": found.same,
        "records": [len(own.records) for own in sides],
        "banks": [one.bank.name for one in lists],
        "faults": [len(own.faults) for own in sides],
        "first": found.first,
        "only": [list(numbers) for numbers in found.only],
        "moved": [list(pair) for pair in found.moved],
    }
