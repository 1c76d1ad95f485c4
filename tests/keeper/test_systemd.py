# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper's unit under a systemd on a real kernel that stages, in a machine of its own.

Agents are services with mounts of their own (PrivateTmp=), and look all the time. The unit is
killed, stopped (watchdog), taken over a kexec and over a reboot. One machine per way of showing
the view (tests/machine.py): a quarter of an hour each, emulated. The store is on a disk of its
own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests import machine as machines
from tests.support import ROOT

pytestmark = [pytest.mark.nightly, pytest.mark.root]

_FILES = 50
_BOOTS = 3  # the first, one by kexec, one by a reset
_UNIT = "imafs-keeper.service"
_AGENTS = ("root", "daemon")
_AGENT = Path(__file__).parent / "agent_of_unit.py"
#: What an agent may find while no keeper answers. ECONNABORTED, EIO: a request was under way.
_LOUD = {"ENOTCONN", "ECONNABORTED", "EIO"}

_HOW = """[Service]
ExecStart=
ExecStart=imafs keep {option}
"""
#: Its log is on a tmpfs: a file that root reads while it is written is a violation.
_UNIT_OF_AGENT = """[Unit]
Wants=imafs-keeper.service
After=imafs-keeper.service
[Service]
User={user}
SupplementaryGroups=tss
PrivateTmp=yes
ProtectKernelTunables={tunables}
ExecStart=python3 -I /opt/agent.py {place}/binary_runtime_measurements /run/agents/{user}.log 100
ExecStopPost=cp /run/agents/{user}.log /var/lib/agents/{user}.%b.log
[Install]
WantedBy=multi-user.target
"""

#: Runs once under each kernel. DIR is where the view is.
_RUN = """
boot=$(cat /host/boots 2>/dev/null || echo 0)
echo $((boot + 1)) > /host/boots
unit=imafs-keeper.service
list=DIR/binary_runtime_measurements
say() { echo "$(cut -d' ' -f1 /proc/uptime) $boot $*"; }
left() { journalctl -b --no-pager > /host/journal.$boot; }
by() {  # SECONDS WHAT...: until it is so
    last=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@"; do
        if [ $(cut -d. -f1 /proc/uptime) -gt $last ]; then
            say not "$@"
            cp /run/agents/*.log /host/
            systemctl status $unit agent-root agent-daemon
            left
            exit 1
        fi
        sleep 2
    done
    say "$@"
}
restarted() {
    [ $(systemctl show -p NRestarts --value $unit) = $1 ] && systemctl -q is-active $unit
}
sees() { tail -n 1 /run/agents/$1.log 2>/dev/null | grep -q ' ok'; }
agents() { by 600 sees root && by 600 sees daemon; }
measure() {  # NAME: files that are measured once each
    for n in $(seq FILES); do echo $boot $1 $n > /root/files/$boot.$1.$n; done
    cat /root/files/$boot.$1.* > /dev/null
}
moments() {
    for service in $unit agent-root agent-daemon; do
        systemctl show -p ActiveEnterTimestampMonotonic,ExecMainStartTimestampMonotonic \\
            $service > /host/$service.$boot
    done
}
install() {
    mkdir -p /opt/site /opt/units /root/files /var/lib/agents /var/lib/imafs
    chmod 1777 /var/lib/agents
    tar xf /host/site.tar -C /opt/site
    chmod -R a+rX /opt/site  # the keeper is not root
    tar xf /host/units.tar -C /opt/units
    cp /host/agent.py /opt/agent.py
    printf '#!/bin/sh\\nPYTHONPATH=/opt/site exec python3 -P -m imafs "$@"\\n' \\
        > /usr/local/bin/imafs
    chmod 755 /usr/local/bin/imafs
    mkfs.ext4 -q /dev/vdb
    echo '/dev/vdb /var/lib/imafs ext4 defaults 0 0' >> /etc/fstab
    mkdir -p /etc/sysusers.d /etc/tmpfiles.d
    cp -r /opt/units/*.service /opt/units/$unit.d /etc/systemd/system/
    cp /opt/units/sysusers.d/* /etc/sysusers.d/
    cp /opt/units/tmpfiles.d/* /etc/tmpfiles.d/
    echo 'd /run/agents 1777' > /etc/tmpfiles.d/agents.conf
    # root's journalctl beside a journal that is written is a violation.
    mkdir -p /etc/systemd/journald.conf.d
    printf '[Journal]\\nStorage=volatile\\n' > /etc/systemd/journald.conf.d/memory.conf
    systemctl restart systemd-journald
    systemctl daemon-reload
    systemd-sysusers
    systemctl start var-lib-imafs.mount
    systemd-tmpfiles --create
    systemctl enable -q $unit agent-root agent-daemon
    systemctl start agent-root agent-daemon
}

say up
[ $boot != 0 ] || install
agents
moments
measure stored
if [ $boot = 0 ]; then
    systemctl kill -s KILL --kill-who=main $unit
    say killed
    measure killed
    by 600 restarted 1
    agents
    systemctl kill -s STOP --kill-who=main $unit
    say stopped
    by 600 restarted 2
    agents
    measure last
fi
say runs $(stat -c %U /proc/$(systemctl show -p MainPID --value $unit))
imafs keep verify --all && say verified
imafs verify $list --pcrs /sys/class/tpm/tpm0 && say match
cat $list > /host/list.$boot
say violations $(cat DIR/violations)
imafs keep status --json > /host/status.$boot
if [ $boot = 0 ]; then
    left
    measure unstored
    # Last: the room for the list is reserved for what the kernel has now.
    kexec -s -l /host/bzImage --append="$(cat /proc/cmdline)"
    systemctl kexec
    sleep 1000
elif [ $boot = 1 ]; then
    left
    measure unstored
    systemctl reboot
    sleep 1000
fi
systemctl stop agent-root agent-daemon
left
cat /var/lib/imafs/keeper/lives/000001-*/*.bin > /host/life
cp /var/lib/agents/*.log /host/
say done
"""


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("--cover", "/sys/kernel/security/integrity/ima"),
        ("--mount /run/imafs/ima", "/run/imafs/ima"),
    ],
    ids=["cover", "mount"],
)
def test_agents_see_all_or_an_error(
    request: pytest.FixtureRequest, tmp_path: Path, option: str, place: str
) -> None:
    """Over kill -9, the watchdog, a kexec and a reboot, from mounts of their own."""
    machine = machines.found(request)
    host = tmp_path / "host"
    host.mkdir()
    machines.pack(host)
    _pack_units(host, option, place)
    shutil.copy(_AGENT, host / "agent.py")
    (host / "run.sh").write_text(_RUN.replace("FILES", str(_FILES)).replace("DIR", place))
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 1 << 30)
    out = machines.ask(machine, host, disk=disk)
    print(out)  # times
    assert out.splitlines()[-2].endswith(" 2 done"), out
    for boot in range(_BOOTS):
        for word in ("runs imafs", "verified", "match", "violations 0"):
            assert re.search(rf"^\S+ {boot} {word}$", out, re.MULTILINE), (boot, word, out)
    assert "Watchdog timeout" in (host / "journal.0").read_text()
    lists = [(host / f"list.{boot}").read_bytes() for boot in range(_BOOTS)]
    _check_lists(lists, (host / "life").read_bytes())
    _check_status(host)
    _check_order(host)
    _check_logs(host)


