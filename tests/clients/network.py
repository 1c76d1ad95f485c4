# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A network of its own: fixed ports collide with nobody's, and nothing reaches further."""

from __future__ import annotations

import select
import subprocess
import sys
from types import TracebackType

from tests.support import kill_group, require

START_SECONDS = 60.0

#: Brings ``lo`` up (SIOCSIFFLAGS, IFF_UP), says so, and keeps the namespace until its stdin ends.
_HOLDER = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
sys.stdout.write("up\\n")
sys.stdout.flush()
sys.stdin.read()
"""


class Loopback:
    """A network namespace that has a loopback device and no other, for as long as the context."""

    def __init__(self) -> None:
        require("unshare", "nsenter", "cap_sys_admin")
        self._holder = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", _HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def prefix(self) -> list[str]:
        """What to put before a command that shall run in it."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def __enter__(self) -> Loopback:
        assert self._holder.stdout is not None
        if select.select([self._holder.stdout], [], [], START_SECONDS)[0] and (
            self._holder.stdout.readline() == "up\n"
        ):
            return self
        kill_group(self._holder)
        raise AssertionError(f"no loopback device of our own: {self._holder.communicate()[1]}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        kill_group(self._holder)
        self._holder.communicate()
