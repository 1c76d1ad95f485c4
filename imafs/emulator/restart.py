# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One kernel after the other on the same TPM: kexec and reboot.

A kexec keeps the PCRs and carries the list over, so what is still to be extended is
extended afterwards, in order; a dead TPM holds nothing up. A reboot resets the TPM and begins
a list anew. The mount stays; descriptors that were open are dead (see
:class:`imafs.emulator.kernel.Kernel`).

Source: Linux 7.3 ima_kexec.c, ima_queue.c:513-547 (the reboot notifier).
"""

from __future__ import annotations

import errno
import logging

from imafs.emulator.boot_aggregate import PCRS, unreadable
from imafs.emulator.emulator import Emulator
from imafs.emulator.kernel import Held, Kernel
from imafs.errors import Refused, TpmError
from imafs.interface.profiles import Profile
from imafs.kernel import carry, kexec
from imafs.kernel.kexec import Crossing, Image
from imafs.kernel.policy.match import Access
from imafs.lists.replay import PcrValues

log = logging.getLogger(__name__)

#: Seconds that the next kernel waits for a TPM that does not answer.
TPM_WAIT = 5.0


_CMDLINE = Access("KEXEC_CMDLINE", 0)


class Lifecycle:
    """What ends a kernel; one of it at a time (the callers see to that)."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    @property
    def _kernel(self) -> Kernel:
        return self._emulator.kernel

    @property
    def held(self) -> Held | None:
        """The kexec that is held, None where there is none."""
        return self._kernel.held

    # kexec

    def load(self, cmdline: bytes = b"") -> Image:
        """``kexec_file_load``: reserves the segment and measures ``kexec_load``.

        Before that ``cmdline`` is measured where a rule says so (``ima_kexec_cmdline``); an
        empty one never is, nor any without a policy.
        Another load takes the place of an earlier one. Raises :class:`Refused` (EBUSY) while
        a kexec is held or measurements are suspended; a record that cannot be added is only logged.
        """
        self._check_idle()
        kernel = self._kernel
        kernel.measure_buffer(_CMDLINE, kexec.CMDLINE, cmdline)
        image = carry.image(kernel.queue, kernel.config.profile.kexec, kernel.config.kexec_extra)
        self._measure(kexec.LOAD, image.segment_size)
        kernel.image = image
        return image

    async def execute(
        self,
        profile: Profile | None = None,
        *,
        carry_over: bool = True,
        whole: bool = False,
        hold: bool = False,
    ) -> Crossing | None:
        """``reboot(LINUX_REBOOT_CMD_KEXEC)``: measures ``kexec_execute`` and suspends, then the
        next kernel restores the list and measures its boot_aggregate.

        All that is one step, in which nothing else is measured, unless ``hold`` stops
        between the two (None is returned) until :meth:`finish`. Loads first where nothing
        is loaded. ``profile`` is the next kernel's; without ``carry_over`` it restores nothing;
        with ``whole`` a list that would be cut is refused (EOVERFLOW), with nothing done.
        Raises :class:`Refused` (EBUSY) while suspended or while a kexec is held.
        """
        profile = profile or self._kernel.config.profile
        self._kernel.config.check_next(profile)
        self._check_idle()
        values = None if hold else await self._aggregate_values()
        self._check_idle()
        image = self._kernel.image
        if image is not None and whole and carry_over:
            self._check_whole(image)
        image = image or self.load()
        self._measure(kexec.EXECUTE, image.segment_size)
        self._kernel.queue.suspended = True
        held = self._copy(image, profile, carry_over=carry_over)
        if values is None:
            self._kernel.held = held
            return None
        return self._cross(held, values)

    async def finish(self) -> Crossing:
        """Ends a kexec that is held. Raises :class:`Refused` (EINVAL) where none is."""
        if self.held is None:
            raise Refused(errno.EINVAL, "no kexec is held: see kexec-execute --hold")
        values = await self._aggregate_values()
        held = self.held
        if held is None:
            raise Refused(errno.EINVAL, "the kexec that was held has ended")
        return self._cross(held, values)

    def _cross(self, held: Held, values: PcrValues) -> Crossing:
        # No await in here: the next kernel's first record is its boot_aggregate.
        emulator, found = self._emulator, held.found
        emulator.next_kernel(held)
        if found.lost:
            log.warning(
                "kexec: %d of %d records were not carried over: %s",
                found.lost,
                found.records,
                found.why,
            )
        if self._kernel.config.boot_aggregate:
            self._kernel.measure_boot(values)
        return found

    def _copy(self, image: Image, profile: Profile, *, carry_over: bool) -> Held:
        """The dump of the list: what a draft still deletes after it appears again."""
        queue, rules = self._kernel.queue, self._kernel.config.profile.kexec
        found = carry.crossing(queue, image, rules)
        queue.note_copy()
        if not carry_over:
            found = Crossing(found.records, 0, "the next kernel restores nothing (--no-carry)")
        return Held(profile, [one.copy() for one in carry.carried(queue, rules, image)], found)

    def buffer(self) -> tuple[bytes, int]:
        """The kexec buffer as it would be dumped now, and its number of records.

        Cut at the segment where a kernel is loaded.
        """
        return carry.buffer(
            self._kernel.queue, self._kernel.config.profile.kexec, self._kernel.image
        )

    def _measure(self, name: bytes, segment: int) -> None:
        if self._kernel.config.profile.kexec.measured:
            self._kernel.measure_critical_data(kexec.LABEL, name, self._event(segment))

    def _event(self, segment: int) -> bytes:
        full = self._kernel.queue.full
        return kexec.event(segment, full.size, full.records)

    def _check_idle(self) -> None:
        if self.held is not None:
            raise Refused(errno.EBUSY, "a kexec is held: end it with kexec-finish")
        if self._kernel.queue.suspended:
            raise Refused(errno.EBUSY, "measurements are suspended: resume first")

    def _check_whole(self, image: Image) -> None:
        # kexec_execute itself, where it is measured, is to go across too.
        rules = self._kernel.config.profile.kexec
        record = None
        if rules.measured:
            record = self._kernel.told(kexec.LABEL, kexec.EXECUTE, self._event(image.segment_size))
        found = carry.crossing(self._kernel.queue, image, rules, record)
        if found.lost:
            raise Refused(
                errno.EOVERFLOW,
                f"{found.lost} of {found.records} records would be lost: {found.why}; load again",
            )

    async def _aggregate_values(self) -> PcrValues:
        """PCR 0 to 9; zeros where the TPM does not answer, as ``ima_pcrread`` leaves them."""
        emulator = self._emulator
        if not self._kernel.config.boot_aggregate:
            return {}
        device = emulator.device
        try:
            return await emulator.channel.call(
                lambda: device.read_pcrs(PCRS), deadline=TPM_WAIT, patient=True
            )
        except TpmError as error:
            log.error("boot_aggregate is made of zeros, as in a kernel: %s", error)
            return unreadable(device.banks)

    # reboot

    async def reboot(self, profile: Profile | None = None) -> None:
        """``reboot(LINUX_REBOOT_CMD_RESTART)``: suspends, then TPM and list begin anew.

        ``profile`` None: the one that the emulator was started with. Raises
        :class:`TpmError`, with nothing changed, where the TPM cannot be reset.
        """
        if profile is not None:
            self._kernel.config.check_next(profile)
        queue = self._kernel.queue
        before = queue.suspended
        queue.suspended = True
        try:
            await self._emulator.reset(profile)
        finally:
            # Where nothing has booted (failed, cancelled) this kernel goes on; else its queue is
            # gone, and nobody asks it any more.
            if not before:
                queue.suspended = False
