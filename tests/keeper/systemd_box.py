# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A systemd of its own: PID 1 of a container that has this machine's files, and loses what it
writes. Seconds. Nothing of this machine's own services runs in it, and no mount gets out.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, require, unmet, wait_for

_DEADLINE = 240.0
_END = 20.0
#: Also for a user in root's group.
_PASS = stat.S_IXGRP | stat.S_IXOTH
#: Arguments: a place for what is written, what is /host inside, how many directories everybody may
#: pass, these, paths of other file systems.
_ENTER = """
set -eu
place=$1 host=$2 closed=$3
shift 3
mount -t tmpfs none "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" none "$place/root"
root=$place/root
while [ $closed -gt 0 ]; do
    chmod a+x "$root$1"
    shift
    closed=$((closed - 1))
done
for path; do
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
done
mkdir -p "$root/host" "$root/old"
mount --bind "$host" "$root/host"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sys "$root/sys"
mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for device in null zero full random urandom tty fuse; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
: > "$root/etc/fstab"
rm -rf "$root/etc/systemd/system"
mkdir -p "$root/etc/systemd/system"
cp -r "$host/units/." "$root/etc/systemd/system/"
mkdir -p "$root/usr/local/bin"
cp "$host/imafs" "$root/usr/local/bin/imafs"
cd "$root"
pivot_root . old
umount -l /old
mount --make-rshared /
exec env -i container=imafs PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=asked.target --log-target=console --show-status=no
"""
_ASKED = """[Unit]
Requires=asked.service
"""
_SERVICE = """[Unit]
After=basic.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sh -c 'cd /host; sh ./run.sh >out.txt 2>&1; echo "status $?" >>out.txt; \
systemctl exit'
"""


def _cgroup() -> Path:
    """A cgroup of ours in the unified hierarchy; skips where none can be made."""
    found = re.search(r"^\S+ (\S+) cgroup2 ", Path("/proc/mounts").read_text(), re.MULTILINE)
    if found is None:
        unmet(["a mounted cgroup2 file system"])
    group = Path(found[1], f"imafs-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        unmet([f"a cgroup of its own ({error.strerror})"])
    return group


def _removed(group: Path) -> bool:
    """False while processes that were killed are still in it."""
    try:
        for directory in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            directory.rmdir()
        group.rmdir()
    except OSError:
        return False
    return True


def _closed(here: int) -> list[str]:
    """Directories on the way to this Python that other users cannot pass: a copy's may be opened.
    Skips where they are on a file system that is shown as it is."""
    found = {
        Path(sys.executable),
        Path(sys.base_prefix, "lib"),
        Path(os.path.realpath(sys.executable)),
    }
    closed = {up for path in found for up in path.parents if ~up.stat().st_mode & _PASS}
    if any(os.stat(path).st_dev != here for path in closed):
        unmet(["a Python that every user can execute"])
    return sorted(map(str, closed))


def ask(host: Path) -> str:
    """What ``run.sh`` of ``host`` printed; ``host/units`` are the units of that systemd."""
    require("systemctl", "unshare", "swtpm")
    if not Path("/lib/systemd/systemd").exists():
        unmet(["systemd"])
    units = host / "units"
    (units / "asked.target").write_text(_ASKED)
    (units / "asked.service").write_text(_SERVICE)
    command = host / "imafs"
    words = shlex.join([sys.executable, "-P", "-m", "imafs"])
    command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {words} "$@"\n')
    command.chmod(0o755)
    (host / "enter").write_text(_ENTER)
    place = host.parent / "place"
    place.mkdir()
    here = os.stat("/").st_dev
    others = [path for path in {str(ROOT), sys.prefix} if os.stat(path).st_dev != here]
    group = _cgroup()
    shell = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    inside = ["unshare", "-m", "-p", "-u", "-i", "-C", "-f", "--kill-child", "--propagation"]
    inside += ["private", "bash", str(host / "enter"), str(place), str(host)]
    closed = _closed(here)
    inside += [str(len(closed)), *closed, *others]
    try:
        with (host / "console").open("wb") as console:
            subprocess.run(
                ["sh", "-c", shell, "sh", *inside],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                timeout=_DEADLINE,
                check=False,
            )
    finally:
        wait_for(lambda: _removed(group), _END, "the cgroup is empty")
    out = host / "out.txt"
    assert out.exists(), (host / "console").read_text(errors="replace")
    return out.read_text()
