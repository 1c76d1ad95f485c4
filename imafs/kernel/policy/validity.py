# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which parts of a rule go together.

Source: Linux 7.3 ima_policy.c, ``ima_validate_rule``.
"""

from __future__ import annotations

import errno

from imafs.errors import Refused
from imafs.kernel.policy.rules import Action, Rule

_FS = frozenset({"fsmagic", "fsname", "fs_subtype", "fsuuid"})
_IDS = frozenset({"uid", "euid", "gid", "egid", "fowner", "fgroup"})
_APPRAISING = frozenset({"signature", "modsig", "algorithms"})
_FILE = _FS | _IDS | {"mask", "pcr", "signature", "sigv3", "directio", "algorithms"}
#: Hook -> what a rule about it may have besides action, func, LSM labels and template.
_ALLOWED: dict[str | None, frozenset[str]] = {
    **dict.fromkeys(
        (
            None,
            "FILE_CHECK",
            "MMAP_CHECK",
            "MMAP_CHECK_REQPROT",
            "BPRM_CHECK",
            "CREDS_CHECK",
            "FIRMWARE_CHECK",
            "POLICY_CHECK",
        ),
        _FILE | {"verity"},
    ),
    **dict.fromkeys(
        ("MODULE_CHECK", "KEXEC_KERNEL_CHECK", "KEXEC_INITRAMFS_CHECK"), _FILE | {"modsig"}
    ),
    "KEXEC_CMDLINE": _FS | _IDS | {"pcr"},
    "KEY_CHECK": frozenset({"uid", "gid", "pcr", "keyrings"}),
    "CRITICAL_DATA": frozenset({"uid", "gid", "pcr", "label"}),
    "SETXATTR_CHECK": frozenset({"algorithms"}),
}
_CHECKED = frozenset().union(*_ALLOWED.values())
#: Hooks of buffers: measured or not, nothing else, and (but the first) without labels.
_BUFFERS = ("KEXEC_CMDLINE", "KEY_CHECK", "CRITICAL_DATA")


def check(rule: Rule) -> None:
    """Raises :class:`Refused` (EINVAL) for a combination that the kernel refuses."""
    has = {name for name in _CHECKED if _given(getattr(rule, name))}
    if rule.pcr is not None and rule.action is not Action.MEASURE:
        raise _invalid("pcr: only with measure")
    if rule.action is not Action.APPRAISE and has & _APPRAISING:
        raise _invalid(f"{_names(has & _APPRAISING)}: only with appraise")
    if has - _ALLOWED[rule.func]:
        raise _invalid(f"{_names(has - _ALLOWED[rule.func])}: not with func={rule.func}")
    if rule.func in _BUFFERS:
        if rule.action not in (Action.MEASURE, Action.DONT_MEASURE):
            raise _invalid(f"func={rule.func}: can only be measured")
        if rule.lsm and rule.func != "KEXEC_CMDLINE":
            raise _invalid(f"func={rule.func}: not with LSM labels")
    if rule.func == "SETXATTR_CHECK" and (
        rule.action is not Action.APPRAISE or "algorithms" not in has
    ):
        raise _invalid("func=SETXATTR_CHECK: only with appraise and appraise_algos")
    if rule.action is Action.APPRAISE and rule.verity and not rule.signature:
        raise _invalid("digest_type=verity: appraising it takes a signature")


def _given(value: object) -> bool:
    # By identity: 0 is a value (fsmagic=0, pcr=0), and equal to False.
    return value is not None and value is not False and value != ()


def _names(options: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(options))


def _invalid(why: str) -> Refused:
    return Refused(errno.EINVAL, why)
