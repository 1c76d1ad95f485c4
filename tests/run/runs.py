# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs run`` under test: as root, as root of a user namespace, as an ordinary user."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from imafs.testing.mounted import children
from tests.mount.daemon import alive
from tests.support import ROOT, DeadlineError, require, run, wait_for

SECURITY = "/sys/kernel/security"
IMA = f"{SECURITY}/integrity/ima"
LIST = f"{IMA}/ascii_runtime_measurements"
CLASS = "/sys/class/tpm"
SECONDS = 60.0
ELSEWHERE = "imafs: the TPM is at port "
_USER = 12345

#: Root that may not make a mount namespace, so that a user namespace is taken.
WITHOUT_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
AS_USER = ("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups")


@cache
def _python_for(before: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """A Python that whoever ``before`` makes of us may run, and its PYTHONPATH.

    Ours, unless it lies in a directory that only root may enter; then the system's of the
    same version.
    """
    packages = os.pathsep.join((str(ROOT), sysconfig.get_path("platlib")))
    said = ""
    for candidate in (sys.executable, "/usr/bin/python3"):
        command = [*before, candidate, "-c", "import imafs.fuse.session, imafs.tpm.tcti"]
        done = run(["env", f"PYTHONPATH={packages}", *command], check=False)
        if done.returncode == 0:
            return (candidate, "-P", "-m", "imafs"), packages
        said = done.stderr.strip()[-200:]
    # No tool that is missing: the project lies where root alone may go, or its .venv is of a
    # Python that does, and the system's is another one.
    pytest.skip(f"no Python that uid {_USER} may run finds imafs: {said}")


def imafs_for(before: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """``imafs`` as a command that goes after ``before``, and its environment."""
    require("root", "setpriv")
    words, packages = _python_for(before)
    return words, {"PYTHONPATH": packages, "HOME": "/nonexistent"}


def imafs_as_user() -> tuple[tuple[str, ...], dict[str, str]]:
    """What goes before ``run``, and the environment, for an ordinary user."""
    words, environment = imafs_for(AS_USER)
    return (*AS_USER, *words), environment


def words_for(who: str) -> tuple[list[str], dict[str, str]]:
    """The command ``imafs`` for ``who``: root, namespace or user."""
    if who == "user":
        words, environment = imafs_as_user()
        return list(words), environment
    plain = [sys.executable, "-P", "-m", "imafs"]
    return ([*WITHOUT_ADMIN, *plain] if who == "namespace" else plain), {}


def imafs_run(
    *arguments: str | os.PathLike[str],
    who: str = "root",
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    deadline: float = SECONDS,
    ports: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``imafs run`` with ``arguments`` (options, ``--``, command) to its end; its stderr without
    the line about a TPM that is not at its usual port, unless ``ports``."""
    words, environment = words_for(who)
    command = [*words, "run", *arguments]
    done = run(
        command,
        check=check,
        stdin=stdin,
        env={**environment, **path_with_imafs(), **(env or {})},
        cwd=ROOT,
        deadline=deadline,
    )
    if not ports:
        done.stderr = without_ports(done.stderr)
    return done


def without_ports(said: str) -> str:
    """Without the line about a TPM elsewhere: another session of this machine may be first."""
    lines = said.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(ELSEWHERE))


def path_with_imafs() -> dict[str, str]:
    """PATH in which the command ``imafs`` is found."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def in_shell(script: str, *options: str, who: str = "root", check: bool = True) -> str:
    """What ``sh -c script`` prints inside."""
    return imafs_run(*options, "--", "sh", "-c", script, who=who, check=check).stdout


def family(pid: int) -> set[int]:
    """``pid`` and all living processes below it."""
    found = {pid} if alive(pid) else set()
    for child in children(pid):
        found |= family(child)
    return found


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # gone meanwhile


class Traces:
    """What a session could leave on this machine, before it."""

    def __init__(self) -> None:
        self._before = self._look()

    @staticmethod
    def _look() -> dict[str, list[str]]:
        # Not all mounts and sockets: others use this machine too.
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        sockets = Path("/run/imafs").glob("sys-*")
        return {
            "mounts": [line for line in mounts if line.split()[4].startswith("/sys/")],
            "files": sorted(os.listdir(tempfile.gettempdir())),
            "sockets": sorted(path.name for path in sockets),
        }

    def assert_none(self, processes: set[int]) -> None:
        """Nothing is new, and ``processes`` have ended."""
        wait_for(lambda: not any(map(alive, processes)), 60, f"{processes} have ended")
        assert self._look() == self._before


class Run:
    """A running ``imafs run`` with pipes; :meth:`line` waits for a line of its stdout."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            cwd=ROOT,
            start_new_session=True,
        )
        self._text = b""

    @property
    def pid(self) -> int:
        """Of ``imafs run`` itself."""
        return self.process.pid

    def line(self, seconds: float = SECONDS) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._text:
            left = max(0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise DeadlineError(f"no line within {seconds:g} s")
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, f"ended: {self.stderr()}"
            self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def type(self, text: str) -> None:
        """A line for the command's stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code, negative for a signal."""
        return self.process.wait(seconds)

    def stderr(self) -> str:
        """All of it, as :func:`imafs_run` gives it; waits for its end."""
        assert self.process.stderr is not None
        return without_ports(self.process.stderr.read().decode())

    def named(self, name: str) -> int:
        """Process id of the only process of the session with this comm."""
        found = [pid for pid in family(self.pid) if _comm(pid) == name]
        assert len(found) == 1, found
        return found[0]

    def close(self) -> None:
        """Ends everything that is left."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait(SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


StartRun = Callable[..., Run]


@pytest.fixture
def start_run() -> Iterator[StartRun]:
    """Starts ``imafs run [options] -- sh -c script``."""
    with ExitStack() as stack:

        def start(script: str, *options: str, who: str = "root") -> Run:
            words, environment = words_for(who)
            command = [*words, "run", *options, "--", "sh", "-c", script]
            started = Run(command, {**environment, **path_with_imafs()})
            stack.callback(started.close)
            return started

        yield start
