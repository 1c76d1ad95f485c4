# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs umount --stale``: all of the dead, nothing of the living.

In a mount namespace of its own with its own /run/imafs: this machine may have dead
mounts that are another test's business.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from imafs.cli import leftovers
from imafs.host import mounts
from tests.crash.test_faults import as_user
from tests.mount.daemon import ALONE_BUT, Daemon, alive, layers
from tests.mount.fixtures import Starter
from tests.support import ROOT, run, stopped, wait_for

__all__ = ["as_user"]

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: Arguments: the directory that is /run/imafs, then what is looked at afterwards.
_SCRIPT = f"""
set -eu
{ALONE_BUT}
mkdir -p /run/imafs
mount --bind "$1" /run/imafs
"$PYTHON" -P -m imafs umount --stale
echo "again:"
"$PYTHON" -P -m imafs umount --stale
echo "mounts:"
cut -d' ' -f5 /proc/self/mountinfo
"""


def _stale(runtime: Path, temporary: Path) -> tuple[list[str], list[str], list[str]]:
    """Lines of the first call, of a second one, and the mountpoints that are left."""
    result = run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", str(runtime)],
        cwd=ROOT,
        # Other emulators of this machine die as they please; ours are in this run's directory.
        env={"PYTHON": sys.executable, "KEEP": tempfile.gettempdir(), "TMPDIR": str(temporary)},
    )
    first, rest = result.stdout.split("again:\n")
    second, left = rest.split("mounts:\n")
    return first.splitlines(), second.splitlines(), left.splitlines()


def _dead(daemon: Daemon) -> None:
    swtpm = daemon.swtpm()
    daemon.kill()
    wait_for(partial(_ended, swtpm), 60, "swtpm died with the daemon")


def _ended(pid: int) -> bool:
    return not alive(pid)


def test_everything_of_the_dead_and_nothing_of_the_living(start: Starter, tmp_path: Path) -> None:
    runtime, temporary = tmp_path / "run", tmp_path / "temporary"
    runtime.mkdir(mode=0o700)
    temporary.mkdir()
    places = [start.place() for _ in range(4)]
    daemons = []
    for number, place in enumerate(places):
        options = ["--control", str(runtime / f"{number}.sock")]
        options += ["--log-file", str(runtime / f"{number}.log")]
        environment = {"TMPDIR": str(temporary)}
        daemons.append(start(*options, place=place, control=False, env=environment))
    states = {path.name for path in temporary.glob("imafs-tpm-*")}
    assert len(states) == 4
    young = temporary / "imafs-tpm-young"
    young.mkdir()
    old = temporary / "imafs-tpm-old"
    old.mkdir()
    os.utime(old, (1, 1))
    link = temporary / "imafs-tpm-link"
    link.symlink_to(young)
    (runtime / "foreign.sock").write_text("no socket")
    (runtime / "refused.log").touch()  # of a start that came to nothing, as earlier versions left
    _dead(daemons[0])
    _dead(daemons[1])
    with stopped(daemons[2].pid):  # slow, not dead
        first, second, left = _stale(runtime, temporary)
    assert {f"imafs: unmounted {place.dir}" for place in places[:2]} <= set(first)
    removed = {line.removeprefix("imafs: removed ") for line in first if " removed " in line}
    expected = {f"/run/imafs/{n}.{kind}" for n in (0, 1) for kind in ("sock", "log")}
    expected.add("/run/imafs/refused.log")
    assert expected <= removed
    gone = {Path(path).name for path in removed - expected}
    assert "imafs-tpm-old" in gone
    assert len(gone & states) == 2
    assert len(gone) == 3, gone
    assert second == []
    assert not {str(place.dir) for place in places[:2]} & set(left)
    assert {str(place.dir) for place in places[2:]} <= set(left)
    names = {path.name for path in runtime.iterdir()}
    assert names == {"2.sock", "2.log", "3.sock", "3.log", "foreign.sock"}
    assert young.is_dir()
    assert link.is_symlink()
    for daemon in daemons[2:]:
        daemon.generate(3)
        daemon.assert_replays()


def test_other_users_have_their_own(
    start: Starter, as_user: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user can give a file system our name; root does not go after it unless DIR is named."""
    place = start.place()
    os.chown(place.dir, 1000, 1000)
    place.base.chmod(0o1777)
    prefix = ("env", "--unset=XDG_RUNTIME_DIR", *as_user)
    start("--tpm", "none", place=place, prefix=prefix, control=False).kill()
    theirs = mounts.top(str(place.dir))
    assert theirs is not None
    with monkeypatch.context() as patch:
        patch.setattr(mounts, "mounts", lambda: [theirs])
        # What a root sees where /etc/fuse.conf has user_allow_other; else it is EACCES.
        patch.setattr(mounts, "probe", lambda path: errno.ENOTCONN)
        assert list(leftovers.unmount_dead()) == []
    told = run([*prefix, sys.executable, "-P", "-m", "imafs", "umount", "--stale"], cwd=ROOT).stdout
    assert f"imafs: unmounted {place.dir}\n" in told
    assert layers(place.dir) == 0


def test_a_start_removes_the_states_of_dead_daemons(start: Starter, tmp_path: Path) -> None:
    """On whatever directory that was: /tmp would fill up in a machine that kills its tests."""
    environment = {"TMPDIR": str(tmp_path)}
    first, second = start(env=environment), start(env=environment)
    before = set(tmp_path.iterdir())
    _dead(first)
    third = start(env=environment)
    assert len(before & set(tmp_path.iterdir())) == 1
    assert "removed what an earlier imafs left" in third.log()
    second.generate(3)
    second.assert_replays()


def test_mounts_of_other_users_among_the_states(
    start: Starter, as_user: tuple[str, ...], tmp_path: Path
) -> None:
    """Root may not even look at a user's mount: that was the end of each start, for everybody."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    place = start.place()
    evil = temporary / "imafs-tpm-evil"
    evil.mkdir()
    os.chown(place.dir, 1000, 1000)
    place.base.chmod(0o1777)
    start("--tpm", "none", place=place, prefix=("env", "--unset=XDG_RUNTIME_DIR", *as_user))
    run(["mount", "--bind", place.dir, evil])
    try:
        with pytest.raises(PermissionError):
            evil.lstat()
        daemon = start(env={"TMPDIR": str(temporary)})
        daemon.generate(3)
        daemon.assert_replays()
    finally:
        run(["umount", "--lazy", evil])
