# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs run --tpm-device`` in a whole machine (``--oracle DIR`` with ``machine/`` in it), with
tools that open ``/dev/tpmrm0`` by themselves. Full emulation: minutes."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.support import ROOT, may_take, require, run

pytestmark = [pytest.mark.nightly, pytest.mark.root]

#: What imafs imports, by the names in site-packages.
_NEEDED = (
    *("trio", "pyfuse3", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"),
    *("tpm2_pytss", "cffi", "_cffi_backend", "pycparser", "cryptography", "packaging"),
)
_SECONDS = 1800
_IMAGE = Path("~/.cache/imafs-tests/machine.img").expanduser()

_AGENT = """
    unset TPM2TOOLS_TCTI TCTI TPM_INTERFACE_TYPE TPM_SERVER_TYPE TPM_COMMAND_PORT TSS2_FAPICONF
    cd /tmp
    for n in 1 2 3 4 5; do tpm2_createprimary -Q -c $n.ctx && echo primary $n; done
    tpm2_createek -Q -c ek.ctx -G rsa -u ek.pub &&
        tpm2_createak -Q -C ek.ctx -c ak.ctx -G rsa -g sha256 -s rsassa -u ak.pub &&
        tpm2_quote -Q -c ak.ctx -l sha256:10 -q abcd -m msg -s sig -o pcrs &&
        tpm2_checkquote -Q -u ak.pub -m msg -s sig -f pcrs -q abcd -g sha256 && echo quoted
    python3 -m imafs ctl generate 3; python3 -m imafs ctl wait --extended
    echo sysfs $(cat /sys/class/tpm/tpm0/pcr-sha256/10)
    echo managed $(tpm2_pcrread -T device:/dev/tpmrm0 sha256:10)
    echo plain $(tpm2_pcrread -T device:/dev/tpm0 sha256:10)
    echo itself $(tpm2_pcrread sha256:10)
"""


def _machine(request: pytest.FixtureRequest) -> Path:
    directory = request.config.getoption("--oracle")
    if directory is None:
        pytest.skip("no --oracle DIR: there is no machine whose kernel has a vTPM proxy")
    require("qemu-system-x86_64", "swtpm", "debootstrap", "mke2fs")
    may_take(_SECONDS)
    machine = Path(directory, "machine")
    if not _IMAGE.exists():
        _IMAGE.parent.mkdir(parents=True, exist_ok=True)
        run([machine / "make-root", _IMAGE], deadline=_SECONDS)
    return machine


def _share(share: Path) -> None:
    """imafs, what it imports and swtpm, for the machine's own Python 3.11."""
    packages = Path(sysconfig.get_path("platlib"))
    for entry in packages.iterdir():
        if entry.name.partition(".")[0].partition("-")[0] in _NEEDED:
            copy = shutil.copytree if entry.is_dir() else shutil.copy
            copy(entry, share / "site" / entry.name)
    shutil.copytree(ROOT / "imafs", share / "site/imafs")
    swtpm = shutil.which("swtpm")
    assert swtpm is not None
    libraries = re.findall(r"=> (/\S+)", run(["ldd", swtpm]).stdout)
    for file in (swtpm, *(path for path in libraries if "/libc.so" not in path)):
        shutil.copy(file, share / "swtpm" / os.path.basename(file))


def test_tools_that_know_the_kernels_device_alone(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The machine has a TPM of its own at /dev/tpm0: in the session it is the emulator's."""
    machine = _machine(request)
    for name in ("site", "swtpm"):
        (tmp_path / name).mkdir()
    _share(tmp_path)
    (tmp_path / "agent.sh").write_text(_AGENT)
    (tmp_path / "run.sh").write_text("""
        export PYTHONPATH=/host/site PYTHONDONTWRITEBYTECODE=1
        printf '#!/bin/sh\\nLD_LIBRARY_PATH=/tmp/swtpm exec /tmp/swtpm/swtpm "$@"\\n' \\
            > /usr/local/bin/swtpm
        chmod +x /usr/local/bin/swtpm
        cp -r /host/swtpm /tmp  # over 9p its first start takes longer than imafs waits
        swtpm --version
        ls /dev/tpm*
        python3 -m imafs run --tpm-device --policy none -- sh /host/agent.sh
        echo status $?
        while [ -e /dev/tpm1 ]; do :; done
        ls /dev/tpm*
    """)
    command = [machine / "ask-machine", _IMAGE, tmp_path]
    # As long as the test may take: a busy machine emulates slowly.
    out = run(command, deadline=_SECONDS, env={"ASK_TIMEOUT": str(_SECONDS)}).stdout
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("/dev/")] == 2 * ["/dev/tpm0", "/dev/tpmrm0"]
    # Five objects in a TPM that has room for three: the resource manager's work.
    assert [f"primary {n}" for n in range(1, 6)] == [x for x in lines if x.startswith("primary")]
    assert "quoted" in lines
    values = {word: value for word, _, value in (line.partition(" ") for line in lines)}
    assert re.fullmatch("[0-9A-F]{64}", values["sysfs"])
    for word in ("managed", "plain", "itself"):
        assert f"0x{values['sysfs']}" in values[word], word
    assert "status 0" in lines
