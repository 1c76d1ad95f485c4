# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What stands beside the IMA directory: the boot log and sysfs' class of TPMs.

Source: Linux 7.2.13 tpm-sysfs.c, eventlog/common.c, and what its /sys showed: a PCR is
upper-case hexadecimal digits and a newline, mode 0444, st_size 4096; the boot log has mode
0440. One FUSE mount serves both: sysfs' part is below :data:`CLASS_TPM`, a name that is found
but not listed, and whoever wants it at /sys/class/tpm binds it there. :data:`BOOT_ID` is not
listed either: /proc/sys/kernel/random/boot_id of the kernel that the emulator plays.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from functools import partial

import trio

from imafs.emulator.emulator import Emulator
from imafs.errors import Refused
from imafs.fuse.directory import Content, Entry

#: Directory in the root that is bound on /sys/class/tpm.
CLASS_TPM = ".class-tpm"
BOOT_ID = ".boot_id"
_BOOT_LOG = "tpm0/binary_bios_measurements"
#: Banks that get a directory (tpm-sysfs.c, ``tpm_sysfs_add_device``).
_BANKS = ("sha1", "sha256", "sha384", "sha512", "sm3")
_PCRS = 24
_SYSFS_SIZE = 4096
#: Readers of PCRs that may wait for the TPM at once. Everybody may read these files; whoever
#: makes more of such calls than pyfuse3 serves at once would keep all others from the lists.
WAITING = 128


@dataclass(frozen=True, slots=True)
class Extra(Entry):
    """A file, or a directory (``read`` is None). ``read`` makes the content of ``length``
    bytes; it may take time and raises :class:`imafs.errors.ImafsError`."""

    read: Content | None = None
    length: int = 0


def extras(emulator: Emulator, boot_log: bytes | None) -> list[Extra]:
    """What is beside the IMA directory; ``boot_log`` only in the layout securityfs."""
    found = [
        Extra(CLASS_TPM, stat.S_IFDIR | 0o755),
        Extra(BOOT_ID, 0o444, read=partial(_boot_id, emulator)),
    ]
    if boot_log is not None:
        read = partial(constant, boot_log)
        found.append(Extra(_BOOT_LOG, 0o440, seq=True, read=read, length=len(boot_log)))
    names = [bank.name for bank in emulator.device.banks if bank.name in _BANKS]
    if names:
        waiting = trio.CapacityLimiter(WAITING)
        chip = f"{CLASS_TPM}/tpm0"
        version = partial(constant, b"2\n")
        found.append(_of_sysfs(f"{chip}/tpm_version_major", version))
        found += [
            _of_sysfs(f"{chip}/pcr-{name}/{pcr}", partial(_pcr, emulator, waiting, name, pcr))
            for name in names
            for pcr in range(_PCRS)
        ]
    return found


def _of_sysfs(path: str, read: Content) -> Extra:
    return Extra(path, 0o444, sized=True, read=read, length=_SYSFS_SIZE)


async def _boot_id(emulator: Emulator) -> bytes:
    return f"{emulator.kernel.start.boot_id}\n".encode()


async def constant(text: bytes) -> bytes:
    """Content that is always the same."""
    return text


async def _pcr(emulator: Emulator, waiting: trio.CapacityLimiter, bank: str, pcr: int) -> bytes:
    if not waiting.available_tokens:
        raise Refused(errno.EAGAIN, f"{WAITING} readers wait for the TPM")
    async with waiting:
        return (await emulator.read_pcr(bank, pcr)).hex().upper().encode() + b"\n"
