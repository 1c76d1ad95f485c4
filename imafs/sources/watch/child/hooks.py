# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which hooks of IMA a use of a file passes. Pure but for the flags' numbers.

=====================  ==========================================================
open                   FILE_CHECK with the access mode; an ELF file that is opened for
                       reading passes MMAP_CHECK (MAY_EXEC) too, because what ld.so
                       loads cannot be told from what is read
execve                 BPRM_CHECK, CREDS_CHECK and, for an ELF file, MMAP_CHECK
=====================  ==========================================================

Source: Linux 7.3 fs/namei.c (``do_open``, ``build_open_flags``), ima_main.c. Of the files
that an execve opens, the ELF interpreter is only mapped by a kernel, not BPRM_CHECKed;
here it cannot be told from the others.
"""

from __future__ import annotations

from os import O_ACCMODE, O_APPEND, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY

from imafs.kernel.policy.rules import MAY_APPEND, MAY_EXEC, MAY_READ, MAY_WRITE
from imafs.sources.watch.child.task import Way

_MODES = {O_RDONLY: MAY_READ, O_WRONLY: MAY_WRITE, O_RDWR: MAY_READ | MAY_WRITE}

Hook = tuple[str, int]
"""func= and the mask."""

_ELF = b"\x7fELF"
_MAPPED = (("MMAP_CHECK", MAY_EXEC),)
_EXECUTED = (("BPRM_CHECK", MAY_EXEC), ("CREDS_CHECK", MAY_EXEC))


def writes(way: Way) -> bool:
    """FMODE_WRITE. A call that does not tell its flags is taken for reading."""
    return way.flags is not None and way.flags & O_ACCMODE in (O_WRONLY, O_RDWR)


def opened(way: Way, *, created: bool, elf: bool) -> tuple[Hook, ...]:
    """The hooks of an open. ``created``: the file did not exist (acc_mode is then 0)."""
    flags = O_RDONLY if way.flags is None else way.flags
    mask = _MODES.get(flags & O_ACCMODE, MAY_READ | MAY_WRITE)
    if flags & O_TRUNC:
        mask |= MAY_WRITE
    if flags & O_APPEND:
        mask |= MAY_APPEND
    if created:
        mask = 0
    check = (("FILE_CHECK", mask),)
    return (*check, *_MAPPED) if elf and mask & MAY_READ else check


def executed(*, elf: bool) -> tuple[Hook, ...]:
    """The hooks of a file that an execve opens."""
    return (*_EXECUTED, *_MAPPED) if elf else _EXECUTED


def is_elf(head: bytes) -> bool:
    """Whether a file that begins so can be mapped as a program or a library."""
    return head[:4] == _ELF
