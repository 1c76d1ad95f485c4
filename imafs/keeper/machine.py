# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which machine an IMA directory belongs to: its boot_id, its command line, its TPM. Blocking."""

from __future__ import annotations

import os
from dataclasses import dataclass

from imafs.errors import NotThereError, UsageError
from imafs.host import mounts
from imafs.host.covers import Ground
from imafs.keeper.source import NoPcrs, Pcrs, Place, SysfsPcrs

#: The kernel's own TPM.
SYSFS = "/sys/class/tpm/tpm0"
#: Names that an emulator's mount finds, but does not list.
_EMULATED_TPM = ".class-tpm/tpm0"
_EMULATED_BOOT_ID = ".boot_id"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the source is. ``root`` and ``reach`` lead to its mount and to the directory, also
    from below a cover."""

    directory: str
    root: str
    reach: str
    emulated: bool


def machine(directory: str, ground: Ground | None = None) -> Machine:
    """The machine of an IMA directory; ``ground``: it is to be covered.

    Raises :class:`UsageError` for a keeper's view, also that of a dead one: below it is a list
    that may be short.
    """
    if ground is not None:
        return Machine(directory, ground.root, ground.reach, ground.emulated)
    mount = mounts.above(directory)
    if mount is None:
        raise NotThereError(f"--source {directory}: is on no mount of this process")
    if mount.kept:
        raise UsageError(
            f"--source {directory}: is the view of a keeper, dead or alive, and no kernel's list; "
            "start with --cover, or end that keeper and take its view away (imafs umount)"
        )
    return Machine(directory, mount.path, directory, mount.emulated)


def place(of: Machine, boot_id: str | None) -> Place:
    """The place of a kernel's directory, or of an emulator's, which has a boot_id of its own.

    Raises :class:`UsageError` where nobody tells which kernel runs.
    """
    cmdline = None if of.emulated else Place(of.directory).cmdline
    if boot_id is None and of.emulated:
        boot_id = os.path.join(of.root, _EMULATED_BOOT_ID)
        if not os.path.exists(boot_id):
            raise UsageError(
                f"--source {of.directory}: an emulator without a boot_id; give --boot-id FILE"
            )
    return Place(of.directory, boot_id or Place(of.directory).boot_id, cmdline, of.reach)


def pcrs(spec: str | None, of: Machine) -> Pcrs:
    """``none``, a directory as sysfs has one, a TCTI string; None finds the kernel's own TPM.

    Raises :class:`UsageError`.
    """
    if spec == "none":
        return NoPcrs()
    if spec is not None and spec.startswith(("/", ".")):
        return SysfsPcrs(spec)
    if spec is not None and spec != "sysfs":
        # Here: 0.3 s that others need not pay.
        from imafs.keeper.tcti_pcrs import TctiPcrs

        return TctiPcrs(spec)
    chip = os.path.join(of.root, _EMULATED_TPM) if of.emulated else SYSFS
    if os.path.isdir(chip):
        return SysfsPcrs(chip)
    if spec == "sysfs":
        raise UsageError(f"--pcrs sysfs: {chip} is not there")
    if of.emulated:
        raise UsageError(
            f"--source {of.directory}: where is its TPM? Give --pcrs TCTI, or none for no TPM"
        )
    return NoPcrs()
