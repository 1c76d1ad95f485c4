# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The built-in policies: the words of ``ima_policy=``.

Source: Linux 7.2.13 and 7.3.4 ima_policy.c (rule tables, ``policy_setup``,
``ima_init_policy``). Architecture and build-time appraise rules are not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imafs.errors import UsageError
from imafs.kernel.policy.rules import MAY_EXEC, MAY_READ, Action, Compare, Rule


@dataclass(frozen=True, slots=True)
class Release:
    """The part of the policy that depends on the kernel's release.

    ``configfs``: file systems of that type are left out by tcb and appraise_tcb.
    ``records``: writes to the policy file and the policy that became active are
    measured (``ima_policy_written``, ``ima_policy_loaded``). ``version`` is what the
    critical data ``kernel_version`` holds (UTS_RELEASE).
    """

    name: str
    version: str
    configfs: bool
    records: bool


RELEASES = (
    Release("7.3", "7.3.4", configfs=True, records=True),
    Release("7.2", "7.2.13", configfs=False, records=False),
)
NEWEST = RELEASES[0]

WORDS = ("tcb", "ima_tcb", "appraise_tcb", "secure_boot", "fail_securely", "critical_data")

_PROC, _SYSFS, _DEBUGFS, _TMPFS = 0x9FA0, 0x62656572, 0x64626720, 0x01021994
_RAMFS, _DEVPTS, _BINFMT, _SECURITYFS = 0x858458F6, 0x1CD1, 0x42494E4D, 0x73636673
_SELINUX, _SMACK, _CGROUP, _CGROUP2 = 0xF97CFF8C, 0x43415D53, 0x27E0EB, 0x63677270
_NSFS, _EFIVARFS, _CONFIGFS = 0x6E736673, 0xDE5E81E4, 0x62656570

_ROOT = Compare("=", 0)


def release(name: str) -> Release:
    """The release called ``name``. Raises :class:`UsageError`."""
    for one in RELEASES:
        if one.name == name:
            return one
    raise UsageError(f"unknown release {name!r}; there are: {', '.join(r.name for r in RELEASES)}")


def rules(words: Iterable[str], of: Release = NEWEST, *, write: bool = True) -> tuple[Rule, ...]:
    """The rules of ``words`` in the kernel's order, whatever the order of the words.

    ``tcb`` before ``ima_tcb`` wins, and the other way round, as on a command line.
    ``write`` is CONFIG_IMA_WRITE_POLICY. Raises :class:`UsageError` for an unknown word
    (a kernel only logs it).
    """
    chosen = list(words)
    for word in chosen:
        if word not in WORDS:
            raise UsageError(f"unknown policy {word!r}; there are: {', '.join(WORDS)}")
    out: list[Rule] = []
    measuring = next((word for word in chosen if word in ("tcb", "ima_tcb")), None)
    if measuring is not None:
        out += _dont_measure(of)
        out += _TCB if measuring == "tcb" else _IMA_TCB
    if "secure_boot" in chosen:
        out += _SECURE_BOOT
    if "appraise_tcb" in chosen:
        out += _appraise(of, write=write)
    if "critical_data" in chosen:
        out.append(Rule(Action.MEASURE, func="CRITICAL_DATA"))
    return tuple(out)


def _dont_measure(of: Release) -> list[Rule]:
    # tmpfs is left out for reading only: what is executed from it is measured.
    magics = [_PROC, _SYSFS, _DEBUGFS, _TMPFS, _DEVPTS, _BINFMT, _SECURITYFS, _SELINUX]
    magics += [_SMACK, _CGROUP, _CGROUP2, _NSFS, _EFIVARFS]
    if of.configfs:
        magics.append(_CONFIGFS)
    return [
        Rule(Action.DONT_MEASURE, func="FILE_CHECK" if magic == _TMPFS else None, fsmagic=magic)
        for magic in magics
    ]


def _appraise(of: Release, *, write: bool) -> list[Rule]:
    magics = [_PROC, _SYSFS, _DEBUGFS, _TMPFS, _RAMFS, _DEVPTS, _BINFMT, _SECURITYFS, _SELINUX]
    magics += [_SMACK, _NSFS, _EFIVARFS, _CGROUP, _CGROUP2]
    if of.configfs:
        magics.append(_CONFIGFS)
    out = [Rule(Action.DONT_APPRAISE, fsmagic=magic) for magic in magics]
    if write:
        out.append(Rule(Action.APPRAISE, func="POLICY_CHECK", signature=True))
    out.append(Rule(Action.APPRAISE, fowner=_ROOT))
    return out


_EXECUTED = (
    Rule(Action.MEASURE, func="MMAP_CHECK", mask=MAY_EXEC),
    Rule(Action.MEASURE, func="BPRM_CHECK", mask=MAY_EXEC),
)
_LOADED = (
    Rule(Action.MEASURE, func="MODULE_CHECK"),
    Rule(Action.MEASURE, func="FIRMWARE_CHECK"),
)
_TCB = (
    *_EXECUTED,
    Rule(Action.MEASURE, func="FILE_CHECK", mask=MAY_READ, any_mask=True, euid=_ROOT),
    Rule(Action.MEASURE, func="FILE_CHECK", mask=MAY_READ, any_mask=True, uid=_ROOT),
    *_LOADED,
    Rule(Action.MEASURE, func="POLICY_CHECK"),
)
#: The older ``ima_tcb``.
_IMA_TCB = (
    *_EXECUTED,
    Rule(Action.MEASURE, func="FILE_CHECK", mask=MAY_READ, uid=_ROOT),
    *_LOADED,
)
_SECURE_BOOT = (
    Rule(Action.APPRAISE, func="MODULE_CHECK", signature=True, modsig=True),
    Rule(Action.APPRAISE, func="FIRMWARE_CHECK", signature=True),
    Rule(Action.APPRAISE, func="KEXEC_KERNEL_CHECK", signature=True),
    Rule(Action.APPRAISE, func="POLICY_CHECK", signature=True),
)
