# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Scenarios that a test begins: what became of each, and whether it took place at all."""

from __future__ import annotations

import time
from collections.abc import Callable

from imafs.scenarios import library, script

Answer = dict[str, object]
Call = Callable[..., Answer]

#: Seconds that a step which no client waits for ("after close") gets at the end of a test.
MOMENT = 1.0


class Scenario:
    """A scenario that was begun; ``number`` tells it from all others of its emulator.

    What it did is known when it is over too: after :meth:`end`, and after the test has
    begun another one.
    """

    def __init__(self, call: Call, name: str, number: object, *, must_happen: bool) -> None:
        self._call = call
        self._steps: list[script.Told] = []
        self.name = name
        self.number = number
        self.must_happen = must_happen

    def steps(self) -> list[script.Told]:
        """Each step: ``when``, ``do``, how often it was ``due`` and ``done``, ``errors``."""
        self.learn(self._call("status")["scenario"])
        return list(self._steps)

    def learn(self, told: object) -> bool:
        """Takes what the emulator tells of the scenario that is on; whether that is this one."""
        if not isinstance(told, dict) or told["number"] != self.number:
            return False
        self._steps = told["steps"]
        return True

    @property
    def happened(self) -> bool:
        """Whether every step was done at least once: the bad day has taken place."""
        return not script.undone(self.steps())

    def end(self) -> None:
        """No more of its steps are due. Nothing where another one is on by now."""
        if self.learn(self._call("status")["scenario"]):
            self.learn(self._call("scenario_end")["scenario"])

    def errors(self) -> list[str]:
        """The steps that it could not do, as last looked at."""
        return script.errors(self.name, self._steps)

    def missing(self) -> str | None:
        """The steps that did not take place, as last looked at, and had to and could."""
        never = script.missing(self.name, self._steps) if self.must_happen else None
        return None if never is None else f"{never} (where it need not: must_happen=False)"


class Scenarios:
    """All of one test, and those that somebody else has begun meanwhile."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._begun: list[Scenario] = []

    def begin(self, word: str, *, must_happen: bool) -> Scenario:
        """See :meth:`imafs.testing.Ima.scenario`."""
        self._look()  # the one that is on is replaced
        told = self._call("scenario", **library.request(word))
        found = Scenario(self._call, str(told["scenario"]), told["number"], must_happen=must_happen)
        self._begun.append(found)
        return found

    def problems(self, *, demand: bool) -> list[str]:
        """The steps that they could not do and, on ``demand``, those that did not take place."""
        end = time.monotonic() + MOMENT
        self._look()
        while demand and self._missing() and time.monotonic() < end:
            time.sleep(0.02)
            self._look()
        errors = [error for scenario in self._begun for error in scenario.errors()]
        return errors + (self._missing() if demand else [])

    def forget(self) -> None:
        """For the next test."""
        self._begun.clear()

    def _look(self) -> None:
        told = self._call("status")["scenario"]
        if not isinstance(told, dict):
            return
        if not any(scenario.learn(told) for scenario in self._begun):
            # From the mount's options, or by the control socket.
            other = Scenario(self._call, str(told["name"]), told["number"], must_happen=True)
            other.learn(told)
            self._begun.append(other)

    def _missing(self) -> list[str]:
        return [what for scenario in self._begun if (what := scenario.missing()) is not None]