def _pack_units(host: Path, option: str, place: str) -> None:
    units = host / "units"
    shutil.copytree(ROOT / "systemd", units)
    (units / f"{_UNIT}.d").mkdir()
    (units / f"{_UNIT}.d" / "how.conf").write_text(_HOW.format(option=option))
    for user, tunables in zip(_AGENTS, ("no", "yes"), strict=True):
        text = _UNIT_OF_AGENT.format(user=user, tunables=tunables, place=place)
        (units / f"agent-{user}.service").write_text(text)
    with tarfile.open(host / "units.tar", "w") as archive:
        archive.add(units, ".")


def _check_lists(lists: list[bytes], life: bytes) -> None:
    """Each record once; the kexec goes on with the list, the reset begins another and leaves the
    store's ``life``, which ends behind what was added last."""
    first, second, anew = lists
    assert second.startswith(first)
    assert life.startswith(second)
    kinds = ("0.stored", "0.killed", "0.last", "0.unstored", "1.stored", "1.unstored")
    assert _measured(life) == _all_of(*kinds)
    assert _measured(second) == _all_of(*kinds[:-1])
    assert _measured(anew) == _all_of("2.stored")


def _measured(data: bytes) -> list[str]:
    return sorted(name for name in machines.names(data) if name.startswith("/root/files/"))


def _all_of(*kinds: str) -> list[str]:
    return sorted(f"/root/files/{kind}.{n}" for kind in kinds for n in range(1, _FILES + 1))


def _check_status(host: Path) -> None:
    lives: list[dict[str, Any]] = [
        json.loads((host / f"status.{boot}").read_text()) for boot in range(_BOOTS)
    ]
    assert [life["life"] for life in lives] == [1, 1, 2]
    assert [len(life["boots"]) for life in lives] == [1, 2, 1]
    for life in lives:
        assert life["view"] == "served"
        assert life["alarms"] == {}
        assert life["batches_deleted"] > 0


def _check_order(host: Path) -> None:
    """Under each kernel every agent was started behind a keeper that was ready."""
    for boot in range(_BOOTS):
        ready = _times(host, _UNIT, boot)["ActiveEnterTimestampMonotonic"]
        assert ready
        for user in _AGENTS:
            began = _times(host, f"agent-{user}", boot)["ExecMainStartTimestampMonotonic"]
            assert began >= ready


def _times(host: Path, unit: str, boot: int) -> dict[str, int]:
    lines = (host / f"{unit}.{boot}").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition("=") for line in lines)}


def _check_logs(host: Path) -> None:
    """Of each agent under each kernel: the whole list or a clear error, at each moment."""
    first = json.loads((host / "status.0").read_text())["boot"].replace("-", "")
    for user in _AGENTS:
        logs = sorted(host.glob(f"{user}.*.log"))
        assert len(logs) == _BOOTS
        for log in logs:
            text = log.read_text()
            print(log.name, text, sep="\n")  # figures
            assert [line.split()[1] for line in text.splitlines()].count("start") == 1
            assert re.search(r" end records \d+ polls \d+ errors \d+ bad 0$", text), text
            found = {line.split()[1] for line in text.splitlines()} - {"start", "end"}
            assert found - _LOUD == {"ok"}, text
            # While a keeper was killed, or did not answer, the agents looked.
            assert first not in log.name or "ENOTCONN" in found, text
