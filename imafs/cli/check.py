# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs check BUNDLE...``: the verdict on evidence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imafs.attest.kinds import Kind, worse
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.cli import options
from imafs.cli.input_file import read_bytes
from imafs.errors import FormatError, UsageError
from imafs.text import counted, shown

if TYPE_CHECKING:
    from imafs.attest.judgement import Judgement
    from imafs.attest.reference import Files
    from imafs.attest.verifier import Verifier

#: Files of each kind that are named on a terminal.
_SHOWN = 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "check",
        help="judge evidence: is it this machine's, fresh, and whole",
        description="Judges bundles of `imafs attest`, or of tpm2-tools, cat and tar. Of each: is "
        "the quote signed by the machine's key, for this nonce; do the records, each with its own "
        "template digest, lead to exactly what was quoted, from zero or from what the verifier "
        "knows; what happened to the machine since the last time. Nothing that the machine itself "
        "claims decides anything. Each verdict has an exit code; of several bundles it is the "
        "worst one's.",
    )
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", help="bundles")
    parser.add_argument(
        "--nonce", type=options.nonce, metavar="HEX", help="what the machines were asked with"
    )
    parser.add_argument(
        "--nonces",
        metavar="FILE",
        help="a line for each bundle, its path and its nonce: each machine was asked with another",
    )
    parser.add_argument(
        "--ak",
        metavar="PUB",
        action="append",
        default=[],
        help="the machine's key: TPM2B_PUBLIC (the safest: it says that the key is restricted), "
        "PEM or DER; of a fleet one file of PEM keys, or several",
    )
    parser.add_argument(
        "--ca",
        metavar="CERTS",
        action="append",
        default=[],
        help="authorities that vouch for keys by the certificates in the bundle (ak.crt)",
    )
    parser.add_argument(
        "--state",
        metavar="PATH",
        help="what is known of the machine: a file, or a directory with one for each key. It is "
        "on the disk before the verdict is told",
    )
    parser.add_argument(
        "--new", action="store_true", help="begin the state: the first time, or anew"
    )
    parser.add_argument(
        "--enrol",
        action="store_true",
        help="with --state: remember the key at first sight, where neither --ak nor --ca is given",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="files that are known: a runtime policy of Keylime (JSON), lines of digest and path "
        "(sha256sum), or the list of a golden machine",
    )
    parser.add_argument(
        "--no-violations", action="store_true", help="a verdict of its own where there are any"
    )
    options.add_padded_banks(parser)
    parser.add_argument(
        "--pcr",
        type=options.pcr,
        metavar="N",
        default=DEFAULT_PCR,
        help="the PCR of records without a rule's own, which must be quoted (10)",
    )
    parser.add_argument(
        "--pcrs",
        type=options.pcrs,
        metavar="N,...",
        default=(),
        help="PCRs that must be quoted too: the machine's policy sends records there (pcr=N)",
    )
    parser.add_argument(
        "--jobs",
        type=options.count,
        metavar="N",
        default=1,
        help="processes that check several bundles (1)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each bundle")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    worst: Kind | None = None
    for path, found in _verifier(args).check_all(args.bundles, args.jobs):
        if args.json:
            print(json.dumps(as_object(path, found)), flush=True)
        else:
            print("\n".join(lines(path, found)), flush=True)
        worst = found.kind if worst is None else worse(worst, found.kind)
    assert worst is not None
    return worst.code


def _verifier(args: argparse.Namespace) -> Verifier:
    from datetime import UTC, datetime

    from imafs.attest import api, reference
    from imafs.attest.judgement import Demand
    from imafs.attest.verifier import Verifier

    nonces = {} if args.nonces is None else _nonces(args.nonces)
    unasked = [path for path in args.bundles if path not in nonces]
    if args.nonce is None and unasked:
        raise UsageError(
            f"no nonce for {shown(unasked[0])}: give --nonce HEX, or a line in --nonces"
        )
    if (args.new or args.enrol) and args.state is None:
        raise UsageError("--new and --enrol are about a --state PATH")
    if args.state is not None and len(args.bundles) > 1 and not Path(args.state).is_dir():
        raise UsageError(f"--state {shown(args.state)}: of several bundles it is a directory")
    known = None
    if args.reference is not None:
        known = reference.read(read_bytes(args.reference), args.reference)
    demand = Demand(
        nonce=args.nonce or b"",
        now=datetime.now(UTC),
        keys=api.keys(*args.ak),
        anchors=api.anchors(*args.ca),
        enrol=args.enrol,
        padded=args.padded_banks,
        pcr=args.pcr,
        pcrs=args.pcrs,
        reference=known,
        no_violations=args.no_violations,
    )
    place = None if args.state is None else Path(args.state)
    return Verifier(demand, place, args.new, nonces)


