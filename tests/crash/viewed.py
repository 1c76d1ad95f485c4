# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Every list that ever was, and whether what somebody read is one of them."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf


@dataclass
class Line:
    """A list from the moment at which it came to be another one, while it only grew.

    ``begun`` is a moment at which it was not there yet, ``ended`` one at which it was gone.
    ``marks``: at a moment it had at least so many bytes.
    """

    begun: float
    ended: float = inf
    content: bytes = b""
    marks: list[tuple[float, int]] = field(default_factory=list)

    def least(self, moment: float) -> int:
        """Bytes that it had then, at least; of one that is only begun: it is not empty."""
        at = bisect_right(self.marks, (moment, 1 << 62))
        if at:
            return self.marks[at - 1][1]
        return min(1, self.marks[0][1]) if self.marks else 0


class Known:
    """The lines of all files. ``ends`` gives the ends of a content's records."""

    def __init__(self, ends: Mapping[str, Callable[[bytes], Iterable[int]]]) -> None:
        self._ends = ends
        self.lines: dict[str, list[Line]] = {name: [] for name in ends}
        self._prefixes: dict[tuple[str, int], dict[int, str]] = {}

    def seen(self, name: str, content: bytes, before: float, after: float) -> None:
        """``name`` had ``content`` at ``after``; what changed, changed after ``before``."""
        lines = self.lines[name]
        if not lines or not content.startswith(lines[-1].content):
            self.another(name, before, after)
        line = lines[-1]
        line.content = content
        line.marks.append((after, len(content)))

    def another(self, name: str, before: float, after: float) -> None:
        """Between these moments the list of ``name`` became another one."""
        if self.lines[name]:
            self.lines[name][-1].ended = after
        self.lines[name].append(Line(before))

    def complaint(self, said: Mapping[str, object]) -> str | None:
        """What is wrong with a line of viewer.py that tells of success; None: nothing."""
        name, way = str(said["file"]), str(said["way"])
        size, digest = int(str(said["bytes"])), str(said["sha256"])
        begun, done = float(str(said["begun"])), float(str(said["done"]))
        if way == "tar" and not size:
            return None  # stat shows no size: a kernel's archives are empty too
        wrong = []
        for number, line in enumerate(self.lines[name]):
            if line.begun > done or line.ended < begun:
                continue
            known = self._hashes(name, number, line)
            page = way == "mmap"
            if not page and known.get(size) == digest and size >= line.least(begun):
                return None
            if page and hashlib.sha256(line.content[:4096]).hexdigest() == digest:
                return None
            wrong.append(f"{len(line.content)} bytes, {line.least(begun)} at the time")
        return f"{said}: no list that was there is this; there were lists of {'; '.join(wrong)}"

    def _hashes(self, name: str, number: int, line: Line) -> dict[int, str]:
        """The hash of the content up to the end of each record. Only of lines that are over."""
        key = (name, number)
        if key not in self._prefixes:
            running, at, found = hashlib.sha256(), 0, {}
            found[0] = running.hexdigest()
            for end in self._ends[name](line.content):
                running.update(line.content[at:end])
                found[end], at = running.hexdigest(), end
            self._prefixes[key] = found
        return self._prefixes[key]
