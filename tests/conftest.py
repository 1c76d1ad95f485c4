# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Rules for every test: no undeclared warning in the log, nothing left behind at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support import DeadlineError, ExpectedLogs, require, run, wait_for

T = TypeVar("T")

#: A project of its own, which tests/testing runs as its users run theirs.
collect_ignore = ["example_project"]

#: Marker -> what it needs (tests.support.require).
NEEDS = {
    "root": ("root",),
    "mount": ("/dev/fuse", "fusermount3"),
    "swtpm": ("swtpm", "swtpm_setup"),
}

#: In the environment of everything that a session starts, so that also processes which
#: have left their parent are found at the end.
SESSION_VARIABLE = "IMAFS_TEST_SESSION"

#: How long processes and mounts may take to go at the end, seconds.
PARTING_SECONDS = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly as well")
    parser.addoption(
        "--kill-runs",
        metavar="NUMBER",
        type=int,
        default=200,
        help="so many nightly runs that kill the keeper at its steps, ten in each test",
    )
    parser.addoption(
        "--oracle",
        metavar="DIR",
        help="a directory with kernels to ask: boot them and record the answers anew",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if config.getoption("--nightly"):
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]


def pytest_configure(config: pytest.Config) -> None:
    # nohup, and shells that start jobs in the background, have them ignored; so would be all
    # that the tests start, and then tell (imafs run hands its dispositions on).
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, needs in NEEDS.items():
        if item.get_closest_marker(marker):
            require(*needs)


class _Collector(logging.Handler):
    """Keeps the text of every record of level WARNING or higher."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def take(self) -> list[str]:
        """The lines so far; the next call begins after them."""
        taken = self.lines[:]
        del self.lines[: len(taken)]
        return taken


@pytest.fixture(scope="session")
def _collector() -> Iterator[_Collector]:
    collector = _Collector()
    logging.getLogger().addHandler(collector)
    yield collector
    logging.getLogger().removeHandler(collector)
    left = collector.take()
    assert not left, "logged outside of any test:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def expected_logs(_collector: _Collector) -> Iterator[ExpectedLogs]:
    """A test fails when it logs WARNING or higher through ``logging``, unless it says so:

        def test_refusal(expected_logs: ExpectedLogs) -> None:
            expected_logs.allow("process .* refused")   # may come
            expected_logs.expect("TPM is gone")         # must come

    The text matched is "LEVEL logger: message", a traceback included. Fixtures of the
    test are covered, their teardown too. What daemons write on their own stderr does not
    come this way: whoever starts them checks it.
    """
    expected = ExpectedLogs()
    yield expected
    assert _collector in logging.getLogger().handlers, "somebody replaced the root log handlers"
    complaints = expected.complaints(_collector.take())
    assert not complaints, "log:\n" + "\n".join(complaints)


def _environment(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except PermissionError:  # another user's process: none of ours
        return []
    except ProcessLookupError:  # a zombie has no memory to read from (Linux 6.18)
        return []


def _session_processes(token: str) -> dict[int, str]:
    """Processes other than this one whose environment has ``token``, and our own children.

    A zombie has no environment; ours is found as a child.
    """
    found = {}
    marker = f"{SESSION_VARIABLE}={token}".encode()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            status, rest = (directory / "stat").read_text().rsplit(")", 1)
            environment = _environment(directory / "environ")
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile
        state, parent = rest.split()[:2]
        if marker in environment or int(parent) == os.getpid():
            found[int(directory.name)] = f"{status.partition('(')[2]} ({state})"
    return found


def _mounts_below(directories: list[Path]) -> list[str]:
    """Mountpoints below one of ``directories``, the innermost and topmost first."""
    points = [
        re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    ]
    roots = tuple(f"{directory}/" for directory in directories)
    return [point for point in reversed(points) if point.startswith(roots)]


def _still_there(look: Callable[[], T], what: str) -> T | None:
    """What ``look`` still finds after PARTING_SECONDS; None when all is gone."""
    try:
        wait_for(lambda: not look(), PARTING_SECONDS, what)
    except DeadlineError:
        return look()
    return None


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end no process of this session runs and no mount of its directories is left.

    Several sessions may share a machine: a mount is ours when it lies below pytest's
    own directory or below TMPDIR, which points to a directory of this session (mode 0755,
    unlike pytest's: other users reach mounts in it). What is left is reported, then removed.
    """
    token = uuid.uuid4().hex
    base = tmp_path_factory.getbasetemp()  # before TMPDIR changes: pytest keeps the last three
    directory = Path(tempfile.mkdtemp(prefix="imafs-tests-"))
    directory.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SESSION_VARIABLE, token)
        patch.setenv("TMPDIR", str(directory))
        patch.setattr(tempfile, "tempdir", None)  # the cached value of the old TMPDIR
        yield
    directories = [directory, base]
    processes = _still_there(lambda: _session_processes(token), "no process is left")
    for pid in processes or ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    mounts = _still_there(lambda: _mounts_below(directories), "no mount is left")
    for point in mounts or ():
        run(["umount", "--lazy", "--no-canonicalize", point])
    shutil.rmtree(directory)
    assert not processes, f"processes left by the tests: {processes}"
    assert not mounts, f"mounts left by the tests: {mounts}"
