# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A whole machine in qemu, whose kernel can stage (``--oracle DIR`` with ``machine/`` in it).

What is to be run there lies in a directory that is /host inside. Full emulation: minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.support import ROOT, may_take, require, run

#: What imafs imports, by the names in site-packages.
_NEEDED = (
    *("trio", "pyfuse3", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"),
    *("tpm2_pytss", "cffi", "_cffi_backend", "pycparser", "cryptography", "packaging"),
)
_SECONDS = 1800
_IMAGE = Path("~/.cache/imafs-tests/machine.img").expanduser()


def found(request: pytest.FixtureRequest) -> Path:
    """The directory of the machine's kernel and tools; skips without one. Makes the image."""
    directory = request.config.getoption("--oracle")
    if directory is None:
        pytest.skip("no --oracle DIR: there is no machine with a kernel to ask")
    require("qemu-system-x86_64", "swtpm", "debootstrap", "mke2fs")
    may_take(_SECONDS)
    machine = Path(directory, "machine")
    if not _IMAGE.exists():
        _IMAGE.parent.mkdir(parents=True, exist_ok=True)
        run([machine / "make-root", _IMAGE], deadline=_SECONDS)
    return machine


def share_packages(site: Path) -> None:
    """imafs and what it imports, for the machine's own Python 3.11."""
    packages = Path(sysconfig.get_path("platlib"))
    for entry in packages.iterdir():
        if entry.name.partition(".")[0].partition("-")[0] in _NEEDED:
            copy = shutil.copytree if entry.is_dir() else shutil.copy
            copy(entry, site / entry.name)
    shutil.copytree(ROOT / "imafs", site / "imafs")


def share_swtpm(directory: Path) -> None:
    """swtpm and its libraries."""
    swtpm = shutil.which("swtpm")
    assert swtpm is not None
    libraries = re.findall(r"=> (/\S+)", run(["ldd", swtpm]).stdout)
    for file in (swtpm, *(path for path in libraries if "/libc.so" not in path)):
        shutil.copy(file, directory / os.path.basename(file))


def ask(machine: Path, host: Path) -> str:
    """What ``run.sh`` of ``host`` printed in the machine."""
    command = [machine / "ask-machine", _IMAGE, host]
    # As long as the test may take: a busy machine emulates slowly.
    return run(command, deadline=_SECONDS, env={"ASK_TIMEOUT": str(_SECONDS)}).stdout
