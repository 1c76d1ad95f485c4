# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs scenarios``: the ready scenarios, listed or printed."""

from __future__ import annotations

import argparse

from imafs.text import counted, shown


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "scenarios",
        help="list the ready scenarios, or print one",
        description="Lists the scenarios that come with imafs; with NAME prints that one, to "
        "begin a scenario of one's own from. Begin one with `imafs mount --scenario NAME` or "
        "`imafs ctl scenario NAME`. With --check reads a scenario file and says what is wrong "
        "with it.",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("name", metavar="NAME", nargs="?", help="a ready scenario")
    group.add_argument(
        "--check", metavar="NAME|FILE", help="a scenario file of one's own, or a ready one"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from imafs.scenarios import library
    from imafs.verbs.table import TABLE

    if args.name is not None:
        print(library.text_of(args.name), end="")
    elif args.check is not None:
        scenario = library.find(args.check, TABLE.validate)
        print(shown(f"{scenario.name}: {counted(len(scenario.steps), 'step')}"))
    else:
        found = [library.ready(name, TABLE.validate) for name in library.names()]
        width = max(len(scenario.name) for scenario in found)
        for scenario in found:
            print(f"{scenario.name:<{width}}  {scenario.summary}")
    return 0
