# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The use of a file that ``measure`` is about: hook, mask and who."""

from __future__ import annotations

from dataclasses import dataclass, replace

from imafs.control.ops import Options
from imafs.errors import UsageError
from imafs.kernel.policy.match import Access, Decision
from imafs.kernel.policy.rules import MASKS as MASK_BITS
from imafs.sources.file_attributes import MASKS, Facts, User, access
from imafs.verbs.answers import Row

_IDS = ("uid", "euid", "gid", "egid")


@dataclass(frozen=True, slots=True)
class Use:
    """What is judged. ``fowner`` and ``fgroup`` replace the file's owner and group;
    ``explain`` asks for the rule."""

    func: str
    mask: int
    user: User
    fowner: int | None
    fgroup: int | None
    explain: bool

    def access(self, facts: Facts) -> Access:
        """As the policy judges it."""
        fowner = facts.fowner if self.fowner is None else self.fowner
        fgroup = facts.fgroup if self.fgroup is None else self.fgroup
        owned = replace(facts, fowner=fowner, fgroup=fgroup)
        return access(self.func, self.mask, self.user, owned)


def use(options: Options) -> Use:
    """From the options of a request. The default is root's read: FILE_CHECK, MAY_READ, uid 0.

    euid and egid follow uid and gid where left out. Raises :class:`UsageError` for an
    unknown hook or mask.
    """
    func = options.text("func", "FILE_CHECK")
    if func not in MASKS:
        raise UsageError(f"func: {func!r} is no hook of files; there are: {', '.join(MASKS)}")
    ids = {name: number for name in _IDS if (number := options.maybe_number(name)) is not None}
    for real, effective in (("uid", "euid"), ("gid", "egid")):
        if real in ids:
            ids.setdefault(effective, ids[real])
    mask = options.maybe_text("mask")
    return Use(
        func,
        MASKS[func] if mask is None else _mask(mask),
        User.of(**ids),
        options.maybe_number("fowner"),
        options.maybe_number("fgroup"),
        options.flag("explain"),
    )


def _mask(text: str) -> int:
    bits = 0
    for word in text.replace(",", "|").split("|"):
        if word not in MASK_BITS:
            raise UsageError(f"mask: {word!r} is none of {', '.join(MASK_BITS)}")
        bits |= MASK_BITS[word]
    return bits


def explained(decision: Decision, asked: bool) -> Row:
    """What an answer says of a decision: always why not, and the rule when asked."""
    if not decision.measure:
        return {"measured": False, "rule": decision.number, "why": decision.why}
    return {"rule": decision.number, "why": decision.why} if asked else {}
