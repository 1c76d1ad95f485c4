# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Every reader case gets from an emulator what it got from Linux 7.2.13, whoever runs it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.conformance import readercases
from tests.conformance.readercases import LIST, Group
from tests.mount.daemon import Daemon
from tests.run.containers import Container, Pod, services
from tests.run.runs import SECURITY, imafs_as_user, imafs_for
from tests.support import ROOT, kill_group, missing, require, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: Groups whose tools have to be fetched or take their time to start.
SLOW = ("go", "rust", "node")
#: Seconds for one group of cases.
GROUP_SECONDS = 240.0
#: Of ``imafs run``, which asks for no name.
USER = 12345
#: fusermount3 mounts for users with a name only.
NAMED = pwd.getpwnam("nobody").pw_uid
AS_NAMED = ("setpriv", f"--reuid={NAMED}", f"--regid={NAMED}", "--clear-groups")


class Reader(Protocol):
    """Somebody who plays cases: what play.py prints to him."""

    def play(self, groups: Sequence[str]) -> str: ...


@pytest.fixture(scope="module")
def bench() -> Iterator[Path]:
    """A directory that everybody may enter: the programs and the recorded list."""
    with tempfile.TemporaryDirectory(prefix="imafs-readers-") as name:
        home = Path(name)
        home.chmod(0o755)
        for file in readercases.READERS.iterdir():
            if file.is_file():  # Python's cache is none of them
                shutil.copy(file, home)
        (home / "binary").write_bytes(readercases.recorded("binary"))
        yield home


@pytest.fixture(scope="module")
def programs(bench: Path, request: pytest.FixtureRequest) -> Path:
    """With the compiled ones, of which those of slow languages on demand."""
    require("gcc")
    slow = bool(request.config.getoption("--nightly"))
    wanted = {"reader": "gcc"} | ({"reader-go": "go", "reader-rs": "rustc"} if slow else {})
    readercases.build(bench, [name for name, tool in wanted.items() if missing(tool) is None])
    return bench


def command(bench: Path, directory: str | Path, groups: Sequence[str]) -> list[str]:
    """play.py by the system's Python: ours may lie where root alone may go."""
    python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
    return [
        python, str(bench / "play.py"), f"{directory}/{LIST}", str(bench),
        str(bench / "cases.txt"), *groups,
    ]  # fmt: skip


class Root:
    """Root, on a mount of root's."""

    def __init__(self, bench: Path, emulator: Daemon) -> None:
        self._bench = bench
        self.dir = emulator.dir

    def play(self, groups: Sequence[str]) -> str:
        words = command(self._bench, self.dir, groups)
        return run(words, env=readercases.environment(), deadline=GROUP_SECONDS).stdout


class User:
    """A plain user, on a mount of his own by fusermount3."""

    def __init__(self, bench: Path, home: Path) -> None:
        self._bench = bench
        words, environment = imafs_for(AS_NAMED)
        self._environment = environment | readercases.environment() | {"TMPDIR": str(home)}
        self.dir = home / "ima"
        self.dir.mkdir()
        os.chown(self.dir, NAMED, NAMED)
        mount = [*AS_NAMED, *words, "mount", str(self.dir), "--control", str(home / "control")]
        self._daemon = subprocess.Popen(
            [*mount, "--load", str(bench / "binary")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._environment},
            cwd=ROOT,
            start_new_session=True,
        )

    def start(self) -> None:
        """Waits until it is mounted."""
        assert self._daemon.stdout is not None
        line = self._daemon.stdout.readline()
        assert line.startswith("imafs: mounted"), line or self._daemon.communicate()[1]

    def play(self, groups: Sequence[str]) -> str:
        words = [*AS_NAMED, *command(self._bench, self.dir, groups)]
        done = run(words, env=self._environment, cwd=self.dir.parent, deadline=GROUP_SECONDS)
        return done.stdout

    def close(self) -> None:
        """SIGTERM; nothing may have been logged."""
        self._daemon.terminate()
        try:
            _, log = self._daemon.communicate(timeout=30)
        finally:
            kill_group(self._daemon)
        assert self._daemon.returncode == 0, log
        assert not [line for line in log.splitlines() if "WARNING" in line or "ERROR" in line], log


class Session:
    """A plain user inside ``imafs run``: a session per call."""

    def __init__(self, bench: Path, home: Path) -> None:
        self._bench = bench
        self._home = home

    def play(self, groups: Sequence[str]) -> str:
        words, environment = imafs_as_user()
        environment |= readercases.environment() | {"TMPDIR": str(self._home)}
        inside = command(self._bench, f"{SECURITY}/ima", groups)
        whole = [*words, "run", "--load", str(self._bench / "binary"), "--", *inside]
        return run(whole, env=environment, cwd=self._home, deadline=GROUP_SECONDS).stdout


