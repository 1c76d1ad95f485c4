# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The argument parser of all commands: a mistake is answered by the command it was made in."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from imafs.errors import UsageError, nearest
from imafs.text import shown

#: What argparse says of a word that is none of several; newer ones quote no choice.
_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<known>.*)\)")
#: Lines of usage that do not hide the mistake below them.
_SHORT = 3


class Parser(argparse.ArgumentParser):
    """As argparse's, without abbreviations; subcommands get this class too.

    An abbreviated option would mean something else with the next version, and
    ``--background`` is looked for by its name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses what is left over here: argparse leaves it to the main parser and its usage."""
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """The mistake, after the usage where that is short: `imafs mount` has twenty lines."""
        wrong = _CHOICE.search(message)
        if wrong is not None:
            known = re.findall(r"[\w-]+", wrong["known"])
            at = wrong.end("given") + 1
            message = message[:at] + nearest(wrong["given"], known) + message[at:]
        usage = self.format_usage()
        if usage.count("\n") > _SHORT:
            usage = ""
        self.exit(
            UsageError.exit_code, f"{usage}imafs: {shown(message)} (see {self.prog} --help)\n"
        )
