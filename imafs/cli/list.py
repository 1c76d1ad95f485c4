# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs list FILE``: a measurement list as people or other programs want it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from imafs.cli import options
from imafs.cli.input_file import read_list
from imafs.errors import FormatError
from imafs.formats import exports
from imafs.formats.algorithms import SHA1, HashAlgorithm
from imafs.formats.binary import Parsed, encode, refuse_other_bank
from imafs.formats.exports import Row
from imafs.formats.list_file import Fault, MeasurementList, parse
from imafs.formats.views import record_text
from imafs.text import counted, shown

#: In front of a record that is not sound: nobody takes the line for one of a kernel.
_MARK = b"! "
_EXPORTS: dict[str, Callable[[Iterable[Row]], Iterator[bytes]]] = {
    "cel-json": exports.cel_json,
    "cel-tlv": exports.cel_tlv,
    "rfc9684": exports.rfc9684,
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "list",
        help="show a measurement list",
        description="Reads a list, binary or ASCII, of any bank and byte order, a recording, an "
        "IMA directory or the buffer of a kexec. Checks every template digest and prints it as "
        "the kernel's ASCII list, as JSON lines, as the binary list of any bank, or as other "
        "verifiers take it. Of a damaged list it prints what is in front of the fault, marks a "
        "record that is not sound with `!`, says what is wrong, and ends with exit code 3.",
    )
    parser.add_argument("file", metavar="FILE", help="the list, - for standard input")
    parser.add_argument(
        "--bank",
        type=options.list_bank,
        metavar="ALG",
        help="bank of the list (default: found by its digests)",
    )
    options.add_moment(parser)
    parser.add_argument(
        "--template-fmt",
        type=options.template_fmt,
        metavar="FMT",
        help="fields of templates that are not known, as ima_template_fmt= takes them",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="go on behind a fault, where lengths allow it"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="one JSON object per record (docs/list.schema.json)"
    )
    form.add_argument("--binary", action="store_true", help="a binary list")
    form.add_argument("--stats", action="store_true", help="counts instead of records")
    form.add_argument(
        "--format",
        choices=_EXPORTS,
        help="TCG CEL as JSON (what tpm2-tss' FAPI verifies) or TLV, or the ima-event-logs of "
        "RFC 9684",
    )
    parser.add_argument("--raw", action="store_true", help="with --json: the template data too")
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--first", type=options.count, metavar="N", help="only the first N that match"
    )
    part.add_argument("--last", type=options.count, metavar="N", help="only the last N that match")
    parser.add_argument(
        "--from",
        dest="first_number",
        type=options.record_number,
        metavar="N",
        help="only from record N on; the first one is 0, as in messages",
    )
    parser.add_argument(
        "--to",
        action=_To,
        type=options.record_number_or_algorithm,
        metavar="N|ALG",
        help="a number: only up to record N; a hash: bank of the output (default: the list's). "
        "It can be given twice",
    )
    parser.add_argument("--pcr", type=options.pcr, metavar="N", help="only records of this PCR")
    parser.add_argument(
        "--grep",
        type=options.expression,
        metavar="REGEX",
        help="only records whose ASCII line matches the expression",
    )
    parser.set_defaults(run=run, last_number=None)


#: Behind a fault that is not the list's end.
_MORE = "; --keep-going shows what is behind it"


