# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Log lines that somebody else can cause as often as he likes, as ``printk_ratelimited`` has them.

Other users mount, connect, send and hang up in a loop if they want to. The first lines of a
kind are logged, further ones within the interval are counted, and the count is told.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

#: Lines of one kind within so many seconds.
BURST = 5
INTERVAL = 60.0
#: Kinds that are told apart: a kind may be a user's, and a user may have many uids.
KINDS = 64
_FURTHER = "further kinds"


@dataclass(slots=True)
class _Kind:
    began: float
    level: int
    told: int = 0
    left_out: int = 0


class Ratelimit:
    """For one logger; of one thread."""

    def __init__(self, log: logging.Logger, burst: int = BURST) -> None:
        self._log = log
        self._burst = burst
        self._kinds: dict[str, _Kind] = {}

    def say(
        self, kind: str, level: int, message: str, *args: object, exc_info: bool = False
    ) -> None:
        """Logs the line unless there were enough of its kind."""
        now = time.monotonic()
        if kind not in self._kinds or now >= self._kinds[kind].began + INTERVAL:
            self._forget(now)
        if kind not in self._kinds and len(self._kinds) >= KINDS:
            kind = _FURTHER
        known = self._kinds.setdefault(kind, _Kind(now, level))
        if known.told >= self._burst:
            known.left_out += 1
            return
        known.told += 1
        self._log.log(level, message, *args, exc_info=exc_info)
        if known.told == self._burst and self._burst > 1:
            self._log.log(level, "further lines of this kind are left out for %g s", INTERVAL)

    def _forget(self, now: float) -> None:
        """The kinds whose interval is over."""
        for name, kind in list(self._kinds.items()):
            if now >= kind.began + INTERVAL:
                del self._kinds[name]
                if kind.left_out:
                    self._log.log(kind.level, "%s: %d lines were left out", name, kind.left_out)
