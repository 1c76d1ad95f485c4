# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What became of a scenario, from what a daemon tells of its steps (the status' ``scenario``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Step = Mapping[str, object]


def errors(name: str, steps: Sequence[Step]) -> list[str]:
    """What it could not do, a line each."""
    found: list[str] = []
    for step in steps:
        told = step["errors"]
        assert isinstance(told, list)
        found += [f"scenario {name}: {error}" for error in told]
    return found


def undone(steps: Sequence[Step]) -> list[str]:
    """The steps that were never done; all of them where nothing is told."""
    rows = enumerate(steps, 1)
    found = [f"step {number} ({step['when']})" for number, step in rows if not step["done"]]
    return found if steps else ["all steps"]


def missing(name: str, steps: Sequence[Step]) -> str | None:
    """That it did not take place, where it could have."""
    rest = ", ".join(undone(steps))
    if not rest or errors(name, steps):
        return None
    return f"scenario {name}: never done: {rest}; a bad day that did not come about proves nothing"


def problems(told: object) -> list[str]:
    """Both, of the ``scenario`` of a status; nothing where none is on."""
    if not isinstance(told, dict):
        return []
    name, steps = str(told["name"]), told["steps"]
    assert isinstance(steps, list)
    never = missing(name, steps)
    return errors(name, steps) + ([] if never is None else [never])
