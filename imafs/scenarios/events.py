# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""When the steps of a scenario are due: conditions on what clients do.

A pure state machine. It is told every event of the directory in order and says which
steps become due; who carries them out, and how long that takes, is no matter here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from imafs.interface.grammar import Operation

#: What a request is called, by the operation that it is in the profile that runs.
REQUESTS: Mapping[Operation, str] = {
    Operation.STAGE: "stage",
    Operation.DELETE_STAGED: "delete",
    Operation.DELETE_FIRST: "trim",
    Operation.DELETE_MATCHING: "trim",
    Operation.EXPORT: "export",
}

_PHASES = ("before", "after", "refused")
_CALLS = ("open", "read", "write")

#: What may stand behind ``when``: calls and requests in three phases, and what has one only.
EVENTS: tuple[str, ...] = (
    *(
        f"{phase} {what}"
        for phase in _PHASES
        for what in (*_CALLS, *dict.fromkeys(REQUESTS.values()))
    ),
    "after end",
    "after close",
    "start",
    "records",
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One ``when``.

    ``event`` is one of :data:`EVENTS`. ``before`` is before a call acts, ``after`` when it
    has succeeded, ``refused`` when it has failed. stage, delete, trim and export are writes
    that ask for it (:data:`REQUESTS`); ``after end`` is a read that told the end of the file.
    ``file`` is a shell pattern over the file's names; ``writing`` chooses among opens.
    ``nth`` is the occurrence at which the step is due (from 1); with ``every`` it is due
    again each so many after that. ``records``: as soon as so many were added since the boot.
    ``seconds``: so much later, in the background. Else the client's call waits for the step.
    """

    event: str
    file: str = "*"
    writing: bool | None = None
    nth: int = 1
    every: int | None = None
    records: int = 0
    seconds: float = 0.0


class Triggers:
    """The conditions of one scenario, each with the number of its occurrences so far."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self.conditions = tuple(conditions)
        self.seen = [0] * len(conditions)

    def happened(
        self, event: str, names: Sequence[str] = (), *, writing: bool | None = None
    ) -> list[int]:
        """The steps that this event makes due, in their order."""
        return [
            number
            for number, condition in enumerate(self.conditions)
            if condition.event == event
            and (not names or any(fnmatchcase(name, condition.file) for name in names))
            and condition.writing in (None, writing)
            and self._counts(number, condition)
        ]

    def _counts(self, number: int, condition: Condition) -> bool:
        self.seen[number] += 1
        late = self.seen[number] - condition.nth
        return late == 0 or (
            late > 0 and condition.every is not None and not late % condition.every
        )

    def added(self, total: int) -> list[int]:
        """The steps that wait for ``total`` (or fewer) records since the boot; each once."""
        due = []
        for number, condition in enumerate(self.conditions):
            if (
                condition.event == "records"
                and not self.seen[number]
                and total >= condition.records
            ):
                self.seen[number] = 1
                due.append(number)
        return due
