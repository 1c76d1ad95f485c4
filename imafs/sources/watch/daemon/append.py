# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Uses and violations that the listener tells become records; the answer follows the extend."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from imafs.emulator.emulator import Emulator
from imafs.errors import ImafsError
from imafs.formats.fields import Measurement
from imafs.formats.templates import lookup
from imafs.kernel.audit import File
from imafs.sources.watch import messages, missed
from imafs.sources.watch.missed import Missed, reason

log = logging.getLogger(__name__)

#: Seconds that an opener waits for its record's extend; the list has it already.
_EXTEND_WAIT = 1.0


class Told(Protocol):
    """The part of :class:`~imafs.sources.watch.daemon.listening.Listening` that is needed."""

    def send(self, message: messages.ToListener) -> None: ...

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None: ...


class Recorder:
    """``refused`` is the newest use that was refused, None: none was. Openers wait for
    ``deadline`` at most."""

    def __init__(self, emulator: Emulator, deadline: float) -> None:
        self._emulator = emulator
        self._patience = min(_EXTEND_WAIT, deadline / 2)
        self.counts = dict.fromkeys(("measured", "duplicates", "violations", "refused"), 0)
        self.refused: str | None = None
        self._missed = Missed(_tell)

    def take(self, message: messages.Use | messages.Violation, listening: Told) -> None:
        """Into the list now; the answer follows the extend."""
        emulator, number = self._emulator, message.number
        try:
            if isinstance(message, messages.Violation):
                last = self._violate(message)
            else:
                last = self._measure(message)
        except ImafsError as error:
            # As in a kernel, what cannot be measured is used all the same.
            self.counts["refused"] += 1
            self.refused = str(error)
            self._missed.note(message.name, reason(error))
            self.flush()
            listening.send(messages.Done(number, False))
            return
        if emulator.queue.totals.extended >= last or emulator.channel.broken:
            listening.send(messages.Done(number))
        else:
            listening.start_soon(partial(self._answer_extended, number, last, listening))

    async def _answer_extended(self, number: int, last: int, listening: Told) -> None:
        await self._emulator.wait_extended(last, self._patience)
        listening.send(messages.Done(number))

    def flush(self) -> None:
        """Logs what was refused, now and then."""
        self._missed.flush()

    def _violate(self, violation: messages.Violation) -> int:
        emulator = self._emulator
        record = emulator.kernel.violation(violation.name)
        last = emulator.append(record).number
        self.counts["violations"] += 1
        file = File(violation.name, violation.dev, violation.ino or None)
        emulator.audit.violation(violation.cause, file, violation.task)
        log.debug("%s: %s", violation.cause, os.fsdecode(violation.name))
        return last

    def _measure(self, use: messages.Use) -> int:
        """One record per PCR (``measured_pcrs`` has a bit of each); the number of the last one,
        0: there is none that is new."""
        emulator = self._emulator
        measurement = Measurement(
            use.name,
            emulator.kernel.config.algorithm,
            use.digest,
            sha1=use.sha1 or None,
            signature=use.signature,
            evm_signature=use.evm_signature,
            uid=use.uid,
            gid=use.gid,
            mode=use.mode,
        )
        last = 0
        for pcr, label in use.pcrs:
            template = lookup(label) if label else None
            wanted = None if pcr == messages.DEFAULT_PCR else pcr
            receipt = emulator.append(emulator.kernel.record(measurement, template, wanted))
            self.counts["duplicates" if receipt.duplicate else "measured"] += 1
            if not receipt.duplicate:
                last = receipt.number
        return last


def _tell(count: int, name: bytes, why: str, uid: int) -> None:
    log.error("%s", missed.line(count, name, why, uid))
