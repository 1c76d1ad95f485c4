# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A daemon under test, down to its process: how it starts, fails, dies and ends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from imafs.host import mounts
from imafs.verbs.client import ControlClient
from tests.support import ROOT, DeadlineError, ExpectedLogs, kill_group, run, wait_for

IMAFS = (sys.executable, "-P", "-m", "imafs")
#: Seconds; a start takes 0.25 s, but the machine may be busy.
START = 60.0
STOP = 60.0

_READY = re.compile(r"imafs: mounted (?P<dir>.+) control=(?P<control>\S+) tcti=(?P<tcti>\S+)\n")
_COMPLAINT = re.compile(r"WARNING|ERROR|Traceback|Exception|Error\b")

ASCII = "ascii_runtime_measurements"
BINARY = "binary_runtime_measurements"
COUNT = "runtime_measurements_count"
VIOLATIONS = "violations"


def imafs(
    *arguments: str | os.PathLike[str],
    check: bool = True,
    deadline: float = 30,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs ``imafs`` with ``arguments`` to its end."""
    return run([*IMAFS, *arguments], check=check, deadline=deadline, env=env, cwd=ROOT)


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


def alive(pid: int) -> bool:
    """Whether ``pid`` is a process that has not ended, with all its threads.

    A killed process shows as a zombie once its first thread is gone; the others may still
    hold what it had open, /dev/fuse among them, so that a mount of it is not dead yet.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "XZ" or int(fields[16]) > 1


#: Shell, for a mount namespace of a test's own: no other emulator of this machine is seen.
ALONE = "findmnt --raw --noheadings --types fuse.imafs --output TARGET | xargs -r umount -l"

#: The same, but for those below $KEEP.
ALONE_BUT = ALONE.replace("|", '| sed "\\|^$KEEP/|d" |', 1)


def layers(path: str | os.PathLike[str]) -> int:
    """How many mounts lie on exactly ``path``."""
    real = mounts.resolve(path)
    return sum(mount.path == real for mount in mounts.mounts())


class Place:
    """A directory of its own, open to all users, with ``ima`` to mount on. Goes with close()."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="mount-"))
        self.base.chmod(0o755)
        self.dir = self.base / "ima"
        self.dir.mkdir()

    def close(self) -> None:
        """Unmounts whatever is left below, then removes the directory."""
        points = [mount.path for mount in mounts.mounts()]
        for point in reversed([p for p in points if p.startswith(f"{self.base}")]):
            run(["umount", "--lazy", "--no-canonicalize", point], check=False)
        shutil.rmtree(self.base)


class Daemon:
    """``imafs mount`` in the foreground.

    ``prefix`` goes before the command (``unshare ...``). :meth:`start` waits for the line
    on stdout; :meth:`close` always ends the process, then complains about log lines of
    level WARNING or higher which :attr:`logs` does not allow.
    """

    def __init__(
        self,
        place: Place,
        *options: str | os.PathLike[str],
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        control: bool = True,
    ) -> None:
        self.place = place
        self.dir = place.dir
        self.logs = ExpectedLogs()
        self._prefixed = bool(prefix)
        self.control = place.base / "control"
        self.tcti = ""
        self.ready_line = ""
        descriptor, name = tempfile.mkstemp(prefix="stderr-", dir=place.base)
        os.close(descriptor)
        self._stderr = Path(name)
        self._told = 0
        words: list[str | os.PathLike[str]] = [*prefix, *IMAFS, "mount", self.dir, *options]
        if control:
            words += ["--control", self.control]
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=None if env is None else {**os.environ, **env},
                cwd=ROOT,
                start_new_session=True,
            )

    def start(self, seconds: float = START) -> Daemon:
        """Waits for the line that says ready. Raises where the daemon ends instead."""
        line = self._line(seconds)
        match = _READY.fullmatch(line)
        assert match, f"status {self.wait()}, stdout {line!r}, stderr {self.log()!r}"
        self.ready_line = line
        self.control = Path(shlex.split(match["control"])[0])
        self.tcti = match["tcti"]
        return self

    def _line(self, seconds: float) -> str:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        end = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([descriptor], [], [], max(0, end - time.monotonic()))
            if not readable:
                raise DeadlineError(f"no line within {seconds:g} s: {self.log()}")
            piece = os.read(descriptor, 4096)
            if not piece:
                break
            line += piece
        return line.decode()

    def wait(self, seconds: float = STOP) -> int:
        """The exit status."""
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signals the daemon itself and waits; the exit status."""
        os.kill(self.pid, number)
        return self.wait()

    def kill(self) -> None:
        """kill -9: the mount stays behind."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(STOP)

    def log(self) -> str:
        """Everything on stderr so far, or since :meth:`boot_anew`."""
        return self._stderr.read_bytes()[self._told :].decode(errors="replace")

    def boot_anew(self) -> None:
        """As freshly mounted with default options, for the next test. Raises
        :class:`~imafs.errors.ImafsError` where it is not to be had any more; complains as
        :meth:`close` does of the log.
        """
        with ControlClient(self.control) as client:
            for op, options in (
                *(("scenario_end", {}), ("fault_clear", {}), ("tpm", {"work": True})),
                *(("resume", {}), ("reset", {}), ("wait", {"extended": True})),
            ):
                client.call(op, options, deadline=30)
        try:
            self._complain()
        finally:
            self._told = self._stderr.stat().st_size
            self.logs = ExpectedLogs()

    def close(self) -> None:
        """Ends the process if it has not ended and looks at its log."""
        if self.process.poll() is None:
            self._terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP)
        if self.process.poll() is None:
            kill_group(self.process)
            self.process.wait(STOP)
            hung = True
        else:
            hung = False
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not hung, f"the daemon did not end on SIGTERM: {self.log()}"
        self._complain()

    def _complain(self) -> None:
        complaints = self.logs.complaints(x for x in self.log().split("\n") if _COMPLAINT.search(x))
        assert not complaints, "log of the daemon:\n" + "\n".join(complaints) + "\n" + self.log()

    def _terminate(self) -> None:
        """SIGTERM to the daemon: unshare ignores it while it waits for its child."""
        targets = [self.process.pid]
        if self._prefixed:
            try:
                targets = [self.pid]
            except (FileNotFoundError, ConnectionRefusedError):
                targets += children(self.process.pid)
        for pid in targets:
            os.kill(pid, signal.SIGTERM)

    # What a running daemon is asked

    @property
    def pid(self) -> int:
        """Process id of the daemon (also behind a prefix): who listens on its socket."""
        if not self.ready_line:
            return self.process.pid
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.control))
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(raw[:4], sys.byteorder) or self.process.pid

    def swtpm(self) -> int:
        """Process id of the swtpm that the daemon started."""
        found = [
            pid for pid in children(self.pid) if Path(f"/proc/{pid}/comm").read_text() == "swtpm\n"
        ]
        assert len(found) == 1, found
        return found[0]

    def call(self, op: str, **options: object) -> dict[str, object]:
        """One operation of the control socket, within 30 seconds."""
        with ControlClient(self.control) as client:
            return client.call(op, options, deadline=30)

    def group(self, name: str) -> dict[str, object]:
        """A group of the status: ``records``, ``bytes``, ``failures``."""
        value = self.call("status")[name]
        assert isinstance(value, dict)
        return value

    def generate(self, count: int, **options: object) -> None:
        """So many new records, in the TPM as well."""
        self.call("generate", count=count, **options)
        self.call("wait", extended=True)

    def ctl(self, *arguments: str | os.PathLike[str], check: bool = True) -> str:
        """What ``imafs ctl`` prints."""
        return imafs("ctl", "--control", self.control, *arguments, check=check).stdout

    def environment(self) -> dict[str, str]:
        """Variables by which other clients find the TPM."""
        value = self.call("status")["environment"]
        assert isinstance(value, dict)
        return value

    def path(self, name: str) -> Path:
        """A file of the IMA directory."""
        return self.dir / name

    def read(self, name: str = BINARY) -> bytes:
        """The whole of a file, by read(2) until it gives nothing."""
        descriptor = os.open(self.dir / name, os.O_RDONLY)
        try:
            return read_to_end(descriptor)
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> str:
        """ok, or the errno of the write; the open must succeed, all must be taken."""
        descriptor = os.open(self.dir / name, os.O_WRONLY)
        try:
            assert os.write(descriptor, data) == len(data)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            os.close(descriptor)
        return "ok"

    def take(self, name: str) -> bytes:
        """Stages, reads the staged file ``name`` and deletes, by one descriptor."""
        writer = os.open(self.dir / name, os.O_RDWR)
        try:
            os.write(writer, b"A\n")
            os.lseek(writer, 0, os.SEEK_SET)
            data = read_to_end(writer)
            os.write(writer, b"D\n")
        finally:
            os.close(writer)
        return data

    def count(self) -> int:
        """runtime_measurements_count."""
        return int(self.read(COUNT))

    def lists(self) -> dict[str, bytes]:
        """Every list file, the staged ones too, and the counters."""
        names = sorted(n for n in os.listdir(self.dir) if n != "policy")
        return {name: self.read(name) for name in names}

    def pcr(self, bank: str, index: int = 10) -> bytes:
        """What another client reads from the TPM, once all is extended."""
        self.call("wait", extended=True)
        with tempfile.NamedTemporaryFile(dir=self.place.base) as value:
            command = ["tpm2_pcrread", f"{bank}:{index}", "--output", value.name]
            run(command, env={"TPM2TOOLS_TCTI": self.tcti})
            return Path(value.name).read_bytes()

    def assert_replays(self) -> None:
        """The daemon's own word: the PCRs are what the lists since boot replay to."""
        self.call("wait", extended=True)
        pcrs = self.call("status")["pcrs"]
        assert isinstance(pcrs, list)
        assert pcrs
        assert all(row["equal"] for row in pcrs), pcrs


def read_to_end(descriptor: int, size: int = 65536) -> bytes:
    """From the position of ``descriptor`` on."""
    pieces = []
    while piece := os.read(descriptor, size):
        pieces.append(piece)
    return b"".join(pieces)


def gone(path: str | os.PathLike[str]) -> None:
    """Waits until nothing is mounted on ``path``."""
    wait_for(lambda: layers(path) == 0, STOP, f"{path} is unmounted")


def close_dead(descriptor: int) -> None:
    """close() flushes, and the flush of a dead mount is ENOTCONN; the descriptor is closed."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def replay(ascii_list: bytes, bank: str, index: int = 10) -> bytes:
    """PCR ``index`` of ``bank`` after the lines of that bank's ASCII list, from zero."""
    value = bytes(hashlib.new(bank).digest_size)
    for line in ascii_list.splitlines():
        pcr, digest = line.split()[:2]
        if int(pcr) == index:
            # A violation shows zeros and extends ones.
            extended = bytes.fromhex(digest.decode())
            extended = extended if any(extended) else b"\xff" * len(extended)
            value = hashlib.new(bank, value + extended).digest()
    return value
