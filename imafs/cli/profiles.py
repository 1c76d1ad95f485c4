# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs profiles``: which interfaces can be played, and in what they differ."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imafs.interface.profiles import Profile

#: Columns of text are not made narrower than this.
_NARROWEST = 16


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "profiles",
        help="compare the interfaces that mount --profile plays",
        description="Lists the profiles; with names, or --all, compares them row by row: files, "
        "requests, errors, counts, records, known bugs.",
    )
    parser.add_argument("names", metavar="PROFILE", nargs="*", help="profiles to compare")
    parser.add_argument("--all", action="store_true", help="compare all, series by series")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, all rows of all profiles")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints; the exit code. Raises :class:`UsageError` for an unknown profile."""
    from imafs.interface.profiles import PROFILES, lookup
    from imafs.kernel import profile_table

    chosen = [lookup(name) for name in args.names] or list(PROFILES)
    if args.json:
        print(json.dumps([_described(profile) for profile in chosen], indent=1))
        return 0
    draw = _markdown if args.markdown else _columns
    if args.all or args.names:
        groups = [("", chosen)] if args.names else profile_table.series()
        print("\n\n".join(_titled(title, draw(_compared(group))) for title, group in groups))
    else:
        print(draw(_listed(chosen)))
    return 0


def _described(profile: Profile) -> dict[str, object]:
    from imafs.kernel import profile_table

    head = {"name": profile.name, "aliases": list(profile.aliases), "summary": profile.summary}
    return {**head, "facts": profile_table.facts(profile)}


def _titled(title: str, table: str) -> str:
    return f"## {title}\n\n{table}" if title else table


def _listed(profiles: Sequence[Profile]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("profile", "from", "what", "answers are")]
    for p in profiles:
        names = ", ".join((p.name, *p.aliases))
        rows.append((names, p.origin, p.summary, p.source.value))
    return rows


def _compared(profiles: Sequence[Profile]) -> list[Sequence[str]]:
    """A row per title, without those that no profile has anything to say to."""
    from imafs.kernel import profile_table
    from imafs.kernel.profile_play import NOTHING

    facts = [profile_table.facts(profile) for profile in profiles]
    rows: list[Sequence[str]] = [("", *(profile.name for profile in profiles))]
    for title in profile_table.ROWS:
        cells = [each[title] for each in facts]
        if any(cell != NOTHING for cell in cells):
            rows.append((title, *cells))
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their cells, or as the terminal has room for."""
    first = max(len(row[0]) for row in rows)
    room = shutil.get_terminal_size((120, 24)).columns - first
    most = max(_NARROWEST, room // (len(rows[0]) - 1) - 2)
    wrapped = [[[row[0]], *(textwrap.wrap(cell, most) or [""] for cell in row[1:])] for row in rows]
    widths = [
        max(len(line) for cell in column for line in cell) for column in zip(*wrapped, strict=True)
    ]
    lines = []
    for cells in wrapped:
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            line = "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
            lines.append(line.rstrip())
    return "\n".join(lines)
