# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Whether the caller of an open has CAP_SYS_ADMIN, as ``capable()`` would say.

FUSE tells a thread id only. The effective set in /proc/TID/status is forgeable by
``unshare -Ur``, so it counts in the daemon's own user namespace only. Read nothing
else of a blocked caller: cmdline, exe and maps can wait for its memory lock.
"""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)

_CAP_SYS_ADMIN = 21


def has_sys_admin(tid: int) -> bool:
    """True where the thread has CAP_SYS_ADMIN in our user namespace.

    ``tid`` 0 is a caller outside our pid namespace: nobody can look it up, so it is
    refused, with a line in the log that says why.
    """
    if not _proc_is_ours():
        log.info("/proc is of another pid namespace: nobody's capabilities can be read (EPERM)")
        return False
    if tid == 0:
        log.info(
            "a writer outside the daemon's pid namespace was refused (EPERM): share it "
            "with --pid=host or by starting imafs in the same namespace"
        )
        return False
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            effective = next(
                int(line.split()[1], 16) for line in file if line.startswith(b"CapEff:")
            )
        same = os.stat(f"/proc/{tid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino
    except OSError as error:
        log.info("thread %d cannot be looked at (%s): refused as a writer", tid, error)
        return False
    return same and bool(effective >> _CAP_SYS_ADMIN & 1)


def _proc_is_ours() -> bool:
    """Whether /proc numbers tasks as we do: in another's, the number is somebody else's."""
    return os.readlink("/proc/self") == str(os.getpid())
