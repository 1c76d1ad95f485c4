# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Open files: what a read, a write and a release of each kind do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from imafs.emulator.emulator import Emulator
from imafs.emulator.policy_writer import PolicyWriter
from imafs.errors import Refused
from imafs.fuse.caller import has_sys_admin
from imafs.interface.grammar import Grammar, Operation, asked
from imafs.interface.opens import Holder
from imafs.interface.profiles import Entry, RequestFile
from imafs.kernel.audit import Task
from imafs.lists.packed import PackedList
from imafs.lists.seqfile import Bytes, Position, SeqFile


class Handle:
    """An open file without methods of its own: reads and writes are EINVAL.

    ``waits``: :meth:`prepare` does something. Whoever writes is a thread id.
    """

    __slots__ = ()
    waits = False

    @property
    def grammar(self) -> Grammar | None:
        """Of the requests that it takes."""
        return None

    def asked(self, data: bytes) -> Operation | None:
        """The operation that a write of ``data`` asks for, None: it is no request."""
        return None if self.grammar is None else asked(self.grammar, bytes(data))

    async def prepare(self, offset: int) -> None:
        """Goes before each :meth:`read`; a file whose content takes time makes it here."""

    async def store(self, offset: int, data: bytes, writer: int) -> int:
        """A write that may take time; without a turn for anybody else where it takes none."""
        return self.write(offset, data, writer)

    def failing(self) -> AbstractContextManager[None]:
        """Around a write that may be refused before it gets here."""
        return nullcontext()

    def read(self, offset: int, size: int) -> Bytes:
        """Up to ``size`` bytes for FUSE's ``offset``."""
        raise Refused(errno.EINVAL, "the file has no read method")

    def write(self, offset: int, data: bytes, writer: int) -> int:
        """Number of bytes accepted."""
        raise Refused(errno.EINVAL, "the file has no write method")

    def flush(self, closer: int) -> None:
        """A close() of one of its descriptors, by the thread ``closer``."""

    def release(self) -> None:
        """The last reference is gone."""


class ListHandle(Handle):
    """A measurement list, current or staged, in one view.

    ``fills``: whether reads are filled instead of stopping at a page.
    """

    __slots__ = (
        "_append",
        "_emulator",
        "_entry",
        "_fills",
        "_holder",
        "_list",
        "_position",
        "_seq",
    )

    def __init__(
        self,
        emulator: Emulator,
        entry: Entry,
        flags: int,
        holder: Holder | None,
        fills: Callable[[], bool],
    ) -> None:
        files, view = entry.files, entry.view
        assert files is not None
        assert view is not None
        staged = files.staged
        self._emulator = emulator
        self._entry = entry
        self._holder = holder
        self._append = bool(flags & os.O_APPEND)
        self._position = Position()
        self._fills = fills
        self._list: Callable[[], PackedList] = lambda: emulator.queue.list(staged)
        self._seq = SeqFile(self._list, view)

    @property
    def grammar(self) -> Grammar | None:
        return None if self._entry.files is None else self._entry.files.grammar

    def read(self, offset: int, size: int) -> Bytes:
        files = self._entry.files
        assert files is not None
        if files.empty is not None and not len(self._list()):
            raise Refused(files.empty, "the list is empty")
        position = self._position
        real = position.at_read(offset)
        out = self._seq.read(real, size, fill=self._fills())
        position.after_read(offset, real, len(out))
        return out

    def write(self, offset: int, data: bytes, writer: int) -> int:
        grammar = self.grammar
        if grammar is None:
            return super().write(offset, data, writer)
        real = self._position.at_write(offset, append=self._append)
        taken = self._emulator.write(grammar, data, real)
        self._position.after_write(offset, real, taken)
        return taken

    def release(self) -> None:
        if self._holder is not None:
            self._emulator.accounting.release(self._holder)


class RequestHandle(Handle):
    """A file that takes requests and is no list, such as ``ima_trim_log``.

    Where a draft asks for CAP_SYS_ADMIN at the write, whoever writes needs it: not the opener,
    who may have handed the descriptor on.
    """

    __slots__ = ("_append", "_emulator", "_file", "_holder", "_position")

    def __init__(
        self, emulator: Emulator, file: RequestFile, flags: int, holder: Holder | None
    ) -> None:
        self._emulator = emulator
        self._file = file
        self._holder = holder
        self._append = bool(flags & os.O_APPEND)
        self._position = Position()

    @property
    def grammar(self) -> Grammar | None:
        return self._file.grammar

    def read(self, offset: int, size: int) -> Bytes:
        real = self._position.at_read(offset)
        out = self._emulator.shown(self._file)[real : real + size]
        self._position.after_read(offset, real, len(out))
        return out

    def write(self, offset: int, data: bytes, writer: int) -> int:
        grammar = self.grammar
        if grammar is None:
            return super().write(offset, data, writer)
        if self._file.opening.write_takes_admin and not has_sys_admin(writer):
            raise Refused(errno.EPERM, "CAP_SYS_ADMIN is asked at the write")
        real = self._position.at_write(offset, append=self._append)
        taken = self._emulator.write(grammar, data, real)
        self._position.after_write(offset, real, taken)
        return taken

    def release(self) -> None:
        if self._holder is not None:
            self._emulator.accounting.release(self._holder)


class TextHandle(Handle):
    """A small text that is made at each read (``simple_read_from_buffer``)."""

    __slots__ = ("_text",)

    def __init__(self, text: Callable[[], bytes]) -> None:
        self._text = text

    def read(self, offset: int, size: int) -> Bytes:
        return self._text()[offset : offset + size]


class PolicyHandle(Handle):
    """The policy file, open for writing. Raises :class:`Refused` (EBUSY)."""

    __slots__ = ("_append", "_audit", "_closer", "_position", "_writer")

    def __init__(self, emulator: Emulator, flags: int) -> None:
        self._audit = emulator.audit
        self._closer: Task | None = None
        self._append = bool(flags & os.O_APPEND)
        self._position = Position()
        self._writer = PolicyWriter(emulator)

    async def store(self, offset: int, data: bytes, writer: int) -> int:
        """A write. It may wait for the file of rules that it names.

        The kernel's answer is one too many for a rule without newline; FUSE makes EIO of
        that, so here it is what was given.
        """
        real = self._position.at_write(offset, append=self._append)
        task = self._audit.task(writer)  # while it waits for us
        size = min(await self._writer.write(bytes(data), real, task), len(data))
        self._position.after_write(offset, real, size)
        return size

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Whatever is refused inside makes the session invalid, as a kernel's own error."""
        try:
            yield
        except Refused as refused:
            self._writer.spoil(refused)
            raise

    def flush(self, closer: int) -> None:
        # A RELEASE comes from nobody: a kernel's own is in the task of the last close.
        self._closer = self._audit.task(closer)

    def release(self) -> None:
        self._writer.close(self._closer)
