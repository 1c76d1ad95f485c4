# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Deciding by the rules whether a use of a file, or of a buffer, is measured.

Source: Linux 7.3 ima_policy.c, ``ima_match_policy``, ``ima_match_rules`` and
``ima_match_rule_data``. Only measuring is decided: the first rule that says measure or
dont_measure and matches ends the walk for it; appraising, auditing and hashing are
walked by rules of their own in the kernel and change nothing of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from imafs.formats.templates import Template
from imafs.kernel.policy.rules import Action, Compare, Rule

#: Hooks that measure a buffer which belongs to no file: only func, uid and the data match.
_DATA = frozenset({"KEY_CHECK", "CRITICAL_DATA"})


@dataclass(frozen=True, slots=True)
class Access:
    """One use of a file, or of a buffer, as a hook knows it.

    ``mask`` is made of MAY_EXEC 1, MAY_WRITE 2, MAY_READ 4 and MAY_APPEND 8. ``label``
    is the label of critical data (for KEY_CHECK: the keyring). ``fsuuid`` is 16 bytes.
    ``suid``, ``sgid`` count with ``cap_setuid``, ``cap_setgid`` only (None: as the
    effective id). ``buffer`` marks a POLICY_CHECK of written text, which has no file.
    """

    func: str
    mask: int
    uid: int = 0
    euid: int = 0
    gid: int = 0
    egid: int = 0
    fowner: int = 0
    fgroup: int = 0
    fsmagic: int = 0
    fsname: str = ""
    fs_subtype: str = ""
    fsuuid: bytes | None = None
    label: str | None = None
    suid: int | None = None
    sgid: int | None = None
    cap_setuid: bool = False
    cap_setgid: bool = False
    buffer: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to measure; ``number`` is the 1-based place of ``rule``, 0: none matched.

    ``pcr`` and ``template`` None: the defaults. ``why`` is one line for people.
    """

    measure: bool
    rule: Rule | None = None
    number: int = 0
    pcr: int | None = None
    template: Template | None = None

    @property
    def why(self) -> str:
        """The rule by its number and text."""
        if self.rule is None:
            return "no policy is active" if self.measure else "no rule matches"
        return f"rule {self.number}: {self.rule.text().rstrip()}"


#: What is decided while no policy is active: everything that is asked for is measured.
UNCONDITIONAL = Decision(True)
_NO_RULE = Decision(False)


@dataclass(frozen=True)
class Policy:
    """Rules in their order."""

    rules: tuple[Rule, ...] = ()

    @cached_property
    def _measuring(self) -> tuple[tuple[int, Rule], ...]:
        return tuple(
            (number, rule)
            for number, rule in enumerate(self.rules, 1)
            if rule.action in (Action.MEASURE, Action.DONT_MEASURE) and not rule.lsm
        )

    @cached_property
    def _by_func(self) -> dict[str, tuple[tuple[int, Rule], ...]]:
        return {}

    def decide(self, access: Access) -> Decision:
        """The decision of the first rule that matches."""
        candidates = self._by_func.get(access.func)
        if candidates is None:
            candidates = tuple(
                (n, rule) for n, rule in self._measuring if rule.func in (None, access.func)
            )
            self._by_func[access.func] = candidates
        for number, rule in candidates:
            if matches(rule, access):
                measure = rule.action is Action.MEASURE
                return Decision(measure, rule, number, rule.pcr, rule.template)
        return _NO_RULE

    def text(self) -> bytes:
        """The content of the file ``policy``."""
        return b"".join(rule.encoded() for rule in self.rules)

    def source(self) -> bytes:
        """Text that is parsed to these rules again (see :meth:`Rule.source`)."""
        return "".join(rule.source() for rule in self.rules).encode("utf-8", "surrogateescape")


def matches(rule: Rule, access: Access) -> bool:
    """Whether ``rule`` is about ``access``, whatever its action."""
    if rule.func is not None and rule.func != access.func:
        return False
    if access.func in _DATA or access.buffer:
        return _matches_data(rule, access)
    if rule.lsm:
        return False
    return _matches_mask(rule, access.mask) and _matches_fs(rule, access) and _ids(rule, access)


def _matches_data(rule: Rule, access: Access) -> bool:
    # A rule without func= is never about a buffer, whatever else it says.
    if rule.func != access.func or not _holds(rule.uid, access.uid):
        return False
    if access.func not in _DATA:
        return True
    wanted = rule.label if access.func == "CRITICAL_DATA" else rule.keyrings
    return not wanted or access.label in wanted


def _matches_mask(rule: Rule, mask: int) -> bool:
    if rule.mask is None:
        return True
    return bool(rule.mask & mask) if rule.any_mask else rule.mask == mask


def _matches_fs(rule: Rule, access: Access) -> bool:
    return (
        rule.fsmagic in (None, access.fsmagic)
        and rule.fsname in (None, access.fsname)
        and rule.fs_subtype in (None, access.fs_subtype)
        and rule.fsuuid in (None, access.fsuuid or bytes(16))
    )


def _ids(rule: Rule, access: Access) -> bool:
    saved_uid = access.euid if access.suid is None else access.suid
    saved_gid = access.egid if access.sgid is None else access.sgid
    return (
        _holds(rule.uid, access.uid)
        and _effective(rule.euid, access.euid, (saved_uid, access.uid), access.cap_setuid)
        and _holds(rule.gid, access.gid)
        and _effective(rule.egid, access.egid, (saved_gid, access.gid), access.cap_setgid)
        and _holds(rule.fowner, access.fowner)
        and _holds(rule.fgroup, access.fgroup)
    )


def _holds(compare: Compare | None, actual: int) -> bool:
    return compare is None or compare.holds(actual)


def _effective(compare: Compare | None, actual: int, others: tuple[int, int], cap: bool) -> bool:
    """euid= and egid=: who may change the id is judged by all that it could be."""
    if compare is None or compare.holds(actual):
        return True
    return cap and any(compare.holds(other) for other in others)
