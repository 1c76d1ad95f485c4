# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""How much of everything a run does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

PASSES = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """``largest``: records of the largest list."""

    largest: int
    quick: bool

    def _sizes(self, divisors: tuple[int, ...]) -> list[int]:
        return sorted({max(10, self.largest // divisor) for divisor in divisors})

    @property
    def read_sizes(self) -> list[int]:
        """Lists that are read whole, in records: 10k, 100k, 1M."""
        return self._sizes((10, 1) if self.quick else (100, 10, 1))

    @property
    def request_sizes(self) -> list[int]:
        """Lists that are staged and deleted: 1k, 10k, 100k, 1M."""
        return self._sizes((100, 10, 1) if self.quick else (1000, 100, 10, 1))

    def reads(self, size: int) -> int:
        """Reads of a list of ``size`` records per pass: more of those that take milliseconds."""
        return max(1, min(7, 150_000 // size)) if self.quick else max(1, min(12, 400_000 // size))

    @property
    def tails(self) -> int:
        """Reads of the last bytes, per list."""
        return 21 if self.quick else 51

    def cycles(self, size: int) -> int:
        """Times that a list is filled, staged and deleted."""
        most = 200_000 if self.quick else 4_000_000
        return max(3, min(11, most // size))

    @property
    def extends(self) -> int:
        """Extends per round."""
        return min(self.largest, 400 if self.quick else 2000)

    @property
    def extend_rounds(self) -> int:
        """Rounds of extends."""
        return 3 if self.quick else 5


def interleaved(rounds: int, *works: Callable[[], float]) -> list[list[float]]:
    """The figures of each of ``works``, done in turns (A B A B): noise hits all alike."""
    figures: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for kept, work in zip(figures, works, strict=True):
            kept.append(work())
    return figures


def short(number: int) -> str:
    """1000 as 1k, 1000000 as 1M; others as they are."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{name}"
    return str(number)


def ratio(one: list[float], other: list[float]) -> float:
    """Ratio of the medians."""
    return median(one) / median(other)
