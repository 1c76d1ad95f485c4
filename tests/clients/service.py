# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Programs of others that stay: each ends with the test, and its log is in the failure."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support import DeadlineError, wait_for

#: How long a service may take to end on SIGTERM before its process group is killed, seconds.
PARTING_SECONDS = 5.0
#: And then: that cannot be refused, but the machine may be busy.
KILLED_SECONDS = 60.0


class Service:
    """A program in a process group of its own that logs to a file (stdout and stderr).

    ``env`` is added to this process' environment.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        log: Path,
        *,
        env: Mapping[str, str],
        cwd: Path,
    ) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )

    def log(self) -> str:
        """All that it wrote so far."""
        return self._log.read_text(errors="replace")

    def says(self, pattern: str) -> bool:
        """Whether the regular expression ``pattern`` is in its log; it must be running."""
        found = re.search(pattern, self.log())
        status = self._process.poll()
        assert status is None, f"{self.name} ended with status {status}\n{self.log()}"
        return found is not None

    def wait_for(self, pattern: str, deadline: float) -> None:
        """Until ``pattern`` is in its log; :class:`DeadlineError` with the log otherwise."""
        try:
            wait_for(lambda: self.says(pattern), deadline, f"{self.name} says {pattern!r}")
        except DeadlineError as error:
            raise DeadlineError(f"{error}\n{self.log()}") from None

    def _group_is_gone(self) -> bool:
        """Whether no process of the group lives, the first one reaped.

        Zombies of others do not count: when they go is up to process 1.
        """
        return self._process.poll() is not None and not any(_living(self._process.pid))

    def stop(self) -> None:
        """SIGTERM to the whole group, as an init system does; SIGKILL to what stays."""
        if self._group_is_gone():
            return
        self._signal(signal.SIGTERM)
        try:
            wait_for(self._group_is_gone, PARTING_SECONDS, f"{self.name} has ended")
        except DeadlineError:
            self._signal(signal.SIGKILL)
            wait_for(self._group_is_gone, KILLED_SECONDS, f"{self.name} was killed")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # the last one has ended meanwhile
            os.killpg(self._process.pid, number)


def _living(group: int) -> Iterator[int]:
    """Processes of a process group, zombies left out."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile
        if int(member_of) == group and state not in "XZ":
            yield int(stat.parent.name)
