# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The port of the FUSE shell, on a directory of forty lines and without a mount."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import pyfuse3
import pytest
from pyfuse3 import FUSEError

from imafs.errors import Refused
from imafs.fuse.directory import ContentHandle, Directory, Entry, Handle, TextHandle, WaitFirst
from imafs.fuse.operations import HIDDEN, DirectoryOperations
from imafs.interface.grammar import Operation
from imafs.lists.seqfile import Bytes

T = TypeVar("T")
TEXT = b"0123456789"


class Shelf(Directory[Entry]):
    """A list that may be written, a link to it, a count, a register that takes time."""

    def __init__(self) -> None:
        self.kernel = object()
        self.removed: set[str] = set()
        self.calls: list[tuple[object, ...]] = []
        self.door: Door | None = None

    generation = property(lambda self: self.kernel)
    gate = property(lambda self: self.door)

    def entries(self) -> Sequence[Entry]:
        return [
            Entry("list", 0o640, seq=True),
            Entry("link", 0o444, target="list"),
            Entry("deep/er/register", 0o444, sized=True),
            Entry("count", 0o440),
            Entry(".far", 0o440),
            Entry(".found", stat.S_IFDIR | 0o700),
        ]

    def size(self, entry: Entry) -> int:
        return len(TEXT)

    def mode(self, entry: Entry, mode: int) -> int:
        return mode & ~stat.S_IXUSR

    def is_present(self, entry: Entry) -> bool:
        return entry.path not in self.removed

    def open(self, entry: Entry, flags: int, tid: int) -> Handle:
        if tid == 13:
            raise Refused(errno.EPERM, "not this thread")
        self.calls.append(("open", entry.path, tid))
        if entry.path == "count":
            return TextHandle(lambda: TEXT)
        if entry.path == ".far":
            return Far(self)
        return ContentHandle(self.content) if entry.sized else Told(self)

    async def content(self) -> bytes:
        self.calls.append(("content",))
        return TEXT


class Far(Handle):
    """Its content is fetched in two pieces, each of which is there while somebody keeps it."""

    def __init__(self, shelf: Shelf) -> None:
        self._calls = shelf.calls
        self._there: WeakValueDictionary[int, Piece] = WeakValueDictionary()

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        for number in (0, 1):
            if number not in self._there:
                raise WaitFirst(partial(self._fetch, number, position))
        self._calls.append(("read", position))
        return TEXT[position : position + size]

    async def _fetch(self, number: int, position: int) -> object:
        self._calls.append(("fetch", number))
        if position == 9:
            raise Refused(errno.EIO, "the disk")
        self._there[number] = found = Piece()
        return found


class Piece:
    """Something that is there, or not."""


class Told(Handle):
    """Says what it was asked."""

    def __init__(self, shelf: Shelf) -> None:
        self._calls = shelf.calls

    def read(self, position: int, size: int, *, fill: bool = False) -> Bytes:
        self._calls.append(("read", position, size, fill))
        return TEXT[position : position + size]

    def write(self, position: int, data: bytes, writer: int) -> int:
        self._calls.append(("write", position, bytes(data)))
        return len(data)

    def asked(self, data: bytes) -> Operation | None:
        return Operation.STAGE if data == b"A\n" else None

    def flush(self, closer: int) -> None:
        self._calls.append(("flush",))

    def release(self) -> None:
        self._calls.append(("release",))


class Door:
    """A gate that says what comes through it, and may change the kernel meanwhile."""

    def __init__(self, shelf: Shelf, *, reboots: bool = False) -> None:
        self.shelf = shelf
        self.reboots = reboots

    async def around(
        self,
        operation: str,
        names: Sequence[str],
        act: Callable[[], Awaitable[T]],
        *,
        writing: bool | None = None,
        request: Operation | None = None,
    ) -> T:
        self.shelf.calls.append((f"before {operation}", tuple(names), writing, request))
        if self.reboots:
            self.shelf.kernel = object()
        return await act()

    async def closed(self, names: Sequence[str]) -> None:
        self.shelf.calls.append(("closed", tuple(names)))


class Context:
    pid = 7


CTX: Any = Context()


async def at(ops: DirectoryOperations, path: str) -> Any:
    """The inode at a path."""
    inode: Any = pyfuse3.ROOT_INODE
    for name in path.split("/"):
        inode = (await ops.lookup(inode, os.fsencode(name), CTX)).st_ino
    return inode