class _To(argparse.Action):
    """``--to``: the last record's number, or the bank of the output."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, "last_number" if isinstance(values, int) else "to", values)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    data = read_list(args.file, args.moment)
    source = None if args.file == "-" else args.file
    try:
        found = parse(data, args.bank, args.template_fmt)
        if args.bank is not None and found.data:
            refuse_other_bank(found.data, args.bank, None)
    except FormatError as error:
        raise error.at(source) from None
    algorithm = args.to or found.bank.algorithm
    assert algorithm is not None
    faults: list[Fault] = []
    rows = _selected(_rows(found, algorithm, faults, args), args)
    if args.stats:
        print("\n".join(map(shown, _stats(rows, found, faults))))
    elif args.format:
        for piece in _EXPORTS[args.format](rows):
            sys.stdout.buffer.write(piece)
    else:
        for row in rows:
            sys.stdout.buffer.write(_written(row, args))
    if found.unproven and (args.binary or args.format):
        _say(f"{source or 'standard input'}: {_unproven(found)}")
    sys.stdout.buffer.flush()
    for fault in faults:
        more = not args.keep_going and fault.goes_on(found)
        _say(f"{fault.error(source)}{_MORE if more else ''}")
    return FormatError.exit_code if faults else 0


def _say(what: object) -> None:
    print(f"imafs: {shown(what)}", file=sys.stderr)


def _unproven(found: MeasurementList) -> str:
    what = counted(found.unproven, "violation")
    return f"{what} stands as the text has it: the digest of a violation proves nothing"


def _rows(
    found: MeasurementList,
    algorithm: HashAlgorithm,
    faults: list[Fault],
    args: argparse.Namespace,
) -> Iterator[Row]:
    """Every record that can be read, up to the first fault or to the end."""
    own = algorithm is found.bank.algorithm
    number = 0
    for item in found.items():
        if isinstance(item, Fault):
            faults.append(item)
            if item.parsed is not None:
                yield _row(found, number, item.parsed, algorithm, own, item.reason)
            if not args.keep_going:
                return
            number = item.number + item.counts
            continue
        yield _row(found, number, item, algorithm, own)
        number += 1


def _row(
    found: MeasurementList,
    number: int,
    parsed: Parsed,
    algorithm: HashAlgorithm,
    own: bool,
    fault: str = "",
) -> Row:
    digest = parsed.digest if own else _digest(parsed, algorithm)
    line = None if found.lines is None else found.lines[number]
    return Row(number, parsed, digest, algorithm, line, fault)


def _digest(parsed: Parsed, algorithm: HashAlgorithm) -> bytes:
    """The template digest of another bank than the list's."""
    if parsed.record.violation:
        return bytes(algorithm.digest_size)
    return parsed.record.template.digest(parsed.record.data, algorithm)


def _written(row: Row, args: argparse.Namespace) -> bytes:
    if args.binary:
        return encode(row.record, row.digest)
    if args.json:
        return exports.json_line(row, args.raw)
    line = _line(row)
    mark = _MARK if row.fault else b""
    return mark + (_on_terminal(line) if sys.stdout.isatty() else line)


def _line(row: Row) -> bytes:
    record = row.record
    try:
        text = record_text(record.template, record.data)
    except FormatError:  # its fields do not fit the template: the bytes as they are
        text = f" {record.template.label} {record.data.hex()}\n"
    return f"{record.pcr:2d} {row.digest.hex()}{text}".encode("latin-1")


def _on_terminal(line: bytes) -> bytes:
    """The line as `ls` would print such a name: a kernel's own has any bytes, and would do
    with the terminal what they say."""
    return (shown(line.removesuffix(b"\n")) + "\n").encode()


def _selected(rows: Iterable[Row], args: argparse.Namespace) -> Iterator[Row]:
    """Those that are asked for; all are read, since a fault anywhere is told."""
    chosen = (row for row in rows if _matches(row, args))
    if args.last is not None:
        yield from deque(chosen, maxlen=args.last)
        return
    yield from islice(chosen, args.first)
    for _ in chosen:
        pass


def _matches(row: Row, args: argparse.Namespace) -> bool:
    if args.pcr is not None and row.record.pcr != args.pcr:
        return False
    if args.first_number is not None and row.number < args.first_number:
        return False
    if args.last_number is not None and row.number > args.last_number:
        return False
    return args.grep is None or args.grep.search(_line(row)) is not None


_FORMS = {"ascii": "ASCII", "binary": "binary", "kexec": "the buffer of a kexec"}


def _stats(rows: Iterable[Row], found: MeasurementList, faults: Sequence[Fault]) -> list[str]:
    """Counts for people; a duplicate has the PCR and template data of an earlier record."""
    templates: Counter[str] = Counter()
    pcrs: Counter[int] = Counter()
    count = violations = size = duplicates = 0
    seen: set[tuple[int, bytes]] = set()
    for row in rows:
        record = row.record
        count += 1
        size += row.parsed.end - row.parsed.start
        templates[record.template.label] += 1
        pcrs[record.pcr] += 1
        if record.violation:
            violations += 1
            continue
        key = record.pcr, SHA1.digest(record.template.hash_input(record.data))
        duplicates += key in seen
        seen.add(key)
    form = _FORMS[found.form] + (", big endian" if found.order == "big" else "")
    return [
        f"form        {form}",
        f"bank        {found.bank.name}",
        f"records     {count}",
        f"bytes       {size} of {found.base + len(found.data)}",
        "templates   " + (", ".join(f"{n} {c}" for n, c in templates.most_common()) or "none"),
        "PCRs        " + (", ".join(f"{p}: {c}" for p, c in sorted(pcrs.items())) or "none"),
        f"violations  {violations}" + (", unproven" if found.unproven else ""),
        f"duplicates  {duplicates}",
        *([f"faults      {len(faults)}"] if faults else []),
    ]
