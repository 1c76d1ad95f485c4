# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs keep``: keep every record since boot, show all of them; ask a keeper that runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imafs.errors import (
    DegradedError,
    FileError,
    GapError,
    NotThereError,
    StoreBrokenError,
    UsageError,
)
from imafs.text import counted, shown

if TYPE_CHECKING:
    from imafs.keeper.config import Config
    from imafs.keeper.facts import Gap
    from imafs.keeper.reading import Verdict

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
                "-o",
                "--output",
                metavar="FILE",
                required=True,
                help="the file, replaced if it is there; - for stdout",
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

    settings = _settings(args)
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


def _settings(args: argparse.Namespace) -> Config:
    from imafs.keeper import config

    path = args.config or (CONFIG if os.path.exists(CONFIG) else None)
    return config.read(path) if path is not None else config.Config()


def _store(args: argparse.Namespace) -> str:
    """Where the keeper has it that is asked: its settings say so too."""
    return str(args.store or _settings(args).path or STORE)


def status(args: argparse.Namespace) -> int:
    """Prints what the keeper says of itself."""
    from imafs.keeper.status import ask

    found = ask(_store(args), "status")
    print(json.dumps(found, indent=1) if args.json else "\n".join(_lines(found)))
    return 0


def _lines(found: Mapping[str, Any]) -> list[str]:
    records, verified, gaps = found["records"], found["verified"], found["gaps"]
    view = found["view"] + (": " + found["refusal"] if found["refusal"] else "")
    if gaps and not found["refusal"]:
        view += f", with {counted(len(gaps), 'gap')}"
    life = "none yet" if found["life"] is None else f"{found['life']}, kernel {found['boot']}"
    count = f"{records['total']}: {records['stored']} stored, {records['in_kernel']} not yet"
    count += f", {records['deleted']} deleted in the kernel"
    if found["looked"] is not None:
        count += f" (looked at {_when(found['looked'])})"
    lines = [
        f"state     {found['state']}" + (f": {found['why']}" if found["why"] else ""),
        f"view      {view}",
        f"records   {count}",
        f"life      {life}",
    ]
    if verified is not None:
        first = f"from record {verified['from']} " if verified["from"] else ""
        when = _when(verified["when"])
        lines.append(f"verified  {first}up to record {verified['records']}, {when}")
    if (error := found["last_error"]) is not None:
        lines.append(f"error     {_when(error['when'])}, {error['text']}")
    if found["flush_htable"] is False:
        lines.append("hint      without ima_flush_htable deletions free little memory")
    if found.get("view_measured") == "yes":
        lines.append("hint      IMA measures the view when root reads it (docs/keeper.md)")
    if found.get("view_measured") == "unknown" and found["flush_htable"]:
        lines.append(
            "hint      whether IMA measures the view is not known (docs/keeper.md, Its user)"
        )
    lines += [f"alarm     {kind}: {text}" for kind, text in found["alarms"].items()]
    return [shown(line) for line in lines]


def _when(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # of no year that there is
        return "at no time"


def flush(args: argparse.Namespace) -> int:
    """Returns once everything is stored. Raises :class:`DegradedError`."""
    from imafs.keeper import status

    found = status.flush(_store(args))
    stored = found["records"]["stored"]
    print(f"{counted(stored, 'record')} {'is' if stored == 1 else 'are'} stored")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Raises :class:`StoreBrokenError` where anything is not as it was stored, and
    :class:`GapError` where all is, but records may be missing."""
    from imafs.keeper import reading

    store = _store(args)
    names = reading.lives(store)
    if not names:
        raise NotThereError(f"{store}: there is no life in this store")
    verdicts, gaps = [], []
    for name in names if args.all else names[-1:]:
        try:
            life = reading.Reading(store, name)
        except StoreBrokenError as error:
            if not args.all:
                raise
            verdicts.append(reading.Verdict(name, 0, 0, 0, (str(error),)))
            continue
        verdicts.append(_with_facts(store, life.verify()))
        gaps += life.ledger.gaps
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
            what = "" if verdict.complaints else ", as they were stored"
            records = counted(verdict.records, "record")
            print(f"{verdict.life}: {records} in {counted(verdict.frames, 'frame')}{what}")
            for complaint in verdict.complaints:
                print(f"  {shown(complaint)}", file=sys.stderr)
    wrong = sum(len(verdict.complaints) for verdict in verdicts)
    if wrong:
        raise StoreBrokenError(
            f"{counted(wrong, 'complaint')}: the store is not what was stored (docs/keeper.md, "
            "Damaged records)"
        )
    _check_whole(gaps)
    return 0


def _with_facts(store: str, verdict: Verdict) -> Verdict:
    """The same; what a keeper has to read of the life besides is checked too."""
    from imafs.keeper.files import Disk
    from imafs.keeper.store import told_of

    try:
        told_of(Disk(store), store, verdict.life)
    except (StoreBrokenError, DegradedError) as error:
        return replace(verdict, complaints=(str(error), *verdict.complaints))
    return verdict


def _check_whole(gaps: Sequence[Gap]) -> None:
    """Raises :class:`GapError` where records may be missing."""
    if gaps:
        from imafs.keeper.facts import gap_alarm

        others = f" (and {len(gaps) - 1} more)" if len(gaps) > 1 else ""
        raise GapError(gap_alarm(gaps[0].index, gaps[0].why).text + others)


def export(args: argparse.Namespace) -> int:
    """Writes the records. Raises :class:`FileError`, and :class:`GapError` where all are written,
    but some may be missing among them."""
    from imafs import disk
    from imafs.keeper import reading

    store = _store(args)
    names = reading.lives(store)
    if not names:
        raise NotThereError(f"{store}: there is no life in this store")
    life = reading.Reading(store, names[-1])
    pieces = life.export(args.since)
    if args.output == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    else:
        try:
            with disk.replacing(args.output, 0o640) as descriptor:
                disk.fill(descriptor, pieces)
        except OSError as error:
            raise FileError(args.output, error, option="-o") from None
    _check_whole([gap for gap in life.ledger.gaps if gap.index >= args.since])
    return 0


def holders(args: argparse.Namespace) -> int:
    """Prints a line per holder."""
    from imafs.host import mounts
    from imafs.keeper import holders as holders_

    source = args.source or SOURCE
    if not os.path.isdir(source) and mounts.top(mounts.resolve(source)) is None:
        raise UsageError(f"--source {source}: is no directory")
    found = holders_.holders(source)
    for holder in found:
        print(shown(f"{holder.pid:>7} {holder.command} {holder.file}"))
    if not found:
        print("nobody that is seen from here" if os.geteuid() else "nobody", file=sys.stderr)
    return 0
