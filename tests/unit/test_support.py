# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The common rules bite: planted leaks and log lines fail a session of their own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, DeadlineError, missing, require, run, wait_for, wait_for_async

HEAD = """
import logging, os, subprocess, sys, tempfile
import pytest
FOREVER = [sys.executable, "-c", "import signal; signal.pause()"]
"""

#: name -> (test file, what the session must print)
PLANTED = {
    "warning": (
        """
def test_it():
    logging.getLogger("x").warning("oh %d", 7)
""",
        "oh 7",
    ),
    "missing": (
        """
def test_it(expected_logs):
    expected_logs.expect("never")
""",
        "expected, but not there: never",
    ),
    "teardown": (
        """
@pytest.fixture
def late():
    yield
    logging.error("too late")

def test_it(late):
    pass
""",
        "too late",
    ),
    "session": (
        """
@pytest.fixture(scope="session")
def late(_collector):
    yield
    logging.error("after all tests")

def test_it(late):
    pass
""",
        "logged outside of any test",
    ),
    "handlers": (
        """
def test_it():
    logging.basicConfig(force=True)
""",
        "replaced the root log handlers",
    ),
    "orphan": (
        """
def test_it():
    subprocess.run(["sh", "-c", '"$@" & exit 0', "sh", *FOREVER], check=True)
""",
        "processes left by the tests",
    ),
    "zombie": (
        """
def test_it():
    if os.fork() == 0:
        os._exit(0)
""",
        "processes left by the tests",
    ),
    "mount": (
        """
def test_it():
    subprocess.run(["mount", "-t", "tmpfs", "x y", tempfile.mkdtemp(suffix="a b")], check=True)
""",
        "mounts left by the tests",
    ),
    "nightly": (
        """
@pytest.mark.nightly
def test_it():
    pass
""",
        "1 deselected",
    ),
    "nothing": (
        """
def test_it(expected_logs):
    expected_logs.allow("allowed")
    expected_logs.expect("^ERROR root: wanted$")
    logging.error("wanted")
    logging.warning("allowed")
    logging.info("low")
""",
        "1 passed",
    ),
}


def _session(directory: Path, body: str, *arguments: str, require_all: str = "") -> tuple[int, str]:
    """Run one test file under a copy of the project's rules: status and output."""
    tests = directory / "tests"
    tests.mkdir()
    for name in ("conftest.py", "support.py", "__init__.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    shutil.copy(ROOT / "pyproject.toml", directory)
    conftest = tests / "conftest.py"
    text = conftest.read_text()
    assert "PARTING_SECONDS = 30.0" in text
    conftest.write_text(text.replace("PARTING_SECONDS = 30.0", "PARTING_SECONDS = 0.2"))
    (tests / "test_planted.py").write_text(HEAD + body)
    done = run(
        [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        deadline=60,
        check=False,
        env={"IMAFS_REQUIRE_ALL": require_all},
        cwd=directory,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", PLANTED)
def test_session_rules(name: str, tmp_path: Path) -> None:
    if name == "mount":
        require("root", "cap_sys_admin")
    body, text = PLANTED[name]
    status, output = _session(tmp_path, body)
    assert text in output
    assert status == {"nothing": 0, "nightly": 5}.get(name, 1), output


def test_nightly_runs_when_asked(tmp_path: Path) -> None:
    status, output = _session(tmp_path, PLANTED["nightly"][0], "--nightly")
    assert (status, "1 passed" in output) == (0, True), output


def test_long_ones_come_first(tmp_path: Path) -> None:
    """Or a process has one left when the others are done."""
    body = "def test_short(): pass\n@pytest.mark.long\ndef test_long(): pass\n"
    status, output = _session(tmp_path, body, "-v")
    assert status == 0, output
    assert output.index("::test_long") < output.index("::test_short")


@pytest.mark.parametrize("require_all", ["", "1"])
def test_require_skips_or_fails(require_all: str, tmp_path: Path) -> None:
    body = "from tests.support import require\ndef test_it():\n    require('no-such-command')"
    status, output = _session(tmp_path, body, require_all=require_all)
    assert "no-such-command is not installed" in output
    assert ("1 failed" in output, status) == ((True, 1) if require_all else (False, 0))


def test_missing() -> None:
    assert missing("sh") is None
    assert missing("/proc/self") is None
    assert missing("/no/such/file") == "/no/such/file is not there"
    assert missing("/dev/no-such-device") == "/dev/no-such-device: No such file or directory"
    assert (missing("root") is None) == (os.geteuid() == 0)


def test_wait_for() -> None:
    values = iter([0, 0, 3])
    assert wait_for(lambda: next(values), 5, "a number", interval=0) == 3
    with pytest.raises(DeadlineError, match=r"not within 0 s: never \(last value: None\)"):
        wait_for(lambda: None, 0, "never")


async def test_wait_for_async() -> None:
    values = iter([0, 0, 3])

    async def later() -> int:
        return next(values)

    async def never() -> bool:
        return False

    assert await wait_for_async(later, 5, "a number", interval=0) == 3
    with pytest.raises(DeadlineError, match="not within 0 s: never"):
        await wait_for_async(never, 0, "never")


def test_run() -> None:
    assert run(["cat"], stdin="hello").stdout == "hello"
    assert run(["sh", "-c", "echo $X"], env={"X": "7"}).stdout == "7\n"
    assert run(["sh", "-c", "exit 3"], check=False).returncode == 3
    with pytest.raises(AssertionError, match=r"(?s)status 3: sh -c.*oh dear"):
        run(["sh", "-c", "echo oh dear >&2; exit 3"])


def test_run_kills_the_whole_group_at_its_deadline() -> None:
    # The grandchild holds the pipe open: without the group's death this would hang.
    with pytest.raises(DeadlineError, match=r"(?s)not within 0.5 s: sh.*started"):
        run(["sh", "-c", "sleep 1000 & echo started; wait"], deadline=0.5)
