# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The rules by which a list is served, on a bare /dev/fuse (twin/twin.c), kernel by kernel.

What they are to bring about anywhere: size 0, no seek to the end, short reads, and nobody who
splices or maps gets an empty or a shorter list with success.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.conformance import machines
from tests.conformance.readercases import own_splice
from tests.support import require, run

TWIN = Path(__file__).parent / "twin" / "twin.c"

#: The same on every kernel.
EVERYWHERE = {
    "open": "0",
    "stat": "0",
    "fstat": "0",
    "read": "4000",
    "reads": "20000",
    "SEEK_END": "EINVAL",
    "SEEK_HOLE": "EINVAL",
    "SEEK_DATA": "EINVAL",
    "mmap-shared": "ENODEV",
    "mmap-private": "0",
    "truncating-write": "2",
    "fstat-after-truncation": "0",
}
SPLICING = ("splice", "sendfile", "splice-after-truncation")
#: What splice and sendfile may say: refused, or the whole content.
REFUSED, BROKEN, WHOLE = "EINVAL", "EIO", "20000"


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("gcc")
    program = tmp_path_factory.mktemp("twin") / "twin"
    run(["gcc", "-O2", "-Wall", "-Wextra", "-static", "-o", program, TWIN])
    return program


def answers(text: str) -> dict[str, str]:
    """What the twin printed, call -> answer."""
    found = {}
    for line in text.splitlines():
        call, answer = line.split()
        found[call] = answer
    return found


def on_console(console: str) -> dict[str, str]:
    """The same from a machine of its own."""
    _, begins, rest = console.partition("TWIN BEGINS\n")
    told, ends, _ = rest.partition("TWIN ENDS")
    assert begins, console
    assert ends, console
    return answers(told)


def expected(splicing: str) -> dict[str, str]:
    return EVERYWHERE | dict.fromkeys(SPLICING, splicing)


@pytest.mark.mount
@pytest.mark.root
def test_this_machine(twin: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    got = answers(run([twin, tmp_path / "mnt"]).stdout)
    allowed = (REFUSED,) if own_splice() else (REFUSED, BROKEN, WHOLE)
    assert got["splice"] in allowed, platform.release()
    assert got == expected(got["splice"])


@pytest.mark.nightly
def test_debian_12(twin: Path, tmp_path: Path) -> None:
    """6.1: splice goes through read."""
    require("qemu-system-x86_64", "apt-get", "dpkg-deb")
    if 'VERSION_ID="12"' not in Path("/etc/os-release").read_text():
        pytest.skip("this machine's apt-get has not Debian 12's kernel")
    kernel, module = machines.debian("linux-image-amd64", tmp_path)
    files = {"init": twin.read_bytes(), "fuse.ko": module}
    assert on_console(machines.boot(kernel, files)) == expected(WHOLE)


@pytest.mark.nightly
def test_linux_7_3(twin: Path, request: pytest.FixtureRequest) -> None:
    """A page that is refused is EIO there."""
    require("qemu-system-x86_64")
    oracle = request.config.getoption("--oracle")
    if oracle is None:
        pytest.skip("no --oracle DIR: Linux 7.3.4 (machine/bzImage-7.3.4 in it) is not asked")
    kernel = Path(str(oracle)).resolve() / "machine" / "bzImage-7.3.4"
    require(str(kernel))
    assert on_console(machines.boot(kernel, {"init": twin.read_bytes()})) == expected(BROKEN)
