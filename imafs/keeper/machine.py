# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which machine an IMA directory belongs to: its boot_id, its command line, its TPM. Blocking."""

from __future__ import annotations

import os

from imafs.errors import UsageError
from imafs.host import mounts
from imafs.keeper.source import NoPcrs, Pcrs, Place, SysfsPcrs

#: The kernel's own TPM.
SYSFS = "/sys/class/tpm/tpm0"
#: Names that an emulator's mount finds, but does not list.
_EMULATED_TPM = ".class-tpm/tpm0"
_EMULATED_BOOT_ID = ".boot_id"
#: File systems that a reboot empties.
_VOLATILE = ("tmpfs", "ramfs")


def _mount_of(path: str) -> mounts.Mount:
    """The mount that a path is on."""
    real = mounts.resolve(path)
    found = [
        m
        for m in mounts.mounts()
        if real == m.path or real.startswith(f"{m.path}/".replace("//", "/"))
    ]
    return max(found, key=lambda mount: len(mount.path))


def place(directory: str, boot_id: str | None) -> Place:
    """The place of a kernel's directory, or of an emulator's, which has a boot_id of its own.

    Raises :class:`UsageError` where nobody tells which kernel runs.
    """
    mount = _mount_of(directory)
    if boot_id is not None:
        return Place(directory, boot_id, None if mount.emulated else "/proc/cmdline")
    if not mount.emulated:
        return Place(directory)
    own = os.path.join(mount.path, _EMULATED_BOOT_ID)
    if not os.path.exists(own):
        raise UsageError(
            f"--source {directory}: an emulator without a boot_id; give --boot-id FILE"
        )
    return Place(directory, own, None)


def pcrs(spec: str | None, directory: str) -> Pcrs:
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
    mount = _mount_of(directory)
    chip = os.path.join(mount.path, _EMULATED_TPM) if mount.emulated else SYSFS
    if os.path.isdir(chip):
        return SysfsPcrs(chip)
    if spec == "sysfs":
        raise UsageError(f"--pcrs sysfs: {chip} is not there")
    if mount.emulated:
        raise UsageError(
            f"--source {directory}: where is its TPM? Give --pcrs TCTI, or none for no TPM"
        )
    return NoPcrs()


def volatile(store: str) -> str | None:
    """Why records in ``store`` would not outlive this boot; None: they would."""
    mount = _mount_of(store)
    if mount.fstype in _VOLATILE:
        return f"{store} is on {mount.fstype}, which a reboot empties: nothing is deleted"
    return None
