# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A rule, and how the kernel prints it.

Source: Linux 7.3 ima_policy.c, ``struct ima_rule_entry`` and ``ima_policy_show``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from imafs.formats.templates import TEMPLATES, Template

#: include/linux/fs.h: what a hook says that is done with the file.
MAY_EXEC, MAY_WRITE, MAY_READ, MAY_APPEND = 1, 2, 4, 8
MASKS: dict[str, int] = {
    "MAY_EXEC": MAY_EXEC,
    "MAY_WRITE": MAY_WRITE,
    "MAY_READ": MAY_READ,
    "MAY_APPEND": MAY_APPEND,
}
_MASK_NAMES = {value: name for name, value in MASKS.items()}

#: The hooks of ``__ima_hooks`` (ima.h) that a rule can name; POST_SETATTR has no word.
FUNCTIONS = (
    "FILE_CHECK",
    "MMAP_CHECK",
    "MMAP_CHECK_REQPROT",
    "BPRM_CHECK",
    "CREDS_CHECK",
    "MODULE_CHECK",
    "FIRMWARE_CHECK",
    "KEXEC_KERNEL_CHECK",
    "KEXEC_INITRAMFS_CHECK",
    "POLICY_CHECK",
    "KEXEC_CMDLINE",
    "KEY_CHECK",
    "CRITICAL_DATA",
    "SETXATTR_CHECK",
)
#: LSM conditions in the order of ``enum lsm_rule_types``, in which they are printed.
LSM = ("obj_user", "obj_role", "obj_type", "subj_user", "subj_role", "subj_type")

#: ``char tbuf[64]`` of ima_policy_show: longer names of file systems are printed cut.
_SHOWN = 63


class Action(Enum):
    """The action of a rule; the value is its word."""

    MEASURE = "measure"
    DONT_MEASURE = "dont_measure"
    APPRAISE = "appraise"
    DONT_APPRAISE = "dont_appraise"
    AUDIT = "audit"
    DONT_AUDIT = "dont_audit"
    HASH = "hash"
    DONT_HASH = "dont_hash"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on a number: ``operator`` is ``=``, ``<`` or ``>``."""

    operator: str
    value: int

    def holds(self, actual: int) -> bool:
        """Whether ``actual`` meets it."""
        if self.operator == "=":
            return actual == self.value
        return actual > self.value if self.operator == ">" else actual < self.value

    def text(self, name: str, *, exact: bool) -> str:
        """As the kernel prints it: ids through ``%d``, so the upper half is negative.

        ``exact``: as it was written.
        """
        negative = self.value >> 31 and not exact
        return f"{name}{self.operator}{self.value - (1 << 32) if negative else self.value} "


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. None (or empty) is a condition that it does not have.

    ``any_mask`` is the ``^`` of ``mask=``: any common bit instead of equality. ``lsm``
    holds (word, label) in the kernel's order; ``lsm_active`` is False where no LSM knew
    the labels: such a rule never matches and is not printed. ``algorithms`` are those
    of ``appraise_algos=``, in the order of ``hash_algo_name[]``. Text of users is
    decoded as UTF-8 with surrogateescape.
    """

    action: Action
    func: str | None = None
    mask: int | None = None
    any_mask: bool = False
    fsmagic: int | None = None
    fsname: str | None = None
    fs_subtype: str | None = None
    keyrings: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    pcr: int | None = None
    fsuuid: bytes | None = None
    uid: Compare | None = None
    euid: Compare | None = None
    gid: Compare | None = None
    egid: Compare | None = None
    fowner: Compare | None = None
    fgroup: Compare | None = None
    algorithms: tuple[str, ...] = ()
    lsm: tuple[tuple[str, str], ...] = ()
    lsm_active: bool = True
    template: Template | None = None
    signature: bool = False
    modsig: bool = False
    sigv3: bool = False
    verity: bool = False
    directio: bool = False

    @property
    def never(self) -> str | None:
        """Why the rule can never match or act here, None where it can."""
        if self.lsm:
            return "files and processes have no LSM labels here"
        if self.func == "KEY_CHECK":
            return "keys are not emulated"
        if self.action not in (Action.MEASURE, Action.DONT_MEASURE):
            return f"{self.action.value} is not emulated"
        return None

    def text(self) -> str:
        """The line that ``policy`` shows, with its blank and newline; "" if inactive."""
        if not self.lsm_active:
            return ""
        return self._line(exact=False)

    def source(self) -> str:
        """A line that is parsed to this rule again; :meth:`text` may lose something.

        A kernel cuts long names, prints large ids negative and no name of the template of
        ``ima_template_fmt=`` (a parser must know that one).
        """
        return self._line(exact=True)

    def _line(self, *, exact: bool) -> str:
        parts = (self._base(exact), self._ids(exact), self._options(exact))
        return f"{self.action.value} {''.join(parts)}\n"

    def encoded(self) -> bytes:
        """:meth:`text` as the bytes of the file."""
        return self.text().encode("utf-8", "surrogateescape")

    def _base(self, exact: bool) -> str:
        out = ""
        if self.func is not None:
            out += f"func={self.func} "
        if self.mask is not None:
            out += f"mask={'^' if self.any_mask else ''}{_MASK_NAMES[self.mask]} "
        if self.fsmagic is not None:
            out += f"fsmagic=0x{self.fsmagic:x} "
        if self.fsname is not None:
            out += f"fsname={self.fsname if exact else _cut(self.fsname)} "
        if self.fs_subtype is not None:
            out += f"fs_subtype={self.fs_subtype if exact else _cut(self.fs_subtype)} "
        if self.keyrings:
            out += f"keyrings={'|'.join(self.keyrings)} "
        if self.label:
            out += f"label={'|'.join(self.label)} "
        if self.pcr is not None:
            out += f"pcr={self.pcr} "
        if self.fsuuid is not None:
            digits = self.fsuuid.hex()
            parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
            out += f"fsuuid={'-'.join(parts)} "
        return out

    def _ids(self, exact: bool) -> str:
        named = (
            ("uid", self.uid),
            ("euid", self.euid),
            ("gid", self.gid),
            ("egid", self.egid),
            ("fowner", self.fowner),
            ("fgroup", self.fgroup),
        )
        given = [(name, compare) for name, compare in named if compare is not None]
        return "".join(compare.text(name, exact=exact) for name, compare in given)

    def _options(self, exact: bool) -> str:
        out = ""
        if self.algorithms:
            out += f"appraise_algos={','.join(self.algorithms)} "
        out += "".join(f"{word}={label} " for word, label in self.lsm)
        if self.template is not None:
            out += f"template={_template_name(self.template, exact=exact)} "
        if self.signature:
            kind = "sigv3" if self.sigv3 else "imasig|modsig" if self.modsig else "imasig"
            if exact and self.sigv3 and self.modsig:
                out += "appraise_type=imasig|modsig "
            out += f"appraise_type={kind} "
        if self.verity:
            out += "digest_type=verity "
        if self.directio:
            out += "permit_directio "
        return out


def _cut(name: str) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    return raw[:_SHOWN].decode("utf-8", "surrogateescape")


def _template_name(template: Template, *, exact: bool) -> str:
    # The template of ima_template_fmt= has an empty name (ima_template.c:21).
    return template.label if exact or template.label in TEMPLATES else ""
