# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Faults on demand: which call of a client fails, and with which errno.

Pure and seeded: the same rules and the same calls give the same failures. The FUSE
shell asks :meth:`Faults.check` before a call acts, so a call that fails changes nothing:
no count of readers, no position, no list.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from imafs.control.ops import Kind, Option, Options
from imafs.errors import NotThereError, Refused, UsageError

#: Calls that may fail.
OPERATIONS = ("open", "read", "write")
#: Rules at a time: each call looks at all of them.
MOST = 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """Calls of one kind on files of one kind, and how often they fail.

    ``files`` is a shell pattern over the names in the IMA directory; a file that a link
    points to has the link's name as well. ``next``: that many calls, then the rule is
    spent. ``every``: one call in so many. ``percent``: so many of a hundred, by chance
    from ``seed``. With none of them every call fails; with several, those on which all
    agree. ``writing``: opens for writing only (True), for reading only (False), both (None).
    """

    operation: str
    errno: int
    files: str = "*"
    next: int | None = None
    every: int | None = None
    percent: int | None = None
    seed: int = 0
    writing: bool | None = None

    @classmethod
    def of(cls, options: Options) -> Rule:
        """From validated options (:data:`OPTIONS`)."""
        told = {name: value for name, value in options.items() if name not in _OPENS}
        ways = [_OPENS[name] for name in _OPENS if options.flag(name)]
        told |= {"errno": number_of(options.text("errno")), "writing": ways[0] if ways else None}
        return cls(**told)  # type: ignore[arg-type]

    def describe(self) -> dict[str, object]:
        """JSON-able, without what was left out."""
        told = asdict(self) | {"errno": name_of(self.errno)}
        if self.percent is None:
            del told["seed"]
        return {key: value for key, value in told.items() if value is not None}


#: Options for :attr:`Rule.writing`.
_OPENS = {"writing": True, "reading": False}


def number_of(name: str) -> int:
    """The errno called ``name`` (``EBUSY``). Raises :class:`UsageError`."""
    number = getattr(errno, name, None) if name.startswith("E") and name.isalnum() else None
    if not isinstance(number, int):
        raise UsageError(f"{name!r} is no errno: give its name, such as EBUSY or EIO")
    return number


def name_of(number: int) -> str:
    """``EBUSY`` for its number."""
    return errno.errorcode.get(number, str(number))


def _wrong_operation(value: str) -> str | None:
    known = ", ".join(OPERATIONS)
    return None if value in OPERATIONS else f"{value!r} cannot fail: {known} can"


def _wrong_errno(value: str) -> str | None:
    try:
        number_of(value)
    except UsageError as error:
        return str(error)
    return None


def _wrong_files(value: str) -> str | None:
    # Not above: a client that asks for no fault need not load all profiles.
    from imafs.interface import file_names

    # Which TPM there will be is not known yet.
    return file_names.unmatched(value, file_names.of_any_tpm())


#: A rule as people write it, on a command line, in a request and in a scenario.
OPTIONS = (
    Option(
        "operation", Kind.STR, "open, read or write", "CALL", required=True, check=_wrong_operation
    ),
    Option(
        "errno", Kind.STR, "name of the errno, such as EBUSY", "ERRNO", True, check=_wrong_errno
    ),
    Option(
        *("files", Kind.STR, "shell pattern of names in the IMA directory", "--files"),
        check=_wrong_files,
    ),
    Option("next", Kind.INT, "only the next so many calls", "--next", minimum=1),
    Option("every", Kind.INT, "one call in so many", "--every", minimum=1),
    Option(
        *("percent", Kind.INT, "so many of a hundred calls, by chance", "--percent"),
        minimum=1,
        maximum=100,
    ),
    Option("seed", Kind.INT, "of that chance", "--seed"),
    Option("writing", Kind.BOOL, "only opens for writing", "--writing"),
    Option("reading", Kind.BOOL, "only opens for reading", "--reading"),
)


def check(options: Options) -> str | None:
    """What is wrong with :data:`OPTIONS` together."""
    ways = [name for name in _OPENS if options.flag(name)]
    if len(ways) > 1:
        return "of {writing} and {reading} give one"
    opens = options.text("operation") == "open"
    if ways and not opens:
        return "only an open is for reading or for writing"
    if opens and options.text("errno") == "ENOSYS":
        # FUSE takes that for a file system without opens, and asks for none ever again.
        return "open cannot fail with ENOSYS: no open would get here after it"
    return None


class _Armed:
    """A rule and what it has seen."""

    def __init__(self, number: int, rule: Rule) -> None:
        self.number = number
        self.rule = rule
        self.seen = 0
        self.failed = 0
        self._chance = random.Random(rule.seed)

    def hits(self, operation: str, names: Sequence[str], *, writing: bool | None) -> bool:
        rule = self.rule
        if operation != rule.operation or self.spent:
            return False
        if rule.writing is not None and writing is not None and writing != rule.writing:
            return False
        if not any(fnmatchcase(name, rule.files) for name in names):
            return False
        self.seen += 1
        if rule.every is not None and self.seen % rule.every:
            return False
        if rule.percent is not None and self._chance.randrange(100) >= rule.percent:
            return False
        self.failed += 1
        return True

    @property
    def spent(self) -> bool:
        return self.rule.next is not None and self.failed >= self.rule.next


class Faults:
    """The rules in force, in the order in which they were added."""

    def __init__(self) -> None:
        self._rules: list[_Armed] = []
        self._last = 0

    def __bool__(self) -> bool:
        return bool(self._rules)

    def add(self, rule: Rule) -> int:
        """The rule's number, by which it can be cleared. Raises :class:`Refused`: too many."""
        if len(self._rules) >= MOST:
            raise Refused(errno.ENOSPC, f"there are {MOST} faults: clear some first")
        self._last += 1
        self._rules.append(_Armed(self._last, rule))
        return self._last

    def clear(self, number: int | None = None) -> int:
        """Drops one rule, or all: how many. Raises :class:`NotThereError`."""
        kept = [] if number is None else [r for r in self._rules if r.number != number]
        cleared = len(self._rules) - len(kept)
        if number is not None and not cleared:
            raise NotThereError(f"there is no fault {number}")
        self._rules = kept
        return cleared

    def check(self, operation: str, names: Sequence[str], *, writing: bool | None = None) -> None:
        """A call on a file of these ``names``. Raises :class:`Refused` where a rule says so.

        Every rule that fits counts the call; the oldest one that hits gives the errno.
        """
        hits = [r for r in self._rules if r.hits(operation, names, writing=writing)]
        if hits:
            first = hits[0]
            raise Refused(first.rule.errno, f"fault {first.number} was asked for")

    def describe(self) -> list[dict[str, object]]:
        """Every rule with its number, how many calls it fitted and how many failed."""
        return [
            {"fault": r.number, **r.rule.describe(), "seen": r.seen, "failed": r.failed}
            for r in self._rules
        ]
