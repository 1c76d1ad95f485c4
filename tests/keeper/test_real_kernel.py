# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper on a real kernel that stages, with its TPM, over kill -9 and five kexecs.

Before each kexec the keeper is killed between A and D, at one of the calls that make a batch
durable or delete it: the next kernel has the staged list again, and what came behind it. One
machine answers (tests/machine.py): a quarter of an hour.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import machine as machines
from tests.support import may_take

pytestmark = [pytest.mark.nightly, pytest.mark.root]

#: Kernels that follow the first one.
_KEXECS = 5
_FILES = 100
_SECONDS = 5400

#: Runs once under each of the kernels.
_RUN = """
boot=$(cat /host/boots 2>/dev/null || echo 0)
echo $((boot + 1)) > /host/boots
mkdir -p /root/files

measure() {  # NAME: files that are measured once each
    for n in $(seq FILES); do echo $boot $1 $n > /root/files/$boot.$1.$n; done
    cat /root/files/$boot.$1.* > /dev/null
}
dies_at() {  # the keeper, in the Nth of its calls to CALL (of FILE): N CALL [FILE]
    strace -f -o /run/trace -e trace=$2 -e inject=$2:signal=KILL:when=$1 ${3:+-P $3} -p $keeper &
    # It has all threads before any of them goes on.
    while grep -hq '^TracerPid:[^0-9]*0$' /proc/$keeper/task/*/status; do sleep 0.2; done
    measure pending
    head -c 1 $view/$list > /dev/null 2>&1  # stages
    wait $keeper
    echo died $boot $? in $*
    tail -n 3 /run/trace
}

keeping --mount $view
measure stored
if [ $boot = 0 ]; then
    imafs keep flush
    echo kernel $boot $(cat $ima/runtime_measurements_count)
    keeper_ends KILL
    measure killed
    keeping --mount $view
fi
imafs keep verify && echo verified $boot
imafs verify $view/$list --pcrs /sys/class/tpm/tpm0 && echo match $boot
judged() {
    for pcr in $(seq 0 23); do
        printf 'PCR-%02d: %s\\n' $pcr $(cat /sys/class/tpm/tpm0/pcr-sha256/$pcr)
    done > /run/pcrs
    evmctl ima_measurement --pcrs sha256,/run/pcrs $view/$list
}
judged > /dev/null 2>&1  # what it runs is measured
judged && echo evmctl $boot
cat $view/$list > /host/list.$boot
echo violations $boot $(cat $view/violations)
[ $boot -lt KEXECS ] || imafs keep status
cat /run/keep.out
if [ $boot -lt KEXECS ]; then
    echo A > $ima/${list}_staged 2> /dev/null || echo held $boot
    case $((boot % 3)) in
    0) dies_at 1 fdatasync ;;  # the records are written
    1) dies_at 2 fdatasync ;;  # and the line that counts them
    2) dies_at 2 write $(readlink -f $ima/${list}_staged) ;;  # both are durable; D
    esac
    measure late
    echo staged $boot $(wc -c < $ima/${list}_staged)
    # Last of all: the next kernel has room for what is in the list now, and half a page.
    next_kernel
fi
"""


def test_kill_and_kexec(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every record once, in the kernel's order, with no violation by the keeper."""
    machine = machines.found(request)
    may_take(_SECONDS)
    host = tmp_path / "host"
    host.mkdir()
    machines.pack(host)
    script = _RUN.replace("FILES", str(_FILES)).replace("KEXECS", str(_KEXECS))
    (host / "run.sh").write_text(machines.HEAD + script)
    out = machines.ask(machine, host, seconds=_SECONDS)
    print(out)  # figures
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
            assert re.search(rf"^died {boot} 137 in ", out, re.MULTILINE), out
            assert re.search(rf"^staged {boot} [1-9]", out, re.MULTILINE), out
    assert "view      served" in lines, out
    names = [name.rpartition("/")[2] for name in machines.names(before)]
    assert names.count("boot_aggregate") == _KEXECS + 1
    for boot in range(_KEXECS + 1):
        for kind in _kinds(boot):
            wanted = [f"{boot}.{kind}.{number}" for number in range(1, _FILES + 1)]
            found = [name for name in names if name.startswith(f"{boot}.{kind}.")]
            assert sorted(found) == sorted(wanted), out


def _kinds(boot: int) -> list[str]:
    """Which files were measured under a kernel."""
    kinds = ["stored", *(["killed"] if boot == 0 else [])]
    return kinds if boot == _KEXECS else [*kinds, "pending", "late"]
