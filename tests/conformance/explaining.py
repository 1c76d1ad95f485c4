# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which answers to any script FUSE cannot give as a kernel does: rules, not single lines.

Each rule is about one reason of differences.py. What depends on what was called before
(positions) is followed along the kernel's answers; a rule that needs that explains exactly
what follows from it, and nothing more.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import zip_longest

from tests.conformance import differences
from tests.conformance.language import Call, number
from tests.conformance.playing import Difference, split

SEEK = "a kernel looks for the record at lseek, FUSE passes no lseek on: at the next read"
GROWN = "a kernel's buffer grew for a long record in a call that FUSE does not pass on"
PINNED = "FUSE wants the reader's memory before it asks for what is to go there"
BELIEVED = "a seek or pread to just where FUSE's position is looks like going on"
SCATTERED = "FUSE makes one read of a readv, a kernel as many as it has parts"
APPENDED = "FUSE sends an O_APPEND write for the end of the file, not for the position"

READS = {"read", "thread-read", "text", "readv", "readall", "chunks"}
WRITES = {"write", "thread-write", "writev"}
CHANGES = {"measure", "measuren", "measurelong"}

#: Answers that differ whatever was called before; ``script`` is not looked at.
ALWAYS = (
    *(
        Difference("", f'{verb} ? ""', "-1 EINVAL", "0 0", differences.EMPTY_WRITE)
        for verb in ("write", "thread-write", "writev")
    ),
    Difference("", "badwrite ? 0", "-1 EINVAL", "0 0", differences.EMPTY_WRITE),
    Difference("", "badwrite ? *", "-1 EINVAL", "-1 EFAULT", differences.COPIED),
    Difference("", "badread ? *", "0 0", "-1 EFAULT", PINNED),
    Difference("", 'pwrite ? * "x"', "-1 ESPIPE", "-1 EINVAL", differences.PWRITE),
    Difference("", 'pwrite ? * "x"', "-1 ESPIPE", "-1 EBADF", differences.PWRITE),
    Difference("", "mmap ?", "ENODEV", "ok", differences.PRIVATE_MAP),
    Difference("", "epoll ?", "EPERM", "0", differences.EPOLL),
)


@dataclass(eq=False)
class Description:
    """An open file description: where a kernel's position is, and FUSE's.

    ``believed``, ``skew``: FUSE's position after the last write and the reads that went on
    from there, and how far it was from the kernel's then. ``sought``: the list's changes when
    a seek went somewhere else than 0 and nothing was read yet (None: no such seek);
    ``grown``: nothing was read from such a place, the kernel's buffer may have grown on the way;
    ``now``: where the last read or pread ended; ``lost`` is why reads differ, until the next seek.
    """

    is_list: bool
    append: bool
    now: int = 0
    grown: bool = False
    kernel: int = 0
    fuse: int = 0
    believed: int = 0
    skew: int = 0
    sought: int | None = None
    lost: str = ""


