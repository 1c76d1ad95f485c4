# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A whole machine in qemu, whose kernel can stage (``--oracle DIR`` with ``machine/`` in it).

What is to be run there lies in a directory that is /host inside. Full emulation: minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imafs.formats.binary import Reader
from imafs.testing.mounted import children
from tests.support import ROOT, kill_group, may_take, require, run, stopped, wait_for

#: What imafs imports, by the names in site-packages.
_NEEDED = (
    *("trio", "pyfuse3", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"),
    *("tpm2_pytss", "cffi", "_cffi_backend", "pycparser", "cryptography", "packaging"),
)
_SECONDS = 1800
_IMAGE = Path("~/.cache/imafs-tests/machine.img").expanduser()

#: The head of a ``run.sh``: imafs is on a tmpfs, which IMA's policy leaves out.
HEAD = """
export PYTHONPATH=/run/site
ima=/sys/kernel/security/integrity/ima
list=binary_runtime_measurements
view=/run/imafs/ima
imafs() { python3 -P -m imafs "$@"; }
mkdir -p /run/site $view
tar xf /host/site.tar -C /run/site

until_keeping() {  # PID: the line that says ready, or the end of everything
    until grep -q '^imafs: keeping' /run/keep.out; do
        [ -d /proc/$1 ] || { cat /run/keep.out; exit 1; }
        sleep 0.2
    done
}
keeping() {  # OPTION...: a keeper that is ready; its process is $keeper
    rm -f /run/keep.out  # one before may have said so
    python3 -P -m imafs keep "$@" > /run/keep.out 2>&1 &  # no function: $! is to be its process
    keeper=$!
    until_keeping $keeper
}
keeper_ends() {  # SIGNAL
    kill -$1 $keeper
    wait $keeper
    echo "keeper $1 $?"
}
next_kernel() {  # never comes back: run.sh runs again
    kexec -s -l /host/bzImage --append="$(cat /proc/cmdline)"
    sync
    systemctl kexec
    sleep 1000
}
"""


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


def pack(host: Path) -> None:
    """What HEAD unpacks, compiled. Over 9p IMA reads every file: one archive is quicker."""
    with tempfile.TemporaryDirectory() as name:
        site = Path(name)
        share_packages(site)
        # Not -j 0: a process pool for a second of work.
        run([sys.executable, "-P", "-m", "compileall", "-q", site], deadline=120, check=False)
        with tarfile.open(host / "site.tar", "w") as archive:
            archive.add(site, ".")


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


def names(data: bytes) -> list[str]:
    """The names in a list of template ima-ng, in its order."""
    rows = Reader(data, 20, opaque=True).walk()
    return [bytes(body).split(b"\0")[-2].decode() for _, _, body, *_ in rows]


_TCB = "ima_policy=tcb"


def ask(
    machine: Path,
    host: Path,
    cmdline: str = _TCB,
    disk: Path | None = None,
    seconds: int = _SECONDS,
) -> str:
    """What ``run.sh`` of ``host`` printed in the machine; ``disk`` is its /dev/vdb."""
    # As long as the test may take: a busy machine emulates slowly.
    command, env = _asking(machine, host, cmdline, disk, seconds)
    return run(command, deadline=seconds, env=env).stdout


def _asking(
    machine: Path, host: Path, cmdline: str, disk: Path | None, seconds: int = _SECONDS
) -> tuple[list[str | os.PathLike[str]], dict[str, str]]:
    env = {"ASK_TIMEOUT": str(seconds)}
    if disk is not None:
        env["DISK"] = str(disk)
    return [machine / "ask-machine", _IMAGE, host, cmdline], env


class Running:
    """A machine that runs; see :func:`running`."""

    def __init__(self, process: subprocess.Popen[bytes], host: Path) -> None:
        self._process = process
        self._host = host
        self._emulator = wait_for(self._found, 60, "qemu runs")

    def _found(self) -> int:
        # ask-machine, timeout, qemu.
        for pid in [below for child in children(self._process.pid) for below in children(child)]:
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("qemu"):
                    return pid
        return 0

    def check(self) -> None:
        """Fails where it has ended, with what was printed in it."""
        if self._process.poll() is not None:
            out = self._host / "out.txt"
            pytest.fail(f"the machine has ended: {out.read_text() if out.exists() else ''}")

    def written(self) -> int:
        """Bytes that the emulator has written so far, to any file."""
        text = Path(f"/proc/{self._emulator}/io").read_text()
        return int(dict(line.split(": ") for line in text.splitlines())["wchar"])

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Its files are inside what they would be if it were cut there; then it goes on."""
        with stopped(self._emulator):
            yield

    def cut(self) -> None:
        """The power: what the guest had not written to its disks is lost."""
        with suppress(ProcessLookupError):
            os.kill(self._emulator, signal.SIGKILL)
        self._process.wait(60)


@contextmanager
def running(machine: Path, host: Path, cmdline: str = _TCB, *, disk: Path) -> Iterator[Running]:
    """The same machine as :func:`ask`'s, whose power is cut at the end if not before."""
    command, env = _asking(machine, host, cmdline, disk)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **env},
        start_new_session=True,
    )
    found = None
    try:
        found = Running(process, host)
        yield found
    finally:
        if found is not None:
            found.cut()
        else:
            kill_group(process)
            process.wait(60)
