# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that commands read."""

from __future__ import annotations

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
