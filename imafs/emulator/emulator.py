# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The emulator: what a booted kernel with IMA and a TPM is.

Lives in one trio thread. :meth:`Emulator.append` and the requests are synchronous:
a call without await is the critical section. Only waiting for the TPM awaits.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import trio

from imafs.emulator.audit_log import Audit
from imafs.emulator.boot_aggregate import PCRS
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.extender import Extender, Pace
from imafs.emulator.freeing import Collector
from imafs.emulator.kernel import Held, Kernel
from imafs.errors import Refused, TpmError
from imafs.formats.binary import Record
from imafs.interface.profiles import Profile
from imafs.kernel.kexec import loaded_image
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout
from imafs.lists.replay import EXTENDABLE, PcrValues, Replay
from imafs.scenarios.gate import Trouble
from imafs.tpm import Device
from imafs.tpm.channel import TpmChannel

log = logging.getLogger(__name__)

#: Seconds that a measurement waits for its own extend before it is answered as pending.
EXTEND_WAIT = 5.0
#: Seconds that a reset waits for the batch in flight before it abandons the call.
RESET_WAIT = 5.0
#: Seconds that a reader of a PCR waits for the TPM.
PCR_WAIT = 2.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a measurement: its number since boot, and whether a PCR has it.

    ``boot`` is that boot's own number. Of a duplicate the number is that of the newest record:
    which one it repeats the hash table does not tell, but it is none behind that.
    """

    number: int
    boot: int
    duplicate: bool = False
    extended: bool = False


#: Reads the policy file of a path and measures it.
ReadPolicy = Callable[["Emulator", bytes], Awaitable[bytes]]


class Changes:
    """Tells of another boot and of another active policy, within the call that makes it so.

    It is made before the emulator, which tells, and its users, which hear and need the emulator.
    """

    def __init__(self) -> None:
        self._hear: list[Callable[[], None]] = []

    def hear(self, call: Callable[[], None]) -> None:
        """``call`` is called from now on; it does not await."""
        self._hear.append(call)

    def tell(self) -> None:
        """Calls everybody, in the order in which they asked for it."""
        for call in self._hear:
            call()


class Emulator:
    """Composes the kernel that runs and the TPM; see :meth:`start` and :meth:`run`.

    ``read_policy`` reads the policy files that are written as a path; ``changes`` is told of
    another boot and of another active policy.
    """

    def __init__(
        self,
        config: EmulatorConfig,
        device: Device,
        audit: Audit | None = None,
        read_policy: ReadPolicy | None = None,
        changes: Changes | None = None,
    ) -> None:
        self._first_profile = config.profile
        banks = tuple(
            replace(bank, padded=True) if bank.name in config.padded_banks else bank
            for bank in device.banks
        )
        self.layout = Layout(banks, config.algorithm)
        self.channel = TpmChannel(device, answers=lambda: self._extender.hurry())
        self.audit = audit or Audit()
        self.read_policy = read_policy or _no_policy_files
        #: The kernel that runs. A kexec or a reboot puts another one here, and nothing else.
        self.kernel = Kernel(config, self.layout, self.audit, self.append, self._collect)
        self.changes = changes or Changes()
        self._collector = Collector(lambda: self.queue)
        self._resets, self._reset_wanted = trio.open_memory_channel[tuple[trio.Event, trio.Event]](
            0
        )
        self._added = trio.Event()
        #: What goes wrong on purpose; outlives reboots, as whoever asked for it does.
        self.trouble = Trouble()
        self.pace = Pace()
        self._extender = self._new_extender(self.kernel)

    @property
    def queue(self) -> Queue:
        """The measurement queue of the kernel that runs."""
        return self.kernel.queue

    @property
    def extender(self) -> Extender:
        """The TPM side of the queue since the last boot."""
        return self._extender

    @property
    def device(self) -> Device:
        """The TPM."""
        return self.channel.device

    # Starting

    async def start(self, loaded: Sequence[Record] | None = None, *, staged: int = 0) -> None:
        """Boots: looks at the PCRs, takes a loaded list or measures boot_aggregate.

        The first ``staged`` of the loaded records are staged, as they were when recorded.
        Raises :class:`TpmError` where the PCRs hold what the list does not explain.
        """
        named = {record.pcr for record in loaded or ()}
        pcrs = sorted({self.kernel.config.pcr, *(named & EXTENDABLE)})
        actual = await self.channel.call(lambda: self.device.read_pcrs(pcrs))
        for number, record in enumerate(loaded or (), 1):
            self.queue.append(record, loaded=True)
            if number == staged:
                self.queue.stage()
        self._collect()
        self._settle(actual)
        self.kernel.image = loaded_image(loaded or ())
        if loaded is None and self.kernel.config.boot_aggregate:
            self.kernel.measure_boot(await self.channel.call(lambda: self.device.read_pcrs(PCRS)))

    def _settle(self, actual: PcrValues) -> None:
        """Finds the place of the PCRs in what is queued: usually before its first record."""
        queue, replay = self.queue, self._extender.replay
        done = replay.advance(queue.pending_extends(queue.pending), actual)
        if done is not None:
            queue.confirm_extends(done)
            return
        wrong = replay.differences(actual)
        names = ", ".join(f"{bank}:{pcr}" for bank, pcr in wrong)
        if not self.kernel.config.adopt:
            raise TpmError(
                f"PCRs {names} are not zero and no loaded list explains them; "
                "reset the TPM, load the list that extended them, or go on with --adopt"
            )
        log.info("adopting PCRs %s as they are", names)
        self._extender.replay = Replay(self.layout.banks, actual)

    # Ending

    def next_kernel(self, held: Held) -> None:
        """Ends a kexec: from now on the next kernel runs, with what it restores.

        The extender goes on with what the old queue had pending: the TPM was not reset.
        """
        kernel = self.kernel.after_kexec(held)
        self._extender.queue = kernel.queue
        self.kernel = kernel
        self._collect()
        self.changes.tell()

    async def reset(self, profile: Profile | None = None) -> None:
        """List and TPM as after a boot; the mount stays. Only while :meth:`run` runs.

        ``profile`` None: the one of the start, which a kexec may have left. Raises
        :class:`TpmError`, with nothing changed, where the TPM cannot be reset.
        """
        resume = trio.Event()
        stopped = trio.Event()
        await self._resets.send((stopped, resume))
        try:
            await stopped.wait()
            # Where this fails or is cut off the same extender goes on, on a TPM that may
            # have been reset all the same or will be.
            self._extender.doubt()
            values = await self.channel.call(self._reboot, patient=True)
            # No await from here on: boot_aggregate is the first record.
            self._extender.end()
            failures = self._extender.failures
            kernel = self.kernel.after_reset(profile or self._first_profile)
            self._extender = self._new_extender(kernel)
            self._extender.failures = replace(failures, skipped=0, refused=0)
            self.kernel = kernel
            self._collect()
            if kernel.config.boot_aggregate:
                kernel.measure_boot(values)
            self.changes.tell()
        finally:
            resume.set()

    def _new_extender(self, kernel: Kernel) -> Extender:
        return Extender(kernel.queue, self.channel, Replay(self.layout.banks), self.pace)

    def _reboot(self) -> PcrValues:
        self.device.reset()
        return self.device.read_pcrs(PCRS)

    async def read_pcr(self, bank: str, pcr: int) -> bytes:
        """A PCR's value, from the TPM itself and within :data:`PCR_WAIT` seconds.

        Bounded, because a file's reader waits for it and cannot be killed meanwhile
        (measured). Raises :class:`TpmError`: never an older value.
        """
        work = self.channel.call(lambda: self.device.read_pcrs([pcr]), deadline=PCR_WAIT)
        return (await work)[bank][pcr]

    # Measuring

    def append(self, record: Record, *, loaded: bool = False) -> Receipt:
        """Into the list and the extend queue. A duplicate is no error: the receipt says so.

        Raises :class:`Refused` (ENODEV) while measurements are suspended.
        """
        try:
            number = self.queue.append(record, loaded=loaded)
        except Refused as refused:
            if refused.errno != errno.EEXIST:
                raise
            return Receipt(self.queue.totals.added, self.kernel.start.number, duplicate=True)
        self._extender.kick()
        self.kernel.grown()
        added, self._added = self._added, trio.Event()
        added.set()
        if self.trouble.listener is not None:
            self.trouble.listener.added(number)
        return Receipt(number, self.kernel.start.number)

    async def measure(self, record: Record, wait: float = EXTEND_WAIT) -> Receipt:
        """Appends and waits for the record's own extend, at most ``wait`` seconds."""
        receipt = self.append(record)
        return replace(receipt, extended=await self.wait_for(receipt, wait))

    async def wait_for(self, receipt: Receipt, seconds: float) -> bool:
        """Whether the record of ``receipt`` is in the PCRs within ``seconds``; after a reset
        it is not. Of a duplicate this asks for all records so far."""
        if receipt.boot != self.kernel.start.number:
            return False
        if receipt.duplicate and self._extender.failures.lost:
            return False  # it may repeat one of those which the PCRs never get
        return await self.wait_extended(receipt.number, seconds)

    async def wait_extended(self, number: int, seconds: float) -> bool:
        """Whether ``number`` records since this boot are in the PCRs within ``seconds``."""
        extender = self._extender
        if number <= extender.queue.totals.added - self.pace.behind:
            try:
                with trio.move_on_after(seconds):
                    await extender.wait_extended(number)
            except Refused as refused:
                log.debug("record %d: %s", number, refused)
                return False
        return extender.queue.totals.extended >= number and not extender.skipped(number)

    async def wait_added(self, number: int) -> None:
        """Returns once ``number`` records were added since boot."""
        while self.queue.totals.added < number:
            await self._added.wait()

    def _collect(self) -> None:
        """After whatever may have deleted something."""
        if self.queue.has_garbage:
            self._collector.wake()

    # Living

    async def run(self) -> None:
        """The emulator's tasks: extending and freeing. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._collector.run)
            while True:
                # A reset boots a new queue: nothing of the old one may be extended
                # after it, so its extender ends first (a hung one is abandoned).
                async with trio.open_nursery() as boot:
                    extender = self._extender
                    extender.resume()
                    ended = trio.Event()
                    boot.start_soon(self._extend, extender, ended)
                    stopped, resume = await self._reset_wanted.receive()
                    extender.stop()
                    with trio.move_on_after(RESET_WAIT):
                        await ended.wait()
                    boot.cancel_scope.cancel()
                stopped.set()
                await resume.wait()

    async def _extend(self, extender: Extender, ended: trio.Event) -> None:
        await extender.run()
        ended.set()


async def _no_policy_files(emulator: Emulator, path: bytes) -> bytes:
    raise Refused(errno.EACCES, f"{os.fsdecode(path)}: nobody reads policy files here")
