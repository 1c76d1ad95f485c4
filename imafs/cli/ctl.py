# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs ctl``: ask a running daemon; its verbs are the table of operations."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from imafs.cli import options as types
from imafs.control.ops import Kind, Operation, Option, metavar
from imafs.errors import Refused, UsageError
from imafs.verbs.table import TABLE

if TYPE_CHECKING:
    from imafs.verbs.client import ControlClient


#: Operations that answer once the records are in the list.
_BULK = frozenset({"generate", "load"})
#: Seconds that the TPM gets for them here: as many as for a single measurement.
_PATIENCE = 5


_UID = (
    "with --control: whose daemon that is, where it is neither root's nor this user's (with "
    "`measure` before the verb)"
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ctl`` and a parser for every operation."""
    parser = subparsers.add_parser("ctl", help="ask a running daemon")
    _add_control(parser, None)
    parser.add_argument("--uid", dest="listener", metavar="N", type=types.uid, help=_UID)
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for operation in TABLE.values():
        verb = verbs.add_parser(operation.verb, help=operation.help, description=operation.help)
        verb.add_argument("--json", action="store_true", help="print the answer as JSON")
        # Behind the verb too; not given there, what stands before it holds.
        _add_control(verb, argparse.SUPPRESS)
        if all(option.cli != "--uid" for option in operation.options):
            verb.add_argument(
                *("--uid",),
                dest="listener",
                metavar="N",
                type=types.uid,
                default=argparse.SUPPRESS,
                help=_UID,
            )
        verb.set_defaults(operation=operation.name)
        for option in operation.options:
            _add_option(verb, option)


def _add_control(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--control",
        metavar="SOCKET",
        default=default,
        help="control socket (default: $IMAFS_CONTROL, else this user's only daemon's)",
    )


def _add_option(verb: argparse.ArgumentParser, option: Option) -> None:
    dest = f"option_{option.name}"
    number: Callable[[str], object] = types.integer if option.kind is Kind.INT else str
    if not option.cli.startswith("-"):
        paths = option.kind is Kind.PATHS
        several = ("+" if paths else None) if option.required else ("*" if paths else "?")
        verb.add_argument(
            dest,
            metavar=option.cli,
            help=option.help,
            type=number,
            nargs=several,
        )
    elif option.kind is Kind.BOOL:
        verb.add_argument(
            option.cli, dest=dest, action="store_true", default=None, help=option.help
        )
    else:
        verb.add_argument(
            option.cli,
            dest=dest,
            metavar=metavar(option),
            help=option.help,
            type=number,
            required=option.required,
        )


def run(args: argparse.Namespace) -> int:
    """Ask and print the answer; the exit code. Raises what :class:`ControlClient` raises."""
    from imafs.cli import answers, find_daemon, progress
    from imafs.control import wire
    from imafs.verbs.client import ControlClient

    operation = TABLE[args.operation]
    uid = find_daemon.listener(args)
    options = _options(operation, args)
    wanted = operation.shows_progress and sys.stderr.isatty()
    try:
        with (
            ControlClient(find_daemon.chosen(args.control), uid=uid) as client,
            progress.bar(sys.stderr) as show,
        ):
            answer = client.call(operation.name, options, progress=show if wanted else None)
            if operation.name in _BULK and answer.get("extended") is False:
                answer["extended"] = _extended(client)
    except Refused as refused:
        if not args.json:
            raise _with_errno(refused) from None
        print(json.dumps(wire.failure(refused, None)))
        return refused.exit_code
    return answers.show(operation.name, answer, options, as_json=args.json)


def _with_errno(refused: Refused) -> Refused:
    """Names the errno of a kernel's refusal, which is what an agent gets and tests for."""
    if refused.exit_code != Refused.exit_code or refused.errno_name in str(refused):
        return refused
    return Refused(refused.errno, f"{refused} ({refused.errno_name})")


def _extended(client: ControlClient) -> bool:
    """Whether all is in the PCRs soon: the daemon does not wait for it in bulk operations."""
    try:
        client.wait(extended=True, timeout=_PATIENCE)
    except Refused as refused:
        if refused.errno != errno.ETIMEDOUT:
            raise
        return False
    return True


def _options(operation: Operation, args: argparse.Namespace) -> dict[str, object]:
    given: dict[str, object] = {}
    for option in operation.options:
        value = getattr(args, f"option_{option.name}")
        if value is None or (option.kind is Kind.PATHS and not value):
            continue
        if option.kind is Kind.PATHS:
            value = [_absolute(item, option) for item in value]
        elif option.kind is Kind.PATH:
            value = _absolute(value, option)
        given[option.name] = value
    if operation.name == "critical_data" and not {"file", "data"} & set(given):
        given["data"] = _standard_input().hex()
    if operation.name == "scenario" and set(given) == {"file"}:
        # One word for either, as with `imafs mount --scenario`; a request tells them apart.
        from imafs.scenarios import library

        given = dict(library.request(args.option_file))
    return TABLE.validate(operation.name, given, spoken=True)


def _standard_input() -> bytes:
    from imafs.formats.fields import MOST_FIELD

    data = sys.stdin.buffer.read(MOST_FIELD + 1)
    if len(data) > MOST_FIELD:
        what = f"standard input: more than {MOST_FIELD} bytes, and a kernel has no memory"
        raise Refused(errno.ENOMEM, f"{what} for a field of more (ENOMEM)")
    return data


def _absolute(path: str, option: Option) -> str:
    if not path:  # Path would make it the working directory
        raise UsageError(f"{option.cli}: an empty path")
    # Not resolved: ".." after a symbolic link is for the daemon's open to resolve.
    return str(Path(path).absolute())
