# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper on a real kernel that stages, with its TPM, over kill -9 and kexecs.

One machine answers (tests/machine.py): minutes.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from imafs.formats.binary import Reader
from tests import machine as machines

pytestmark = [pytest.mark.nightly, pytest.mark.root]

#: Kernels that follow the first one.
_KEXECS = 1
_FILES = 100

#: Runs once under each of the kernels. Over 9p IMA reads every file: one archive is quicker.
_RUN = """
boot=$(cat /host/boots 2>/dev/null || echo 0)
echo $((boot + 1)) > /host/boots
export PYTHONPATH=/run/site
ima=/sys/kernel/security/integrity/ima
view=/run/imafs/ima
mkdir -p /run/site $view /root/files
tar xf /host/site.tar -C /run/site

start() {
    python3 -m imafs keep --mount $view > /run/keep.out 2>&1 &
    keeper=$!
    until grep -q '^imafs: keeping' /run/keep.out; do
        [ -d /proc/$keeper ] || { cat /run/keep.out; exit 1; }
        sleep 0.2
    done
}
measure() {  # NAME: files that are measured once each
    for n in $(seq FILES); do echo $boot $1 $n > /root/files/$boot.$1.$n; done
    cat /root/files/$boot.$1.* > /dev/null
}

start
measure stored
python3 -m imafs keep flush
echo kernel $boot $(cat $ima/runtime_measurements_count)
kill -9 $keeper
measure killed
start
python3 -m imafs keep verify && echo verified $boot
python3 -m imafs verify $view/binary_runtime_measurements --pcrs /sys/class/tpm/tpm0 &&
    echo match $boot
judged() {
    for pcr in $(seq 0 23); do
        printf 'PCR-%02d: %s\\n' $pcr $(cat /sys/class/tpm/tpm0/pcr-sha256/$pcr)
    done > /run/pcrs
    evmctl ima_measurement --pcrs sha256,/run/pcrs $view/binary_runtime_measurements
}
judged > /dev/null 2>&1  # what it runs is measured
judged && echo evmctl $boot
cat $view/binary_runtime_measurements > /host/list.$boot
echo violations $boot $(cat $view/violations)
python3 -m imafs keep status
cat /run/keep.out
if [ $boot -lt KEXECS ]; then
    echo A > $ima/binary_runtime_measurements_staged 2> /dev/null || echo held $boot
    measure late
    kexec -s -l /host/bzImage --append="$(cat /proc/cmdline)"
    sync
    systemctl kexec
    sleep 1000
fi
"""


def _paths(data: bytes) -> list[str]:
    """The names in a list, in its order."""
    rows = Reader(data, 20, opaque=True).walk()
    return [bytes(body).split(b"\0")[-2].rpartition(b"/")[2].decode() for _, _, body, *_ in rows]


def test_kill_and_kexec(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every record once, in the kernel's order, with no violation by the keeper."""
    machine = machines.found(request)
    site = tmp_path / "packages"
    site.mkdir()
    machines.share_packages(site)
    host = tmp_path / "host"
    host.mkdir()
    with tarfile.open(host / "site.tar", "w") as archive:
        archive.add(site, ".")
    shutil.rmtree(site)
    (host / "run.sh").write_text(_RUN.replace("FILES", str(_FILES)).replace("KEXECS", str(_KEXECS)))
    out = machines.ask(machine, host)
    lines = out.splitlines()
    before = b""
    for boot in range(_KEXECS + 1):
        for word in ("verified", "match", "evmctl"):
            assert f"{word} {boot}" in lines, out
        assert f"violations {boot} 0" in lines, out
        data = (host / f"list.{boot}").read_bytes()
        assert data.startswith(before)
        before = data
        if boot < _KEXECS:
            assert f"held {boot}" in lines, out
    assert "view      served" in lines, out
    names = _paths(before)
    for boot in range(_KEXECS + 1):
        kinds = ("stored", "killed", "late") if boot < _KEXECS else ("stored", "killed")
        for kind in kinds:
            wanted = [f"{boot}.{kind}.{number}" for number in range(1, _FILES + 1)]
            found = [name for name in names if name.startswith(f"{boot}.{kind}.")]
            assert sorted(found) == sorted(wanted), out
