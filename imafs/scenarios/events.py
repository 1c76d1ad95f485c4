# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""When the steps of a scenario are due: conditions on what clients do.

A pure state machine. It is told every event of the directory in order and says which
steps become due; who carries them out, and how long that takes, is no matter here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

from imafs.interface import file_names
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


_LONGEST = 86400  # seconds
_EVENTS_OF_OPENS = tuple(event for event in EVENTS if event.endswith(" open"))
#: Metadata of a key: what is wrong with its value.
_CHECK = "check"


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
    file: str = field(default="*", metadata={_CHECK: _pattern})
    writing: bool | None = field(default=None, metadata={_CHECK: _boolean})
    nth: int = field(default=1, metadata={_CHECK: _integer(1)})
    every: int | None = field(default=None, metadata={_CHECK: _integer(1)})
    records: int = field(default=0, metadata={_CHECK: _integer(1)})
    seconds: float = field(default=0.0, metadata={_CHECK: _seconds})


#: Keys of a condition beside its event -> what is wrong with a value, None where nothing is.
KEYS: Mapping[str, Callable[[object], str | None]] = {
    key.name: key.metadata[_CHECK] for key in fields(Condition) if _CHECK in key.metadata
}


def misplaced(key: str, event: str) -> str | None:
    """What is wrong with a key in a condition of ``event``."""
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
