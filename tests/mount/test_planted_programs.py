# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that somebody put into the working directory are executed by no start of root."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.host import programs
from imafs.testing.mounted import Mounted
from imafs.verbs.client import ControlClient
from tests.support import require, run, wait_for
from tests.watch.conftest import disk as disk
from tests.watch.disk import Disk

#: What imafs and its libraries import, or every interpreter does, or what runs under -m.
MODULES = (
    *("json.py", "trio.py", "sitecustomize.py", "usercustomize.py", "logging/__init__.py"),
    *("imafs/__init__.py", "imafs/__main__.py", "tpm2_pytss.py", "pyfuse3.py"),
)
_IMAFS = str(Path(sys.executable).parent / "imafs")
PROGRAMS = ("swtpm", "setpriv", "fusermount3", "umount", "python3")


class Planted:
    """A directory of another user; each planted file notes that it was executed."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "planted"
        self._notes = base / "notes"
        self._notes.mkdir()
        for name in MODULES:
            note = self._notes / name.replace("/", "-")
            self._file(name, f"open({str(note)!r}, 'w').close()\nraise SystemExit(77)\n")
        for name in PROGRAMS:
            self._file(name, f"#!/bin/sh\n: >{self._notes / name}\nexit 77\n").chmod(0o755)

    def _file(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def executed(self) -> list[str]:
        return sorted(os.listdir(self._notes))


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    made = Planted(tmp_path)
    monkeypatch.chdir(made.directory)
    monkeypatch.setenv("PATH", f":.:{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield made
    assert made.executed() == []


class Running:
    """``imafs mount --background`` with the installed command, from where we stand."""

    def __init__(self, home: Path, *options: str) -> None:
        self.dir = home / "ima"
        self.dir.mkdir()
        self._control = str(home / "control")
        command = [_IMAFS, "mount", str(self.dir), "--background"]
        run([*command, "--control", self._control, *options])

    def call(self, operation: str, **options: object) -> dict[str, object]:
        with ControlClient(self._control) as client:
            return client.call(operation, options)

    def listener(self) -> int | None:
        watch = self.call("status")["watch"]
        assert isinstance(watch, dict)
        found = watch["listener"]
        return found if isinstance(found, int) else None

    def close(self) -> None:
        run([_IMAFS, "umount", self.dir])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


def test_the_planted_files_do_note_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Planted(tmp_path)
    monkeypatch.chdir(planted.directory)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in ("json", "trio", "imafs", "logging"):
        words = [sys.executable, "-c", f"import {name}"]
        assert run(words, check=False).returncode in (77, 1)
    run([sys.executable, "-c", ""], env={"PYTHONPATH": str(planted.directory)}, check=False)
    for name in PROGRAMS:
        run(["sh", "-c", f"PATH=:/bin; {name}"], check=False)
    found = set(planted.executed())
    assert {"json.py", "trio.py", "imafs-__init__.py", "logging-__init__.py"} <= found
    assert {"sitecustomize.py", *PROGRAMS} <= found


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.swtpm
class TestStarts:
    def test_mount_and_its_swtpm(self, planted: Planted, home: Path) -> None:
        running = Running(home)
        assert running.call("status")["tcti"]
        assert os.readlink(f"/proc/{running.call('status')['pid']}/cwd") == "/"
        running.close()

    def test_listeners(self, disk: Disk, planted: Planted, home: Path) -> None:
        first = disk.file("first/file").parent
        running = Running(home, "--tpm", "none", "--watch", str(first))
        listener = running.listener()
        assert listener is not None
        assert os.readlink(f"/proc/{listener}/cwd") == "/"
        os.kill(listener, signal.SIGKILL)
        wait_for(lambda: running.listener() not in (None, listener), 60, "another listener")
        running.call("watch", paths=[str(disk.file("second/file").parent)])
        running.close()

    def test_the_first_watch(self, disk: Disk, planted: Planted, home: Path) -> None:
        running = Running(home, "--tpm", "none")
        running.call("watch", paths=[str(disk.root)])
        assert running.listener() is not None
        running.close()

    @pytest.mark.parametrize("watched", [False, True])
    def test_run(self, disk: Disk, planted: Planted, watched: bool) -> None:
        require("unshare")
        options = ["--watch", str(disk.file("in/file").parent)] if watched else []
        command = [_IMAFS, "run", *options, "--", "pwd"]
        assert run(command).stdout == f"{planted.directory}\n"

    def test_the_plugin(
        self, disk: Disk, planted: Planted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(planted.directory))
        monkeypatch.setenv("PYTHONSTARTUP", "json.py")
        mounted = Mounted(["--tpm", "none", "--watch", str(disk.root)]).start()
        assert mounted.close() is None

    def test_relative_paths_are_those_of_the_caller(
        self, planted: Planted, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(home)
        (home / "rules").write_text("measure func=BPRM_CHECK\n")
        log, state = home / "log", home / "state"
        running = Running(
            home,
            "--tpm-state",
            "state",
            "--log-file",
            "log",
            "--policy",
            "./rules",
            "--audit-log",
            "audit",
        )
        assert (log.exists(), state.exists(), (home / "audit").exists()) == (True, True, True)
        running.close()


def test_python_m_imafs_imports_nothing_else_from_there(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is named imafs there is executed before any line of ours can see to it."""
    for path in ("imafs/__init__.py", "imafs/__main__.py"):
        (planted.directory / path).unlink()
    (planted.directory / "imafs").rmdir()
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    done = run([sys.executable, "-mimafs", "profiles", "--json"])
    assert done.stdout.startswith("[")


class TestCommands:
    """The command of an interpreter, and its environment."""

    def test_of_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setenv("PYTHONINSPECT", "1")
        monkeypatch.setenv("PATH", "::.:bin:/usr/bin:")
        monkeypatch.setattr(programs, "_PYTHON_PATH", ["/planted"])
        assert programs.python("imafs", "x") == [sys.executable, "-I", "-m", "imafs", "x"]
        environment = programs.environment()
        assert not [name for name in environment if name.startswith("PYTHON")]
        assert environment["PATH"] == "/usr/bin"

    def test_of_root_where_imafs_itself_is_found_by_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(programs, "_PYTHON_PATH", [programs._HOME, "/libraries"])
        assert programs.python("imafs")[1:] == ["-P", "-s", "-m", "imafs"]
        assert programs.environment()["PYTHONPATH"] == f"{programs._HOME}:/libraries"

    def test_of_a_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its own variables are its own, but nothing is relative."""
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv("PYTHONWARNINGS", "error")
        monkeypatch.setattr(programs, "_PYTHON_PATH", ["/libraries"])
        assert programs.python("imafs")[1:] == ["-P", "-m", "imafs"]
        environment = programs.environment()
        assert (environment["PYTHONWARNINGS"], environment["PYTHONPATH"]) == ("error", "/libraries")
