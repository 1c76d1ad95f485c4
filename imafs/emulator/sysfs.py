# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What stands beside the IMA directory: the boot log and sysfs' class of TPMs.

Source: Linux 7.2.13 tpm-sysfs.c, eventlog/common.c, and what its /sys showed: a PCR is
upper-case hexadecimal digits and a newline, mode 0444, st_size 4096; the boot log has mode
0440. One FUSE mount serves both: sysfs' part is below :data:`CLASS_TPM`, a name that is found
but not listed, and whoever wants it at /sys/class/tpm binds it there.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from imafs.emulator.emulator import Emulator
from imafs.errors import Refused
from imafs.fuse.handles import Handle
from imafs.lists.seqfile import Bytes

#: Directory in the root of layout securityfs that is bound on /sys/class/tpm.
CLASS_TPM = ".class-tpm"
_BOOT_LOG = "tpm0/binary_bios_measurements"
#: Banks that get a directory (tpm-sysfs.c, ``tpm_sysfs_add_device``).
_BANKS = ("sha1", "sha256", "sha384", "sha512", "sm3")
_PCRS = 24
_SYSFS_SIZE = 4096
#: Readers of PCRs that may wait for the TPM at once. Everybody may read these files; whoever
#: makes more of such calls than pyfuse3 serves at once would keep all others from the lists.
WAITING = 128

Content = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Extra:
    """A file, or a directory (``read`` is None), by its path from the root.

    ``read`` makes the content; it may take time and raises
    :class:`imafs.errors.ImafsError`. ``sysfs``: a file of sysfs shows a page as its size; one
    of securityfs (``size`` is its true size) does not.
    """

    path: str
    mode: int = 0o755
    read: Content | None = None
    size: int = 0
    sysfs: bool = False


def extras(emulator: Emulator, boot_log: bytes | None) -> list[Extra]:
    """What the layout securityfs has beside the IMA directory."""
    found = [Extra(CLASS_TPM)]
    if boot_log is not None:
        found.append(Extra(_BOOT_LOG, 0o440, partial(constant, boot_log), len(boot_log)))
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
    return Extra(path, 0o444, read, _SYSFS_SIZE, sysfs=True)


async def constant(text: bytes) -> bytes:
    """Content that is always the same."""
    return text


async def _pcr(emulator: Emulator, waiting: trio.CapacityLimiter, bank: str, pcr: int) -> bytes:
    if not waiting.available_tokens:
        raise Refused(errno.EAGAIN, f"{WAITING} readers wait for the TPM")
    async with waiting:
        return (await emulator.read_pcr(bank, pcr)).hex().upper().encode() + b"\n"


class ExtraHandle(Handle):
    """An open file whose content is made by a read at its start, as sysfs does.

    A failed :meth:`prepare` keeps nothing of what was
    read before, so that an old value is never taken for the present one.
    """

    __slots__ = ("_content", "_text")
    waits = True

    def __init__(self, content: Content) -> None:
        self._content = content
        self._text: bytes | None = None

    async def prepare(self, offset: int) -> None:
        """Makes the content anew where a read begins."""
        if offset == 0 or self._text is None:
            self._text = None
            self._text = await self._content()

    def read(self, offset: int, size: int) -> Bytes:
        assert self._text is not None
        return self._text[offset : offset + size]
