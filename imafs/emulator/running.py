# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which kernel runs: the boots and kexecs behind it, and what it is about to start."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from imafs.interface.profiles import Profile
from imafs.kernel.kexec import Crossing, Image
from imafs.lists.packed import PackedList


@dataclass(frozen=True, slots=True)
class Held:
    """A kexec between the copy of the list and the next kernel.

    ``profile`` is the next kernel's; ``found.carried`` records of ``lists`` reach it.
    """

    profile: Profile
    lists: list[PackedList]
    found: Crossing


@dataclass(slots=True)
class Boot:
    """The kernel that runs. Every start of one is another object: what was opened under an
    earlier one is recognised by it.

    ``number`` counts boots (TPM resets) from 1, ``kexecs`` those since that boot; ``carried``
    and ``lost`` are records of the last kexec, ``carried_in_all`` of all since that boot.
    ``image`` is loaded for the next kexec, ``held`` the one that stands still. ``boot_id`` is what
    /proc/sys/kernel/random/boot_id would say: a kexec has another one too.
    """

    number: int = 1
    kexecs: int = 0
    carried: int = 0
    carried_in_all: int = 0
    lost: int = 0
    image: Image | None = None
    held: Held | None = None
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()), init=False)  # never copied