@dataclass
class Explainer:
    """Goes through the answers to one script. ``reasons`` counts what it explained."""

    reasons: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    _slots: dict[str, Description] = field(default_factory=dict)
    _parent: dict[str, Description] | None = None
    _changes: int = 0

    def compare(self, kernel: str, emulator: str) -> list[str]:
        """What nothing explains, line by line; [] when that is nothing."""
        lines = zip_longest(kernel.split("\n"), emulator.split("\n"))
        for at, (theirs, ours) in enumerate(lines, 1):
            call, their_answer = split(theirs)
            our_call, our_answer = split(ours)
            if (theirs or "").strip() == "endfork":
                self._slots, self._parent = self._parent or {}, None
            if call == our_call:
                reason = self._follow(Call(call), their_answer, our_answer)
                if theirs == ours:
                    continue
                reason = reason or self._always(call, their_answer, our_answer)
                if reason:
                    self.reasons[reason] += 1
                    continue
            self.complaints.append(f"line {at}: {call}\n  kernel:   {theirs}\n  emulator: {ours}")
        return self.complaints

    def _always(self, call: str, kernel: str, emulator: str) -> str:
        found = (d.reason for d in ALWAYS if d.explains(call, kernel, emulator))
        return next(found, "")

    def _follow(self, call: Call, kernel: str, emulator: str) -> str:
        """Take one call into account; the reason why its answers may differ as they do."""
        verb, slot = call.verb, call.words[1]
        description = self._slots.get(slot)
        if verb == "fork":
            self._parent, self._slots = self._slots, dict(self._slots)
        elif verb in ("open", "thread-open", "reopen"):
            self._slots.pop(slot, None)
            # A file of the script: that may be a violation.
            self._changes += call.words[2].startswith("/")
            if kernel == "ok":
                self._slots[slot] = Description(self._is_list(call), "a" in call.words[3])
        elif verb == "dup" and description is not None:
            self._slots[call.words[2]] = description
        elif verb in ("close", "thread-close"):
            self._slots.pop(slot, None)
        elif verb in CHANGES:
            self._changes += 1
        elif description is None:
            pass
        elif verb in WRITES:
            self._written(description, kernel)
        elif verb in READS or verb == "pread":
            return self._read(description, call, kernel, emulator)
        elif verb == "badread" and kernel == "-1 EFAULT":
            # The kernel's buffer is filled, the emulator was not asked.
            description.grown = True
            if description.sought is None:
                description.sought = self._changes
        elif verb == "lseek":
            return self._sought(description, call, kernel, emulator)
        return ""

    def _is_list(self, call: Call) -> bool:
        if call.verb == "reopen":
            old = self._slots.get(call.words[2])
            return old is not None and old.is_list
        return fnmatchcase(call.words[2], "*_runtime_measurements*")

    def _written(self, description: Description, kernel: str) -> None:
        taken = number(kernel)
        if taken > 0 and description.is_list:
            self._changes += 1
            if description.append and description.now != description.kernel:
                description.lost = APPENDED
            description.fuse += taken
            description.believed = description.fuse
            description.skew = description.fuse - description.kernel

    def _read(self, d: Description, call: Call, kernel: str, emulator: str) -> str:
        total = re.search(r"total=(\d+)", kernel)
        size = max(0, int(total[1]) if total else number(kernel))
        longer = d.grown and number(kernel) > number(emulator) > 0
        if call.verb == "pread":
            if d.skew and number(call.words[2]) == d.believed:
                d.lost = BELIEVED
                return BELIEVED
            d.now = number(call.words[2]) + size
            if d.skew and d.now == d.believed:
                d.lost = BELIEVED
            return GROWN if longer else ""
        if d.sought is not None and d.sought != self._changes:
            d.lost = SEEK
        elif longer:
            d.lost = GROWN
        elif call.verb == "readv" and min(number(kernel), number(emulator)) > 0:
            d.lost = d.lost or (SCATTERED if kernel != emulator else "")
        d.sought = None
        if d.fuse == d.believed and not d.lost:
            d.believed += size
        d.kernel += size
        d.fuse += size
        d.now = d.kernel
        return d.lost

    def _sought(self, d: Description, call: Call, kernel: str, emulator: str) -> str:
        step, where = number(call.words[2]), call.words[3]
        theirs, ours = number(kernel), number(emulator)
        reason = ""
        if where == "cur":
            if kernel == "-1 EINVAL":
                # FUSE is further on: the step back does not lead to before the start.
                moved = d.kernel + step < 0 <= d.fuse + step == ours
            else:
                moved = theirs >= 0 and theirs - d.kernel == step == ours - d.fuse
            # With O_APPEND nobody can tell what the end of the file was for FUSE.
            moved = moved or (d.append and d.skew > 0 <= ours)
            reason = d.lost or (differences.POSITION if moved else "")
        if ours >= 0 and (step or where != "cur"):
            d.fuse = ours
            # Going on from where FUSE was is no seek for the emulator.
            d.lost = BELIEVED if d.skew and d.fuse == d.believed else ""
        if theirs >= 0 and (step or where != "cur"):
            d.kernel = theirs
            d.grown |= d.sought is not None
            d.sought = self._changes if theirs else None
        if d.kernel != d.fuse and (step or where != "cur"):
            d.lost = reason or differences.POSITION
        return reason


#: The reasons of all rules.
RULES = {d.reason for d in ALWAYS} | {
    differences.POSITION,
    SEEK,
    BELIEVED,
    GROWN,
    APPENDED,
    SCATTERED,
}
