# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper's view: the IMA directory of Linux 7.1, whose lists begin at the PCRs' reset.

The files are read only and grow at their ends alone, whatever is deleted in the kernel. An open
file reads on over any deletion and any kexec of its life; one of an earlier life is ENODEV.
Where records may be missing, reads are EIO: never a shorter or an older list. ``policy`` is a
place for the kernel's own file: a policy takes effect with the rights of who writes it.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from imafs.errors import DegradedError, FormatError, ImafsError, Refused, StoreBrokenError
from imafs.fuse.directory import ContentHandle, Directory, Entry, Handle, WaitFirst
from imafs.interface.profiles import lookup
from imafs.interface.profiles.model import Kind, directory
from imafs.keeper.catalogue import Catalogue
from imafs.keeper.chunks import Absent
from imafs.keeper.collector import Collector
from imafs.lists.banks import View
from imafs.lists.seqfile import Bytes, SeqFile

T = TypeVar("T")

#: Seconds that a look at the end of file counts for: a reader who stopped before the end of file
#: was told, and goes on later, gets another one.
PASS = 5.0
#: The directory whose look this is: no file of it takes requests.
_PROFILE = "legacy"


@dataclass(frozen=True, slots=True)
class File(Entry):
    """A name, and what is behind it."""

    kind: Kind = Kind.LINK
    view: View | None = None


class ListHandle(Handle):
    """A list that is open. A read at its beginning or its end looks at the kernel first.

    Once per pass: a look lasts as long as two syncs, and where records arrive all the time it
    always brings some, so that a reader would never see the end of file. It gets it behind what
    the look at the end has brought; the next read looks again.
    """

    __slots__ = ("_catalogue", "_collector", "_end", "_ended", "_looked", "_seq", "_view")

    def __init__(self, collector: Collector, catalogue: Catalogue, view: View) -> None:
        self._collector = collector
        self._catalogue = catalogue
        self._view = view
        self._seq = SeqFile(lambda: catalogue, view)
        #: Bytes that there were at the last look; and when that was, if it was one at the end.
        self._end = 0
        self._looked: float | None = None
        self._ended = False

    def waits(self, position: int) -> bool:
        return self._ended or not 0 < position < self._end

    async def prepare(self, position: int) -> None:
        """Raises :class:`Refused` (EIO) where the list is not to be had."""
        self._ended = False
        if not self.waits(position):
            return
        now = trio.current_time()
        if position and self._looked is not None and now - self._looked < PASS:
            self._looked, self._ended = None, True
            return
        at_end = 0 < self._end <= position
        await seen(self._collector)
        self._end = self._catalogue.size(self._view)
        self._looked = trio.current_time() if at_end and position < self._end else None

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        if self._ended:
            return b""
        try:
            return self._seq.read(position, size, fill=fill)
        except Absent as absent:
            fetch = partial(self._collector.fetch, self._catalogue, absent)
        except (DegradedError, FormatError, StoreBrokenError) as error:
            self._collector.damaged(str(error))
            raise Refused(errno.EIO, str(error)) from None
        raise WaitFirst(fetch)


async def seen(collector: Collector) -> Catalogue:
    """The list as the kernel has it now; EIO and a line in the log where it is not to be had."""
    return await _or_eio(collector, collector.fresh)


async def _or_eio(collector: Collector, look: Callable[[], Awaitable[T]]) -> T:
    try:
        return await look()
    except ImafsError as error:
        collector.told.say("looks", logging.WARNING, "a reader of the view gets EIO: %s", error)
        raise Refused(errno.EIO, str(error)) from None


class WholeDirectory(Directory[File]):
    """The view of what ``collector`` keeps; ``gid`` the files' group."""

    def __init__(self, collector: Collector, gid: int | None = None) -> None:
        self._collector = collector
        self._gid = gid
        #: Whether there is a place for the kernel's policy file.
        self.has_policy = True

    @property
    def generation(self) -> object:
        """The life: its files are never others."""
        return self._collector.catalogue

    def entries(self) -> Sequence[File]:
        """Those of Linux 7.1; before there is a life none but the policy."""
        catalogue = self._collector.catalogue
        lists = () if catalogue is None else catalogue.layout.lists
        return [
            File(
                entry.name,
                (stat.S_IFLNK if entry.kind is Kind.LINK else stat.S_IFREG) | entry.mode,
                entry.target,
                seq=entry.kind is Kind.LIST,
                gid=self._gid,
                kind=entry.kind,
                view=entry.view,
            )
            for entry in directory(lookup(_PROFILE), lists)
            if catalogue is not None or entry.kind is Kind.POLICY
        ]

    def is_present(self, entry: File) -> bool:
        """The policy's name is there for a mount of the kernel's file."""
        return self.has_policy or entry.kind is not Kind.POLICY

    def size(self, entry: File) -> int:
        """As of the last look at the kernel."""
        catalogue = self._collector.catalogue
        if catalogue is None or entry.kind is Kind.POLICY:
            return 0
        if entry.view is not None:
            return catalogue.size(entry.view)
        if entry.kind is Kind.COUNT:
            return len(b"%d\n" % len(catalogue))
        try:
            return len(b"%d\n" % self._collector.violations_known)
        except Absent:
            return 0  # nobody has read them yet

    def open(self, entry: File, flags: int, tid: int) -> Handle:
        """Raises :class:`Refused` (EIO) where the list is not whole."""
        if entry.kind is Kind.POLICY:
            raise Refused(errno.EACCES, "the kernel's policy file is not mounted here")
        catalogue = self._collector.catalogue
        refusal = self._collector.refusal
        if catalogue is None or refusal is not None:
            why = refusal or "there is no list yet"
            text = "an open of %s gets EIO: %s"
            self._collector.told.say("opens", logging.WARNING, text, entry.path, why)
            raise Refused(errno.EIO, why)
        if entry.view is not None:
            return ListHandle(self._collector, catalogue, entry.view)

        async def content() -> bytes:
            if entry.kind is Kind.COUNT:
                return b"%d\n" % len(await seen(self._collector))
            return b"%d\n" % await _or_eio(self._collector, self._collector.violations)

        return ContentHandle(content)
