# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Audit records as IMA makes them: the text, without its time and number.

Source: Linux 7.3 integrity_audit.c (``integrity_audit_message``), ima_policy.c
(``ima_log_string``), kernel/audit.c (``audit_log_untrustedstring``); asked of 7.2.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

#: How the line begins that tells of lost ones.
LOST = "audit: audit_lost="
#: loginuid and session of a task that nobody has logged in for.
UNSET = (1 << 32) - 1


class Kind(IntEnum):
    """include/uapi/linux/audit.h: AUDIT_INTEGRITY_STATUS, _PCR, _POLICY_RULE."""

    STATUS = 1802
    PCR = 1804
    POLICY_RULE = 1807


@dataclass(frozen=True, slots=True)
class Task:
    """The task that did it: the kernel's ``current``."""

    pid: int
    uid: int
    comm: bytes
    auid: int = UNSET
    ses: int = UNSET


@dataclass(frozen=True, slots=True)
class File:
    """Of which file: ``dev`` is the super block's name (``vda1``, ``tmpfs``)."""

    name: bytes
    dev: bytes = b""
    ino: int | None = None


def message(
    task: Task, op: str, cause: str, file: File | None = None, *, ok: bool = True, errno: int = 0
) -> str:
    """The text of STATUS and PCR; what is not known of a file is left out, as in a kernel."""
    text = (
        f"pid={task.pid} uid={task.uid} auid={task.auid} ses={task.ses}"
        f" op={op} cause={cause} comm={untrusted(task.comm)}"
    )
    if file is not None:
        text += f" name={untrusted(file.name)}"
        if file.ino is not None:
            text += f" dev={untrusted(file.dev)} ino={file.ino}"
    return f"{text} res={int(ok)} errno={errno}"


def rule(words: Sequence[str], *, ok: bool) -> str:
    """The text of POLICY_RULE: the words of a line as far as they were looked at."""
    return "".join(f"{word} " for word in words) + f"res={int(ok)}"


def untrusted(text: bytes) -> str:
    """In quotes, or as hexadecimal digits where it could be taken for something else."""
    if any(byte == 0x22 or not 0x21 <= byte <= 0x7E for byte in text):
        return text.hex().upper()
    return f'"{text.decode("ascii")}"'


def line(kind: Kind, seconds: float, serial: int, text: str) -> str:
    """As the kernel's log has it where no auditd runs."""
    return f"audit: type={kind} audit({seconds:.3f}:{serial}): {text}"


def lost(number: int, backlog: int) -> str:
    """``audit_log_lost``: how many records of this boot are in no log."""
    return f"{LOST}{number} audit_rate_limit=0 audit_backlog_limit={backlog}"
