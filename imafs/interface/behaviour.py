# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The queue's behaviour as data: refusals in their order, hash table, counts, records.

A profile has one :class:`Rules`. The queue carries operations out; what it refuses and with
which errno stands here, because that is what the drafts differ in.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from imafs.interface.grammar import Operation


class Condition(Enum):
    """Reasons to refuse a request; the value is the reason in words."""

    STAGED = "a list is staged already"
    NOTHING_STAGED = "nothing is staged"
    EMPTY = "the current list is empty"
    TOO_MANY = "the current list has fewer records"
    TOO_MANY_STAGED = "the staged list has fewer records"
    NONE_ASKED = "zero records"
    SUSPENDED = "measurements are suspended"
    CURRENT_COPIED = "the current list is copied for the next kernel"
    STAGED_COPIED = "the staged list is copied for the next kernel"


class Check(NamedTuple):
    """One refusal: where the condition holds, the answer is ``errno``."""

    condition: Condition
    errno: int


class Forget(Enum):
    """Digests that the hash table forgets, so that they may be measured again."""

    NOTHING = "kept"
    REMOVED = "forgotten as records leave the current list"
    TABLE = "the whole table is forgotten with D"


class Counted(Enum):
    """The records that ``runtime_measurements_count`` counts."""

    CURRENT = "the current list"
    SINCE_BOOT = "all since boot"


class EventNumber(Enum):
    """Which number the record of a trim tells."""

    REMOVED = "this trim"
    NEW_TOTAL = "new total"
    OLD_TOTAL = "old total"


@dataclass(frozen=True, slots=True)
class Event:
    """The critical data measured after records were trimmed: label, name, text.

    ``form`` takes the time (ns since 1970) and the number.
    """

    form: bytes
    number: EventNumber
    label: str = "ima_log_trim"
    name: bytes = b"trim ima event logs"


def staged_checks(*more: Check) -> tuple[Check, ...]:
    """A: EEXIST, then ENOENT, in every version."""
    return (Check(Condition.STAGED, errno.EEXIST), Check(Condition.EMPTY, errno.ENOENT), *more)


@dataclass(frozen=True, slots=True)
class Rules:
    """See the module. The defaults are Linux 7.2/7.3 (ima_queue.c:311-468).

    ``forget`` and ``forget_flush``: the hash table without and with ``ima_flush_htable``;
    ``double_count`` and ``off_by_one`` are known bugs of drafts: see their profiles.
    """

    checks: Mapping[Operation, tuple[Check, ...]] = field(
        default_factory=lambda: {
            Operation.STAGE: staged_checks(Check(Condition.SUSPENDED, errno.EACCES)),
            Operation.DELETE_STAGED: (
                Check(Condition.NOTHING_STAGED, errno.ENOENT),
                Check(Condition.SUSPENDED, errno.ESTALE),
            ),
            Operation.DELETE_FIRST: (
                Check(Condition.EMPTY, errno.ENOENT),
                Check(Condition.TOO_MANY, errno.ENOENT),
                Check(Condition.SUSPENDED, errno.ESTALE),
            ),
        }
    )
    forget: Forget = Forget.NOTHING
    forget_flush: Forget = Forget.TABLE
    counted: Counted = Counted.CURRENT
    event: Event | None = None
    double_count: bool = False
    off_by_one: bool = False


MAINLINE = Rules()


@dataclass(frozen=True, slots=True)
class KexecRules:
    """How a profile's kernel carries its list.

    ``measured``: load and execute are measured as critical data (Linux 6.16 on).
    ``at_load``: the list is copied at load, as before 6.16: later records are not carried.
    ``staged``: staged records are carried, in front of the current ones.
    ``headers``: how often the segment's size counts a header (7.2: one per list).
    """

    measured: bool = True
    at_load: bool = False
    staged: bool = True
    headers: int = 2


#: Linux 7.2 and 7.3; 6.16 to 7.1, which have one list; before 6.16.
CARRIES_BOTH = KexecRules()
CARRIES_ONE = KexecRules(headers=1)
CARRIES_AT_LOAD = KexecRules(measured=False, at_load=True, headers=1)
