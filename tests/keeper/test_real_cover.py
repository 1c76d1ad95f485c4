# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The view over a real kernel's own directory, without a unit: ended, killed, taken away by hand;
what held descriptors and the kernel's policy do there.

One machine answers (tests/machine.py): minutes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import machine as machines

pytestmark = [pytest.mark.nightly, pytest.mark.root]

_DEAD = "Transport endpoint is not connected"
_RULE = "dont_measure func=FILE_CHECK fsname=fuse fs_subtype=imafs"

_RUN = """
count() { "$@" cat $ima/runtime_measurements_count 2>&1 | sed 's/.*: //'; }
here() {  # WHEN: what the kernel's path shows, to the host and to a service
    echo "$1: host $(count)"
    echo "$1: service $(count nsenter -t $(systemctl show -p MainPID --value private) -m)"
    echo "$1: layers $(grep -c " $ima " /proc/self/mountinfo)"
}
watch() {  # every answer of the kernel's path, until /run/stop is there
    until [ -e /run/stop ]; do count; done > /run/seen
}
whole() {  # WHEN: the list leads to the PCRs
    imafs verify $ima/$list --pcrs /sys/class/tpm/tpm0 | grep -q "match after" && echo "$1: match"
}

systemd-run -q --unit=private -p PrivateTmp=yes -p ProtectKernelTunables=yes sleep 100000
for n in $(seq 200); do echo $n > /root/file.$n; done
cat /root/file.* > /dev/null
before=$(cat $ima/runtime_measurements_count)
keeping --cover
grep -q "$ima will be covered" /run/keep.out && echo "told"
here started
echo "policy $(stat -f -c %T $ima/policy)"
{ echo "RULE"; cat $ima/policy; } > /run/rules
cat /run/rules > $ima/policy && echo "policy loaded"
head -1 $ima/policy
imafs keep flush

exec 5< $ima/$list
watch &
watcher=$!
for signal in TERM 9; do
    keeper_ends $signal
    here ended.$signal
    cat <&5 > /run/held 2>&1 || tail -n 1 /run/held | sed "s/.*:/held $signal:/"
    echo $signal > /root/between.$signal
    cat /root/between.$signal
    keeping --cover
    here again.$signal
    whole again.$signal
    exec 5< $ima/$list
done
touch /run/stop
wait $watcher
imafs keep status --json | grep -o '"view_measured.*"'
sort /run/seen | uniq | grep -v '^[0-9]*$' | sed 's/^/seen: /'
echo "seen $(wc -l < /run/seen), least $(grep '^[0-9]' /run/seen | sort -n | head -1) of $before"

exec 5<&-
umount $ima 2> /dev/null || echo "umount busy"
umount --lazy $ima
wait $keeper
echo "uncovered: $?"
grep 'somebody unmounted' /run/keep.out
keeping --cover
keeper_ends TERM
umount --lazy $ima
echo "kernel's own: $(cat $ima/runtime_measurements_count), $(stat -f -c %T $ima)"
echo "violations $(cat $ima/violations)"
"""


def test_cover_of_a_real_kernel(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The whole list or ENOTCONN, never the trimmed one, to the host and to a service."""
    machine = machines.found(request)
    host = tmp_path / "host"
    host.mkdir()
    machines.pack(host)
    (host / "run.sh").write_text(machines.HEAD + _RUN.replace("RULE", _RULE))
    out = machines.ask(machine, host)
    print(out)  # figures
    lines = out.splitlines()
    measured = '"view_measured": "no"'
    for line in ("told", "policy securityfs", "policy loaded", f"{_RULE} ", measured):
        assert line in lines, out
    counts = {}
    for moment in ("started", "again.TERM", "again.9"):
        assert f"{moment}: layers 1" in lines, out
        for who in ("host", "service"):
            (found,) = re.findall(rf"^{moment}: {who} ([0-9]+)$", out, flags=re.M)
            counts[moment, who] = int(found)
    assert counts["started", "service"] >= counts["started", "host"] > 200, out
    for signal in ("TERM", "9"):
        for who in ("host", "service"):
            assert f"ended.{signal}: {who} {_DEAD}" in lines, out
        assert f"ended.{signal}: layers 1" in lines, out
        assert f"held {signal}: {_DEAD}" in lines, out
        assert f"again.{signal}: match" in lines, out
        assert counts[f"again.{signal}", "host"] > counts["started", "host"], out
    # A request may have been under way: ECONNABORTED.
    loud = {f"seen: {_DEAD}", "seen: Software caused connection abort"}
    assert {line for line in lines if line.startswith("seen: ")} <= loud, out
    (least,) = re.findall(r"^seen [0-9]+, least ([0-9]+) of ([0-9]+)$", out, flags=re.M)
    assert int(least[0]) >= int(least[1]), out
    for line in ("keeper TERM 0", "keeper 9 137", "umount busy", "uncovered: 5", "violations 0"):
        assert line in lines, out
    assert re.search(r"^kernel's own: [0-9]{1,2}, securityfs$", out, flags=re.M), out
