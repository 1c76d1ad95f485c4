# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The table of mounts, /proc/PID/mountinfo.

Source: proc_pid_mountinfo(5), Linux 7.3 fs/proc_namespace.c (``show_mountinfo``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from imafs.errors import FormatError

# Blank, tab, newline and backslash; "#" in a source.
_ESCAPE = re.compile(rb"\\([0-7]{3})")
#: Number, parent's number, device, root, point, options; then any number of optional fields.
_FIRST = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One mount. ``device`` is ``major:minor``, ``root`` the path in the file system that is
    mounted, ``kind`` its type with the subtype (``fuse.imafs``), ``options`` its own."""

    number: int
    device: bytes
    root: bytes
    point: bytes
    kind: str
    source: bytes
    options: bytes


def rows(table: bytes) -> Iterator[Row]:
    """The mounts in their order: of two on one point the later one is on top.

    Raises :class:`FormatError`.
    """
    # Not splitlines(): a carriage return in a name is not escaped.
    for number, line in enumerate(table.removesuffix(b"\n").split(b"\n") if table else ()):
        # Blanks within fields are escaped, so the first lonely dash ends the optional ones.
        left, dash, right = line.partition(b" - ")
        first, last = left.split(b" "), [*right.split(b" ", 2), b""]
        if not dash or len(first) < _FIRST or len(last) < 3 or not first[0].isdigit():
            raise FormatError("is no line of a table of mounts", record=number, source="mountinfo")
        yield Row(
            int(first[0]),
            first[2],
            _plain(first[3]),
            _plain(first[4]),
            last[0].decode(errors="surrogateescape"),
            _plain(last[1]),
            last[2],
        )


def option(options: bytes, name: bytes) -> bytes | None:
    """The value of one of a mount's options; None where it has none of that name.

    File systems escape blanks and commas in values (seq_show_option).
    """
    for word in options.split(b","):
        found, equals, value = word.partition(b"=")
        if equals and _plain(found) == name:
            return _plain(value)
    return None


def _plain(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), text)
