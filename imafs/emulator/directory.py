# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What an emulator shows through a mount: its IMA directory, and what stands beside it."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass

from imafs.emulator import files
from imafs.emulator.emulator import Emulator
from imafs.emulator.sysfs import Extra
from imafs.fuse.directory import ContentHandle, Directory, Entry, Gate, Handle
from imafs.interface import profiles
from imafs.interface.profiles import Kind

#: What leads to the IMA directory in layout securityfs, in the kernel's order of creation.
_SECURITYFS = (
    Entry("integrity", stat.S_IFDIR | 0o755),
    Entry("integrity/ima", stat.S_IFDIR | 0o755),
    Entry("ima", 0o444, target="integrity/ima"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaEntry(Entry):
    """A file or link of the IMA directory, or a request file of a draft elsewhere."""

    ima: profiles.Entry


class ImaDirectory(Directory[Entry]):
    """The directory of one emulator; ``layout`` is "ima" or "securityfs" (see the README)."""

    def __init__(self, emulator: Emulator, layout: str, extras: Sequence[Extra] = ()) -> None:
        self._emulator = emulator
        self._above = _SECURITYFS if layout == "securityfs" else ()
        self._place = "integrity/ima/" if layout == "securityfs" else ""
        self._extras = extras

    @property
    def generation(self) -> object:
        """The kernel that runs."""
        return self._emulator.kernel

    @property
    def gate(self) -> Gate | None:
        trouble = self._emulator.trouble
        return trouble if trouble.active else None

    def entries(self) -> Sequence[Entry]:
        ima = [self._entry(entry) for entry in self._emulator.kernel.entries]
        return [*self._above, *ima, *self._extras]

    def _entry(self, ima: profiles.Entry) -> Entry:
        place = f"{ima.directory}/" if ima.directory else self._place
        return ImaEntry(
            path=place + ima.name,
            mode=ima.mode,
            target=ima.target,
            seq=ima.kind is Kind.LIST,
            ima=ima,
        )

    def size(self, entry: Entry) -> int:
        if isinstance(entry, Extra):
            return entry.length
        return files.size(self._emulator.kernel, _ima(entry))

    def mode(self, entry: Entry, mode: int) -> int:
        # CONFIG_IMA_READ_POLICY without _WRITE_POLICY: nobody's to write after the first load.
        sealed = _is_policy(entry) and self._emulator.kernel.policy_file.sealed
        return mode & ~stat.S_IWUSR if sealed else mode

    def is_present(self, entry: Entry) -> bool:
        """The policy file is removed where it could be of no use any more."""
        return not _is_policy(entry) or self._emulator.kernel.policy_file.present

    def open(self, entry: Entry, flags: int, tid: int) -> Handle:
        if isinstance(entry, Extra):
            assert entry.read is not None
            return ContentHandle(entry.read)
        return files.open_file(self._emulator, _ima(entry), flags, tid)


def _ima(entry: Entry) -> profiles.Entry:
    assert isinstance(entry, ImaEntry)
    return entry.ima


def _is_policy(entry: Entry) -> bool:
    return isinstance(entry, ImaEntry) and entry.ima.kind is Kind.POLICY
