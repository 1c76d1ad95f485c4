# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The rule for opens: one writer task or many readers over the whole IMA directory.

Mirrors ``ima_measurements_open``/``_release`` (Linux 7.3 ima_fs.c:244-336): one counter
for all files that a profile counts; in mainline the writer's own *thread* may
open further writers. Accounting is per handle: the kernel's counter goes wrong when
another task drops the last reference of a second writer (observed), which no correct
client can see.
"""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from enum import Enum

from imafs.errors import Refused


class Role(Enum):
    """An open counts as one of these."""

    READER = "reader"
    WRITER = "writer"


@dataclass(frozen=True, slots=True)
class Opening:
    """How a kind of file is opened: what counts as what (None: not counted), and which
    opens take CAP_SYS_ADMIN. ``write_takes_admin``: the capability is asked at write."""

    reading: Role | None = None
    writing: Role | None = None
    reading_needs_admin: bool = False
    writing_needs_admin: bool = False
    write_takes_admin: bool = False

    def role(self, *, write: bool) -> Role | None:
        """The kind that such an open counts as."""
        return self.writing if write else self.reading

    def needs_admin(self, *, write: bool) -> bool:
        """Whether such an open takes CAP_SYS_ADMIN."""
        return self.writing_needs_admin if write else self.reading_needs_admin


#: The lists of every version that counts its users at all.
COUNTED = Opening(Role.READER, Role.WRITER, writing_needs_admin=True)
#: Files that nobody counts and everybody with the mode bits may open.
FREE = Opening()


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """One open list file, equal to itself alone: the opener's thread id (0: not visible here)
    and how."""

    tid: int
    write: bool


class Accounting:
    """The counter. ``readers_max`` is LONG_MAX in the kernel, None: drafts do not ask.

    ``same_writer``: the writer's own thread may open further writers (Linux 7.2).
    """

    def __init__(self, readers_max: int | None = sys.maxsize, *, same_writer: bool = True) -> None:
        self._readers_max = readers_max
        self._same_writer = same_writer
        # In the order of their opens. A process that ends with thousands of open files closes
        # them all at once: no search goes through the others.
        self.readers: dict[Holder, None] = {}
        self.writers: dict[Holder, None] = {}

    def open(self, tid: int, *, write: bool) -> Holder:
        """Counts an open. Raises :class:`Refused`: ENFILE, then EBUSY."""
        holder = Holder(tid, write)
        if write:
            first = next(iter(self.writers), None)
            same = self._same_writer and tid != 0 and first is not None and first.tid == tid
            if not same and (self.readers or self.writers):
                raise Refused(errno.EBUSY, self._held())
            self.writers[holder] = None
        else:
            if self._readers_max is not None and len(self.readers) >= self._readers_max:
                raise Refused(errno.ENFILE, "too many readers")
            if self.writers:
                raise Refused(errno.EBUSY, self._held())
            self.readers[holder] = None
        return holder

    def release(self, holder: Holder) -> None:
        """The handle's last reference is gone."""
        del (self.writers if holder.write else self.readers)[holder]

    def _held(self) -> str:
        if self.writers:
            return f"open for writing by thread {next(iter(self.writers)).tid}"
        return f"open for reading by {len(self.readers)} handles"
