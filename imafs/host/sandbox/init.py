# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The first process of a session's pid namespace: its end is the end of all.

It reaps what loses its parent and does nothing else. The kernel kills it when the process
that forked it ends, by whatever signal, and with it everything in the namespace.
"""

from __future__ import annotations

import os
import signal

from imafs.errors import MountError
from imafs.host import linux

_READY = b"r"


def start() -> int:
    """Forks it, after :func:`imafs.host.sandbox.namespaces.enter`; its process id.

    /proc is then that of the new namespace, in which the caller does not occur (its
    /proc/self leads nowhere). Raises :class:`MountError` where that /proc is refused.
    """
    said, say = os.pipe()
    heard, hear = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(said)
        os.close(hear)
        _live(say, heard)
    os.close(say)
    os.close(heard)
    answer = os.read(said, 256)
    os.close(said)
    if answer != _READY:
        os.waitpid(pid, 0)
        raise MountError(
            f"/proc cannot be mounted in a namespace ({answer.decode() or 'no answer'}): this "
            "container hides parts of it; --cap-add SYS_ADMIN for root, --security-opt unmask=ALL "
            "for others"
        )
    # It goes on only now: had we ended before it asked for our death to be its own, the
    # end of this pipe would have told it.
    os.write(hear, _READY)
    os.close(hear)
    return pid


def _live(say: int, heard: int) -> None:
    code = 1
    try:
        linux.die_with_parent()
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
        flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
        linux.mount("proc", "/proc", "proc", flags)
        os.write(say, _READY)
        os.close(say)
        if os.read(heard, 1) == _READY:
            _let_go()
            while True:
                signal.pause()
    except OSError as error:
        os.write(say, str(error.strerror).encode())
    finally:
        os._exit(code)


def _let_go() -> None:
    """Of the caller's directory, files and terminal."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
