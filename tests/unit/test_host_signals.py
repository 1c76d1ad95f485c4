# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ctrl-C while a command starts: never a traceback, from the entry module's first import on."""

from __future__ import annotations

import os
import signal
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT, run

#: Sends SIGINT at an import: the first one of the entry module, or that of a name. Imports
#: nothing that imafs would import later.
_SITE = """
import os, sys

class Interrupting:
    entered = False

    def find_spec(self, name, path=None, target=None):
        wanted = os.environ["INTERRUPT_AT"]
        if self.entered if wanted == "first" else name == wanted:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), 2)
        self.entered = self.entered or name == "imafs.__main__"

sys.meta_path.insert(0, Interrupting())
"""

_MODULE = ("-P", "-m", "imafs")
_SCRIPT = ("-c", "import sys; from imafs.__main__ import main; sys.exit(main())")


@pytest.mark.parametrize("entry", [_MODULE, _SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize(
    "at",
    [
        *("first", "imafs.cli", "argparse", "imafs.cli.main", "imafs.errors"),
        *("imafs.cli.scenarios", "imafs.control.ops", "imafs.interface.profiles"),
        "imafs.scenarios.library",
    ],
)
def test_an_interrupt_while_modules_are_imported(
    tmp_path: Path, entry: tuple[str, ...], at: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_SITE)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "INTERRUPT_AT": at}
    done = run([sys.executable, *entry, "scenarios"], env=env, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


def test_an_ignored_interrupt_stays_ignored() -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "from imafs.__main__ import main; sys.argv[1:] = ['--version']; assert main() == 0;"
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    assert run([sys.executable, "-c", program], cwd=ROOT).stdout.splitlines()[-1] == "True"


def test_the_installed_command_enters_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"imafs": "imafs.__main__:main"}
