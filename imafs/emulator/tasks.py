# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The task that asked for something, as an audit record names it.

Only ``status``, ``comm`` and ids of /proc are looked at: ``cmdline``, ``exe`` or ``maps`` of a
blocked task can wait for its memory lock.
"""

from __future__ import annotations

from imafs.host.linux import proc_is_ours
from imafs.kernel.audit import UNSET, Task


def of(tid: int) -> Task:
    """Thread ``tid``: its process, real uid, name and login; what cannot be looked up is unset.

    A kernel writes the process (``task_tgid_nr``), and the name of the thread.
    """
    if not tid or not proc_is_ours():  # outside of our pid namespace
        return Task(0, UNSET, b"")
    status = _text(tid, "status")
    return Task(
        _number(status, b"Tgid:", tid),
        _number(status, b"Uid:", UNSET),
        _text(tid, "comm").removesuffix(b"\n"),
        int(_text(tid, "loginuid") or UNSET),
        int(_text(tid, "sessionid") or UNSET),
    )


def _number(status: bytes, key: bytes, unknown: int) -> int:
    # The line of Name:, which is anybody's to choose, has its newlines escaped.
    for line in status.splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return unknown


def _text(tid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{tid}/{name}", "rb", buffering=0) as file:
            return file.read(8192)
    except OSError:
        return b""  # ended, or a kernel without CONFIG_AUDIT