async def opened(ops: DirectoryOperations, path: str, flags: int = os.O_RDWR) -> Any:
    return (await ops.open(await at(ops, path), flags, CTX)).fh


async def code(call: Awaitable[object]) -> int:
    with pytest.raises(FUSEError) as caught:
        await call
    return caught.value.errno


async def listed(ops: DirectoryOperations, inode: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    names: list[str] = []

    def reply(token: object, name: bytes, attr: object, number: int) -> bool:
        names.append(os.fsdecode(name))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    token: Any = None
    await ops.readdir(inode, 0, token)
    return names[2:]


async def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first, as a kernel's; a leading dot is found and not listed."""
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    root: Any = pyfuse3.ROOT_INODE
    assert await listed(ops, root, monkeypatch) == ["count", "deep", "link", "list"]
    assert await listed(ops, await at(ops, "deep/er"), monkeypatch) == ["register"]
    assert stat.S_ISDIR((await ops.getattr(await at(ops, ".found"), CTX)).st_mode)
    assert await ops.readlink(await at(ops, "link"), CTX) == b"list"
    shelf.removed.add("count")
    assert await listed(ops, root, monkeypatch) == ["deep", "link", "list"]
    assert await code(at(ops, "count")) == errno.ENOENT


async def test_the_mode_of_chmod_goes_through_the_directory() -> None:
    ops = DirectoryOperations(Shelf())
    attr = pyfuse3.EntryAttributes()
    fields: Any = Fields("mode")
    attr.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o700)
    found = await ops.setattr(await at(ops, "list"), attr, fields, None, CTX)
    assert stat.S_IMODE(found.st_mode) == 0o600


class Fields:
    """What is to be set; nothing but ``names``."""

    def __init__(self, *names: str) -> None:
        self._names = {f"update_{name}" for name in names}

    def __getattr__(self, name: str) -> bool:
        return name in self._names


@pytest.mark.parametrize(
    ("path", "true", "shown", "kept", "lseek"),
    [
        ("list", False, 0, HIDDEN, False),
        ("count", False, 0, HIDDEN, True),
        ("deep/er/register", False, 10, 10, True),
        ("list", True, 10, 10, True),
        ("count", True, 10, 10, True),
    ],
)
async def test_sizes(path: str, true: bool, shown: int, kept: int, lseek: bool) -> None:
    ops = DirectoryOperations(Shelf(), true_sizes=true)
    inode = await at(ops, path)
    parent: Any = ops._tree.nodes[inode].parent
    found = await ops.lookup(parent, os.fsencode(path.rpartition("/")[2]), CTX)
    assert (await ops.getattr(inode, CTX)).st_size == shown
    assert found.st_size == kept
    assert ops.tells_size(await opened(ops, path)) == lseek
    assert ops.hides_size(inode) == (kept == HIDDEN)


@pytest.mark.parametrize(
    ("options", "fills"), [({}, False), ({"large_reads": True}, True), ({"true_sizes": True}, True)]
)
async def test_filling(options: Any, fills: bool) -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf, **options)
    fh = await opened(ops, "list")
    assert ops.read_now(fh, 0, 4) == b"0123"
    assert shelf.calls[-1] == ("read", 0, 4, fills)
    ops.tell_sizes()
    await ops.read(fh, 4, 4)
    assert shelf.calls[-1] == ("read", 4, 4, True)


async def test_a_write_moves_no_position() -> None:
    """FUSE's position moves: a product sees that of the kernel."""
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    fh = await opened(ops, "list")
    assert await ops.write(fh, 0, b"A\n") == 2
    assert await ops.read(fh, 2, 3) == b"012"
    assert await ops.write(fh, 5, b"D\n") == 2
    assert shelf.calls[1:] == [("write", 0, b"A\n"), ("read", 0, 3, False), ("write", 3, b"D\n")]


async def test_an_appending_write_is_at_the_position() -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    fh = await opened(ops, "list", os.O_RDWR | os.O_APPEND)
    await ops.write(fh, HIDDEN, b"A\n")
    assert shelf.calls[-1] == ("write", 0, b"A\n")


async def test_content_that_takes_time() -> None:
    """It is made where a read begins; the relay leaves it to the handler."""
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    fh = await opened(ops, "deep/er/register", os.O_RDONLY)
    assert ops.read_now(fh, 0, 4) is None
    assert ops.read_now(fh, 4, 9) is None, "nothing is made yet"
    assert await ops.read(fh, 0, 4) == b"0123"
    assert ops.read_now(fh, 0, 4) is None
    assert ops.read_now(fh, 4, 9) == b"456789"
    assert shelf.calls.count(("content",)) == 1
    await ops.read(fh, 0, 4)
    assert shelf.calls.count(("content",)) == 2
    assert await code(ops.write(fh, 0, b"A\n")) == errno.EINVAL


