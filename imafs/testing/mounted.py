# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A running ``imafs mount``: one of our own, or the one of the surrounding ``imafs run``."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from imafs.errors import MountError
from imafs.host import mount_table, ownership, programs
from imafs.verbs.client import ControlClient

START = 30.0
STOP = 15.0

_READY = re.compile(r"imafs: mounted .+ control=\S+ tcti=\S+\n")


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


class Mounted:
    """An emulator of our own in a directory of its own; dies with this process."""

    def __init__(self, options: Sequence[str]) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="imafs-pytest-", dir=ownership.temporary()))
        self._home.chmod(0o755)  # agents may run as another user
        self.dir = self._home / "ima"
        self.dir.mkdir()
        private = self._home / "private"
        private.mkdir(mode=0o700)
        self.control = str(private / "control")
        self._log = private / "log"
        command = programs.python(
            "imafs", "mount", str(self.dir), "--control", self.control, *options
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_dying_with_us(), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=programs.environment(),
                start_new_session=True,
            )
        try:
            line = self._first_line()
            if _READY.fullmatch(line) is None:
                said = (self.log().strip() or line).removeprefix("imafs: ")
                raise MountError(f"imafs mount did not start: {said}")
        except BaseException:
            self.close()
            raise
        if "securityfs" in options:
            self.dir = self.dir / "integrity" / "ima"

    def _first_line(self) -> str:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        end, line = time.monotonic() + START, b""
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(0, end - time.monotonic()))[0]:
                raise MountError(f"imafs mount is not ready after {START:g} s: {self.log()}")
            piece = os.read(descriptor, 4096)
            if not piece:
                break
            line += piece
        return os.fsdecode(line)

    def log(self) -> str:
        """The daemon's stderr."""
        return self._log.read_text(errors="replace")

    def close(self) -> str | None:
        """SIGTERM, later SIGKILL; what was wrong. The directory goes, whatever happens."""
        problem = self._end()
        log = self.log().strip()
        assert self._process.stdout is not None
        self._process.stdout.close()
        mountpoint = self._home / "ima"
        mounts = mount_table.rows(Path("/proc/self/mountinfo").read_bytes())
        if any(mount.point == os.fsencode(mountpoint) for mount in mounts):
            subprocess.run(
                [programs.find("umount") or "/bin/umount", "--lazy", mountpoint],
                check=False,
                timeout=STOP,
            )
        shutil.rmtree(self._home)
        return f"{problem}; its log: {log}" if problem else None

    def _end(self) -> str | None:
        if self._process.poll() is not None:  # by itself
            return f"the emulator had ended (status {self._process.returncode})"
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP)
            return f"the emulator did not end within {STOP:g} s"
        return f"the emulator ended with status {status}" if status else None


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
