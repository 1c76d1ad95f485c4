# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The audit log of the kernel that is played: what is recorded, and where it is written.

Nobody waits for the file, as nobody waits for auditd: lines are kept until a thread has written
them, and are lost where there are too many or the disk is full. The daemon's log says so, and
the file itself, in the kernel's words, once there is room again.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

import trio

from imafs import disk
from imafs.emulator import tasks
from imafs.errors import Refused
from imafs.host import bounded_thread, ownership
from imafs.host.ratelimit import Ratelimit
from imafs.kernel import audit
from imafs.kernel.audit import File, Kind, Task
from imafs.text import shown

log = logging.getLogger(__name__)

#: Lines that wait to be written.
BACKLOG = 8192
#: Seconds that the end of the daemon waits for a line that is being written.
_PARTING = 1.0


def open_log(path: str, option: str) -> int:
    """A descriptor to append to ``path``, as logs have it; a new one is its owner's alone.

    Raises :class:`UsageError`.
    """
    return ownership.log_file(path, option, 0o600)


def current() -> Task:
    """This process: it stands for the kernel where no task is known."""
    return Task(os.getpid(), os.getuid(), b"imafs")


class Audit:
    """Records; :meth:`run` writes them to ``descriptor``. Without :meth:`begin` there is none."""

    def __init__(self) -> None:
        self._file: disk.Lines | None = None
        self._lines: deque[str] = deque()
        self._wake = trio.Event()
        self._serial = 0
        #: Lines that were not written, and as many of them as the file tells of.
        self.lost = 0
        self._told = self._telling = 0
        self._trouble: int | None = None
        self._seldom = Ratelimit(log)

    def begin(self, descriptor: int) -> None:
        """From now on records are kept for this file."""
        self._file = disk.Lines(descriptor)

    def task(self, tid: int) -> Task | None:
        """Thread ``tid``, for a record; looked up only where there will be one."""
        return None if self._file is None else tasks.of(tid)

    def violation(self, cause: str, file: File, task: Task | None = None) -> None:
        """``ima_add_violation``: ToMToU or open_writers."""
        self._add(Kind.PCR, audit.message(task or current(), "invalid_pcr", cause, file))

    def rules(self, rules: Iterable[tuple[Sequence[str], bool]], task: Task | None = None) -> None:
        """The lines of a policy, each as far as it was parsed, and whether it was taken."""
        for words, ok in rules:
            self._add(Kind.POLICY_RULE, audit.rule(words, ok=ok))
            if not ok:
                self.policy("update_policy", "invalid-policy", ok=False, task=task)

    def policy(self, op: str, cause: str, *, ok: bool, task: Task | None = None) -> None:
        """What became of a policy."""
        self._add(Kind.STATUS, audit.message(task or current(), op, cause, ok=ok))

    def _add(self, kind: Kind, text: str) -> None:
        if self._file is None:
            return
        self._serial += 1
        if len(self._lines) >= BACKLOG:
            self._lose(1, errno.ENOBUFS)
            return
        # Bytes that somebody wrote, as printk shows them: a line stays one.
        self._lines.append(shown(audit.line(kind, time.time(), self._serial, text)))
        self._wake.set()

    async def run(self) -> None:
        """Writes what comes, until cancelled."""
        while (file := self._file) is not None:
            await self._wake.wait()
            self._wake = trio.Event()
            lines, data = self._due()
            try:
                done = await bounded_thread.run(partial(file.append, data))
            except Refused as refused:
                done = 0, refused.errno
            self._wrote(lines, data, *done)

    def close(self) -> None:
        """The last lines, at the end of the daemon, which waits for nobody who reads them."""
        file, self._file = self._file, None
        if file is None:
            return
        lines, data = self._due()
        self._wrote(lines, data, *file.append_now(data, _PARTING))
        os.close(file.descriptor)

    def _due(self) -> tuple[int, bytes]:
        """How many lines wait, and all that is to be written: first how many were lost."""
        lines, self._lines = self._lines, deque()
        self._telling = self.lost
        if self.lost > self._told:
            lines.appendleft(audit.lost(self.lost, BACKLOG))
        text = "".join(f"{line}\n" for line in lines)
        return len(lines), text.encode("utf-8", "backslashreplace")

    def _wrote(self, lines: int, data: bytes, written: int, code: int) -> None:
        whole = data[:written].count(b"\n")
        begins = data.startswith(audit.LOST.encode())
        if begins and whole:
            self._told = self._telling
        if not code:
            self._trouble = None
            return
        # What tells of lost lines is none of them.
        self._lose(lines - max(whole, begins), code)

    def _lose(self, number: int, code: int) -> None:
        self.lost += number
        if self._trouble != code:
            self._trouble = code
            text = "audit log: %s: lines are lost (%d so far)"
            self._seldom.say("audit log", logging.ERROR, text, os.strerror(code), self.lost)
