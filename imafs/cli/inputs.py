# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that commands read."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from imafs.errors import Refused


def read_bytes(path: str) -> bytes:
    """A file whole, ``-`` for standard input. Raises :class:`Refused` with its errno."""
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{path}: {os.strerror(code)}") from None
