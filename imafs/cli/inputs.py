# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that commands read."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from imafs.errors import FileError


def read_bytes(path: str) -> bytes:
    """A file whole, ``-`` for standard input.

    Raises :class:`FileError`, or :class:`ControlError` for one of a dead emulator.
    """
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        from imafs.cli import sockets

        sockets.tell_if_dead(path, error)
        raise FileError(path, error) from None


def read_list(path: str, moment: str | None = None) -> bytes:
    """The list of a file (``-``: standard input), of a recording or of an IMA directory: what
    is staged, then what is current. ``moment`` is that of a recording of several.

    Raises as :func:`read_bytes`, and :class:`FormatError` for a broken archive.
    """
    from imafs.cli import sockets
    from imafs.sources.recording import lists_of, lists_of_bytes

    if path == "-" or not _is_kept(path):
        return b"".join(lists_of_bytes(read_bytes(path), moment))

    try:
        return b"".join(lists_of(path, moment))
    except OSError as error:
        sockets.tell_if_dead(path, error)
        raise FileError(error.filename or path, error) from None


def _is_kept(path: str) -> bool:
    """Whether the path is a file on a disk, or a directory; a pipe is read as it comes."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
