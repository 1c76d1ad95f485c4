# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What becomes of a use or a violation in the list."""

from __future__ import annotations

import logging
import os

from imafs.emulator.emulator import Emulator, Receipt
from imafs.errors import ImafsError
from imafs.formats.fields import Measurement
from imafs.kernel.audit import File
from imafs.kernel.policy.match import Decision, Policy
from imafs.sources.watch import messages, missed
from imafs.sources.watch.missed import Missed, reason

log = logging.getLogger(__name__)


class Recorder:
    """``refused`` is the newest use that was refused, None: none was."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self.counts = dict.fromkeys(("measured", "duplicates", "violations", "refused"), 0)
        self.refused: str | None = None
        self._missed = Missed(_tell)

    def take(self, message: messages.Use | messages.Violation, policy: Policy) -> tuple[int, bool]:
        """Into the list now: the number of the last record (0: none), and whether it is there."""
        try:
            if isinstance(message, messages.Violation):
                record = self._emulator.violation(message.name)
                last = self._emulator.append(record).number
                self.counts["violations"] += 1
                file = File(message.name, message.dev, message.ino or None)
                self._emulator.audit.violation(message.cause, file, message.task)
                log.debug("%s: %s", message.cause, os.fsdecode(message.name))
            else:
                receipts = self._measure(message, policy)
                last = max((each.number for each in receipts if not each.duplicate), default=0)
        except ImafsError as error:
            # As in a kernel, what cannot be measured is used all the same.
            self.counts["refused"] += 1
            self.refused = str(error)
            self._missed.note(message.name, reason(error))
            self.flush()
            return 0, False
        return last, True

    def flush(self) -> None:
        """Logs what was refused, now and then."""
        self._missed.flush()

    def _measure(self, use: messages.Use, policy: Policy) -> list[Receipt]:
        """One record per PCR that the rules want: ``measured_pcrs`` has a bit of each."""
        emulator = self._emulator
        measurement = Measurement(
            use.name,
            emulator.config.algorithm,
            use.digest,
            sha1=use.sha1 or None,
            signature=use.signature,
            evm_signature=use.evm_signature,
            uid=use.uid,
            gid=use.gid,
            mode=use.mode,
        )
        decisions: dict[int | None, Decision] = {}
        for access in use.accesses:
            decision = policy.decide(access)
            if decision.measure:
                decisions.setdefault(decision.pcr, decision)
        receipts = []
        for pcr, decision in decisions.items():
            receipt = emulator.append(emulator.record(measurement, decision.template, pcr))
            self.counts["duplicates" if receipt.duplicate else "measured"] += 1
            receipts.append(receipt)
        return receipts


def _tell(count: int, name: bytes, why: str, uid: int) -> None:
    log.error("%s", missed.line(count, name, why, uid))
