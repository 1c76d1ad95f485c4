# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs record DIR -o FILE``: a recording of a machine's IMA directory."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import UTC, datetime

from imafs import __version__
from imafs.cli import options, pcrsource
from imafs.errors import FileError, MismatchError
from imafs.lists.replay import PcrValues
from imafs.sources import recording
from imafs.text import counted, shown


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "record",
        help="record an IMA directory and its PCRs",
        description="Reads every file of DIR (a real machine's /sys/kernel/security/ima or an "
        "emulator's) and the PCRs until list and PCRs agree, and writes one archive that "
        "`imafs mount --load` plays and a bug report can carry. While it reads, nobody can stage "
        "or delete, and what is measured meanwhile is left out. "
        "Without a TPM there are no PCRs: the lists are checked by themselves. It holds file "
        "names of the machine: look at it before you send it.",
    )
    parser.add_argument("dir", metavar="DIR", help="an IMA directory")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="archive: .tar, .tar.gz (.tgz) or .tar.xz (.txz)",
    )
    pcrsource.add_options(parser)
    options.add_padded_banks(parser)
    parser.add_argument(
        "--no-check", action="store_true", help="record although list and PCRs do not agree"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    recording.check_place(args.output)
    source = _Source(args)
    try:
        snapshot = recording.take(
            args.dir, source.pcrs, padded=args.padded_banks, check=not args.no_check
        )
    except FileError as error:
        from imafs.cli import find_daemon, find_keeper

        find_keeper.tell_if_kept(args.dir, error)
        find_daemon.tell_if_dead(args.dir, error)
        raise
    except MismatchError as error:
        if source.adopted:
            raise MismatchError(f"{error}. {pcrsource.ADOPTED}") from None
        raise
    system = os.uname()
    verdict = snapshot.verdict
    about = {
        "imafs": __version__,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": f"{system.sysname} {system.release} {system.machine}",
        # null: there were no PCRs to agree with.
        "agree": None if not snapshot.pcrs else verdict is not None,
        "records": verdict.records - snapshot.later if verdict else None,
        # Read behind those that the PCRs knew of, and left out of every list.
        "later": snapshot.later,
    }
    recording.write(snapshot, args.output, about)
    print(shown(f"{args.output}: {_said(snapshot)}"))
    return 0


class _Source:
    """Where the PCRs are read, again and again; none where there is no TPM."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._read: Callable[[], pcrsource.Reading] | None = None
        self.adopted = False

    def pcrs(self) -> PcrValues:
        """All PCRs now."""
        try:
            self._read = self._read or pcrsource.reader(self._args, self._args.dir)
            found = self._read()
        except pcrsource.NoTpmError:
            return {}
        self.adopted = found.adopted
        return found.values


def _said(snapshot: recording.Snapshot) -> str:
    if snapshot.verdict is None:
        return "unchecked"
    what = "no PCRs confirm: there is no TPM" if not snapshot.pcrs else "the PCRs confirm"
    said = f"{counted(snapshot.verdict.records - snapshot.later, 'record')}, which {what}"
    if snapshot.later:
        are = "is" if snapshot.later == 1 else "are"
        said += f"; {snapshot.later} that came meanwhile {are} left out"
    return said
