# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What all tests share: requirements, waiting, running commands, expected log lines."""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest
import trio

T = TypeVar("T")

#: The project's root.
ROOT = Path(__file__).resolve().parent.parent

#: Where Debian keeps commands that a plain user's PATH leaves out.
_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")

#: Capability numbers (include/uapi/linux/capability.h) that tests ask for.
_CAPABILITIES = {"cap_sys_admin": 21, "cap_mknod": 27}


def may_take(seconds: int) -> None:
    """Lets a long test go on for so many seconds, in place of the five minutes of any other."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def find_command(name: str) -> str | None:
    """Absolute path of a command in PATH or the system's sbin directories, or None."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_DIRECTORIES))
    return shutil.which(name, path=path)


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def missing(need: str) -> str | None:
    """Why ``need`` (as for :func:`require`) is not met, or None when it is."""
    if need == "root":
        return None if os.geteuid() == 0 else "uid 0 is needed"
    if need in _CAPABILITIES:
        return None if _has_capability(_CAPABILITIES[need]) else f"{need} is needed"
    if need.startswith("/dev/"):
        # A container may have the node and still refuse to open it.
        try:
            os.close(os.open(need, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"{need}: {error.strerror}"
        return None
    if need.startswith("/"):
        return None if os.path.exists(need) else f"{need} is not there"
    if find_command(need) is None:
        return f"the command {need} is not installed (scripts/setup --test installs it)"
    return None


def unmet(reasons: Sequence[str]) -> NoReturn:
    """Skip for ``reasons``; fail where nothing may be missing (IMAFS_REQUIRE_ALL=1)."""
    text = "; ".join(reasons)
    if os.environ.get("IMAFS_REQUIRE_ALL") == "1":
        pytest.fail(f"IMAFS_REQUIRE_ALL=1, but {text}", pytrace=False)
    pytest.skip(text, allow_module_level=True)


def require(*needs: str) -> None:
    """Skip the test loudly, or fail it under IMAFS_REQUIRE_ALL=1, unless every need is met.

    A need is ``root``, a capability (``cap_sys_admin``), a device (``/dev/fuse``: must
    open for reading and writing), another absolute path (must exist) or a command.
    Works in a test, a fixture and at the head of a module.
    """
    reasons = [reason for need in needs if (reason := missing(need)) is not None]
    if reasons:
        unmet(reasons)


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """What is inside takes less of this process's own time, however busy the machine is.

    For work that would go on for minutes: give what it takes many times over.
    """

    def too_long(number: int, frame: object) -> NoReturn:
        raise AssertionError(f"it took more than {seconds} s of processor time")

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class DeadlineError(AssertionError):
    """A condition did not come true, or a command did not end, in time."""


def wait_for(
    condition: Callable[[], T], deadline: float, what: str, *, interval: float = 0.01
) -> T:
    """The first true value of ``condition()``, asked every ``interval`` seconds.

    ``deadline`` is in seconds from now. Raises :class:`DeadlineError` naming ``what``
    (for example "the mount is gone") and the last value. This and :func:`wait_for_async`
    are the only places in the tests that sleep.
    """
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() >= end:
            raise DeadlineError(f"not within {deadline:g} s: {what} (last value: {value!r})")
        time.sleep(interval)
    return value


async def wait_for_async(
    condition: Callable[[], Awaitable[T]], deadline: float, what: str, *, interval: float = 0.01
) -> T:
    """Like :func:`wait_for`, in trio: ``condition`` is async, other tasks run meanwhile."""
    end = time.monotonic() + deadline
    while not (value := await condition()):
        if time.monotonic() >= end:
            raise DeadlineError(f"not within {deadline:g} s: {what} (last value: {value!r})")
        await trio.sleep(interval)
    return value


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    deadline: float = 60,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end, text in and out, within ``deadline`` seconds.

    ``env`` is added to this process' environment. The command gets its own process
    group, which is killed whole at the deadline (:class:`DeadlineError`). With
    ``check`` a status other than 0 fails the test with the command's output.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env=None if env is None else {**os.environ, **env},
        cwd=cwd,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    shown = " ".join(os.fspath(word) for word in command)
    try:
        out, err = process.communicate(stdin, timeout=deadline)
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate()
        raise DeadlineError(f"not within {deadline:g} s: {shown}\n{out}{err}") from None
    except BaseException:
        kill_group(process)
        process.communicate()
        raise
    if check and process.returncode != 0:
        raise AssertionError(f"status {process.returncode}: {shown}\n{out}{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_group(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process group that ``process`` leads (start_new_session=True).

    Does nothing once the process has been waited for: its id may be another's by then.
    """
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def stop(*pids: int) -> None:
    """SIGSTOP, and back when every thread stands still: kill(2) returns before."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        wait_for(partial(_stands, pid), 60, f"process {pid} stands still")


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Inside they stand still; at the end those go on which still live."""
    try:
        stop(*pids)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _stands(pid: int) -> bool:
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
            if stat.read_text().rsplit(")", 1)[1].split()[0] not in "TtXZ":
                return False
    return True


def unpack(archive: Path, directory: Path) -> None:
    """Everything in ``archive``, below ``directory``."""
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(directory, filter="data")
        else:  # Python 3.11.2, Debian 12's
            file.extractall(directory)


class ExpectedLogs:
    """Which log lines of level WARNING or higher a test allows; see the fixture expected_logs."""

    def __init__(self) -> None:
        self._allowed: list[re.Pattern[str]] = []
        self._expected: list[re.Pattern[str]] = []

    def allow(self, pattern: str) -> None:
        """Lines in which the regular expression ``pattern`` is found may occur."""
        self._allowed.append(re.compile(pattern))

    def expect(self, pattern: str) -> None:
        """Such a line must occur at least once."""
        self._expected.append(re.compile(pattern))

    def complaints(self, lines: Iterable[str]) -> list[str]:
        """What is wrong with ``lines``: not declared, or expected and not there."""
        seen = list(lines)
        declared = self._allowed + self._expected
        wrong = [
            f"not declared: {line}" for line in seen if not any(p.search(line) for p in declared)
        ]
        wrong += [
            f"expected, but not there: {p.pattern}"
            for p in self._expected
            if not any(p.search(line) for line in seen)
        ]
        return wrong
