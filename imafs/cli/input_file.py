# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that commands read."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from imafs.errors import FileError

#: Bytes of a file that is read whole: as much as of a list.
_MOST = 1 << 30
#: Seconds that somebody gets to open the other end of a fifo.
_PATIENCE = 5
_NULL = os.makedev(1, 3)


def read_bytes(path: str) -> bytes:
    """A file whole, ``-`` for standard input: a pipe too, if somebody writes into it.

    Raises :class:`FileError`, :class:`ControlError` for one of a dead emulator, and
    :class:`Refused` for one that a keeper has.
    """
    try:
        if path == "-":
            return _all(sys.stdin.buffer.read)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _check(descriptor)
            return _all(partial(os.read, descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        from imafs.cli import find_daemon, find_keeper

        find_keeper.tell_if_kept(path, error)
        find_daemon.tell_if_dead(path, error)
        raise FileError(path, error) from None


def _check(descriptor: int) -> None:
    """Whether what is open there ends some day. Raises OSError."""
    info = os.fstat(descriptor)
    if stat.S_ISFIFO(info.st_mode):
        _wait_for_writer(descriptor)
    elif stat.S_ISBLK(info.st_mode) or (
        stat.S_ISCHR(info.st_mode) and info.st_rdev != _NULL and not os.isatty(descriptor)
    ):
        raise OSError(errno.EINVAL, "is a device")
    os.set_blocking(descriptor, True)


def _wait_for_writer(descriptor: int) -> None:
    # Of a fifo that nobody has opened for writing yet poll() says nothing, not even POLLHUP.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if poll.poll(_PATIENCE * 1000):
        return
    try:
        if not os.read(descriptor, 1):
            raise OSError(errno.ENXIO, f"nobody writes into this fifo ({_PATIENCE} s)")
    except BlockingIOError:
        pass  # somebody does, slowly


def _all(read: Callable[[int], bytes]) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := read(1 << 20):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST:
            raise OSError(errno.EFBIG, f"is larger than {_MOST >> 20} MiB")
    return b"".join(pieces)


def read_list(path: str, moment: str | None = None) -> bytes:
    """The list of a file (``-``: standard input), of a recording or of an IMA directory: what
    is staged, then what is current. ``moment`` is that of a recording of several.

    Raises as :func:`read_bytes`, and :class:`FormatError` for a broken archive.
    """
    from imafs.cli import find_daemon, find_keeper
    from imafs.sources.recording import lists_of, lists_of_bytes

    if path == "-" or not _is_kept(path):
        return b"".join(lists_of_bytes(read_bytes(path), moment))

    try:
        staged, current = lists_of(path, moment)
        return staged + current  # which copies nothing where one is empty
    except OSError as error:
        find_keeper.tell_if_kept(path, error)
        find_daemon.tell_if_dead(path, error)
        raise FileError(error.filename or path, error) from None


def _is_kept(path: str) -> bool:
    """Whether the path is a file on a disk, or a directory; a pipe is read as it comes."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
