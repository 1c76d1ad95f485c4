# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Whether this machine's kernel shows a mount as :mod:`imafs.fuse.relay` means it.

What the relay relies on is Linux's own business, measured on 6.1, 6.18 and 7.3. So each mount
is tried before anybody is told of it, on a file that is of no list, has no lock, and goes
afterwards. Splice must be refused (EINVAL, from 7.x on EIO) or give the whole content (6.1
reads for it): a part, or nothing, with success is how clients lose records.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from imafs.fuse.directory import ContentHandle, Directory, Entry, Handle

#: Longer than a page, shorter than a pipe.
CONTENT = b"".join(b"imafs looks at itself, line %4d\n" % number for number in range(200))
NAME = ".imafs-self-test"


def file() -> Entry:
    """The file that is tried. It is ours, as which user ever we serve the mount."""
    return Entry(NAME, 0o600, seq=True, uid=os.geteuid())


class Trial(Directory[Entry]):
    """The directory of the file that is tried."""

    @property
    def generation(self) -> object:
        return None

    def entries(self) -> Sequence[Entry]:
        return [file()]

    def size(self, entry: Entry) -> int:
        return len(CONTENT)

    def open(self, entry: Entry, flags: int, tid: int) -> Handle:
        return ContentHandle(_content)


async def _content() -> bytes:
    return CONTENT


class Finding(NamedTuple):
    """``failed`` says what; None: all is as it should be. ``reads``: ``read(2)`` gave all;
    a mount where it does not is of no use."""

    failed: str | None = None
    reads: bool = True


class _Wrong(Exception):
    """The answer that was not expected."""


def run(mountpoint: str, *, hidden: bool) -> Finding:
    """Tries the mount, never from the thread that serves it. ``hidden``: sizes show as 0."""
    path = os.path.join(mountpoint, NAME)
    try:
        # Not for reading alone: an open for writing follows, and IMA takes that for a violation.
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Finding(f"open: {error.strerror}", reads=False)
    try:
        _same("read", _read(descriptor), CONTENT)
    except (OSError, _Wrong) as error:
        return Finding(_said("read", error), reads=False)
    else:
        try:
            _try_sizes(path, descriptor, hidden=hidden)
        except (OSError, _Wrong) as error:
            return Finding(_said("a call", error))
    finally:
        os.close(descriptor)
    return Finding()


def _try_sizes(path: str, descriptor: int, *, hidden: bool) -> None:
    size = 0 if hidden else len(CONTENT)
    _same("fstat", os.fstat(descriptor).st_size, size)
    _same("stat", os.stat(path).st_size, size)
    _same("lseek to the end", _end(descriptor), errno.EINVAL if hidden else size)
    _try_splice(descriptor)
    # Truncation takes the size away that splice looks at, unless it is told again.
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC))
    _try_splice(descriptor)
    _same("fstat after all", os.fstat(descriptor).st_size, size)
    _try_splice(descriptor)


def _read(descriptor: int) -> bytes:
    pieces = []
    while piece := os.read(descriptor, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def _end(descriptor: int) -> int:
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    except OSError as error:
        return error.errno or 0


def _try_splice(descriptor: int) -> None:
    out, into = os.pipe()
    try:
        spliced = os.splice(descriptor, into, 1 << 16, offset_src=0)
        _same("splice", os.read(out, 1 << 16) if spliced else b"", CONTENT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EIO):
            raise
    finally:
        os.close(out)
        os.close(into)


def _same(call: str, found: bytes | int, expected: bytes | int) -> None:
    if found != expected:
        raise _Wrong(f"{call} gave {_told(found)}, not {_told(expected)}")


def _told(value: bytes | int) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _said(call: str, error: Exception) -> str:
    return f"{call}: {error.strerror}" if isinstance(error, OSError) else str(error)
