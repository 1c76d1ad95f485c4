# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs status``: the state of a running daemon, once or again and again."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from imafs.cli import options
from imafs.errors import MountError, UsageError

if TYPE_CHECKING:
    from imafs.verbs.client import ControlClient

#: Seconds between two looks where --watch names none.
_INTERVAL = 1.0
_DAY = 86400.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "status",
        help="show the state of a running emulator, also live",
        description="Shows lists, PCRs next to what the lists replay to, who holds the files open "
        "and what has failed. With --watch again and again: a terminal is redrawn in place, "
        "anything else gets a block per look, until Ctrl-C.",
    )
    parser.add_argument(
        "dir",
        metavar="DIR",
        nargs="?",
        help="its mountpoint, where several run (default: $IMAFS_CONTROL, else this user's only "
        "daemon)",
    )
    parser.add_argument("--control", metavar="SOCKET", help="its control socket, instead of DIR")
    options.add_listener(parser)
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_seconds,
        const=_INTERVAL,
        help=f"look again every so many seconds ({_INTERVAL:g})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one line per look")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _DAY:  # nor is nan
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0, up to a day")
    return value


def run(args: argparse.Namespace) -> int:
    """Asks and prints; the exit code. Raises what :class:`ControlClient` raises."""
    from imafs.cli import answers, find_daemon
    from imafs.verbs.client import ControlClient

    uid = find_daemon.listener(args)
    try:
        with ControlClient(_socket(args), uid=uid) as client:
            if args.watch is None:
                return answers.show("status", client.status(), as_json=args.json)
            _watch(client, args.watch, as_json=args.json)
    except KeyboardInterrupt:
        if args.watch is None:
            raise
        if sys.stdout.isatty():
            print()  # behind the terminal's ^C
    return 0


def _socket(args: argparse.Namespace) -> Path:
    from imafs.cli import find_daemon

    if args.dir is None:
        return find_daemon.chosen(args.control)
    if args.control is not None:
        raise UsageError("name DIR or --control, not both")
    path = find_daemon.of_place(args.dir)
    if path is None:
        raise MountError(f"{args.dir}: no imafs is mounted here")
    return path


def _watch(client: ControlClient, seconds: float, *, as_json: bool) -> NoReturn:
    """Prints until KeyboardInterrupt, or until the daemon ends (ControlError)."""
    from imafs.cli import answers

    screen = Screen(sys.stdout)
    looks = 0
    while True:
        status = client.status()
        if as_json:
            answers.show("status", status, as_json=True)
        elif sys.stdout.isatty():
            screen.draw(answers.status_lines(status))
        else:
            print("\n".join(["", *answers.status_lines(status)][looks == 0 :]))
        sys.stdout.flush()
        looks += 1
        time.sleep(seconds)


class Screen:
    """A block of lines on a terminal, drawn over itself.

    Lines longer than the terminal is wide are wrapped by it; what it has shown before
    stays above. A block that is too high loses its last lines: what has scrolled away
    cannot be drawn over.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: list[str] = []

    def draw(self, lines: Sequence[str]) -> None:
        """Replaces the block."""
        width, height = shutil.get_terminal_size()
        # By today's width: terminals wrap anew what they show when they are resized.
        up = min(sum(_rows(line, width) for line in self._shown), height - 1)
        self._shown = list(lines)
        while len(self._shown) > 1 and sum(_rows(x, width) for x in self._shown) >= height:
            self._shown.pop()
        # In one write, so that nothing flickers.
        over = f"\r\x1b[{up}A\x1b[J" if up else ""
        self._stream.write(over + "".join(f"{line}\n" for line in self._shown))


def _rows(line: str, width: int) -> int:
    return max(1, math.ceil(sum(map(_columns, line)) / max(width, 1)))


def _columns(character: str) -> int:
    """Of a terminal: names of East Asia take two each, accents that are put on none."""
    if character.isascii():
        return 1
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
