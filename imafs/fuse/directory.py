# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The port of the shell: what a product gives it to show through a mount.

A product implements :class:`Directory`, and a :class:`Handle` per kind of file. The shell
keeps the inodes and what chmod and truncate leave on them, the position of every open file,
the hidden sizes, and the boundary of errors. A product sees positions as a kernel has them,
and raises :class:`imafs.errors.ImafsError`.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from imafs.errors import Refused
from imafs.interface.grammar import Operation
from imafs.lists.seqfile import Bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name: a file, a link (``target`` is given) or a directory (S_IFDIR in ``mode``).

    ``path`` is from the mount's root; a directory on the way to it that is no entry is made.
    ``sized``: stat shows the size always, as sysfs does. That of other files shows as 0 unless
    true sizes are wanted, and of these ``seq`` files refuse lseek to the end (seq_lseek).
    ``uid``, ``gid``: who owns it, where that is not root or the mounting user.
    A product adds what it wants to find again in a subclass.
    """

    path: str
    mode: int
    target: str | None = None
    sized: bool = False
    seq: bool = False
    gid: int | None = None
    uid: int | None = None


E = TypeVar("E", bound=Entry)


class WaitFirst(Exception):
    """A read needs something that takes time: whoever awaits ``fetch`` and keeps what that returns
    reads again. Nothing has changed."""

    def __init__(self, fetch: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self.fetch = fetch


class Handle:
    """An open file without methods of its own: reads and writes are EINVAL.

    Whoever writes is a thread id.
    """

    __slots__ = ()

    def waits(self, position: int) -> bool:
        """Whether :meth:`prepare` does something for a read there; else it may be left out."""
        return False

    def asked(self, data: bytes) -> Operation | None:
        """The operation that a write of ``data`` asks for, None: it is no request."""
        return None

    async def prepare(self, position: int) -> None:
        """Goes before each :meth:`read`; a file whose content takes time makes it here."""

    async def store(self, position: int, data: bytes, writer: int) -> int:
        """A write that may take time; without a turn for anybody else where it takes none."""
        return self.write(position, data, writer)

    def failing(self) -> AbstractContextManager[None]:
        """Around a write that may be refused before it gets here."""
        return nullcontext()

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        """Up to ``size`` bytes; ``fill``: all of them, where the list has so many. Raises
        :class:`WaitFirst`."""
        raise Refused(errno.EINVAL, "the file has no read method")

    def write(self, position: int, data: bytes, writer: int) -> int:
        """Number of bytes accepted."""
        raise Refused(errno.EINVAL, "the file has no write method")

    def flush(self, closer: int) -> None:
        """A close() of one of its descriptors, by the thread ``closer``."""

    def release(self) -> None:
        """The last reference is gone. Not called once the generation of its open is gone."""


class TextHandle(Handle):
    """A small text that is made at each read (``simple_read_from_buffer``)."""

    __slots__ = ("_text",)

    def __init__(self, text: Callable[[], bytes]) -> None:
        self._text = text

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        return self._text()[position : position + size]


#: Makes the content of a file; it may take time.
Content = Callable[[], Awaitable[bytes]]


class ContentHandle(Handle):
    """An open file whose content is made by a read at its start, as sysfs does.

    A failed :meth:`prepare` keeps nothing of what was read before, so that an old value is
    never taken for the present one.
    """

    __slots__ = ("_content", "_text")

    def __init__(self, content: Content) -> None:
        self._content = content
        self._text: bytes | None = None

    def waits(self, position: int) -> bool:
        return position == 0 or self._text is None

    async def prepare(self, position: int) -> None:
        """Makes the content anew where a read begins."""
        if self.waits(position):
            self._text = None
            self._text = await self._content()

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        assert self._text is not None
        return self._text[position : position + size]


class Gate(Protocol):
    """Everything that is done to a call before and after it."""

    async def around(
        self,
        operation: str,
        names: Sequence[str],
        act: Callable[[], Awaitable[T]],
        *,
        writing: bool | None = None,
        request: Operation | None = None,
    ) -> T:
        """What ``await act()`` returns. ``operation`` is open, read or write, on the file that
        has these names; ``writing`` says how it is opened, ``request`` what a write asks for."""

    async def closed(self, names: Sequence[str]) -> None:
        """The last reference of an open file is gone."""


class Directory(ABC, Generic[E]):
    """All names of a mount.

    Every method is called from the trio thread and is one step: no other call comes between.
    """

    @property
    @abstractmethod
    def generation(self) -> object:
        """Another object once all that was opened is dead: a handle of an earlier one is
        ENODEV, and the entries are asked for anew."""

    @abstractmethod
    def entries(self) -> Sequence[E]:
        """The names of this generation in order of creation, which readdir shows reversed."""

    @abstractmethod
    def size(self, entry: E) -> int:
        """The true size of a file; asked for only where it is shown."""

    @abstractmethod
    def open(self, entry: E, flags: int, tid: int) -> Handle:
        """Opens a file for the thread ``tid`` (0: one outside our pid namespace)."""

    def mode(self, entry: E, mode: int) -> int:
        """The mode that shows now, of a file that has ``mode`` by its entry or by chmod."""
        return mode

    def is_present(self, entry: E) -> bool:
        """Whether the name is still there."""
        return True

    @property
    def gate(self) -> Gate | None:
        """What every call on a file goes through now; None: calls go straight on."""
        return None
