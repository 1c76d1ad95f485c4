# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The kernel that runs: all that a kexec or a reboot replaces, as one object.

Synchronous, and used from the trio thread only: a call without await is the critical section.
"""

from __future__ import annotations

import errno
import logging
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from imafs.emulator import records
from imafs.emulator.audit_log import Audit
from imafs.emulator.boot_aggregate import boot_aggregate, policy_file
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.requests import Requests
from imafs.errors import FormatError, Refused
from imafs.formats.binary import Reader, Record
from imafs.formats.fields import Measurement
from imafs.formats.templates import Template
from imafs.interface.grammar import Grammar, Request
from imafs.interface.opens import Accounting
from imafs.interface.profiles import Entry, Kind, Profile, RequestFile, directory
from imafs.kernel.kexec import Crossing, Image
from imafs.kernel.policy.match import UNCONDITIONAL, Access, Decision, Policy
from imafs.kernel.policy.policy_file import PolicyFile
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout
from imafs.lists.packed import PackedList
from imafs.lists.replay import EXTENDABLE, PcrValues

log = logging.getLogger(__name__)

_KERNEL_INFO = Access("CRITICAL_DATA", 0, label="kernel_info")
_POLICY = Access("CRITICAL_DATA", 0, label="ima_policy")


@dataclass(frozen=True, slots=True)
class Held:
    """A kexec between the copy of the list and the next kernel.

    ``profile`` is the next kernel's; ``found.carried`` records of ``lists`` reach it.
    """

    profile: Profile
    lists: list[PackedList]
    found: Crossing


@dataclass(frozen=True, slots=True)
class Start:
    """How a kernel came to run. ``number`` counts boots (TPM resets) from 1, ``kexecs`` those
    since that boot; ``carried`` and ``lost`` are records of the last kexec, ``carried_in_all``
    of all since that boot. ``boot_id`` is what /proc/sys/kernel/random/boot_id would say: a
    kexec has another one too."""

    number: int = 1
    kexecs: int = 0
    carried: int = 0
    carried_in_all: int = 0
    lost: int = 0
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()), init=False)  # never copied


class Kernel:
    """Every start of a kernel is another object: what was opened under an earlier one holds
    that one, and is dead.

    ``add`` puts a record into the list and into the PCRs; ``freed`` is called after whatever
    may have deleted something. ``image`` is loaded for the next kexec, ``held`` the one that
    stands still.
    """

    def __init__(
        self,
        config: EmulatorConfig,
        layout: Layout,
        audit: Audit,
        add: Callable[[Record], object],
        freed: Callable[[], None],
        start: Start | None = None,
    ) -> None:
        self.config = config
        self.start = start or Start()
        self.image: Image | None = None
        self.held: Held | None = None
        self._layout = layout
        self._audit = audit
        self._add = add
        self._freed = freed
        profile = config.played
        limit = sys.maxsize if profile.reader_limit else None
        self.accounting = Accounting(limit, same_writer=profile.same_writer)
        self.policy_file: PolicyFile = policy_file(config, audit)
        self.policy_source = config.policy_source
        self.queue = Queue(
            layout,
            profile.rules,
            flush_htable=config.flush_htable and profile.flush_htable,
            disable_htable=config.disable_htable,
            cache=config.cache,
        )
        self._requests = Requests(
            self.queue, config, self.measure_critical_data, self._measured_pcrs
        )

    def _after(self, profile: Profile, start: Start) -> Kernel:
        config = replace(self.config, profile=profile)
        return Kernel(config, self._layout, self._audit, self._add, self._freed, start)

    def after_kexec(self, held: Held) -> Kernel:
        """The kernel that ``held`` was to start, with what it restores."""
        found, past = held.found, self.start
        start = Start(
            past.number,
            past.kexecs + 1,
            found.carried,
            past.carried_in_all + found.carried,
            found.lost,
        )
        kernel = self._after(held.profile, start)
        kernel.queue.take_over(self.queue, held.lists, found.carried)
        return kernel

    def after_reset(self, profile: Profile) -> Kernel:
        """A kernel that boots after the TPM was reset."""
        kernel = self._after(profile, Start(self.start.number + 1))
        kernel.queue.inherit(self.queue)
        return kernel

    @property
    def entries(self) -> list[Entry]:
        """The IMA directory in order of creation."""
        entries = directory(
            self.config.played,
            self._layout.lists,
            staging=self.config.staging,
            tpm=bool(self._layout.banks),
        )
        mode = self.policy_file.mode
        return [replace(e, mode=mode) if e.kind is Kind.POLICY else e for e in entries]

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

    def measure_boot(self, values: PcrValues) -> None:
        """The boot_aggregate of the TPM's ``values``."""
        measurement = boot_aggregate(self._layout.banks, self.config.algorithm, values)
        self._add(self.record(measurement))
        # ima_init, then what a boot script loads.
        if self.config.policy is not None:
            version = self.config.policy_config.release.version.encode()
            self.measure_buffer(_KERNEL_INFO, b"kernel_version", version)
        if self.config.policy_text is not None:
            self.measure_policy()

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
            self._add(self.critical_data(name, buf, decision))
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
        taken = self._requests.write(grammar, data, position)
        self._freed()
        return taken

    def request(self, request: Request) -> None:
        """Carries out a parsed request. Raises :class:`Refused` with the kernel's errno."""
        self._requests.carry_out(request)
        self._freed()

    def grown(self) -> None:
        """A record was added: drafts export the list, and delete it, as it grows."""
        self._requests.grown()
        self._freed()

    def shown(self, file: RequestFile) -> bytes:
        """The text of a request file. Raises :class:`Refused` (EINVAL): no read method."""
        return self._requests.shown(file)

    def _measured_pcrs(self) -> Sequence[int]:
        """The PCRs that records go to: the default one, and those of the policy's rules."""
        rules = () if self.policy is None else self.policy.rules
        named = {rule.pcr for rule in rules if rule.pcr is not None}
        return sorted({self.config.pcr, *(named & EXTENDABLE)})