class Contained:
    """Root in the container of an agent, beside the one of the emulator (compose.yaml)."""

    def __init__(self, bench: Path, pod: Pod) -> None:
        self._pod = pod
        service = services()["emulator"]
        emulator = pod.start("emulator", {**service, "command": ["--no-boot-aggregate"]})
        pod.healthy(emulator)
        shutil.copy(bench / "binary", self._temporary(emulator))
        emulator.execute("imafs", "ctl", "load", "/tmp/binary")
        self._agent = pod.start(
            "agent", {**services()["agent"], "command": ["echo up; exec sleep infinity"]}
        )
        wait_for(self._agent.output, 30, "the agent runs")
        shutil.copytree(bench, self._temporary(self._agent) / "bench")

    @staticmethod
    def _temporary(container: Container) -> Path:
        return Path(f"/proc/{container.pid}/root/tmp")

    def play(self, groups: Sequence[str]) -> str:
        words = command(Path("/tmp/bench"), f"{SECURITY}/ima", groups)
        inside = [*self._pod.command, "exec", self._agent.name, *words]
        return run(inside, deadline=GROUP_SECONDS).stdout


@pytest.fixture(scope="module")
def root(programs: Path) -> Iterator[Root]:
    with Daemon("--load", str(programs / "binary")) as emulator:
        yield Root(programs, emulator)


@pytest.fixture(scope="module")
def user(programs: Path) -> Iterator[User]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imafs-user-")))
        os.chown(home, NAMED, NAMED)
        made = User(programs, home)
        stack.callback(made.close)
        made.start()
        yield made


@pytest.fixture
def session(programs: Path) -> Iterator[Session]:
    with tempfile.TemporaryDirectory(prefix="imafs-user-") as name:
        os.chown(name, USER, USER)
        yield Session(programs, Path(name))


@pytest.fixture
def contained(programs: Path) -> Iterator[Contained]:
    require("runc", "/dev/fuse")
    pod = Pod()
    try:
        pod.start("pod", services()["pod"])
        yield Contained(programs, pod)
    finally:
        pod.close()


def check(reader: Reader, group: Group) -> None:
    """Plays a group and compares; skips, with the reason, where a tool is missing."""
    require(*group.needs)
    served = readercases.parse(reader.play([group.name]))
    wrong = readercases.complaints(
        group.cases, served, stderr=readercases.pinned(), splice=readercases.own_splice()
    )
    assert not wrong, "\n".join(wrong)


def chosen(left_out: Sequence[str] = ()) -> list[object]:
    """A parameter per group; those of slow tools are nightly."""
    return [
        pytest.param(group, id=name, marks=[pytest.mark.nightly] if name in SLOW else [])
        for name, group in readercases.groups().items()
        if name not in left_out
    ]


def test_the_list_is_the_kernels(root: Root, user: User) -> None:
    """Byte for byte what was read there."""
    for prefix, directory in (((), root.dir), (AS_NAMED, user.dir)):
        served = run([*prefix, "cat", directory / LIST]).stdout
        assert served == readercases.recorded("ascii").decode("ascii")


@pytest.mark.parametrize("group", chosen())
def test_as_root(root: Root, group: Group) -> None:
    check(root, group)


@pytest.mark.parametrize("group", chosen(["append"]))
def test_as_a_plain_user(user: User, group: Group) -> None:
    check(user, group)


@pytest.mark.nightly
@pytest.mark.parametrize("who", ["root", "user", "session", "contained"])
def test_all_of_them(who: str, request: pytest.FixtureRequest) -> None:
    """At least 186 of the 193 that only read are equal, wherever they run."""
    all_groups = readercases.groups()
    require(*(need for group in all_groups.values() for need in group.needs))
    reader: Reader = request.getfixturevalue(who)
    names = [name for key in all_groups if key != "append" for name in all_groups[key].cases]
    served = readercases.parse(reader.play([key for key in all_groups if key != "append"]))
    pinned = readercases.pinned()
    equal, played = readercases.figure(served, stderr=pinned)
    print(f"{who}: {equal} of {played} equal to the kernel")
    wrong = readercases.complaints(names, served, stderr=pinned, splice=readercases.own_splice())
    assert not wrong, "\n".join(wrong)
    assert played == 193
    if readercases.own_splice():
        assert equal >= 186
