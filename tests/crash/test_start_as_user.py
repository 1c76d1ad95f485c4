# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``scripts/start`` as a plain user: all of it in a user namespace, or what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.test_faults import as_user
from tests.mount.daemon import layers
from tests.mount.fixtures import Starter
from tests.support import ROOT, run

__all__ = ["as_user"]

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def _session(prefix: tuple[str, ...], base: Path, path: str) -> tuple[int, str]:
    """Status and output of scripts/start, which gets Ctrl-C once it has shown its session."""
    files = base / "files"
    files.mkdir()
    (files / "one").write_text("1")
    child = subprocess.Popen(
        [*prefix, str(ROOT / "scripts/start"), "ima", str(files)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=base,
        env={**os.environ, "HOME": str(base), "TMPDIR": str(base), "PATH": path},
    )
    seen: list[str] = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            seen.append(line)
            if line.startswith("Ctrl-C"):
                os.killpg(child.pid, signal.SIGINT)
        return child.wait(60), "".join(seen)
    finally:
        if child.stdout is not None:
            child.stdout.close()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@pytest.fixture
def base(start: Starter, as_user: tuple[str, ...]) -> Path:
    """A directory that uid 1000 may write to; skips where that user cannot run the project."""
    usable = f'test -x "{sys.executable}" && test "{sys.prefix}" = "{ROOT}/.venv"'
    if run([*as_user, "sh", "-c", usable], check=False).returncode:
        pytest.skip("uid 1000 cannot run this environment, or it is not the project's .venv")
    place = start.place()
    place.dir.rmdir()
    place.base.chmod(0o1777)
    return place.base


def test_a_user_gets_the_whole_session(base: Path, as_user: tuple[str, ...]) -> None:
    if run([*as_user, "unshare", "--user", "--map-root-user", "true"], check=False).returncode:
        pytest.skip("users may not make user namespaces here")
    status, text = _session(as_user, base, os.environ["PATH"])
    assert status == 0, text
    assert "\n2\n" in text, text  # boot_aggregate and a file
    assert " 2 ascii_runtime_measurements_staged\n" in text
    assert "records     3 current, 0 staged" in text
    assert "nsenter --preserve-credentials --user --mount --target" in text
    assert "Operation not permitted" not in text
    assert not (base / "ima").exists()


def test_without_namespaces_it_says_what_is_missing(base: Path, as_user: tuple[str, ...]) -> None:
    """As where a system forbids them: reading works, and why nothing is staged is said."""
    commands = base / "commands"
    commands.mkdir()
    shutil.copy("/bin/false", commands / "unshare")
    status, text = _session(as_user, base, f"{commands}:{os.environ['PATH']}")
    assert status == 0, text
    assert "Staging and deleting take CAP_SYS_ADMIN" in text
    assert "run scripts/start as root" in text
    assert "added: 5" in text
    assert "Operation not permitted" not in text
    assert layers(base / "ima") == 0
    assert not (base / "ima").exists()


def test_a_project_of_somebody_else(start: Starter, as_user: tuple[str, ...]) -> None:
    """Without a .venv that this user can run: nothing is touched, and one line says what to do."""
    project = start.place().base / "project"
    (project / "scripts").mkdir(parents=True)
    for name in ("scripts/start", "scripts/setup", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    result = run([*as_user, str(project / "scripts/start")], check=False, cwd="/")
    assert result.returncode == 1
    assert "may not write in" in result.stderr.splitlines()[-1]
    assert "clone the project to a place of your own" in result.stderr.splitlines()[-1]
    assert sorted(p.name for p in project.iterdir()) == ["pyproject.toml", "scripts"]
