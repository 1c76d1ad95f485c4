# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The processes of a run, all of which end with it, and their mounts."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from imafs.errors import MountError
from imafs.host import mounts
from imafs.testing.mounted import Mounted
from imafs.verbs.client import ControlClient

#: A prefix that gives names of 60 characters, the eight digits of `generate` included.
PREFIX = "/usr/lib/imafs/bench/" + "d" * 30 + "/"
#: Seconds that a process may take to start, to answer, to end.
START, ANSWER, END = 30.0, 900.0, 15.0

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """A process did not do what it should."""


def _die_with_parent() -> None:
    # Also when this program is killed: its servers then unmount and end by themselves.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def pin(pid: int, *, away: bool = False) -> None:
    """Binds every thread of a process to one processor; ``away``: to another one.

    Reads: client and server wait for each other, so on one processor they lose nothing;
    but whether they run on one or on two takes a request from 30 to 60 us (measured),
    stays so for seconds, and would be the only thing measured. Requests after which
    the server has work to do: on one processor their client would wait for that too.
    """
    processors = sorted(os.sched_getaffinity(0))
    processor = processors[0] if away else processors[-1]
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {processor})


class Process:
    """A child that speaks in lines. ``close`` ends it; its stderr is shown as it comes."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._name = shlex.join(arguments[:3])
        self._input = b""
        self.child = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a ^C is for us, who then end it in order
            preexec_fn=_die_with_parent,
        )

    def line(self, deadline: float) -> str:
        """The next line of stdout. Raises :class:`BenchError` at its end or too late."""
        stdout = self.child.stdout
        assert stdout is not None
        end = time.monotonic() + deadline
        while b"\n" not in self._input:
            ready, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise BenchError(f"{self._name}: no answer within {deadline:g} s")
            data = os.read(stdout.fileno(), 65536)
            if not data:
                raise BenchError(f"{self._name}: ended with status {self.child.wait(END)}")
            self._input += data
        line, self._input = self._input.split(b"\n", 1)
        return line.decode()

    def send(self, line: str) -> None:
        """One line to its stdin."""
        assert self.child.stdin is not None
        self.child.stdin.write(line.encode() + b"\n")
        self.child.stdin.flush()

    def pin(self, *, away: bool = False) -> None:
        """See :func:`pin`."""
        pin(self.child.pid, away=away)

    def unpin(self) -> None:
        """It may run on any processor again."""
        for thread in os.listdir(f"/proc/{self.child.pid}/task"):
            os.sched_setaffinity(int(thread), os.sched_getaffinity(0))

    def close(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.child.terminate()
        try:
            self.child.wait(END)
        except subprocess.TimeoutExpired:
            self.child.kill()
            # In state D until its server is gone: whoever comes next in the stack.
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(1)
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()


class Client(Process):
    """See :mod:`scripts.benchlib.client`."""

    def __init__(self) -> None:
        super().__init__(["-m", "scripts.benchlib.client"])

    def do(self, command: str, **options: object) -> dict[str, Any]:
        """One request and its answer. Raises :class:`BenchError`."""
        self.send(json.dumps({"do": command, **options}))
        answer: dict[str, Any] = json.loads(self.line(ANSWER))
        if "error" in answer:
            raise BenchError(f"{command} {options}: {answer['error']}")
        return answer


class Server(Process):
    """A FUSE server with its mount on a directory of its own below ``place``."""

    def __init__(self, place: Path, arguments: Callable[[Path], Sequence[str]]) -> None:
        place.mkdir(parents=True)
        self.mount = place / "mnt"
        self.mount.mkdir()
        super().__init__(arguments(place))
        try:
            self.announcement = self.line(START)
        except BaseException:  # a signal's SystemExit too: it is mounted before it says so
            self.close()
            raise

    def processors(self) -> float:
        """Seconds of processors that it has used."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends the server; unmounts where it has not."""
        super().close()
        path = mounts.resolve(self.mount)
        while (mount := mounts.top(path)) is not None:
            mounts.detach(mount)


class Bare(Server):
    """See :mod:`scripts.benchlib.bare`."""

    def __init__(self, place: Path, data: Path, lengths: Path | None = None) -> None:
        files = [str(data)] if lengths is None else [str(data), str(lengths)]
        super().__init__(
            place, lambda here: ["-m", "scripts.benchlib.bare", str(here / "mnt"), *files]
        )

    @property
    def file(self) -> str:
        """Its one file."""
        return str(self.mount / "file")


class Imafs:
    """``imafs mount`` without boot_aggregate, so that record counts are round, or with it."""

    def __init__(self, *options: str, boot_aggregate: bool = False) -> None:
        first = [] if boot_aggregate else ["--no-boot-aggregate"]
        try:
            self._mounted = Mounted([*first, *options]).start(START)
        except MountError as error:
            raise BenchError(str(error)) from None

    def pin(self, *, away: bool = False) -> None:
        """See :func:`pin`."""
        pin(self._mounted.process.pid, away=away)

    def close(self) -> None:
        """Ends it, and shows what it had logged."""
        log = self._mounted.log()
        problem = self._mounted.close()
        print(problem or log, end="", file=sys.stderr)

    def rss(self) -> int:
        """VmRSS in bytes."""
        pid = self._mounted.process.pid
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise BenchError("imafs mount: is gone")

    @property
    def mount(self) -> Path:
        """The IMA directory."""
        return self._mounted.dir

    @property
    def control(self) -> str:
        """Its control socket."""
        return self._mounted.control

    def file(self, name: str) -> str:
        """Path of a file of the IMA directory."""
        return str(self.mount / name)

    def fill(self, count: int) -> tuple[float, float]:
        """Adds records: seconds until they are in the list, and in the TPM."""
        with ControlClient(self.control) as client:
            begin = time.perf_counter()
            added = client.generate(count, name=PREFIX)["added"]
            appended = time.perf_counter() - begin
            if added != count:
                raise BenchError(f"asked for {count} records, got {added}")
            client.wait(extended=True)
            return appended, time.perf_counter() - begin
