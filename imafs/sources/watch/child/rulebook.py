# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The active policy as the listener has it, parsed a piece at a time.

A policy of a megabyte takes a second. Openers of other files must not wait for that; openers
of watched files do, as what was written holds once close() returns.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

from imafs.formats import templates
from imafs.kernel.policy import language
from imafs.kernel.policy.match import Access, Policy
from imafs.kernel.policy.rules import Rule
from imafs.sources.watch.messages import DEFAULT_PCR

#: Lines between two looks at the clock.
_LINES = 64
_MOST_DECISIONS = 1 << 16


class Rulebook:
    """Decides into which PCRs a use is measured, and by which template."""

    def __init__(self) -> None:
        self._words = language.DEFAULT_WORDS
        self._lines: deque[bytes] = deque()
        self._rules: list[Rule] = []
        self._policy = Policy()
        self._decisions: dict[Access, tuple[int, str] | None] = {}

    def know(self, template_fmt: str) -> None:
        """The format of ``ima_template_fmt=``, which rules may name; empty: there is none."""
        template = templates.custom(template_fmt) if template_fmt else None
        self._words = replace(language.DEFAULT_WORDS, template_fmt=template)

    def take(self, text: bytes, *, more: bool) -> None:
        """Another policy, or ``more`` rules behind the known ones."""
        if not more:
            self._lines.clear()
            self._rules.clear()
        self._lines.extend(text.split(b"\n"))

    @property
    def ready(self) -> bool:
        """Whether everything is parsed."""
        return not self._lines

    def proceed(self, seconds: float) -> None:
        """Parses for so long. What was measured stays measured, as in a kernel."""
        if self.ready:
            return
        end = time.monotonic() + seconds
        while self._lines and time.monotonic() < end:
            for _ in range(min(_LINES, len(self._lines))):
                rule = language.parse(self._lines.popleft(), self._words, custom=True)
                if rule is not None:
                    self._rules.append(rule)
        if self.ready:
            self._policy = Policy(tuple(self._rules))
            self._decisions.clear()

    def forget(self) -> None:
        """Nothing that was decided counts any more: the facts of file systems are others."""
        self._decisions.clear()

    def pcrs(self, accesses: tuple[Access, ...]) -> dict[int, str]:
        """The PCRs that rules want this use measured into, each with the name of the template.

        Empty: the default one. Of two rules for one PCR the first access's counts.
        """
        found: dict[int, str] = {}
        for access in accesses:
            wanted = self._decide(access)
            if wanted is not None:
                found.setdefault(*wanted)
        return found

    def _decide(self, access: Access) -> tuple[int, str] | None:
        if access not in self._decisions:
            if len(self._decisions) >= _MOST_DECISIONS:
                self._decisions.clear()
            decision = self._policy.decide(access)
            pcr = DEFAULT_PCR if decision.pcr is None else decision.pcr
            label = "" if decision.template is None else decision.template.label
            self._decisions[access] = (pcr, label) if decision.measure else None
        return self._decisions[access]
