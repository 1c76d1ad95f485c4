# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The task that moves entries from the extend queue into the TPM's PCRs.

Nobody waits for it but who asked for a measurement. A failed or hung call leaves
its entries in the queue; before anything is extended again the PCRs are read and
compared with the replay, which tells how many of the entries arrived after all.
"""

from __future__ import annotations

import errno
import logging
from bisect import bisect_right
from dataclasses import dataclass

import trio

from imafs.errors import Refused, TpmError
from imafs.host.ratelimit import Ratelimit
from imafs.kernel.queue import Queue
from imafs.lists.replay import EXTENDABLE, Replay
from imafs.tpm import Device, ExtendError, ExtendRefused
from imafs.tpm.channel import TpmChannel

log = logging.getLogger(__name__)

#: Entries per TPM call: some 20 ms on swtpm, so that other clients get their turns.
BATCH = 512
#: Seconds per TPM call, at least for one entry: at a hardware TPM's 40 ms a full batch would
#: keep everybody else waiting for 20 s, and be taken for a hang.
LONGEST = 1.0
_RETRY_FIRST, _RETRY_LONGEST = 0.5, 30.0


@dataclass(slots=True)
class Failures:
    """What went wrong with the TPM since the start; ``skipped`` and ``refused`` since the boot."""

    extend: int = 0
    last: str | None = None
    mismatch: str | None = None
    skipped: int = 0
    refused: int = 0

    @property
    def lost(self) -> int:
        """Records that no PCR will get: skipped on purpose, or refused by the TPM."""
        return self.skipped + self.refused


@dataclass(slots=True)
class Pace:
    """How extending is held up on purpose.

    ``behind``: so many of the newest records are never extended. ``delay``: seconds between
    a record and its extend, at least. ``fail``: so many extends from now on fail, for good:
    a kernel logs that and keeps the record, and its PCR never gets it
    (Linux 7.3 ima_queue.c, ``ima_pcr_extend``). ``hang``: the TPM was told to hang; this is
    for the status alone.
    """

    behind: int = 0
    delay: float = 0.0
    fail: int = 0
    hang: bool = False


class Extender:
    """Drains ``queue`` into ``channel``; ``replay`` holds what the PCRs must be.

    ``listed`` is what the records replay to where some were skipped on purpose or refused by
    the TPM, else None.
    """

    def __init__(
        self, queue: Queue, channel: TpmChannel, replay: Replay, pace: Pace | None = None
    ) -> None:
        self.queue = queue
        self.replay = replay
        self.pace = pace or Pace()
        self.listed: Replay | None = None
        self._skipped: list[range] = []
        self.failures = Failures()
        self._channel = channel
        self._wake = trio.Event()
        self._moved = trio.Event()
        # After a failure: entries of the batch that certainly arrived; None: no failure.
        self._certain: int | None = None
        #: What was said of refused extends: not again for every record.
        self._seldom = Ratelimit(log)
        self._said: set[tuple[int, str]] = set()
        self._stop = trio.Event()
        self._again = trio.Event()
        self._ended = False

    def resume(self) -> None:
        """Takes :meth:`stop` back, before :meth:`run` is started again."""
        self._stop = trio.Event()

    def doubt(self) -> None:
        """A call was cut off, so the PCRs may hold more than is known, or were reset: they
        are looked at before anything else is extended."""
        self._certain = self._certain or 0

    def kick(self) -> None:
        """Something was appended."""
        self._wake.set()

    def hurry(self) -> None:
        """The pace has changed, or the TPM answers again: no delay holds any longer."""
        self._again.set()
        self._wake.set()

    def stop(self) -> None:
        """Ends :meth:`run` behind the batch that it is at; nothing is extended after it."""
        self._stop.set()
        self.hurry()

    def skipped(self, number: int) -> bool:
        """Whether the extend of the record ``number`` since boot failed for good."""
        at = bisect_right(self._skipped, number, key=lambda numbers: numbers.start)
        return at > 0 and number in self._skipped[at - 1]

    async def wait_extended(self, number: int) -> None:
        """Returns once ``number`` records since boot are in the PCRs.

        Raises :class:`Refused` (ENODEV) where that boot is over before.
        """
        while self.queue.totals.extended < number:
            if self._ended:
                raise Refused(errno.ENODEV, "rebooted meanwhile")
            await self._moved.wait()

    def end(self) -> None:
        """The TPM was reset: what is not extended by now never will be."""
        self._ended = True
        self._moved.set()

    async def run(self) -> None:
        """Runs until :meth:`stop`; may be run again after :meth:`resume`."""
        retry = _RETRY_FIRST
        while not self._stop.is_set():
            due = self.queue.pending - self.pace.behind
            if due <= 0:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            try:
                # Before anything leaves the queue's head, on purpose too: entries in flight
                # are counted from there.
                if self._certain is not None:
                    await self._find_place(self._certain)
                    self._certain = None
                    continue
                if await self._held_up(self.pace.delay) or self._skip(due):
                    continue
                await self._batch(min(due, BATCH))
                retry = _RETRY_FIRST
            except trio.Cancelled:
                self.doubt()
                raise
            except TpmError as error:
                self._failed(error)
                await self._held_up(retry)
                retry = min(2 * retry, _RETRY_LONGEST)

    async def _held_up(self, seconds: float) -> bool:
        """Waits; true where :meth:`hurry` or :meth:`stop` came in between."""
        if not seconds:
            return False
        self._again = trio.Event()
        if self._stop.is_set():
            return True
        with trio.move_on_after(seconds):
            await self._again.wait()
        return self._again.is_set()

    def _skip(self, due: int) -> bool:
        """Lets those of the ``due`` extends fail that are to fail; whether there were any."""
        number = min(self.pace.fail, due)
        if number <= 0:
            return False
        self.pace.fail -= number
        self.failures.skipped += number
        log.info("%d extends fail as asked for: the PCRs never get these records", number)
        self._forgo(number)
        return True

    def _forgo(self, number: int) -> None:
        """The next ``number`` records are in the list and will be in no PCR."""
        if self.listed is None:
            self.listed = self.replay.copy()
        first = self.queue.totals.extended + 1
        if self._skipped and self._skipped[-1].stop == first:
            # As long as it lasts: one range and not one per record.
            first = self._skipped.pop().start
        self._skipped.append(range(first, self.queue.totals.extended + 1 + number))
        self._advanced(self.queue.pending_extends(number))

    def _refused(self, refused: ExtendRefused) -> None:
        """As ``ima_pcr_extend``: logged, and the next one is extended (Linux 7.3 ima_queue.c)."""
        pcr = int.from_bytes(self.queue.pending_extends(1)[:4], "little")
        self.failures.refused += 1
        self.failures.last = str(refused)
        if (pcr, str(refused)) not in self._said:
            self._said.add((pcr, str(refused)))
            log.error(
                "record %d: PCR %d is not extended, the record stays: %s",
                self.queue.totals.extended + 1,
                pcr,
                refused,
            )
        self._forgo(1)

    def _failed(self, error: TpmError) -> None:
        done = error.done if isinstance(error, ExtendError) else 0
        self._certain = max(done, self._certain or 0)
        self.failures.extend += 1
        if self.failures.last != str(error):
            line = "extending failed, records stay and are retried: %s"
            self._seldom.say("failed extends", logging.ERROR, line, error)
        self.failures.last = str(error)

    async def _batch(self, most: int) -> None:
        packed = self.queue.pending_extends(most)
        done, refused = await self._channel.call(lambda: _extend(self._channel.device, packed))
        packed = packed[: done * self.queue.layout.entry_size]
        self.replay.extend(packed)
        self._advanced(packed)
        if refused is not None:
            self._refused(refused)

    def _advanced(self, packed: bytes) -> None:
        """These are not pending any more."""
        if self.listed is not None:
            self.listed.extend(packed)
        self.queue.confirm_extends(len(packed) // self.queue.layout.entry_size)
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    async def _find_place(self, certain: int) -> None:
        """After a failure: how many of the entries in flight are in the PCRs?"""
        packed = self.queue.pending_extends(BATCH)
        size = self.queue.layout.entry_size
        if not self.replay.banks:
            # Only banks that this machine cannot hash: no place to find.
            self._advanced(packed[: certain * size])
            return
        named = {
            int.from_bytes(packed[at : at + 4], "little") for at in range(0, len(packed), size)
        }
        used = sorted(self.replay.pcrs | (named & EXTENDABLE))
        actual = await self._channel.call(lambda: self._channel.device.read_pcrs(used))
        done = self.replay.advance(packed, actual)
        if done is None:
            # An extend reaches all banks or none, so one that a stranger left alone
            # tells the place for all; else go on behind what the TPM has answered.
            places = self.replay.places(packed, actual)
            done = max([place for place in places.values() if place is not None] or [certain])
            self.replay.extend(packed[: done * size])
            wrong = ", ".join(f"{bank}:{pcr}" for bank, pcr in self.replay.differences(actual))
            self.failures.mismatch = (
                f"PCRs {wrong} do not replay since record {self.queue.totals.extended}"
            )
            line = "%s: somebody else extended or reset them"
            self._seldom.say("foreign extends", logging.ERROR, line, self.failures.mismatch)
        self._passed(packed[: done * size])

    def _passed(self, packed: bytes) -> None:
        """The PCRs are behind these; what no TPM lets IMA extend was refused on the way."""
        size = self.queue.layout.entry_size
        for at in range(0, len(packed), size):
            entry = packed[at : at + size]
            if int.from_bytes(entry[:4], "little") in EXTENDABLE:
                self._advanced(entry)
            else:
                self.failures.refused += 1
                self._forgo(1)


def _extend(device: Device, packed: bytes) -> tuple[int, ExtendRefused | None]:
    """The entries that were extended, and why the next one was not where the TPM refused it.

    No error to the channel: the TPM answers, and its connection is in order.
    """
    try:
        return device.extend(packed, longest=LONGEST), None
    except ExtendRefused as refused:
        return refused.done, refused
