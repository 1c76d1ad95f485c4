# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Operations of a control socket as data, and the options of a request.

A product describes its own in one :class:`Table`. Server and client validate with it, the
command line is built from it, and its :meth:`~Table.markdown` is the documentation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from imafs.errors import UsageError

T = TypeVar("T")

# Keys of a request that are no option of any operation.
RESERVED = frozenset({"op", "id", "progress"})
INT_MAX = 2**63 - 1
#: Characters of a text; hexadecimal digits may be more.
_TEXT_MAX = 1 << 20


class Kind(Enum):
    """Type of an option; the value is what people read."""

    STR = "str"
    INT = "int"
    BOOL = "bool"
    PATH = "path"  # absolute: the daemon's working directory is not the caller's
    PATHS = "list of paths"  # not empty, each absolute
    HEX = "hex str"  # stays a str: the handler decodes it


@dataclass(frozen=True, slots=True)
class Option:
    """One option; ``cli`` is its form on the command line, ``NAME`` or ``--name``.

    A positional (no leading dashes) of an option that is not required may be left out.
    ``minimum`` and ``maximum`` bound integers; ``check`` says what is wrong with a value of the
    right kind, None where nothing is.
    """

    name: str
    kind: Kind
    help: str
    cli: str
    required: bool = False
    minimum: int = 0
    maximum: int = INT_MAX
    check: Callable[[str], str | None] | None = None


class Options(dict[str, object]):
    """Validated options of one request, each of the kind that its operation says."""

    def text(self, name: str, default: str | None = None) -> str:
        """A string, ``default`` where it is left out; without one it must be there."""
        if default is not None and name not in self:
            return default
        return self._of(str, name)

    def maybe_text(self, name: str) -> str | None:
        """A string, None where it is left out."""
        return self._of(str, name) if name in self else None

    def raw(self, name: str) -> bytes:
        """The bytes that a string came from: a name need not be UTF-8."""
        return os.fsencode(self.text(name))

    def number(self, name: str) -> int:
        """An integer that must be there."""
        return self._of(int, name)

    def maybe_number(self, name: str) -> int | None:
        """An integer, None where it is left out."""
        return self._of(int, name) if name in self else None

    def flag(self, name: str) -> bool:
        """A boolean, False where it is left out."""
        return name in self and self._of(bool, name)

    def paths(self, name: str) -> list[str]:
        """A list of paths that must be there."""
        return self._of(list, name)

    def _of(self, kind: type[T], name: str) -> T:
        value = self[name]
        if not isinstance(value, kind):
            raise TypeError(f"{name}: not of the kind that the table says")
        return value


