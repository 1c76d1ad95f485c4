# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The operations that make bad days: faults, a TPM in trouble, another agent."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import cast

from imafs.control.ops import Options
from imafs.control.server import ProgressCallback
from imafs.emulator.emulator import Emulator
from imafs.errors import Refused, UsageError
from imafs.interface import file_names
from imafs.interface.grammar import Grammar, Operation, Request
from imafs.interface.opens import Accounting, Holder, Opening, Role
from imafs.scenarios.faults import Rule
from imafs.verbs.answers import Acted, FaultAdded, FaultRow, FaultsCleared, FaultsListed, Pace

#: The other agent's thread: no client's, so that it never counts as the same writer.
_STRANGER = -1

#: What it may ask for.
_REQUESTS: Mapping[str, Operation] = {
    "stage": Operation.STAGE,
    "delete": Operation.DELETE_STAGED,
    "trim": Operation.DELETE_FIRST,
}


class BadDays:
    """Handlers over one emulator."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._agent = OtherAgent(emulator)

    async def fault(self, options: Options, progress: ProgressCallback) -> FaultAdded:
        """Adds a rule. Raises :class:`UsageError` for one that could never hit."""
        rule = Rule.of(options)
        config, lists = self._emulator.kernel.config, self._emulator.layout
        known = file_names.names(lists.lists, staging=config.staging, tpm=bool(lists.banks))
        if wrong := file_names.unmatched(rule.files, known):
            raise UsageError(f"fault: files: {wrong}")
        return {"fault": self._emulator.trouble.faults.add(rule)}

    async def fault_clear(self, options: Options, progress: ProgressCallback) -> FaultsCleared:
        """Drops rules."""
        return {"cleared": self._emulator.trouble.faults.clear(options.maybe_number("fault"))}

    async def fault_list(self, options: Options, progress: ProgressCallback) -> FaultsListed:
        """All rules and what they did."""
        rows = self._emulator.trouble.faults.describe()
        return {"faults": [cast(FaultRow, row) for row in rows]}

    async def tpm(self, options: Options, progress: ProgressCallback) -> Pace:
        """Changes what is given and tells the pace that results."""
        emulator, pace = self._emulator, self._emulator.pace
        if options.flag("work"):
            options = Options(behind=0, delay=0, fail=0, hang=False)
        if "hang" in options:
            hang = options.flag("hang")
            if hang:
                emulator.device.hang()
            else:
                emulator.device.go_on()
            pace.hang = hang
        behind, delay = options.maybe_number("behind"), options.maybe_number("delay")
        fail = options.maybe_number("fail")
        pace.behind = pace.behind if behind is None else behind
        pace.delay = pace.delay if delay is None else delay / 1000
        pace.fail = pace.fail if fail is None else fail
        emulator.extender.hurry()
        return {
            "behind": pace.behind,
            "delay": round(pace.delay * 1000),
            "fail": pace.fail,
            "hang": pace.hang,
        }

    async def agent(self, options: Options, progress: ProgressCallback) -> Acted:
        """One act of the other agent."""
        return self._agent.act(options.text("action"), options.maybe_number("count"))


class OtherAgent:
    """A second client: it opens files as any other does and gets the same refusals."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        # Beside each holder whose counter it is in: a kexec or a reboot begins another one.
        self._held: list[tuple[Accounting, Holder]] = []

    def act(self, action: str, count: int | None) -> Acted:
        """Carries out one of :data:`imafs.verbs.table.ACTIONS`.

        Raises :class:`Refused` with what a client would get.
        """
        accounting = self._emulator.kernel.accounting
        if action in _REQUESTS:
            return self._request(action, count)
        if action in ("open-read", "open-write"):
            holder = accounting.open(_STRANGER, write=action == "open-write")
            self._held = [(its, one) for its, one in self._held if its is accounting]
            self._held.append((accounting, holder))
            return {"held": len(self._held)}
        if action == "close":
            for its, holder in self._held:
                its.release(holder)
            self._held.clear()
            return {"held": 0}
        accounting.release(accounting.open(_STRANGER, write=False))
        queue = self._emulator.queue
        return {"current": len(queue.current), "staged": len(queue.staged)}

    def _request(self, action: str, count: int | None) -> Acted:
        grammar, opening, words = self._spoken(action, count)
        accounting = self._emulator.kernel.accounting
        role = opening.role(write=True)
        holder = accounting.open(_STRANGER, write=role is Role.WRITER) if role else None
        before = self._emulator.queue.totals.deleted
        try:
            self._emulator.kernel.write(grammar, words, 0)
        finally:
            if holder is not None:
                accounting.release(holder)
        queue = self._emulator.queue
        return {
            "current": len(queue.current),
            "staged": len(queue.staged),
            "deleted": queue.totals.deleted - before,
        }

    def _spoken(self, action: str, count: int | None) -> tuple[Grammar, Opening, bytes]:
        """The request in the words of the profile, and the file that takes them."""
        request, total = Request(_REQUESTS[action], count), self._emulator.queue.trimmed
        for entry in self._emulator.kernel.entries:
            file = entry.files or entry.request
            if file is None or file.grammar is None:
                continue
            words = file.grammar.spell(request, total)
            if words is not None:
                return file.grammar, file.opening, words
        raise Refused(errno.EOPNOTSUPP, f"no file of this profile takes {action}")