async def test_a_handle_of_another_generation() -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    fh, inode = await opened(ops, "list"), await at(ops, "list")
    shelf.kernel = object()
    assert ops.read_now(fh, 0, 4) == errno.ENODEV
    assert await code(ops.read(fh, 0, 4)) == errno.ENODEV
    assert await code(ops.write(fh, 0, b"A\n")) == errno.ENODEV
    await ops.release(fh)
    assert shelf.calls == [("open", "list", 7)], "the product hears no more of it"
    assert await at(ops, "list") == inode, "a bind mount lives on"
    assert ops.read_now(await opened(ops, "list"), 0, 4) == b"0123"


async def test_entries_of_another_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    gone = await at(ops, "count")
    monkeypatch.setattr(shelf, "entries", lambda: [Entry("other", 0o400)])
    assert await at(ops, "count") == gone
    shelf.kernel = object()
    assert await code(ops.getattr(gone, CTX)) == errno.ENOENT
    assert await at(ops, "other") != gone


async def test_the_gate_stands_around_calls() -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    shelf.door = Door(shelf)
    fh = await opened(ops, "list")
    assert ops.read_now(fh, 0, 4) is None
    assert await ops.read(fh, 0, 4) == b"0123"
    await ops.write(fh, 4, b"A\n")
    await ops.release(fh)
    names = ("list", "link")
    assert shelf.calls == [
        ("before open", names, True, None),
        ("open", "list", 7),
        ("before read", names, None, None),
        ("read", 0, 4, False),
        ("before write", names, None, Operation.STAGE),
        ("write", 4, b"A\n"),
        ("release",),
        ("closed", names),
    ]


async def test_a_gate_that_ends_the_generation() -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    fh = await opened(ops, "list")
    shelf.door = Door(shelf, reboots=True)
    assert await code(ops.read(fh, 0, 4)) == errno.ENODEV
    assert await code(ops.write(fh, 0, b"A\n")) == errno.ENODEV
    assert [call[0] for call in shelf.calls] == ["open", "before read"]


async def test_refusals_become_their_errno() -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    inode = await at(ops, "list")
    stranger: Any = type("Stranger", (), {"pid": 13})
    assert await code(ops.open(inode, os.O_RDONLY, stranger)) == errno.EPERM
    # Of securityfs: a file that was opened all the same is let go of.
    assert await code(ops.open(inode, os.O_RDONLY | os.O_DIRECT, CTX)) == errno.EINVAL
    assert shelf.calls == [("open", "list", 7), ("release",)]


async def test_flush_and_release() -> None:
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    fh = await opened(ops, "list")
    await ops.flush(fh)
    await ops.release(fh)
    assert shelf.calls[1:] == [("flush",), ("release",)]


async def test_a_file_of_another_directory() -> None:
    """The self-test's: planted beside the product's own names, and gone afterwards."""
    shelf, other = Shelf(), Shelf()
    ops = DirectoryOperations(shelf)
    node = ops.plant(other, Entry("trial", 0o600))
    await opened(ops, "trial")
    assert (shelf.calls, other.calls) == ([], [("open", "trial", 7)])
    ops.uproot(node)
    assert await code(at(ops, "trial")) == errno.ENOENT


async def test_a_read_that_has_to_wait_for_its_content() -> None:
    """It is not answered at once, and all that it waited for is there when it is."""
    shelf = Shelf()
    ops = DirectoryOperations(shelf)
    fh = await opened(ops, ".far")
    shelf.calls.clear()
    assert ops.read_now(fh, 0, 5) is None
    assert await ops.read(fh, 0, 5) == TEXT[:5]
    assert shelf.calls == [("fetch", 0), ("fetch", 1), ("read", 0)]
    # Nobody keeps it any more.
    assert ops.read_now(fh, 5, 5) is None
    assert await ops.read(fh, 5, 4) == TEXT[5:9]
    shelf.calls.clear()
    assert await code(ops.read(fh, 9, 1)) == errno.EIO
    assert shelf.calls == [("fetch", 0)]
    shelf.door = Door(shelf)
    assert await ops.read(fh, 0, 5) == TEXT[:5]
