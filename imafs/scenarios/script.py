# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A scenario file: TOML in, checked steps out.

::

    summary = "what happens, in one line"

    [[step]]
    when = "after stage"            # see imafs.scenarios.events.EVENTS
    file = "*_staged"               # and the other keys of a Condition
    do = [{ op = "kexec_execute" }] # operations of the control socket with their options
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imafs.control.ops import Options
from imafs.errors import FormatError, UsageError
from imafs.interface import file_names
from imafs.scenarios.events import EVENTS, Condition

Validate = Callable[[str, Mapping[str, object]], Options]
"""Checks an operation's options; raises :class:`UsageError` (``imafs.control.ops.Table``)."""

#: Operations that no step may ask for: a scenario in a scenario, what only tells, and what
#: replaces a file of whoever runs a scenario of others.
FORBIDDEN = frozenset({"scenario", "scenario_end", "hello", "status", "fault_list", "kexec_buffer"})

_LONGEST = 86400  # seconds
_EVENTS_OF_OPENS = tuple(event for event in EVENTS if event.endswith(" open"))


@dataclass(frozen=True, slots=True)
class Action:
    """One operation of the control socket."""

    op: str
    options: Options


@dataclass(frozen=True, slots=True)
class Step:
    """What is done, and when."""

    condition: Condition
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole one; ``name`` is the file's, without ``.toml``."""

    name: str
    summary: str
    steps: tuple[Step, ...]


def parse(text: str, name: str, validate: Validate, *, source: str | None = None) -> Scenario:
    """The scenario in ``text``.

    Refused whole, with the line, where anything is unknown, of a wrong type or out of
    its range: raises :class:`FormatError`.
    """
    return _Parser(text, source or name, validate).scenario(name)


class _Parser:
    def __init__(self, text: str, source: str, validate: Validate) -> None:
        self._lines = text.splitlines()
        self._source = source
        self._validate = validate
        self._heads = [
            number
            for number, line in enumerate(self._lines, 1)
            if re.match(r"\s*\[\[\s*step\s*\]\]", line)
        ]
        try:
            self._data = tomllib.loads(text)
        except RecursionError:
            raise FormatError("no TOML: nested too deeply", source=source) from None
        except ValueError as error:  # TOMLDecodeError, and int() of more than 4300 digits
            raise FormatError(f"no TOML: {error}", source=source) from None

    def scenario(self, name: str) -> Scenario:
        for key in self._data:
            if key not in ("summary", "step"):
                raise self._wrong(f"unknown key {key!r}", key, 0)
        summary = self._data.get("summary", "")
        if not isinstance(summary, str):
            raise self._wrong("summary: expected a string", "summary", 0)
        steps = self._data.get("step")
        if not isinstance(steps, list) or not steps:
            raise self._wrong("a scenario has at least one [[step]]", "step", 0)
        return Scenario(name, summary, tuple(self._step(s, i) for i, s in enumerate(steps, 1)))

    def _step(self, step: object, number: int) -> Step:
        if not isinstance(step, dict):
            raise self._wrong("step: expected [[step]]", "step", 0)
        known = {"when", "do", *_KEYS}
        for key in step:
            if key not in known:
                raise self._wrong(f"unknown key {key!r}", key, number)
        event = step.get("when")
        if event not in EVENTS:
            problem = "missing" if event is None else f"{event!r} is no event"
            raise self._wrong(f"when: {problem}; there are: {', '.join(EVENTS)}", "when", number)
        given: dict[str, object] = {}
        for key, check in _KEYS.items():
            if key in step:
                wrong = check(step[key]) or _misplaced(key, event)
                if wrong:
                    raise self._wrong(f"{key}: {wrong}", key, number)
                given[key] = step[key]
        if event == "records" and "records" not in given:
            raise self._wrong("when = 'records' needs records = N", "when", number)
        condition = Condition(event, **given)  # type: ignore[arg-type]
        actions = step.get("do")
        if not isinstance(actions, list) or not actions:
            raise self._wrong("do: expected a list of operations", "do", number)
        return Step(condition, tuple(self._action(action, number) for action in actions))

    def _action(self, action: object, number: int) -> Action:
        if not isinstance(action, dict) or not isinstance(action.get("op"), str):
            raise self._wrong('do: expected { op = "...", ... }', "do", number)
        op = action["op"]
        options = {key: value for key, value in action.items() if key != "op"}
        if op in FORBIDDEN:
            raise self._wrong(f"do: {op} is not for scenarios", "do", number)
        try:
            checked = self._validate(op, options)
        except UsageError as error:
            unknown = next((k for k in options if repr(k) in str(error)), "do")
            raise self._wrong(f"do: {error}", unknown, number) from None
        if op == "fault" and "files" in checked and (wrong := _pattern(checked["files"])):
            raise self._wrong(f"do: fault: files: {wrong}", "files", number)
        return Action(op, checked)

    def _wrong(self, reason: str, key: str, step: int) -> FormatError:
        return FormatError(f"line {self._line(key, step)}: {reason}", source=self._source)

    def _line(self, key: str, step: int) -> int:
        """Where ``key`` stands: in step number ``step``, or (0) before the first one.

        tomllib tells no places; where the text is too odd to find the key, the step's head.
        """
        heads = self._heads
        start = heads[step - 1] if 0 < step <= len(heads) else 1
        end = heads[step] - 1 if step < len(heads) else len(self._lines)
        pattern = re.compile(rf"""(?:^|[{{,\s\[])["']?{re.escape(key)}["']?\s*(?:=|\])""")
        for number in range(start, end + 1):
            if pattern.search(self._lines[number - 1].split("#", 1)[0]):
                return number
        return start


def _integer(low: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if not isinstance(value, int) or isinstance(value, bool):
            return "expected an integer"
        return None if value >= low else f"{value} is less than {low}"

    return check


def _seconds(value: object) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "expected a number"
    return None if 0 <= value <= _LONGEST else f"not within 0 and {_LONGEST}"


def _pattern(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return "expected a pattern of names"
    # Which TPM there will be is not known yet.
    return file_names.unmatched(value, file_names.of_any_tpm())


def _boolean(value: object) -> str | None:
    return None if isinstance(value, bool) else "expected true or false"


#: Keys of a step beside ``when`` and ``do`` -> what is wrong with a value.
_KEYS: Mapping[str, Callable[[object], str | None]] = {
    "file": _pattern,
    "writing": _boolean,
    "nth": _integer(1),
    "every": _integer(1),
    "records": _integer(1),
    "seconds": _seconds,
}


def _misplaced(key: str, event: str) -> str | None:
    if key == "seconds":
        return None
    if event == "records":
        return None if key == "records" else "records are of no file and come once"
    if key == "records":
        return "goes with when = 'records'"
    if event == "start":
        return "a start is of no file and comes once"
    if key == "writing" and event not in _EVENTS_OF_OPENS:
        return "only an open is for writing or not"
    return None
