# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Uses that cannot be judged yet, each looked at again after a pause that grows. No I/O."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds until the second look, and between two looks at most.
FIRST, LONGEST = 0.000_05, 0.004


@dataclass(order=True, slots=True)
class _Entry(Generic[T]):
    at: float
    number: int
    pause: float
    deadline: float
    item: T


class Held(Generic[T]):
    """Items and when each is looked at again."""

    def __init__(self) -> None:
        self._entries: list[_Entry[T]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, item: T, now: float, deadline: float, pause: float = FIRST) -> None:
        """Looks at it again after ``pause``, or at its deadline."""
        self._number += 1
        entry = _Entry(min(now + pause, deadline), self._number, pause, deadline, item)
        heapq.heappush(self._entries, entry)

    def due(self, now: float) -> Iterator[tuple[T, float]]:
        """Takes out what is due at ``now``, with the pause after the next look in vain."""
        while self._entries and self._entries[0].at <= now:
            entry = heapq.heappop(self._entries)
            yield entry.item, min(2 * entry.pause, LONGEST)

    def wait(self, now: float, most: float) -> float:
        """Seconds until the next look."""
        return max(0.0, min(most, self._entries[0].at - now)) if self._entries else most
