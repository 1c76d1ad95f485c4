# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A running ``imafs mount``: one of our own, or the one of the surrounding ``imafs run``."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from imafs.errors import MountError
from imafs.host import mount_table, ownership, programs
from imafs.verbs.client import ControlClient

_READY = re.compile(r"imafs: mounted .+ control=(?P<control>\S+) tcti=(?P<tcti>\S+)\n")


class Place(Protocol):
    """Where an emulator is."""

    @property
    def dir(self) -> Path:
        """The IMA directory."""

    @property
    def control(self) -> str:
        """The control socket."""

    def log(self) -> str:
        """The daemon's log, as far as we can see it."""

    def close(self) -> str | None:
        """Ends it if it is ours; what was wrong with that."""


def missing(*, tpm: bool) -> str | None:
    """Why this process cannot mount an emulator, None where it can."""
    if os.geteuid() != 0:
        return "needs root, or an emulator around it: imafs run -- pytest"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    tools = ("fusermount3", "swtpm", "swtpm_setup") if tpm else ("fusermount3",)
    lacking = [tool for tool in tools if programs.find(tool) is None]
    return f"{', '.join(lacking)} not installed (Debian: fuse3, swtpm-tools)" if lacking else None


class Home:
    """A directory of its own for emulators, open to all users, with ``ima`` to mount on."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="imafs-home-", dir=ownership.temporary()))
        self.base.chmod(0o755)  # agents may run as another user
        self.dir = self.base / "ima"
        self.dir.mkdir()

    def close(self) -> list[str]:
        """Removes the directory; the places below on which something was mounted till then."""
        rows = mount_table.rows(Path("/proc/self/mountinfo").read_bytes())
        points = [os.fsdecode(row.point) for row in rows]
        # With a slash behind it, so that its neighbours are others and it is itself.
        left = [p for p in reversed(points) if f"{p}/".startswith(f"{self.base}/")]
        umount = programs.find("umount") or "/bin/umount"
        for point in left:
            command = [umount, "--lazy", "--no-canonicalize", point]
            subprocess.run(command, check=False, timeout=Mounted.STOP)
        shutil.rmtree(self.base)
        return left


class Mounted:
    """``imafs mount`` in the foreground: an emulator of our own, which dies with this process.

    :meth:`start` waits until it is mounted, :meth:`close` ends it whatever happens. It lives
    in ``home``, which others may share, or in one of its own. ``prefix`` goes before the
    command (``unshare ...``), ``command`` is what ``mount`` goes after, ``env`` is added to
    the environment.
    """

    #: Seconds that a start (imports, swtpm, mount) and an end may take.
    START, STOP = 60.0, 15.0

    def __init__(
        self,
        options: Sequence[str | os.PathLike[str]],
        *,
        home: Home | None = None,
        prefix: Sequence[str] = (),
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        control: bool = True,
    ) -> None:
        self._own = home is None
        self.home = home or Home()
        #: What is mounted upon, and the IMA directory there.
        self.mountpoint = self.home.dir
        below = self.mountpoint / "integrity" / "ima"
        self.dir = below if "securityfs" in options else self.mountpoint
        self.control = str(self.home.base / "control")
        self.tcti = self.ready_line = ""
        self._prefixed = bool(prefix)
        self._awaited = False
        descriptor, name = tempfile.mkstemp(prefix="stderr-", dir=self.home.base)
        os.close(descriptor)
        self._log = Path(name)
        ours = programs.environment() if command is None else dict(os.environ)
        words = [*(programs.python("imafs") if command is None else command), "mount"]
        words += [str(self.mountpoint), *(os.fspath(word) for word in options)]
        if control:
            words += ["--control", self.control]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_dying_with_us(), *prefix, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**ours, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    def start(self, seconds: float = START) -> Self:
        """Waits for the line that says ready. Raises :class:`MountError` with what it said
        where it ends instead; then it is closed.
        """
        try:
            line = self._first_line(seconds)
            ready = _READY.fullmatch(line)
            if ready is None:
                self.wait()
                said = (self.log().strip() or line).removeprefix("imafs: ")
                raise MountError(f"imafs mount did not start: {said}")
        except BaseException:
            Mounted.close(self)
            raise
        self.ready_line = line
        (self.control,) = shlex.split(ready["control"])
        self.tcti = ready["tcti"]
        return self

    def _first_line(self, seconds: float) -> str:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        end, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(0, end - time.monotonic()))[0]:
                raise MountError(f"imafs mount is not ready after {seconds:g} s: {self.log()}")
            piece = os.read(descriptor, 4096)
            if not piece:
                break
            line += piece
        return os.fsdecode(line)

    @property
    def pid(self) -> int:
        """Process id of the daemon, also behind a prefix: who listens on its socket."""
        if not self.ready_line:
            return self.process.pid
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.control)
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(raw[:4], sys.byteorder) or self.process.pid

    def log(self) -> str:
        """The daemon's stderr, as long as its directory is there."""
        with contextlib.suppress(FileNotFoundError):
            return self._log.read_text(errors="replace")
        return ""

    def wait(self, seconds: float | None = None) -> int:
        """Until it ends, by itself or for what somebody did: its exit status."""
        self._awaited = True
        return self.process.wait(self.STOP if seconds is None else seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signals the daemon itself and waits; the exit status."""
        os.kill(self.pid, number)
        return self.wait()

    def kill(self) -> None:
        """kill -9: the mount stays behind."""
        self.stop(signal.SIGKILL)

    def end(self) -> str | None:
        """SIGTERM, later SIGKILL, unless it has ended; what was wrong with that."""
        assert self.process.stdout is not None
        try:
            return self._end()
        finally:
            self.process.stdout.close()

    def _end(self) -> str | None:
        if (status := self.process.poll()) is not None:
            return None if self._awaited else f"the emulator had ended (status {status})"
        self._terminate()
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.wait()
            return f"the emulator did not end within {self.STOP:g} s"
        return f"the emulator ended with status {status}" if status else None

    def close(self) -> str | None:
        """Ends it; a directory of its own goes, whatever happens. What was wrong."""
        problem = self.end()
        log = self.log().strip()
        problem = self.take_away() or problem
        return f"{problem}; its log: {log}" if problem else None

    def take_away(self) -> str | None:
        """Removes a directory of its own."""
        if not self._own or not self.home.base.exists():
            return None
        killed = self.process.returncode == -signal.SIGKILL
        left = str(self.mountpoint) in self.home.close() and not killed
        return "the emulator left its mount" if left else None

    def _terminate(self) -> None:
        """SIGTERM to the daemon: unshare ignores it while it waits for its child."""
        pids = [self.process.pid]
        if self._prefixed:
            try:
                pids = [self.pid]
            except (FileNotFoundError, ConnectionRefusedError):
                pids += children(self.process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)


def children(pid: int) -> list[int]:
    """Process ids of the living children of ``pid``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def _dying_with_us() -> list[str]:
    """The words before a command that must not outlive a killed pytest.

    PR_SET_PDEATHSIG is about the parent *thread*: any but the main one may end early.
    """
    setpriv = programs.find("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    return [setpriv, "--pdeathsig", "TERM"]


class Surrounding:
    """The emulator of ``imafs run -- pytest``, or any other, by its socket."""

    def __init__(self, control: str) -> None:
        self.control = control
        with ControlClient(control) as client:
            mountpoint = Path(str(client.status()["mountpoint"]))
        below = mountpoint / "integrity" / "ima"
        self.dir = below if below.is_dir() else mountpoint

    def log(self) -> str:
        """Empty: the process that started the daemon has its log."""
        return ""

    def close(self) -> str | None:
        """It is not ours to end."""
        return None
