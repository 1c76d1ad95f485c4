# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs keep``: keep every record since boot, show all of them; ask a keeper that runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from imafs.errors import FileError, GapError, NotThereError, StoreBrokenError, UsageError
from imafs.text import shown

SOURCE = "/sys/kernel/security/integrity/ima"
STORE = "/var/lib/imafs/keeper"
CONFIG = "/etc/imafs/keeper.toml"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "keep",
        help="store measurement records durably, delete them in the kernel, show all of them",
        description="Stages the measurement list of a kernel (Linux 7.2 or newer) or of an "
        "emulator, stores the records durably, only then deletes them there, and shows the "
        "complete list since boot in another directory. Runs in the foreground.",
    )
    parser.add_argument("--source", metavar="DIR", help=f"the IMA directory ({SOURCE})")
    _add_store(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--mount", metavar="DIR", help="show the complete list in DIR")
    where.add_argument(
        "--cover",
        action="store_true",
        help="show it over the source itself, for agents with a fixed path. The cover stays when "
        "the keeper ends (ENOTCONN): what lies below is not the whole list",
    )
    parser.add_argument(
        "--accept-gap",
        action="store_true",
        help="show the list also where records may be missing from it (default: reads are EIO)",
    )
    parser.add_argument(
        "--pcrs",
        metavar="WHERE",
        help="where PCR values come from: sysfs, a directory like it, a TCTI string, or none "
        "(default: the TPM of the kernel or the emulator)",
    )
    parser.add_argument(
        "--boot-id", metavar="FILE", help="what tells one kernel from the next (default: its own)"
    )
    parser.add_argument("--config", metavar="FILE", help=f"settings ({CONFIG} if it is there)")
    parser.add_argument("--log-file", metavar="FILE", help="append log lines to FILE")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(metavar="ACTION", dest="action")
    for name, text, call in (
        ("status", "show what a running keeper has stored, and what is in its way", status),
        ("flush", "store everything that the kernel has now", flush),
        ("verify", "check every stored record against the journal and the PCRs in it", verify),
        ("export", "write stored records, in the kernel's SHA-1 binary form", export),
        ("holders", "name who has a measurement list open", holders),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(run=call)
        if name == "holders":
            action.add_argument(
                "--source", metavar="DIR", default=argparse.SUPPRESS, help="the IMA directory"
            )
        else:
            _add_store(action, argparse.SUPPRESS)
        if name in ("status", "verify"):
            action.add_argument("--json", action="store_true", help="print JSON")
        if name == "verify":
            action.add_argument(
                "--all", action="store_true", help="every life, not the newest alone"
            )
        if name == "export":
            action.add_argument(
                "--since", metavar="N", type=_number, default=0, help="from record N on (0)"
            )
            action.add_argument(
                "-o", "--output", metavar="FILE", required=True, help="a new file, or - for stdout"
            )


def _add_store(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--store", metavar="DIR", default=default, help=f"where records are stored ({STORE})"
    )


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a record")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Keeps until it is told to end; the exit code."""
    from imafs.cli import keep_daemon
    from imafs.keeper import config

    path = args.config or (CONFIG if os.path.exists(CONFIG) else None)
    settings = config.read(path) if path is not None else config.Config()
    return keep_daemon.run(
        keep_daemon.Plan(
            source=args.source or SOURCE,
            store=args.store or settings.path or STORE,
            mount=args.mount,
            cover=args.cover,
            accept_gap=args.accept_gap,
            pcrs=args.pcrs,
            boot_id=args.boot_id,
            log_file=args.log_file,
            settings=settings,
        )
    )


def _store(args: argparse.Namespace) -> str:
    return str(args.store or STORE)


def status(args: argparse.Namespace) -> int:
    """Prints what the keeper says of itself."""
    from imafs.keeper.status import ask

    found = ask(_store(args), "status")
    print(json.dumps(found, indent=1) if args.json else "\n".join(_lines(found)))
    return 0


def _lines(found: Mapping[str, Any]) -> list[str]:
    records, verified = found["records"], found["verified"]
    lines = [
        f"state     {found['state']}" + (f": {found['why']}" if found["why"] else ""),
        f"view      {found['view']}" + (f": {found['refusal']}" if found["refusal"] else ""),
        f"records   {records['total']}: {records['stored']} stored, {records['in_kernel']} not yet",
        f"life      {found['life']}, kernel {found['boot']}",
    ]
    if verified is not None:
        when = _when(verified["when"])
        lines.append(f"verified  up to record {verified['records']}, {when}")
    if found["flush_htable"] is False:
        lines.append("hint      without ima_flush_htable deletions free little memory")
    if found.get("view_measured") == "yes":
        lines.append("hint      IMA measures the view when root reads it (docs/keeper.md)")
    lines += [f"alarm     {kind}: {text}" for kind, text in found["alarms"].items()]
    return [shown(line) for line in lines]


def _when(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # of no year that there is
        return "at no time"


def flush(args: argparse.Namespace) -> int:
    """Returns once everything is stored. Raises :class:`DegradedError`."""
    from imafs.keeper.status import ask

    found = ask(_store(args), "flush")
    print(f"{found['records']['stored']} records are stored")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Raises :class:`StoreBrokenError` where anything is not as it was stored, and
    :class:`GapError` where all is, but records may be missing."""
    from imafs.keeper import reading

    names = reading.lives(_store(args))
    if not names:
        raise NotThereError(f"{_store(args)}: there is no life in this store")
    verdicts = []
    for name in names if args.all else names[-1:]:
        verdicts.append(reading.Reading(_store(args), name).verify())
    for verdict in verdicts:
        if args.json:
            print(
                json.dumps(
                    {
                        **{"life": verdict.life, "records": verdict.records},
                        **{"frames": verdict.frames, "gaps": verdict.gaps},
                        "complaints": list(verdict.complaints),
                    }
                )
            )
        else:
            print(f"{verdict.life}: {verdict.records} records in {verdict.frames} frames")
            for complaint in verdict.complaints:
                print(f"  {shown(complaint)}", file=sys.stderr)
    wrong = sum(len(verdict.complaints) for verdict in verdicts)
    if wrong:
        raise StoreBrokenError(f"{wrong} complaints: the store is not what was stored")
    gaps = sum(verdict.gaps for verdict in verdicts)
    if gaps:
        raise GapError(f"{gaps} gaps: records may be missing there")
    return 0


def export(args: argparse.Namespace) -> int:
    """Writes the records. Raises :class:`FileError`."""
    from imafs import disk
    from imafs.keeper import reading

    names = reading.lives(_store(args))
    if not names:
        raise NotThereError(f"{_store(args)}: there is no life in this store")
    pieces = reading.Reading(_store(args), names[-1]).export(args.since)
    if args.output == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return 0
    try:
        with disk.replacing(args.output, 0o640) as descriptor:
            disk.fill(descriptor, pieces)
    except OSError as error:
        raise FileError(args.output, error, option="-o") from None
    return 0


def holders(args: argparse.Namespace) -> int:
    """Prints a line per holder."""
    from imafs.keeper import holders as holders_

    source = args.source or SOURCE
    if not os.path.isdir(source):
        raise UsageError(f"--source {source}: is no directory")
    found = holders_.holders(source)
    for holder in found:
        print(shown(f"{holder.pid:>7} {holder.command} {holder.file}"))
    if not found:
        print("nobody that is seen from here" if os.geteuid() else "nobody", file=sys.stderr)
    return 0
