# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The emulator: what a booted kernel with IMA and a TPM is.

Lives in one trio thread. :meth:`Emulator.append` and the requests are synchronous:
a call without await is the critical section. Only waiting for the TPM awaits.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import trio

from imafs.emulator import records
from imafs.emulator.audit_log import Audit
from imafs.emulator.boot_aggregate import PCRS, boot_aggregate, policy_file
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.extender import Extender, Pace
from imafs.emulator.freeing import Collector
from imafs.emulator.requests import Requests
from imafs.emulator.running import Boot, Held
from imafs.errors import FormatError, Refused, TpmError
from imafs.formats.binary import Reader, Record
from imafs.formats.fields import Measurement
from imafs.formats.templates import Template
from imafs.interface.grammar import Grammar, Request
from imafs.interface.opens import Accounting
from imafs.interface.profiles import Entry, Kind, Profile, RequestFile, directory
from imafs.kernel.kexec import loaded_image
from imafs.kernel.policy.match import UNCONDITIONAL, Access, Decision, Policy
from imafs.kernel.policy.policy_file import PolicyFile
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

_KERNEL_INFO = Access("CRITICAL_DATA", 0, label="kernel_info")
_POLICY = Access("CRITICAL_DATA", 0, label="ima_policy")


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


class Emulator:
    """Composes queue, accounting and TPM; see :meth:`start` and :meth:`run`."""

    def __init__(self, config: EmulatorConfig, device: Device, audit: Audit | None = None) -> None:
        self.config = config
        self._first_profile = config.profile
        self.boot = Boot()
        banks = tuple(
            replace(bank, padded=True) if bank.name in config.padded_banks else bank
            for bank in device.banks
        )
        self.layout = Layout(banks, config.algorithm)
        self.channel = TpmChannel(device)
        self.channel.answers = lambda: self._extender.hurry()
        self.accounting = self._new_accounting()
        self.audit = audit or Audit()
        self.policy_file: PolicyFile = policy_file(config, self.audit)
        self.policy_source = config.policy_source
        #: Reads the policy file of a path and measures it; who knows files puts it here.
        self.read_policy: Callable[[bytes], Awaitable[bytes]] = _no_policy_files
        #: Called after another boot and after another policy has become active.
        self.observers: list[Callable[[], None]] = []
        self._requests = self._new_requests()
        self._collector = Collector(lambda: self.queue)
        self._resets, self._reset_wanted = trio.open_memory_channel[tuple[trio.Event, trio.Event]](
            0
        )
        self._added = trio.Event()
        #: What goes wrong on purpose; outlives reboots, as whoever asked for it does.
        self.trouble = Trouble()
        self.pace = Pace()
        self._extender = Extender(self._new_queue(), self.channel, Replay(banks), self.pace)

    def _new_accounting(self) -> Accounting:
        profile = self.config.played
        limit = sys.maxsize if profile.reader_limit else None
        return Accounting(limit, same_writer=profile.same_writer)

    def _new_requests(self) -> Requests:
        return Requests(self.config, self.measure_critical_data, self._measured_pcrs)

    def _new_queue(self) -> Queue:
        config, profile = self.config, self.config.played
        return Queue(
            self.layout,
            profile.rules,
            flush_htable=config.flush_htable and profile.flush_htable,
            disable_htable=config.disable_htable,
            cache=config.cache,
        )

    @property
    def queue(self) -> Queue:
        """The measurement queue of the kernel that runs."""
        return self._extender.queue

    @property
    def extender(self) -> Extender:
        """The TPM side of the queue since the last boot."""
        return self._extender

    @property
    def device(self) -> Device:
        """The TPM."""
        return self.channel.device

    @property
    def entries(self) -> list[Entry]:
        """The IMA directory in order of creation."""
        entries = directory(
            self.config.played,
            self.layout.lists,
            staging=self.config.staging,
            tpm=bool(self.layout.banks),
        )
        mode = self.policy_file.mode
        return [replace(e, mode=mode) if e.kind is Kind.POLICY else e for e in entries]

    # Starting

    async def start(self, loaded: Sequence[Record] | None = None, *, staged: int = 0) -> None:
        """Boots: looks at the PCRs, takes a loaded list or measures boot_aggregate.

        The first ``staged`` of the loaded records are staged, as they were when recorded.
        Raises :class:`TpmError` where the PCRs hold what the list does not explain.
        """
        named = {record.pcr for record in loaded or ()}
        pcrs = sorted({self.config.pcr, *(named & EXTENDABLE)})
        actual = await self.channel.call(lambda: self.device.read_pcrs(pcrs))
        for number, record in enumerate(loaded or (), 1):
            self.queue.append(record, loaded=True)
            if number == staged:
                self.queue.stage()
        self._collect()
        self._settle(actual)
        self.boot.image = loaded_image(loaded or ())
        if loaded is None and self.config.boot_aggregate:
            self.measure_boot(await self.channel.call(lambda: self.device.read_pcrs(PCRS)))

    def _settle(self, actual: PcrValues) -> None:
        """Finds the place of the PCRs in what is queued: usually before its first record."""
        queue, replay = self.queue, self._extender.replay
        done = replay.advance(queue.pending_extends(queue.pending), actual)
        if done is not None:
            queue.confirm_extends(done)
            return
        wrong = replay.differences(actual)
        names = ", ".join(f"{bank}:{pcr}" for bank, pcr in wrong)
        if not self.config.adopt:
            raise TpmError(
                f"PCRs {names} are not zero and no loaded list explains them; "
                "reset the TPM, load the list that extended them, or go on with --adopt"
            )
        log.info("adopting PCRs %s as they are", names)
        self._extender.replay = Replay(self.layout.banks, actual)

    def measure_boot(self, values: PcrValues) -> None:
        """The boot_aggregate of the TPM's ``values``."""
        measurement = boot_aggregate(self.layout.banks, self.config.algorithm, values)
        self.append(self.record(measurement))
        # ima_init, then what a boot script loads.
        if self.config.policy is not None:
            version = self.config.policy_config.release.version.encode()
            self.measure_buffer(_KERNEL_INFO, b"kernel_version", version)
        if self.config.policy_text is not None:
            self.measure_policy()

    # Ending

    def next_kernel(self, held: Held) -> None:
        """Ends a kexec: from now on the next kernel runs, with what it restores.

        The extender goes on with what the old queue had pending: the TPM was not reset.
        """
        boot = replace(self.boot, kexecs=self.boot.kexecs + 1, image=None, held=None)
        boot.carried, boot.lost = held.found.carried, held.found.lost
        boot.carried_in_all += boot.carried
        old = self.queue
        self._run_kernel(boot, held.profile)
        queue = self._new_queue()
        queue.take_over(old, held.lists, boot.carried)
        self._extender.queue = queue
        self._collect()
        self.changed()

    def _run_kernel(self, boot: Boot, profile: Profile) -> None:
        # The open descriptors of the old kernel's clients count no more, and are dead.
        self.boot = boot
        self.config = replace(self.config, profile=profile)
        self.accounting = self._new_accounting()
        self.policy_file = policy_file(self.config, self.audit)
        self.policy_source = self.config.policy_source
        self._requests = self._new_requests()

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
            old, failures = self.queue, self._extender.failures
            self._run_kernel(Boot(self.boot.number + 1), profile or self._first_profile)
            self._extender = Extender(
                self._new_queue(), self.channel, Replay(self.layout.banks), self.pace
            )
            self._extender.failures = replace(failures, skipped=0, refused=0)
            self.queue.inherit(old)
            self._collect()
            if self.config.boot_aggregate:
                self.measure_boot(values)
            self.changed()
        finally:
            resume.set()

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

    def changed(self) -> None:
        """Tells the observers that the boot or the policy is another one."""
        for observer in self.observers:
            observer()

    # Measuring

    @property
    def policy(self) -> Policy | None:
        """The active policy; None where none was given or written."""
        return self.policy_file.active

    def judge(self, access: Access) -> Decision:
        """Whether ``access`` is measured, by which rule, into which PCR and template.

        While no policy is active everything is that is asked for: a convenience, a
        kernel without ``ima_policy=`` measures nothing.
        """
        return UNCONDITIONAL if self.policy is None else self.policy.decide(access)

    def record(
        self, measurement: Measurement, template: Template | None = None, pcr: int | None = None
    ) -> Record:
        """See :func:`imafs.emulator.records.record`."""
        return records.record(self.config, measurement, template, pcr)

    def violation(self, name: bytes) -> Record:
        """A violation of the file ``name`` (ToMToU, open_writers)."""
        return records.violation(self.config, name)

    def critical_data(self, name: bytes, buf: bytes, decision: Decision = UNCONDITIONAL) -> Record:
        """Critical data, as the rule of ``decision`` wants it."""
        return records.critical_data(self.config, name, buf, decision)

    def append(self, record: Record, *, loaded: bool = False) -> Receipt:
        """Into the list and the extend queue. A duplicate is no error: the receipt says so.

        Raises :class:`Refused` (ENODEV) while measurements are suspended.
        """
        try:
            number = self.queue.append(record, loaded=loaded)
        except Refused as refused:
            if refused.errno != errno.EEXIST:
                raise
            return Receipt(self.queue.totals.added, self.boot.number, duplicate=True)
        self._extender.kick()
        self._requests.grown(self.queue)
        # Drafts export the list, and delete it, as it grows.
        self._collect()
        added, self._added = self._added, trio.Event()
        added.set()
        if self.trouble.listener is not None:
            self.trouble.listener.added(number)
        return Receipt(number, self.boot.number)

    async def measure(self, record: Record, wait: float = EXTEND_WAIT) -> Receipt:
        """Appends and waits for the record's own extend, at most ``wait`` seconds."""
        receipt = self.append(record)
        return replace(receipt, extended=await self.wait_for(receipt, wait))

    async def wait_for(self, receipt: Receipt, seconds: float) -> bool:
        """Whether the record of ``receipt`` is in the PCRs within ``seconds``; after a reset
        it is not. Of a duplicate this asks for all records so far."""
        if receipt.boot != self.boot.number:
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

    def measure_buffer(self, access: Access, name: bytes, buf: bytes) -> None:
        """A buffer that the kernel itself measures, where the policy says so."""
        if self.policy is not None and buf:
            self._tell(name, buf, self.judge(access))

    def measure_critical_data(self, label: str, name: bytes, text: bytes) -> None:
        """What the kernel itself tells, where the policy wants it."""
        self._tell(name, text, self.judge(Access("CRITICAL_DATA", 0, label=label)))

    def told(self, label: str, name: bytes, text: bytes) -> Record | None:
        """The record that :meth:`measure_critical_data` would add, None where it would not."""
        decision = self.judge(Access("CRITICAL_DATA", 0, label=label))
        try:
            return self.critical_data(name, text, decision) if decision.measure else None
        except (Refused, FormatError):
            return None

    def _tell(self, name: bytes, buf: bytes, decision: Decision) -> None:
        """As in a kernel a failure is only logged, and what was about to happen goes on:
        a rule's template that takes no buffer (``ima`` with sha256) is EINVAL there."""
        if not decision.measure:
            return
        try:
            self.append(self.critical_data(name, buf, decision))
        except (Refused, FormatError) as error:
            log.info("%s is not in the list: %s", name.decode(), error)

    def measure_policy(self) -> None:
        """``ima_measure_loaded_policy``: the text of the policy that became active."""
        if self.config.policy_config.release.records:
            self.measure_buffer(_POLICY, b"ima_policy_loaded", self.policy_file.text())

    def newest(self) -> Record:
        """The newest record of either list. Raises :class:`Refused` (ENOENT)."""
        data = self.queue.newest()
        if data is None:
            raise Refused(errno.ENOENT, "there is no record to repeat")
        return next(iter(Reader(data, 20))).record

    # Requests of user space

    def write(self, grammar: Grammar, data: bytes, position: int) -> int:
        """A write to a file with this grammar: the bytes taken. Raises :class:`Refused`."""
        taken = self._requests.write(self.queue, grammar, data, position)
        self._collect()
        return taken

    def request(self, request: Request) -> None:
        """Carries out a parsed request. Raises :class:`Refused` with the kernel's errno."""
        self._requests.carry_out(self.queue, request)
        self._collect()

    def _collect(self) -> None:
        """After whatever may have deleted something."""
        if self.queue.has_garbage:
            self._collector.wake()

    def shown(self, file: RequestFile) -> bytes:
        """The text of a request file. Raises :class:`Refused` (EINVAL): no read method."""
        return self._requests.shown(self.queue, file)

    def _measured_pcrs(self) -> Sequence[int]:
        """The PCRs that records go to: the default one, and those of the policy's rules."""
        rules = () if self.policy is None else self.policy.rules
        named = {rule.pcr for rule in rules if rule.pcr is not None}
        return sorted({self.config.pcr, *(named & EXTENDABLE)})

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


async def _no_policy_files(path: bytes) -> bytes:
    raise Refused(errno.EACCES, f"{os.fsdecode(path)}: nobody reads policy files here")
