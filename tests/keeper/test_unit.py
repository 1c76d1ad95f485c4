# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper's unit under a systemd (tests/keeper/systemd_box.py); the emulator is the kernel.

Agents are services with mounts of their own, and look all the time. Two minutes. Not from below
/tmp: that systemd empties it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.keeper import systemd_box
from tests.support import ROOT, unmet

pytestmark = [pytest.mark.nightly, pytest.mark.mount, pytest.mark.swtpm, pytest.mark.root]

_KERNEL = "/run/kernel/ima"
_SECURITYFS = "/sys/kernel/security/integrity"
_AGENT = Path(__file__).parent / "agent_of_unit.py"
#: What an agent may find while no keeper answers. ECONNABORTED, EIO: a request was under way.
_CAP_SYS_ADMIN = 21
_LOUD = {"ENOTCONN", "ECONNABORTED", "EIO"}

_EMULATOR = f"""[Service]
Type=notify
ExecStartPre=mkdir -p {_KERNEL}
ExecStart=imafs mount {_KERNEL}
"""
_HOW = """[Unit]
Requires=kernel.service
After=kernel.service
[Service]
ExecStart=
ExecStart=imafs keep --source /run/kernel/ima {option}
"""
_UNIT_OF_AGENT = """[Unit]
Wants=imafs-keeper.service
After=imafs-keeper.service
[Service]
User={user}
SupplementaryGroups=tss
PrivateTmp=yes
ProtectKernelTunables={tunables}
ExecStart={python} -I {agent} {place}/binary_runtime_measurements /run/agents/{user}.log 100
"""
_RUN = """
unit=imafs-keeper.service
by() {  # SECONDS WHAT...: until it is so
    last=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@"; do
        if [ $(cut -d. -f1 /proc/uptime) -gt $last ]; then
            echo not "$@"
            systemctl status $unit
            exit 1
        fi
        sleep 0.2
    done
    echo "$@"
}
restarted() {
    [ $(systemctl show -p NRestarts --value $unit) = $1 ] && systemctl -q is-active $unit
}
sees() { tail -n 1 /run/agents/$1.log 2>/dev/null | grep -q ' ok'; }
agents() { by 60 sees root && by 60 sees daemon; }

mkdir -m 1777 /run/agents
mkdir -p /host/store /var/lib/imafs
mount --bind /host/store /var/lib/imafs  # all else is on a tmpfs, which no keeper takes
cp -r /host/sysusers.d /host/tmpfiles.d /etc/
systemd-sysusers /etc/sysusers.d/imafs-keeper.conf
systemd-tmpfiles --create /etc/tmpfiles.d/imafs-keeper.conf
systemctl start kernel.service
imafs ctl generate 150
# A store that a keeper of root's had before.
imafs keep --source /run/kernel/ima >/run/keep.out 2>&1 & keeper=$!
by 30 imafs keep flush
kill $keeper
wait $keeper
by 1 [ "$(stat -c %U /var/lib/imafs/keeper/lives/*/journal)" = root ]
imafs ctl generate 50
systemctl start agent-root.service agent-daemon.service
agents
imafs ctl generate 50
systemctl kill -s KILL --kill-who=main $unit
imafs ctl generate 50
by 60 restarted 1
agents
systemctl kill -s STOP --kill-who=main $unit
by 120 restarted 2
agents
systemctl stop agent-root.service agent-daemon.service
process=$(systemctl show -p MainPID --value $unit)
stat -c %U:%G /proc/$process /var/lib/imafs/keeper/lives/*/* > /host/owners
stat -c %U:%G:%a PLACE/binary_runtime_measurements_sha1 > /host/owner_of_view
grep -E '^Cap(Prm|Eff|Bnd|Amb)' /proc/$process/status > /host/capabilities
imafs list /run/kernel/ima/binary_runtime_measurements > /host/list 2>&1
imafs keep verify
imafs ctl generate 50
systemctl stop $unit
imafs ctl status --json | tr -d ' \\n' > /host/kernel.json
cp /run/agents/* /host/
echo done
"""


@pytest.mark.parametrize(
    ("option", "place"),
    [("--mount /run/imafs/ima", "/run/imafs/ima"), ("--cover", _KERNEL)],
    ids=["mount", "cover"],
)
def test_agents_see_all_or_an_error(tmp_path: Path, option: str, place: str) -> None:
    """Over kill -9, the watchdog and the end in order, from mounts of their own."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:  # this test's own may lie where only its user can look
        unmet(["a Python that every user can execute"])
    host = tmp_path / "host"
    drop_ins = host / "units" / "imafs-keeper.service.d"
    drop_ins.mkdir(parents=True)
    unit = (ROOT / "systemd" / "imafs-keeper.service").read_text()
    assert _SECURITYFS in unit
    (host / "units" / "imafs-keeper.service").write_text(
        unit.replace(_SECURITYFS, _KERNEL.removesuffix("/ima"))
    )
    for name in ("sysusers.d", "tmpfiles.d"):
        shutil.copytree(ROOT / "systemd" / name, host / name)
    shutil.copy(_AGENT, host / "agent.py")
    (drop_ins / "how.conf").write_text(_HOW.format(option=option))
    (host / "units" / "kernel.service").write_text(_EMULATOR)
    for user, tunables in (("root", "no"), ("daemon", "yes")):
        text = _UNIT_OF_AGENT.format(
            user=user,
            tunables=tunables,
            python=python,
            agent="/host/agent.py",
            place=place,
        )
        (host / "units" / f"agent-{user}.service").write_text(text)
    (host / "run.sh").write_text(_RUN.replace("PLACE", place))
    out = systemd_box.ask(host)
    assert out.splitlines()[-2:] == ["done", "status 0"], out
    for log in ("root.log", "daemon.log"):
        text = (host / log).read_text()
        found = {line.split()[1] for line in text.splitlines()} - {"start", "end"}
        assert found - _LOUD == {"ok"}, text
        assert "ENOTCONN" in found, text
        assert re.search(r" end records 301 polls \d+ errors \d+ bad 0$", text), text
    assert set((host / "owners").read_text().split()) == {"imafs:imafs"}
    assert (host / "owner_of_view").read_text() == "root:tss:440\n"
    capabilities = (host / "capabilities").read_text().split()[1::2]
    assert capabilities == [f"{1 << _CAP_SYS_ADMIN:016x}"] * 4
    told = (host / "list").read_text()
    # Root's own tools ask the keeper, though it is not root.
    assert place == _KERNEL or f"the whole list is in {place}" in told, told
    assert '"current":0' in (host / "kernel.json").read_text()  # flushed by ExecStop=
