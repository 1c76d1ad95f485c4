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
from functools import partial

import trio

from imafs.control.ops import Options, Table
from imafs.control.server import Handler, ProgressCallback, carry_through
from imafs.errors import ImafsError
from imafs.host import bounded_thread
from imafs.scenarios import library
from imafs.scenarios.events import Triggers
from imafs.scenarios.gate import Trouble
from imafs.scenarios.script import Action, Scenario, ScenarioTold, Told

log = logging.getLogger(__name__)

#: Seconds that one operation of a step may take: a client's call waits in state D for it.
LONGEST = 20.0
#: Steps that may wait for their time, or to be done in the background.
MOST_LATER = 1024
#: Errors of one step that are told: a step at every call may fail for days.
MOST_ERRORS = 20

Handlers = Callable[[], Mapping[str, Handler]]


@dataclass(slots=True)
class _Progress:
    """What became of one step; of its errors the first :data:`MOST_ERRORS` and how many."""

    due: int = 0
    done: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def fail(self, problem: str) -> None:
        self.failed += 1
        if self.failed <= MOST_ERRORS:
            self.errors.append(problem)


class _Running:
    """A scenario that is on, until it is ``over``: another one has begun, or it was ended."""

    def __init__(self, scenario: Scenario, number: int) -> None:
        self.scenario = scenario
        self.number = number
        self.triggers = Triggers([step.condition for step in scenario.steps])
        self.told = [_Progress() for _ in scenario.steps]
        self.over = trio.Event()


class Director:
    """One scenario at a time over the operations of ``table``.

    ``handlers`` gives a handler for each of them; ``total`` tells how many records were added
    since the boot.
    """

    def __init__(
        self,
        trouble: Trouble,
        table: Table,
        handlers: Handlers,
        total: Callable[[], int] = lambda: 0,
    ) -> None:
        self._trouble = trouble
        self._table = table
        self._handlers = handlers
        self._total = total
        self._running: _Running | None = None
        self._number = 0
        self._waiting = 0
        self._later_in, self._later_out = trio.open_memory_channel[tuple[_Running, int]](MOST_LATER)

    async def scenario(self, options: Options, progress: ProgressCallback) -> dict[str, object]:
        """Begins one; its steps at ``start`` are done when this is answered."""
        validate = self._table.validate
        if "name" in options:
            found = library.ready(options.text("name"), validate)
        else:
            work = partial(library.from_file, options.text("file"), validate)
            found = await bounded_thread.run(work, silence=bounded_thread.SILENCE)
            carry_through()
        number = await self.begin(found)
        return {"scenario": found.name, "number": number, "steps": len(found.steps)}

    async def scenario_end(self, options: Options, progress: ProgressCallback) -> dict[str, object]:
        """Ends the one that is on; what it has done stays done."""
        told = self.describe()
        self._trouble.listener = None
        self._replace(None)
        return {"scenario": told}

    async def begin(self, scenario: Scenario) -> int:
        """In place of the one that was on. How many this daemon has begun with it."""
        self._number = number = self._number + 1
        self._replace(running := _Running(scenario, number))
        self._trouble.listener = self
        await self.happened("start", ())
        if running is self._running:  # the start may have ended it
            self.added(self._total())
        return number

    def _replace(self, running: _Running | None) -> None:
        if self._running is not None:
            self._running.over.set()
        self._running = running

    def describe(self) -> ScenarioTold | None:
        """For the status: every step, how often it was due and done, what went wrong."""
        running = self._running
        if running is None:
            return None
        rows: list[Told] = [
            {
                "when": step.condition.event,
                "do": [action.op for action in step.actions],
                "due": told.due,
                "done": told.done,
                "failed": told.failed,
                "errors": list(told.errors),
            }
            for step, told in zip(running.scenario.steps, running.told, strict=True)
        ]
        return {"name": running.scenario.name, "number": running.number, "steps": rows}

    async def status(self) -> ScenarioTold | None:
        """A part of the daemon's status."""
        return self.describe()

    # imafs.scenarios.gate.Listener

    async def happened(
        self, event: str, names: Sequence[str], *, writing: bool | None = None
    ) -> None:
        """See :class:`imafs.scenarios.gate.Listener`."""
        running = self._running
        assert running is not None
        for number in running.triggers.happened(event, names, writing=writing):
            if running is not self._running:  # another one was begun while a step was done
                return
            if running.scenario.steps[number].condition.seconds:
                self._later(running, number)
            else:
                await self._perform(running, number)

    def added(self, total: int) -> None:
        """See :class:`imafs.scenarios.gate.Listener`."""
        running = self._running
        assert running is not None
        for number in running.triggers.added(total):
            self._later(running, number)

    def _later(self, running: _Running, number: int) -> None:
        if self._waiting >= MOST_LATER:
            running.told[number].fail("too many steps at once")
            return
        self._waiting += 1
        self._later_in.send_nowait((running, number))

    async def run(self) -> None:
        """Does what is due in the background. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            async for running, number in self._later_out:
                nursery.start_soon(self._delayed, running, number)

    async def _delayed(self, running: _Running, number: int) -> None:
        try:
            with trio.move_on_after(running.scenario.steps[number].condition.seconds):
                await running.over.wait()
            if running is self._running:
                await self._perform(running, number)
        finally:
            self._waiting -= 1

    async def _perform(self, running: _Running, number: int) -> None:
        scenario, told = running.scenario, running.told[number]
        told.due += 1
        for action in scenario.steps[number].actions:
            log.info("scenario %s, step %d: %s", scenario.name, number + 1, action.op)
            problem = await self._act(action)
            if problem is not None:
                told.fail(f"{action.op}: {problem}")
                log.warning(
                    "scenario %s, step %d: %s: %s", scenario.name, number + 1, action.op, problem
                )
                return
        told.done += 1

    async def _act(self, action: Action) -> str | None:
        """What went wrong, None where it is done."""
        try:
            with trio.fail_after(LONGEST):
                await self._handlers()[action.op](action.options, _silent)
        except trio.TooSlowError:
            return f"not done within {LONGEST:g} s"
        except ImafsError as error:
            return f"{error.errno_name}: {error}"
        except Exception:  # a bug in one operation must not end the emulated kernel
            log.exception("operation %s failed", action.op)
            return "internal error, see the daemon's log"
        return None


def _silent(done: int, total: int) -> None:
    """Nobody looks at the progress of a step."""
