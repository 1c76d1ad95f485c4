# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs run --tpm-device`` in a whole machine (``--oracle DIR`` with ``machine/`` in it), with
tools that open ``/dev/tpmrm0`` by themselves. Full emulation: minutes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import machine as machines

pytestmark = [pytest.mark.nightly, pytest.mark.root]

_AGENT = """
    unset TPM2TOOLS_TCTI TCTI TPM_INTERFACE_TYPE TPM_SERVER_TYPE TPM_COMMAND_PORT TSS2_FAPICONF
    cd /tmp
    for n in 1 2 3 4 5; do tpm2_createprimary -Q -c $n.ctx && echo primary $n; done
    tpm2_createek -Q -c ek.ctx -G rsa -u ek.pub &&
        tpm2_createak -Q -C ek.ctx -c ak.ctx -G rsa -g sha256 -s rsassa -u ak.pub &&
        tpm2_quote -Q -c ak.ctx -l sha256:10 -q abcd -m msg -s sig -o pcrs &&
        tpm2_checkquote -Q -u ak.pub -m msg -s sig -f pcrs -q abcd -g sha256 && echo quoted
    python3 -P -m imafs ctl generate 3; python3 -P -m imafs ctl wait --extended
    echo sysfs $(cat /sys/class/tpm/tpm0/pcr-sha256/10)
    echo managed $(tpm2_pcrread -T device:/dev/tpmrm0 sha256:10)
    echo plain $(tpm2_pcrread -T device:/dev/tpm0 sha256:10)
    echo itself $(tpm2_pcrread sha256:10)
"""


def test_tools_that_know_the_kernels_device_alone(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The machine has a TPM of its own at /dev/tpm0: in the session it is the emulator's."""
    machine = machines.found(request)
    for name in ("site", "swtpm"):
        (tmp_path / name).mkdir()
    machines.share_packages(tmp_path / "site")
    machines.share_swtpm(tmp_path / "swtpm")
    (tmp_path / "agent.sh").write_text(_AGENT)
    (tmp_path / "run.sh").write_text("""
        export PYTHONPATH=/host/site PYTHONDONTWRITEBYTECODE=1
        printf '#!/bin/sh\\nLD_LIBRARY_PATH=/tmp/swtpm exec /tmp/swtpm/swtpm "$@"\\n' \\
            > /usr/local/bin/swtpm
        chmod +x /usr/local/bin/swtpm
        cp -r /host/swtpm /tmp  # over 9p its first start takes longer than imafs waits
        swtpm --version
        ls /dev/tpm*
        python3 -P -m imafs run --tpm-device --policy none -- sh /host/agent.sh
        echo status $?
        while [ -e /dev/tpm1 ]; do :; done
        ls /dev/tpm*
    """)
    out = machines.ask(machine, tmp_path)
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
