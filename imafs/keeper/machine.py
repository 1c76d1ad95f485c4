# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which machine an IMA directory belongs to: its boot_id, its command line, its TPM. Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from dataclasses import dataclass

from imafs.errors import FileError, UsageError
from imafs.host import mount_table, mounts
from imafs.host.covers import Ground
from imafs.keeper.source import NoPcrs, Pcrs, Place, SysfsPcrs

#: The kernel's own TPM.
SYSFS = "/sys/class/tpm/tpm0"
#: Names that an emulator's mount finds, but does not list.
_EMULATED_TPM = ".class-tpm/tpm0"
_EMULATED_BOOT_ID = ".boot_id"
#: File systems that a reboot empties.
_VOLATILE = ("tmpfs", "ramfs")
#: Options of an overlay that syncs nothing: of Linux 5.10, and of newer ones.
_UNSYNCED = {b"volatile", b"fsync=volatile"}
#: Overlays of overlays that are looked through; Linux stacks two (FILESYSTEM_MAX_STACK_DEPTH).
_LAYERS = 8
#: FS_IOC_FIEMAP, and a struct fiemap without extents.
_FIEMAP, _FIEMAP_SIZE = 0xC020660B, 32


def _mount_of(path: str) -> mounts.Mount:
    """The mount that a path is on."""
    real = mounts.resolve(path)
    found = [
        m
        for m in mounts.mounts()
        if real == m.path or real.startswith(f"{m.path}/".replace("//", "/"))
    ]
    return max(found, key=lambda mount: len(mount.path))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the source is. ``root`` and ``reach`` lead to its mount and to the directory, also
    from below a cover."""

    directory: str
    root: str
    reach: str
    emulated: bool


def machine(directory: str, ground: Ground | None = None) -> Machine:
    """The machine of an IMA directory; ``ground``: it is to be covered."""
    if ground is not None:
        return Machine(directory, ground.root, ground.reach, ground.emulated)
    mount = _mount_of(directory)
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


def volatile(store: str) -> str | None:
    """Why records in ``store``, which is open, would not outlive this boot; None: nothing says so.

    Raises :class:`FileError`.
    """
    try:
        return _volatile(store)
    except OSError as error:
        raise FileError(store, error, option="--store") from None


def _volatile(store: str) -> str | None:
    file = os.path.join(os.path.realpath(store), "lock")
    for layer in range(_LAYERS):
        mount = mounts.beneath(file)
        if mount is None:
            return None
        if mount.fstype in _VOLATILE:
            where = "is on an overlay over" if layer else "is on"
            return f"{store} {where} {mount.fstype}, which a reboot empties: nothing is deleted"
        if mount.fstype != "overlay":
            return None
        if _UNSYNCED & set(mount.options.split(b",")):
            return f"{store} is on an overlay that is mounted volatile: nothing is deleted"
        below = _below(mount, file)
        if below is None:
            return _unseen(store)
        file = below
    return None


def _below(mount: mounts.Mount, file: str) -> str | None:
    """The same file in the upper layer of an overlay; None where no path of ours leads there.

    The layer was named by who mounted that, maybe in another mount namespace.
    """
    upper = mount_table.option(mount.options, b"upperdir") or b""
    within = os.path.relpath(file, mount.path)
    if within.startswith(".."):
        return None
    # mount(2) takes "\\," for a comma, and the option shows it so; fsconfig(2) takes it as it is.
    for name in dict.fromkeys((upper, re.sub(rb"\\(.)", rb"\1", upper))):
        below = os.path.normpath(f"{os.fsdecode(name)}/{mount.root}/{within}")
        try:
            if os.path.isabs(name) and _like(os.lstat(below)) == _like(os.lstat(file)):
                return below
        except OSError:
            continue
    return None


def _like(found: os.stat_result) -> tuple[int, ...]:
    """What an overlay shows as its upper layer has it: the inode's number need not be."""
    return found.st_ctime_ns, found.st_mtime_ns, found.st_mode, found.st_uid, found.st_size


def _unseen(store: str) -> str | None:
    """The same where no path leads to the upper layer: of a container, or of a system whose root
    is an overlay. An overlay hands FIEMAP on, which tmpfs and ramfs do not have."""
    descriptor = os.open(os.path.join(store, "lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.ioctl(descriptor, _FIEMAP, bytes(_FIEMAP_SIZE))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return (
                f"{store} is on an overlay whose upper layer is on no disk that is seen from "
                "here: nothing is deleted; put it on a file system of its own"
            )
    finally:
        os.close(descriptor)
    return None