def _nonces(path: str) -> dict[str, bytes]:
    """Nonces by the paths of their bundles. Raises :class:`FormatError`."""
    found: dict[str, bytes] = {}
    text = read_bytes(path).decode("utf-8", "surrogateescape")
    for number, line in enumerate(text.splitlines(), 1):
        name, _, digits = line.strip().rpartition(" ")
        if not line.strip():
            continue
        try:
            found[name.strip()] = bytes.fromhex(digits)
        except ValueError:
            name = ""
        if not name.strip():
            raise FormatError("no path and nonce", source=path, line=number)
    return found


def lines(path: str, found: Judgement) -> Iterator[str]:
    """A verdict for people."""
    yield shown(f"{path}: {found.kind.word}: {found.said}")
    if not found.kind.accepted:
        return
    pcrs = ", ".join(f"{bank}:{pcr}" for bank, pcr in found.proven)
    yield f"  key {found.key}, quoted {pcrs}, boot_aggregate {_boot(found)}"
    yield from (shown(f"  {note}") for note in found.notes)
    if found.boots:
        yield f"  {counted(found.boots, 'kernel')} started by kexec"
    if found.files is not None:
        yield from _files(found.files)


def _boot(found: Judgement) -> str:
    from imafs.attest.firmware import Boot

    return {
        Boot.MATCHES: "is explained",
        Boot.BYPASS: "has no TPM behind it",
        Boot.DIFFERS: "DIFFERS",
        Boot.UNKNOWN: "is not explained (no PCRs 0 to 9, no firmware's log)",
    }[found.boot]


def _files(files: Files) -> Iterator[str]:
    yield (
        f"  files: {files.known} known, {len(files.unknown)} unknown, "
        f"{len(files.changed)} changed, {files.excluded} excluded, "
        f"{files.violations} violations; {files.other} of no file"
    )
    for word, paths in (("unknown", files.unknown), ("changed", files.changed)):
        for name in list(paths)[:_SHOWN]:
            yield f"  {word}: {shown(name)}"
        if len(paths) > _SHOWN:
            yield f"  {word}: {len(paths) - _SHOWN} more (--json names them)"


def as_object(path: str, found: Judgement) -> dict[str, object]:
    """A verdict for programs: what a JSON object has."""
    clock = found.clock
    row: dict[str, object] = {
        "bundle": path,
        "verdict": found.kind.word,
        "exit": found.kind.code,
        "accepted": found.kind.accepted,
        "said": found.said,
        "key": found.key,
        "first": found.first,
        "records": found.records,
        "excess": found.excess,
        "violations": found.violations,
        "boots": found.boots,
        "boot_aggregate": found.boot.value,
        "quoted": [f"{bank}:{pcr}" for bank, pcr in found.proven],
        "notes": list(found.notes),
        "clock": None
        if clock is None
        else {
            "clock": clock.clock,
            "reset_count": clock.reset_count,
            "restart_count": clock.restart_count,
        },
        "index": None if found.state is None else found.state.index,
        "sequence": None if found.state is None else found.state.sequence,
    }
    if found.files is not None:
        from imafs.attest.reference import named

        row["files"] = {
            "known": found.files.known,
            "excluded": found.files.excluded,
            "violations": found.files.violations,
            "other": found.files.other,
            "unknown": [_text(name) for name in named(found.files.unknown)],
            "changed": [_text(name) for name in named(found.files.changed)],
        }
    return row


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
