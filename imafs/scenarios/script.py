# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A scenario: from its TOML file to checked steps, and what is told of them.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from imafs.control.ops import OptionError, Options
from imafs.errors import FormatError, UsageError
from imafs.scenarios.events import EVENTS, KEYS, Condition, misplaced

Validate = Callable[[str, Mapping[str, object]], Options]
"""Checks an operation's options; raises :class:`UsageError` (``imafs.control.ops.Table``)."""

#: Operations that no step may ask for: a scenario in a scenario, what only tells, and what
#: replaces a file of whoever runs a scenario of others.
FORBIDDEN = frozenset({"scenario", "scenario_end", "hello", "status", "fault_list", "kexec_buffer"})


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


class Told(TypedDict):
    """What a daemon tells of a step: how often it was due and done, and what went wrong."""

    when: str
    do: list[str]
    due: int
    done: int
    failed: int
    errors: list[str]


class ScenarioTold(TypedDict):
    """What a daemon tells of the scenario that is on; ``number`` tells it from others."""

    name: str
    number: int
    steps: list[Told]


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
        known = {"when", "do", *KEYS}
        for key in step:
            if key not in known:
                raise self._wrong(f"unknown key {key!r}", key, number)
        event = step.get("when")
        if event not in EVENTS:
            problem = "missing" if event is None else f"{event!r} is no event"
            raise self._wrong(f"when: {problem}; there are: {', '.join(EVENTS)}", "when", number)
        given: dict[str, object] = {}
        for key, check in KEYS.items():
            if key in step:
                wrong = check(step[key]) or misplaced(key, event)
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
            return Action(op, self._validate(op, options))
        except OptionError as error:
            raise self._wrong(f"do: {error}", error.option, number) from None
        except UsageError as error:
            raise self._wrong(f"do: {error}", "do", number) from None

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


# What became of it, from what a daemon tells (the status' ``scenario``)


def errors(name: str, steps: Sequence[Told]) -> list[str]:
    """What it could not do, a line each."""
    return [f"scenario {name}: {error}" for step in steps for error in step["errors"]]


def undone(steps: Sequence[Told]) -> list[str]:
    """The steps that were never done; all of them where nothing is told."""
    rows = enumerate(steps, 1)
    found = [f"step {number} ({step['when']})" for number, step in rows if not step["done"]]
    return found if steps else ["all steps"]


def missing(name: str, steps: Sequence[Told]) -> str | None:
    """That it did not take place, where it could have."""
    rest = ", ".join(undone(steps))
    if not rest or errors(name, steps):
        return None
    return f"scenario {name}: never done: {rest}; a bad day that did not come about proves nothing"


def problems(told: ScenarioTold | None) -> list[str]:
    """Both; nothing where no scenario is on."""
    if told is None:
        return []
    never = missing(told["name"], told["steps"])
    return errors(told["name"], told["steps"]) + ([] if never is None else [never])
