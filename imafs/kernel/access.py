# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Who may open: one writer task or many readers over the whole IMA directory.

Mirrors ``ima_measurements_open``/``_release`` (Linux 7.3 ima_fs.c:244-336): one counter
for all list and staged files of every form and bank; the writer's own *thread* may
open further writers. Accounting is per handle: the kernel's counter goes wrong when
another task drops the last reference of a second writer (observed), which no correct
client can see.
"""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass

from imafs.errors import Refused


@dataclass(frozen=True, slots=True)
class Holder:
    """One open list file: the opener's thread id (0: not visible here) and how."""

    tid: int
    write: bool


class Accounting:
    """The counter. ``readers_max`` is LONG_MAX in the kernel."""

    def __init__(self, readers_max: int = sys.maxsize) -> None:
        self._readers_max = readers_max
        self.readers: list[Holder] = []
        self.writers: list[Holder] = []

    def open(self, tid: int, *, write: bool) -> Holder:
        """Counts an open. Raises :class:`Refused`: ENFILE, then EBUSY."""
        holder = Holder(tid, write)
        if write:
            same = bool(self.writers) and tid != 0 and self.writers[0].tid == tid
            if not same and (self.readers or self.writers):
                raise Refused(errno.EBUSY, self._held())
            self.writers.append(holder)
        else:
            if len(self.readers) >= self._readers_max:
                raise Refused(errno.ENFILE, "too many readers")
            if self.writers:
                raise Refused(errno.EBUSY, self._held())
            self.readers.append(holder)
        return holder

    def release(self, holder: Holder) -> None:
        """The handle's last reference is gone."""
        (self.writers if holder.write else self.readers).remove(holder)

    def _held(self) -> str:
        if self.writers:
            return f"open for writing by thread {self.writers[0].tid}"
        return f"open for reading by {len(self.readers)} handles"
