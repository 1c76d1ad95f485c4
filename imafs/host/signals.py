# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""SIGTERM and SIGINT before the event loop takes them, and after it has ended.

By default they would end the process at once, which leaves the temporary state of a
swtpm behind; a Ctrl-C would end it with a traceback in the middle of cleaning up.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class EndedEarly(BaseException):
    """A signal came before there was a mount; like KeyboardInterrupt, no error."""


class EarlySignals:
    """Notes the signals from its making on; see :meth:`check` and :meth:`breakable`."""

    def __init__(self) -> None:
        self.received = False
        self._breakable = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self._breakable:
            raise EndedEarly

    def check(self) -> None:
        """Raises :class:`EndedEarly` where a signal has come."""
        if self.received:
            raise EndedEarly

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Inside, a signal raises :class:`EndedEarly` wherever it comes: long pure work only."""
        self._breakable = True
        try:
            self.check()
            yield
        finally:
            self._breakable = False
