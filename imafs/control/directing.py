# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Carries out scenarios: listens to clients' calls and does what is due.

What is due at a call is done before the call goes on, so a scenario gives the same
list and the same answers every time; what has ``seconds``, or waits for a number of
records, is done in the background.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from imafs.control.ops import validate
from imafs.control.server import Handler, ProgressCallback
from imafs.engine.trouble import Trouble
from imafs.errors import ImafsError
from imafs.kernel.triggers import Triggers
from imafs.scenarios import library
from imafs.scenarios.script import Action, Scenario

log = logging.getLogger(__name__)

#: Seconds that one operation of a step may take: a client's call waits in state D for it.
LONGEST = 20.0

Handlers = Callable[[], Mapping[str, Handler]]


@dataclass(slots=True)
class _Told:
    """What became of one step."""

    due: int = 0
    done: int = 0
    errors: list[str] = field(default_factory=list)


class Director:
    """One scenario at a time over the operations of ``handlers``."""

    def __init__(self, trouble: Trouble, handlers: Handlers) -> None:
        self._trouble = trouble
        self._handlers = handlers
        self._scenario: Scenario | None = None
        self._number = 0
        self._triggers = Triggers(())
        self._told: list[_Told] = []
        self._later_in, self._later_out = trio.open_memory_channel[tuple[Scenario, int]](1024)

    def handlers(self) -> dict[str, Handler]:
        """The table for the server."""
        return {"scenario": self.scenario, "scenario_end": self.scenario_end}

    async def scenario(
        self, options: Mapping[str, object], progress: ProgressCallback
    ) -> dict[str, object]:
        """Begins one; its steps at ``start`` are done when this is answered."""
        name, file = options.get("name"), options.get("file")
        if isinstance(name, str):
            found = library.ready(name, validate)
        else:
            assert isinstance(file, str)
            found = await trio.to_thread.run_sync(library.from_file, file, validate)
        number = await self.begin(found)
        return {"scenario": found.name, "number": number, "steps": len(found.steps)}

    async def scenario_end(
        self, options: Mapping[str, object], progress: ProgressCallback
    ) -> dict[str, object]:
        """Ends the one that is on; what it has done stays done."""
        told = self.describe()
        self._trouble.listener = None
        self._scenario = None
        return {"scenario": told}

    async def begin(self, scenario: Scenario) -> int:
        """In place of the one that was on. How many this daemon has begun with it."""
        self._scenario = scenario
        self._number = number = self._number + 1
        self._triggers = Triggers([step.condition for step in scenario.steps])
        self._told = [_Told() for _ in scenario.steps]
        self._trouble.listener = self
        await self.happened("start", ())
        return number

    def describe(self) -> dict[str, object] | None:
        """For the status: every step, how often it was due and done, what went wrong."""
        scenario = self._scenario
        if scenario is None:
            return None
        rows = [
            {
                "when": step.condition.event,
                "do": [action.op for action in step.actions],
                "due": told.due,
                "done": told.done,
                "errors": told.errors,
            }
            for step, told in zip(scenario.steps, self._told, strict=True)
        ]
        return {"name": scenario.name, "number": self._number, "steps": rows}

    # imafs.engine.trouble.Listener

    async def happened(
        self, event: str, names: Sequence[str], *, writing: bool | None = None
    ) -> None:
        """See :class:`imafs.engine.trouble.Listener`."""
        scenario = self._scenario
        assert scenario is not None
        for number in self._triggers.happened(event, names, writing=writing):
            if scenario is not self._scenario:  # another one was begun while a step was done
                return
            if scenario.steps[number].condition.seconds:
                self._later(number)
            else:
                await self._perform(scenario, number)

    def added(self, total: int) -> None:
        """See :class:`imafs.engine.trouble.Listener`."""
        for number in self._triggers.added(total):
            self._later(number)

    def _later(self, number: int) -> None:
        assert self._scenario is not None
        try:
            self._later_in.send_nowait((self._scenario, number))
        except trio.WouldBlock:
            self._told[number].errors.append("too many steps at once")

    async def run(self) -> None:
        """Does what is due in the background. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            async for scenario, number in self._later_out:
                nursery.start_soon(self._delayed, scenario, number)

    async def _delayed(self, scenario: Scenario, number: int) -> None:
        await trio.sleep(scenario.steps[number].condition.seconds)
        if scenario is self._scenario:
            await self._perform(scenario, number)

    async def _perform(self, scenario: Scenario, number: int) -> None:
        told = self._told[number]
        told.due += 1
        for action in scenario.steps[number].actions:
            log.info("scenario %s, step %d: %s", scenario.name, number + 1, action.op)
            problem = await self._act(action)
            if problem is not None:
                told.errors.append(f"{action.op}: {problem}")
                log.warning(
                    "scenario %s, step %d: %s: %s", scenario.name, number + 1, action.op, problem
                )
                return
        told.done += 1

    async def _act(self, action: Action) -> str | None:
        """What went wrong, None where it is done."""
        handler = self._handlers().get(action.op)
        if handler is None:
            return "not offered by this daemon"
        try:
            with trio.fail_after(LONGEST):
                await handler(action.options, _silent)
        except trio.TooSlowError:
            return f"not done within {LONGEST:g} s"
        except ImafsError as error:
            return f"{error.errno_name}: {error}"
        return None


def _silent(done: int, total: int) -> None:
    """Nobody looks at the progress of a step."""
