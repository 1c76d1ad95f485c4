# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The ``policy`` file: opens, writes, and what a close makes of them.

Source: Linux 7.3 ima_fs.c (``ima_open_policy``, ``ima_write_policy``,
``ima_read_policy``, ``ima_release_policy``) and ima_policy.c (``ima_update_policy``).
Rules go to a temporary list; a close after nothing but good writes makes them active,
any error throws the whole session away, and close() succeeds either way.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from imafs.errors import Refused
from imafs.kernel.policy.builtin import NEWEST, Release
from imafs.kernel.policy.language import DEFAULT_WORDS, Words, first_line, line_end, parse
from imafs.kernel.policy.match import Policy
from imafs.kernel.policy.rules import Action, Rule
from imafs.lists.seqfile import PAGE

#: Words of each line, and whether it was taken: what a kernel logs of a policy.
Audited = list[tuple[Sequence[str], bool]]


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Kconfig and release as far as the policy file is concerned.

    ``read``, ``write`` and ``appraise`` are CONFIG_IMA_READ_POLICY, _WRITE_POLICY and
    CONFIG_IMA_APPRAISE. Without the last a rule that wants policies signed refuses
    written rules all the same, but takes any file (observed on 7.2.13).
    """

    read: bool = True
    write: bool = True
    appraise: bool = True
    release: Release = NEWEST
    words: Words = DEFAULT_WORDS


DEFAULT_CONFIG = PolicyConfig()


class Closed(Enum):
    """The result of a writer's close. The values are the kernel's words in its log."""

    COMPLETED = "completed"
    FAILED = "failed"


class PolicyFile:
    """The state behind the file since a boot; ``active`` is None where no rule was given."""

    def __init__(self, config: PolicyConfig, active: Policy | None = None) -> None:
        self.config = config
        self.active = active
        #: A custom policy has replaced what the kernel was booted with.
        self.custom = False
        #: Whether the file is still in the directory.
        self.present = True
        #: S_IWUSR was taken away (a policy was loaded, and may not be again).
        self.sealed = False
        self._busy = False
        self._valid = True
        self._new: list[Rule] = []
        self._signed = active is not None and _wants_signature(active.rules)

    @property
    def mode(self) -> int:
        """Mode of the file when it is made (POLICY_FILE_FLAGS)."""
        return 0o600 if self.config.read else 0o200

    def text(self) -> bytes:
        """The content for readers."""
        return b"" if self.active is None else self.active.text()

    def open_read(self, *, admin: bool) -> None:
        """A reader. Raises :class:`Refused`: EACCES, EPERM without CAP_SYS_ADMIN."""
        if not self.config.read:
            raise Refused(errno.EACCES, "CONFIG_IMA_READ_POLICY is not set")
        if not admin:
            raise Refused(errno.EPERM, "reading the policy takes CAP_SYS_ADMIN")

    def open_write(self) -> None:
        """The one writer; no capability is asked for. Raises :class:`Refused` (EBUSY)."""
        if self._busy:
            raise Refused(errno.EBUSY, "the policy is being written, or may not be any more")
        self._busy = True

    def refuse(self, code: int, why: str) -> Refused:
        """An error that makes the session invalid; to be raised."""
        self._valid = False
        return Refused(code, why)

    def accept(self, data: bytes, position: int) -> bytes:
        """The part of a write that the kernel looks at: less than a page, at position 0 only.

        Raises :class:`Refused` (EINVAL).
        """
        if position:
            raise self.refuse(errno.EINVAL, "a write at a position above 0")
        return data[: PAGE - 1]

    def path(self, data: bytes) -> bytes | None:
        """The file that an accepted write names, None where it is a rule."""
        return first_line(data) if data.startswith(b"/") else None

    def write(self, data: bytes, audited: Audited | None = None) -> int:
        """A rule: its length with the newline, which may be one more than was given.

        ``audited`` takes what a kernel logs of it.
        Raises :class:`Refused`: EINVAL, ERANGE, EACCES where policies must be signed.
        """
        if self._signed:
            raise self.refuse(errno.EACCES, "a signed policy file is required, by its path")
        try:
            rule = _parsed(data, self.config.words, self.custom, audited)
        except Refused:
            self._valid = False
            raise
        if rule is not None:
            self._new.append(rule)
        return len(first_line(data)) + 1

    def load(self, data: bytes, content: bytes, audited: Audited | None = None) -> int:
        """All rules of the file that ``data`` names; its last line must be complete.

        Returns the length of what was written. Raises :class:`Refused` as :meth:`write`;
        no signature is verified here, so one that is required is missing.
        """
        self.check_file()
        try:
            rules = file_rules(content, self.config.words, custom=self.custom, audited=audited)
        except Refused as refused:
            raise self.refuse(refused.errno, str(refused)) from None
        return self.take(data, rules)

    def check_file(self) -> None:
        """The first step of :meth:`load`, for who parses (:func:`file_rules`) elsewhere."""
        if self._signed and self.config.appraise:
            raise self.refuse(errno.EACCES, "appraisal is not emulated: nothing counts as signed")

    def take(self, data: bytes, rules: Iterable[Rule]) -> int:
        """The last step of :meth:`load`: the rules of the file that ``data`` names."""
        self._new.extend(rules)
        return len(data.split(b"\0", 1)[0])

    def close_write(self) -> Closed:
        """The writer has closed: the first custom policy replaces, later ones append."""
        new, self._new = tuple(self._new), []
        valid, self._valid = self._valid and bool(new), True
        if not valid:
            self._busy = False
            return Closed.FAILED
        before = self.active.rules if self.custom and self.active is not None else ()
        self.active = Policy((*before, *new))
        self.custom = True
        # IMA_APPRAISE_POLICY stays, whatever becomes of the rule that asked for it.
        self._signed = self._signed or _wants_signature(new)
        if self.config.write:
            self._busy = False
        elif self.config.read:
            self.sealed = True
        else:
            self.present = False
        return Closed.COMPLETED


def file_rules(
    content: bytes, words: Words, *, custom: bool, audited: Audited | None = None
) -> list[Rule]:
    """The rules of a file (``ima_read_policy``). Raises :class:`Refused` for its first bad line.

    Of what it is given alone, so that it may run in a thread: a large file takes seconds.
    """
    found = (_parsed(line, words, custom, audited) for line in lines(content))
    return [rule for rule in found if rule is not None]


def _parsed(line: bytes, words: Words, custom: bool, audited: Audited | None) -> Rule | None:
    said: list[str] = []
    try:
        rule = parse(line, words, custom=custom, audited=said)
    except Refused:
        if audited is not None:
            audited.append((said, False))
        raise
    # Of a comment and of an empty line a kernel logs nothing.
    if rule is not None and audited is not None:
        audited.append((said, True))
    return rule


def lines(content: bytes) -> Iterator[bytes]:
    """The lines of a policy file; the last one ends in a newline or in a NUL.

    The kernel takes the length of every line and one more off the file's, and wants nothing to
    be left (7.2.13). Raises :class:`Refused` behind the last line that it reads.
    """
    at = 0
    while at < len(content):
        end = line_end(content, at)
        yield content[at:end]
        at = end + 1
        if content[end : end + 1] != b"\n":
            break
    if at != len(content):
        where = "behind a NUL" if at < len(content) else "without a newline at its end"
        raise Refused(errno.EINVAL, f"the file does not end with a complete line: {where}")


def _wants_signature(rules: Iterable[Rule]) -> bool:
    return any(rule.action is Action.APPRAISE and rule.func == "POLICY_CHECK" for rule in rules)