class OptionError(UsageError):
    """One option of a request is wrong: ``option``, by its key."""

    def __init__(self, reason: str, option: str) -> None:
        super().__init__(reason)
        self.option = option


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    ``exactly_one``: of these options a request has exactly one. ``needs``: pairs
    (a, b): with option a, b is required. ``check`` says what else is wrong with options that
    are right one by one; ``{name}`` in its words is what that option is called.
    ``lengthy``: may take long, so clients set no deadline of their own. ``abandonable``: ends
    when its client hangs up. ``shows_progress``: sends progress lines when asked to.
    """

    name: str
    help: str
    options: tuple[Option, ...] = ()
    exactly_one: tuple[str, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    check: Callable[[Options], str | None] | None = None
    lengthy: bool = False
    abandonable: bool = False
    shows_progress: bool = False

    @property
    def verb(self) -> str:
        """The name on the command line: ``critical-data``."""
        return self.name.replace("_", "-")

    def describe(self) -> dict[str, object]:
        """What ``hello`` tells of this operation, JSON types only."""
        options = {
            o.name: {"type": o.kind.value, "required": o.required, "help": o.help}
            for o in self.options
        }
        return {"help": self.help, "options": options}


#: Answered by every server itself.
HELLO = Operation("hello", "tell version, protocol and operations")


class Table(Mapping[str, Operation]):
    """The operations of one product, by name and in order; ``hello`` is the last of each."""

    def __init__(self, *operations: Operation) -> None:
        self._operations = {operation.name: operation for operation in (*operations, HELLO)}
        if len(self._operations) <= len(operations):
            raise ValueError("two operations have one name")

    def __getitem__(self, name: str) -> Operation:
        return self._operations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._operations)

    def __len__(self) -> int:
        return len(self._operations)

    def validate(self, op: str, options: Mapping[str, object], *, spoken: bool = False) -> Options:
        """The options of a request for ``op``, checked; :class:`UsageError` names the wrong one.

        An option that is ``None`` (JSON null) counts as left out. ``spoken``: they are named as
        the command line does, not by their keys.
        """
        operation = self._operations.get(op)
        if operation is None:
            raise UsageError(f"op: unknown operation {op!r}")
        known = {option.name: option for option in operation.options}
        # What it is called by whoever reads the mistake.
        called = {name: option.cli if spoken else name for name, option in known.items()}
        verb = operation.verb if spoken else op
        given = {name: value for name, value in options.items() if value is not None}
        for name in options:
            if name not in known:
                raise OptionError(f"{op}: unknown option {name!r}", name)
        for name, value in given.items():
            problem = _problem(known[name], value)
            if problem is not None:
                raise OptionError(f"{verb}: {called[name]}: {problem}", name)
        for option in operation.options:
            if option.required and option.name not in given:
                raise UsageError(f"{verb}: {called[option.name]}: missing")
        if operation.exactly_one and sum(name in given for name in operation.exactly_one) != 1:
            names = ", ".join(called[name] for name in operation.exactly_one)
            raise UsageError(f"{verb}: give exactly one of {names}")
        for name, needed in operation.needs:
            if name in given and needed not in given:
                raise UsageError(f"{verb}: {called[needed]}: missing ({called[name]} needs it)")
        found = Options(given)
        if operation.check is not None and (wrong := operation.check(found)):
            raise UsageError(f"{verb}: {wrong.format_map(called)}")
        return found

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = ["| `imafs ctl` | request keys | what it does |", "|---|---|---|"]
        for operation in self.values():
            keys = [
                f"`{o.name}` {o.kind.value}{' (required)' if o.required else ''}: {o.help}"
                for o in operation.options
            ]
            cells = (f"`{synopsis(operation)}`", "<br>".join(keys), operation.help)
            row = [cell.replace("|", r"\|") for cell in cells]  # else it would end the cell
            lines.append(f"| {' | '.join(row)} |")
        return "\n".join(lines)


def _problem(option: Option, value: object) -> str | None:
    """Why ``value`` is not one for ``option``, or None."""
    if option.kind is Kind.BOOL:
        return None if isinstance(value, bool) else _expected("true or false", value)
    if option.kind is Kind.INT:
        if not isinstance(value, int) or isinstance(value, bool):
            return _expected("an integer", value)
        if not option.minimum <= value <= option.maximum:
            return f"not within {option.minimum} and {option.maximum}"
        return None
    if option.kind is Kind.PATHS:
        if not isinstance(value, list):
            return _expected("a list of paths", value)
        if not value:
            return "the list is empty"
        for index, item in enumerate(value):
            problem = _text_problem(Kind.PATH, item)
            if problem is not None:
                return f"item {index}: {problem}"
        return None
    problem = _text_problem(option.kind, value)
    if problem is None and option.check is not None:
        problem = option.check(str(value))
    return problem


def _text_problem(kind: Kind, value: object) -> str | None:
    if not isinstance(value, str):
        return _expected("a string", value)
    if "\0" in value:  # a C string in every place where the kernel has one
        return "contains a NUL character"
    try:
        # File names travel as Python has them: other bytes than UTF-8 are U+DC80..U+DCFF.
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        return f"character {error.start} is a surrogate that stands for no byte"
    if kind is Kind.PATH and not value.startswith("/"):
        return "not an absolute path"
    if kind is Kind.HEX:
        return None if _is_hex(value) else "not pairs of hexadecimal digits"
    if len(value) > _TEXT_MAX:
        return f"longer than {_TEXT_MAX} characters"
    return None


def _is_hex(value: str) -> bool:
    # No regular expression: it takes a second for the megabytes that this does in milliseconds.
    try:
        return len(bytes.fromhex(value)) * 2 == len(value)  # no spaces between them
    except ValueError:
        return False


def _expected(what: str, value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    names.update({list: "a list", dict: "an object"})
    return f"expected {what}, got {names.get(type(value), type(value).__name__)}"


def synopsis(operation: Operation) -> str:
    """One line of usage: ``generate N [--name STR]``."""
    words = [operation.verb]
    for option in operation.options:
        word = option.cli
        if option.cli.startswith("-") and option.kind is not Kind.BOOL:
            word += f" {metavar(option)}"
        if option.kind is Kind.PATHS:
            word += "..."
        words.append(word if option.required else f"[{word}]")
    return " ".join(words)


def metavar(option: Option) -> str:
    """The word that stands for the value of a ``--option``."""
    names = {Kind.INT: "N", Kind.HEX: "HEX", Kind.PATH: "FILE"}
    return names.get(option.kind, option.name.upper())
