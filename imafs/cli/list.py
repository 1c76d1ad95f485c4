# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs list FILE``: a binary list as people or other programs want it."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice

from imafs.cli import options
from imafs.cli.inputs import read_bytes
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, Bank, HashAlgorithm
from imafs.formats.binary import Parsed, encode, refuse_other_bank
from imafs.formats.lists import parse
from imafs.formats.views import record_text
from imafs.text import shown


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "list",
        help="show a binary measurement list",
        description="Reads a binary list of any bank, as a kernel or an emulator wrote it, checks "
        "every template digest and prints it as the kernel's ASCII list, as JSON lines, or as the "
        "binary list of another bank. A malformed list is refused whole.",
    )
    parser.add_argument("file", metavar="FILE", help="a binary list, - for standard input")
    parser.add_argument(
        "--bank",
        type=options.bank,
        metavar="ALG",
        help="bank of the list (default: found by its digests)",
    )
    parser.add_argument(
        "--to",
        type=options.algorithm,
        metavar="ALG",
        help="bank of the output (default: the same as the list's)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per record")
    form.add_argument("--binary", action="store_true", help="a binary list")
    form.add_argument("--stats", action="store_true", help="counts instead of records")
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--first", type=options.count, metavar="N", help="only the first N that match"
    )
    part.add_argument("--last", type=options.count, metavar="N", help="only the last N that match")
    parser.add_argument("--pcr", type=options.pcr, metavar="N", help="only records of this PCR")
    parser.add_argument(
        "--grep",
        type=options.expression,
        metavar="REGEX",
        help="only records whose ASCII line matches the expression",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    data = read_bytes(args.file)
    source = None if args.file == "-" else args.file
    try:
        found = parse(data, args.bank)
        bank = found.bank
        # All or nothing: nothing is printed of a list that turns out malformed.
        records = list(enumerate(found.records()))
    except FormatError as error:
        if args.bank is not None:
            refuse_other_bank(data, args.bank, source)
        raise error.at(source) from None
    algorithm = args.to or bank.algorithm
    assert algorithm is not None
    own = algorithm is bank.algorithm
    chosen = _select(records, args, None if own else algorithm)
    if args.stats:
        stats = _stats([parsed for _, parsed in chosen], bank, len(data))
        print("\n".join(map(shown, stats)))
        return 0
    out, terminal = sys.stdout.buffer, sys.stdout.isatty()
    for number, parsed in chosen:
        digest = _digest(parsed, None if own else algorithm)
        if args.binary:
            out.write(encode(parsed.record, digest))
        elif args.json:
            out.write(json.dumps(_object(number, parsed, digest, algorithm)).encode() + b"\n")
        else:
            line = _line(parsed, digest)
            out.write(_on_terminal(line) if terminal else line)
    out.flush()
    return 0


def _digest(parsed: Parsed, algorithm: HashAlgorithm | None) -> bytes:
    """The list's own digest, or the one of another bank."""
    if algorithm is None:
        return parsed.digest
    if parsed.record.violation:
        return bytes(algorithm.digest_size)
    return parsed.record.template.digest(parsed.record.data, algorithm)


def _line(parsed: Parsed, digest: bytes) -> bytes:
    record = parsed.record
    text = record_text(record.template, record.data)
    return f"{record.pcr:2d} {digest.hex()}{text}".encode("latin-1")


def _on_terminal(line: bytes) -> bytes:
    """The line as `ls` would print such a name: a kernel's own has any bytes, and would do
    with the terminal what they say."""
    return (shown(line.removesuffix(b"\n")) + "\n").encode()


def _select(
    records: Iterable[tuple[int, Parsed]], args: argparse.Namespace, other: HashAlgorithm | None
) -> Iterable[tuple[int, Parsed]]:
    chosen = _filtered(records, args, other)
    if args.last is not None:
        return deque(chosen, maxlen=args.last)
    return list(islice(chosen, args.first))


def _filtered(
    records: Iterable[tuple[int, Parsed]], args: argparse.Namespace, other: HashAlgorithm | None
) -> Iterator[tuple[int, Parsed]]:
    wanted = args.grep
    for number, parsed in records:
        if args.pcr is not None and parsed.record.pcr != args.pcr:
            continue
        if wanted is not None and not wanted.search(_line(parsed, _digest(parsed, other))):
            continue
        yield number, parsed


def _object(
    number: int, parsed: Parsed, digest: bytes, algorithm: HashAlgorithm
) -> dict[str, object]:
    """A record as JSON. Text is latin-1 where it is no UTF-8, so that no byte is lost."""
    record = parsed.record
    fields: dict[str, str] = {}
    for field, part in zip(record.template.fields, record.template.split(record.data), strict=True):
        text = field.text(part) if part else ""
        try:
            fields[field.name] = text.encode("latin-1").decode() if field.string else text
        except UnicodeDecodeError:
            fields[field.name] = text
    return {
        "record": number,
        "offset": parsed.start,
        "pcr": record.pcr,
        "template_digest": f"{algorithm.name}:{digest.hex()}",
        "template": record.template.label,
        "violation": record.violation,
        "fields": fields,
    }


def _stats(chosen: list[Parsed], bank: Bank, size: int) -> list[str]:
    """Counts for people; a duplicate has the PCR and template data of an earlier record."""
    templates = Counter(parsed.record.template.label for parsed in chosen)
    pcrs = Counter(parsed.record.pcr for parsed in chosen)
    violations = sum(parsed.record.violation for parsed in chosen)
    bytes_ = sum(parsed.end - parsed.start for parsed in chosen)
    seen: set[tuple[int, bytes]] = set()
    duplicates = 0
    for parsed in chosen:
        if parsed.record.violation:
            continue
        key = (
            parsed.record.pcr,
            SHA1.digest(parsed.record.template.hash_input(parsed.record.data)),
        )
        duplicates += key in seen
        seen.add(key)
    return [
        f"bank        {bank.name}",
        f"records     {len(chosen)}",
        f"bytes       {bytes_} of {size}",
        "templates   " + (", ".join(f"{n} {c}" for n, c in templates.most_common()) or "none"),
        "PCRs        " + (", ".join(f"{p}: {c}" for p, c in sorted(pcrs.items())) or "none"),
        f"violations  {violations}",
        f"duplicates  {duplicates}",
    ]
