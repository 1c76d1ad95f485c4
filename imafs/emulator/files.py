# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The files of the IMA directory: who may open them, what they say, what they take."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imafs.emulator.emulator import Emulator
from imafs.emulator.kernel import Kernel
from imafs.emulator.policy_writer import PolicyWriter
from imafs.errors import Refused
from imafs.fuse.directory import Handle, TextHandle
from imafs.host.caller import has_sys_admin
from imafs.interface.grammar import Grammar, Operation, asked
from imafs.interface.opens import Holder, Opening, Role
from imafs.interface.profiles import Entry, Kind, ListFiles, RequestFile
from imafs.kernel.audit import Task
from imafs.lists.banks import View
from imafs.lists.packed import PackedList
from imafs.lists.seqfile import Bytes, SeqFile


def open_file(emulator: Emulator, entry: Entry, flags: int, tid: int) -> Handle:
    """Opens a file of the kernel that runs, for the thread ``tid``. Raises :class:`Refused`."""
    kernel = emulator.kernel
    # As OPEN_FMODE: of the access mode 3, which may neither read nor write, no writer comes.
    write = bool(flags + 1 & 2)
    if entry.files is not None:
        assert entry.view is not None
        holder = _admit(kernel, entry.files.opening, tid, write=write)
        return ListHandle(kernel, entry.files, entry.view, holder)
    if entry.request is not None:
        holder = _admit(kernel, entry.request.opening, tid, write=write)
        return RequestHandle(kernel, entry.request, holder)
    if entry.kind is Kind.POLICY:
        return _open_policy(emulator, flags, tid)
    kind = entry.kind
    return TextHandle(lambda: _text(kernel, kind))


def _admit(kernel: Kernel, opening: Opening, tid: int, *, write: bool) -> Holder | None:
    """Capability first, then the counter (ima_fs.c:244-336)."""
    if opening.needs_admin(write=write) and not has_sys_admin(tid):
        raise Refused(errno.EPERM, "CAP_SYS_ADMIN is asked at the open")
    role = opening.role(write=write)
    if role is None:
        return None
    return kernel.accounting.open(tid, write=role is Role.WRITER)


def _open_policy(emulator: Emulator, flags: int, tid: int) -> Handle:
    # The kernel's test of the flags, not of the access mode (ima_open_policy).
    if flags & os.O_WRONLY:
        return PolicyHandle(emulator)
    if flags & os.O_ACCMODE != os.O_RDONLY:
        raise Refused(errno.EACCES, "the policy is read or written, not both")
    kernel = emulator.kernel
    kernel.policy_file.open_read(admin=has_sys_admin(tid))
    return TextHandle(lambda: _text(kernel, Kind.POLICY))


def size(kernel: Kernel, entry: Entry) -> int:
    """The true size of a file."""
    if entry.files is not None:
        assert entry.view is not None
        return kernel.queue.list(entry.files.staged).size(entry.view)
    if entry.request is not None:
        return 0 if entry.request.shows is None else len(kernel.shown(entry.request))
    return len(_text(kernel, entry.kind))


def _text(kernel: Kernel, kind: Kind) -> bytes:
    if kind is Kind.COUNT:
        return b"%d\n" % kernel.queue.count
    if kind is Kind.VIOLATIONS:
        return b"%d\n" % kernel.queue.violations
    return kernel.policy_file.text()


class _Requests(Handle):
    """What takes requests in a grammar, or none; its open may be counted."""

    __slots__ = ("_grammar", "_holder", "_kernel")

    def __init__(self, kernel: Kernel, grammar: Grammar | None, holder: Holder | None) -> None:
        self._kernel = kernel
        self._grammar = grammar
        self._holder = holder

    def asked(self, data: bytes) -> Operation | None:
        return None if self._grammar is None else asked(self._grammar, bytes(data))

    def write(self, position: int, data: bytes, writer: int) -> int:
        if self._grammar is None:
            return super().write(position, data, writer)
        return self._kernel.write(self._grammar, data, position)

    def release(self) -> None:
        if self._holder is not None:
            self._kernel.accounting.release(self._holder)


class ListHandle(_Requests):
    """A measurement list, current or staged, in one view."""

    __slots__ = ("_empty", "_list", "_seq")

    def __init__(self, kernel: Kernel, files: ListFiles, view: View, holder: Holder | None) -> None:
        queue, staged = kernel.queue, files.staged
        super().__init__(kernel, files.grammar, holder)
        self._empty = files.empty
        self._list: Callable[[], PackedList] = lambda: queue.list(staged)
        self._seq = SeqFile(self._list, view)

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        if self._empty is not None and not len(self._list()):
            raise Refused(self._empty, "the list is empty")
        return self._seq.read(position, size, fill=fill)


class RequestHandle(_Requests):
    """A file that takes requests and is no list, such as ``ima_trim_log``.

    Where a draft asks for CAP_SYS_ADMIN at the write, whoever writes needs it: not the opener,
    who may have handed the descriptor on.
    """

    __slots__ = ("_file",)

    def __init__(self, kernel: Kernel, file: RequestFile, holder: Holder | None) -> None:
        super().__init__(kernel, file.grammar, holder)
        self._file = file

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        return self._kernel.shown(self._file)[position : position + size]

    def write(self, position: int, data: bytes, writer: int) -> int:
        asks = self._grammar is not None and self._file.opening.write_takes_admin
        if asks and not has_sys_admin(writer):
            raise Refused(errno.EPERM, "CAP_SYS_ADMIN is asked at the write")
        return super().write(position, data, writer)


class PolicyHandle(Handle):
    """The policy file, open for writing. Raises :class:`Refused` (EBUSY)."""

    __slots__ = ("_audit", "_closer", "_writer")

    def __init__(self, emulator: Emulator) -> None:
        self._audit = emulator.audit
        self._closer: Task | None = None
        self._writer = PolicyWriter(emulator)

    async def store(self, position: int, data: bytes, writer: int) -> int:
        """A write. It may wait for the file of rules that it names.

        The kernel's answer is one too many for a rule without newline; FUSE makes EIO of
        that, so here it is what was given.
        """
        task = self._audit.task(writer)  # while it waits for us
        return min(await self._writer.write(bytes(data), position, task), len(data))

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
