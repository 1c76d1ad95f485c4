# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Writing the policy of a running emulator.

Source: Linux 7.3 ima_fs.c (``ima_write_policy``, ``ima_release_policy``), ima_main.c
(``ima_measure_raw_policy``).
"""

from __future__ import annotations

import errno
import logging
from functools import partial

import trio

from imafs.emulator.emulator import Emulator
from imafs.errors import Refused
from imafs.host import bounded_thread
from imafs.kernel.audit import Task
from imafs.kernel.policy.match import Access
from imafs.kernel.policy.policy_file import Audited, Closed, PolicyFile, file_rules
from imafs.kernel.policy.rules import Rule
from imafs.text import shown

log = logging.getLogger(__name__)

#: Source of a policy that came through the file, for people.
WRITTEN = "written"

_WRITE = Access("POLICY_CHECK", 0, buffer=True)
#: Rules without effect that one close names.
_NAMED = 20


class PolicyWriter:
    """The one open for writing. Raises :class:`Refused` (EBUSY) when there is another."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._kernel = emulator.kernel
        self._file = emulator.kernel.policy_file
        self._mutex = trio.Lock()  # ima_write_mutex
        #: Who has written last.
        self._task: Task | None = None
        self._file.open_write()

    async def write(self, data: bytes, position: int, task: Task | None = None) -> int:
        """One write of ``task``: a rule, or the path of a file of rules.

        Returns what the kernel does: at most one more than the length of ``data``.
        """
        async with self._mutex:
            try:
                self._check_alive()  # after the wait for another write
                self._task = task
                return await self._write(data, position)
            except Refused as refused:
                log.info("policy: %s: %s", refused.errno_name, shown(refused))
                raise

    async def _write(self, data: bytes, position: int) -> int:
        file = self._file
        data = file.accept(data, position)
        path = file.path(data)
        if path is None:
            # Before it is parsed: comments and nonsense are measured too.
            if file.config.release.records:
                self._kernel.measure_buffer(_WRITE, b"ima_policy_written", data)
            audited: Audited = []
            try:
                return file.write(data, audited)
            except Refused as refused:
                if refused.errno == errno.EACCES:
                    cause = "signed policy required"
                    self._emulator.audit.policy("policy_update", cause, ok=False, task=self._task)
                raise
            finally:
                self._emulator.audit.rules(audited, self._task)
        try:
            content = await self._emulator.read_policy(self._emulator, path)
        except Refused as refused:
            raise file.refuse(refused.errno, str(refused)) from None
        self._check_alive()  # after the wait for the file
        file.check_file()
        # In a thread: everybody else goes on meanwhile.
        lines: Audited = []
        words, custom = file.config.words, file.custom
        parse = partial(file_rules, content, words, custom=custom, audited=lines)
        try:
            rules = await bounded_thread.run(parse)
        except Refused as refused:
            raise file.refuse(refused.errno, str(refused)) from None
        finally:
            self._emulator.audit.rules(lines, self._task)
        self._check_alive()  # after the wait for the thread
        return file.take(data, rules)

    def _check_alive(self) -> None:
        """Raises :class:`Refused` (ENODEV) where another kernel runs by now."""
        if self._kernel is not self._emulator.kernel:
            raise Refused(errno.ENODEV, "the kernel whose policy was written is gone")

    def spoil(self, refused: Refused) -> None:
        """A write that failed before anything looked at it."""
        self._file.refuse(refused.errno, str(refused))

    def close(self, task: Task | None = None) -> None:
        """The end of the open file, by ``task``: the rules become active, or are gone."""
        appended = self._file.custom
        before = len(self._file.active.rules) if appended and self._file.active else 0
        result = self._file.close_write()
        log.info("policy update %s", result.value)
        emulator = self._emulator
        ok = result is Closed.COMPLETED
        emulator.audit.policy("policy_update", result.value, ok=ok, task=task or self._task)
        if result is Closed.COMPLETED:
            _explain(self._file, before)
            kernel = self._kernel
            known = kernel.policy_source
            if not known.endswith(WRITTEN):
                kernel.policy_source = f"{known}, {WRITTEN}" if appended else WRITTEN
            # The rules hold already, whatever comes of their record.
            emulator.changes.tell()
            kernel.measure_policy()


def _explain(file: PolicyFile, before: int) -> None:
    """Says in the log which rules behind the first ``before`` have no effect here.

    A boot script may write rule by rule: what was said of a rule is not said again.
    """
    new = file.active.rules[before:] if file.active else ()
    dead = [(n, rule) for n, rule in enumerate(new, before + 1) if rule.never is not None]
    for number, rule in dead[:_NAMED]:
        log.info("policy rule %d (%s) has no effect: %s", number, _shown(rule), rule.never)
    if len(dead) > _NAMED:
        log.info("nor have %d of the rules behind it", len(dead) - _NAMED)


def _shown(rule: Rule) -> str:
    return shown(rule.text().rstrip()) or rule.action.value
