# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""An emulator to test against: ``imafs mount`` as a process of its own, on a mount of its own.

As a context manager, or through the fixture (a room's conftest.py re-exports it)::

    from tests.emulator import emulators as emulators

    def test_it(emulators: StartEmulator) -> None:
        emulator = emulators("--banks", "sha1,sha256")
        assert emulator.call("measure", digest="sha256:" + "0" * 64, name="/x")["ok"]
        assert emulator.read("runtime_measurements_count") == b"2\\n"

Everything has a deadline. At the end the process, its mount and its files are gone, and the
test fails when the emulator had logged WARNING or worse (see :meth:`Emulator.allow`), had
ended by itself, or did not end with status 0.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.support import ROOT, find_command, kill_group, require, run, wait_for

#: What a start (imports, swtpm, mount) and an end may take at most, seconds.
START_SECONDS = 60.0
STOP_SECONDS = 60.0
CALL_SECONDS = 60.0

_READY = re.compile(r"imafs: mounted (?P<dir>.+) control=(?P<control>\S+) tcti=(?P<tcti>.*)\n")
_BAD_LINE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback|Exception|ResourceWarning")

Answer = dict[str, Any]


def _dying_with_us() -> list[str]:
    """What to put before a command that must not outlive a killed test run.

    PR_SET_PDEATHSIG is about the parent *thread*: any but the main one may end early.
    """
    setpriv = find_command("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    return [setpriv, "--pdeathsig", "TERM"]


class Refused(Exception):
    """The emulator answered ``ok: false``; ``errno`` is the errno's name."""

    def __init__(self, answer: Answer) -> None:
        self.errno = str(answer.get("errno"))
        super().__init__(f"{self.errno}: {answer.get('error')}")


class Emulator:
    """One running ``imafs mount``.

    ``dir``      the mountpoint (other users may enter it)
    ``ima``      the IMA directory in it: ``dir`` itself, or below it (``--layout securityfs``)
    ``control``  path of the control socket
    ``tcti``     TCTI of its TPM for other clients, "" without one
    ``log_file`` its stderr
    """

    def __init__(
        self, *options: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> None:
        self.options = options
        self._cwd = cwd
        self._environment = dict(env or {})
        self._allowed: list[re.Pattern[str]] = []
        self._process: subprocess.Popen[bytes] | None = None
        # Not pytest's tmp_path: that is 0700, and tests come as other users as well.
        self.home = Path(tempfile.mkdtemp(prefix="imafs-emulator-"))
        self.home.chmod(0o755)
        self.dir = self.home / "mnt"
        self.dir.mkdir(mode=0o755)
        self.log_file = self.home / "stderr"
        self.control = str(self.home / "private" / "control")
        Path(self.control).parent.mkdir(mode=0o700)
        self.tcti = ""

    # ---- life

    def start(self) -> Emulator:
        """Start it and wait for its ready line; AssertionError with its stderr otherwise."""
        require("/dev/fuse", "fusermount3", "swtpm")
        command = [*_dying_with_us(), sys.executable, "-P", "-m", "imafs", "mount", str(self.dir)]
        command += ["--control", self.control, *self.options]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._cwd,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        try:
            ready = _READY.fullmatch(self._first_line())
            assert ready is not None, f"no ready line\n{self.log()}"
        except BaseException:
            self.kill()
            self._clean_up()
            raise
        self.control = ready["control"]
        self.tcti = "" if ready["tcti"] in ("none", "-") else ready["tcti"]
        return self

    def _first_line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        end, line = time.monotonic() + START_SECONDS, b""
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            assert left > 0, f"not ready within {START_SECONDS:g} s\n{self.log()}"
            if select.select([descriptor], [], [], left)[0]:
                piece = os.read(descriptor, 4096)
                assert piece, f"ended before it was ready\n{self.log()}"
                line += piece
        return os.fsdecode(line)

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float = STOP_SECONDS) -> int:
        """Wait for the process and return its status (negative: the signal)."""
        assert self._process is not None
        return self._process.wait(deadline)

    def kill(self) -> None:
        """SIGKILL to the daemon and all that it started; its mount stays and is dead."""
        if self._process is not None:
            kill_group(self._process)
            self._process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End it with SIGTERM and clean up; AssertionError when anything was wrong.

        Harmless when it is stopped already or was killed by the test.
        """
        if self._process is None or not self.home.exists():
            return
        complaints = []
        killed = self._process.poll() == -signal.SIGKILL
        if not killed and not self.alive:
            complaints.append(f"it ended by itself with status {self._process.returncode}")
        try:
            if self.alive:
                self.terminate()
                status = self.wait()
                if status:
                    complaints.append(f"SIGTERM ended it with status {status}")
        except subprocess.TimeoutExpired:
            complaints.append(f"still there {STOP_SECONDS:g} s after SIGTERM")
        finally:
            self.kill()
            log = self.log()
            if not killed and self.is_mounted():
                complaints.append("its mount was still there")
            self._clean_up()
        complaints += [f"log: {line}" for line in self.bad_lines(log)]
        assert not complaints, "\n".join([*complaints, "--- its stderr:", log])

    def _clean_up(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        while self.is_mounted():
            run(["umount", "--lazy", "--no-canonicalize", self.dir])
        shutil.rmtree(self.home)

    def is_mounted(self) -> bool:
        """Whether something is mounted on ``dir``, dead or alive."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(line.split()[4] == str(self.dir) for line in mounts)

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
            return
        # The first error counts; what stop() says comes with it as a note.
        try:
            self.stop()
        except AssertionError as complaint:
            error.add_note(f"and the emulator: {complaint}")

    # ---- its log

    def log(self) -> str:
        """All that it wrote on stderr so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_file.read_text(errors="replace")
        return ""

    def allow(self, pattern: str) -> None:
        """Log lines in which this regular expression is found do not fail the test."""
        self._allowed.append(re.compile(pattern))

    def bad_lines(self, log: str) -> list[str]:
        """The lines of ``log`` of level WARNING or worse that nobody allowed."""
        lines = [line for line in log.splitlines() if _BAD_LINE.search(line)]
        return [line for line in lines if not any(p.search(line) for p in self._allowed)]

    # ---- asking it

    def call(self, op: str, /, **options: object) -> Answer:
        """One request over the control socket; :class:`Refused` when it is not ok."""
        return self.calls([{"op": op, **options}])[0]

    def calls(self, requests: Sequence[Mapping[str, object]]) -> list[Answer]:
        """Requests over one connection, one after the other; :class:`Refused` at the first no."""
        answers = []
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(CALL_SECONDS)
            channel.connect(self.control)
            with channel.makefile("rwb") as lines:
                for request in requests:
                    lines.write(json.dumps(request).encode() + b"\n")
                    lines.flush()
                    answer = json.loads(lines.readline() or b"{}")
                    if not answer.get("ok"):
                        raise Refused(answer)
                    answers.append(answer)
        return answers

    @property
    def ima(self) -> Path:
        """The IMA directory, whatever the layout."""
        below = self.dir / "integrity" / "ima"
        return below if "securityfs" in self.options else self.dir

    def read(self, name: str) -> bytes:
        """The whole content of a file of the IMA directory."""
        return (self.ima / name).read_bytes()

    def write(self, name: str, request: bytes) -> None:
        """Open a file of the IMA directory for writing and make one write(2); OSError."""
        descriptor = os.open(self.ima / name, os.O_WRONLY)
        try:
            os.write(descriptor, request)
        finally:
            os.close(descriptor)

    def environment(self) -> dict[str, str]:
        """What tpm2-tools need to talk to its TPM."""
        return {"TPM2TOOLS_TCTI": self.tcti}

    def pcr(self, bank: str, index: int = 10) -> bytes:
        """A PCR as the TPM itself says (tpm2_pcrread), when all extends are done.

        Not the emulator's own word: another client reads the same TPM.
        """
        require("tpm2_pcrread")
        self.call("wait", extended=True)
        with tempfile.NamedTemporaryFile(dir=self.home) as value:
            command = ["tpm2_pcrread", f"{bank}:{index}", "--output", value.name]
            run(command, env=self.environment())
            return Path(value.name).read_bytes()

    def pcr_becomes(self, value: bytes, bank: str, index: int = 10, deadline: float = 10) -> None:
        """Wait until a PCR has ``value``; DeadlineError otherwise."""
        wait_for(lambda: self.pcr(bank, index) == value, deadline, f"PCR {index} of {bank}")


StartEmulator = Callable[..., Emulator]


@pytest.fixture
def emulators() -> Iterator[StartEmulator]:
    """A function that starts an emulator with the given options; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, env: Mapping[str, str] | None = None) -> Emulator:
            emulator = Emulator(*options, env=env).start()
            stack.callback(emulator.stop)
            return emulator

        yield start
