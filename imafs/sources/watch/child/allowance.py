# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Time that accounts may take of what everybody waits for. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from imafs.sources.watch.child.task import Account

#: Seconds that an account gets in each second, what it may save up, and what one use may take.
RATE, SAVED, ONE_USE = 0.2, 1.0, 0.1
#: Accounts that are remembered; one that is forgotten has everything again.
MOST = 1 << 10


@dataclass(slots=True)
class _Spent:
    left: float
    at: float


class Allowance:
    """The time left to each account; one that has never taken any has :data:`SAVED`."""

    def __init__(self) -> None:
        self._known: dict[Account, _Spent] = {}

    def left(self, account: Account, now: float) -> float:
        """Seconds that its next use may take."""
        spent = self._known.get(account)
        if spent is None:
            return ONE_USE
        return min(ONE_USE, spent.left + RATE * (now - spent.at))

    def take(self, account: Account, seconds: float, now: float) -> None:
        """It has taken so long."""
        spent = self._known.pop(account, None) or _Spent(SAVED, now)
        left = min(SAVED, spent.left + RATE * (now - spent.at))
        self._known[account] = _Spent(left - seconds, now)
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]
