# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which daemon a command means: never another one's, and a word on those that are dead."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from imafs.testing.mounted import Home
from tests.mount.daemon import ALONE, ALONE_BUT, BINARY, alive, imafs, layers
from tests.mount.fixtures import Starter
from tests.support import ROOT, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def test_umount_by_the_socket_of_another_stops_nothing(start: Starter) -> None:
    one, other = start("--tpm", "none"), start("--tpm", "none")
    result = imafs("umount", one.dir, "--control", other.control, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"the daemon of {other.dir}: nothing was stopped" in result.stderr
    assert (one.count(), other.count()) == (1, 1)


def test_the_status_names_the_process(start: Starter) -> None:
    daemon = start("--tpm", "none")
    assert daemon.call("status")["pid"] == daemon.pid
    assert f"\nprocess     {daemon.pid}\n" in daemon.ctl("status")


def test_a_socket_of_another_name_is_found_by_the_mount(start: Starter) -> None:
    """By the process that serves it: status, verify and umount need no --control."""
    one, other = start("--tpm", "none"), start("--tpm", "none")
    shown = imafs("status", one.dir).stdout
    assert f" on {one.dir}, " in shown
    assert f" on {other.dir}, " in imafs("status", f"{other.dir}/{BINARY}").stdout
    result = imafs("verify", one.path(BINARY), check=False)
    assert (result.returncode, "that imafs has no TPM" in result.stderr) == (2, True)
    imafs("umount", one.dir)
    assert one.wait() == 0
    assert (layers(one.dir), layers(other.dir)) == (0, 1)


def test_status_of_what_is_no_mount(start: Starter) -> None:
    daemon = start("--tpm", "none")
    result = imafs("status", daemon.place.base, check=False)
    assert (result.returncode, "no imafs is mounted here" in result.stderr) == (5, True)
    result = imafs("status", daemon.dir, "--control", daemon.control, check=False)
    assert (result.returncode, "DIR or --control, not both" in result.stderr) == (2, True)


def states() -> set[Path]:
    """Temporary states of swtpms of this run of tests."""
    return set(Path(os.environ["TMPDIR"]).glob("imafs-tpm-*"))


def test_umount_of_a_dead_mount_takes_socket_and_state_along(start: Starter) -> None:
    before = states()  # a daemon that other tests share has one
    daemon = start()
    swtpm = daemon.swtpm()
    daemon.kill()
    wait_for(lambda: not alive(swtpm), 60, "its swtpm has ended")
    assert Path(daemon.control).exists()
    assert len(states() - before) == 1
    imafs("umount", daemon.dir, "--control", daemon.control)
    assert not Path(daemon.control).exists()
    assert states() == before
    assert layers(daemon.dir) == 0


def test_what_lies_on_a_dead_mount(start: Starter) -> None:
    daemon = start("--tpm", "none")
    daemon.kill()
    base = daemon.place.base
    (base / "other").mkdir()
    (base / "pcrs").write_text(f"sha1 10 {'00' * 20}\n")
    commands: list[list[str | os.PathLike[str]]] = [
        ["verify", daemon.path(BINARY)],
        ["list", daemon.path(BINARY)],
        ["record", daemon.dir, "-o", base / "x.tar"],
        ["record", daemon.dir, "-o", base / "x.tar", "--pcrs", base / "pcrs"],
        ["mount", base / "other", "--tpm", "none", "--load", daemon.dir],
        ["status", daemon.dir],
    ]
    for words in commands:
        result = imafs(*words, check=False)
        assert (result.returncode, result.stdout) == (6, ""), words
        assert f"is dead; clear its mount with: imafs umount {daemon.dir}\n" in result.stderr


_DEAD = f"""
set -eu
{ALONE_BUT}
mount -t tmpfs -o mode=0700 none /run/imafs
"$PYTHON" -P -m imafs status || echo "status: $?"
"""


def test_status_names_dead_mounts(start: Starter) -> None:
    daemon = start("--tpm", "none")
    daemon.kill()
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _DEAD]
    os.makedirs("/run/imafs", mode=0o700, exist_ok=True)
    environment = {"PYTHON": sys.executable, "KEEP": str(daemon.place.base)}
    result = run(words, cwd=ROOT, env=environment)
    assert result.stdout == "status: 6\n"
    assert "no imafs listens in /run/imafs" in result.stderr
    assert f"is dead; clear its mount with: imafs umount {daemon.dir}\n" in result.stderr


@pytest.mark.parametrize("how", ["full", "missing", "other"])
def test_a_background_mount_that_is_refused_leaves_no_log(start: Starter, how: str) -> None:
    place = start.place()
    log = _log_of(place)
    if how == "full":
        (place.dir / "file").touch()
    elif how == "missing":
        place.dir.rmdir()
    else:
        run(["mount", "-t", "tmpfs", "none", str(place.dir)])
        (place.dir / "file").touch()
    result = imafs("mount", place.dir, "--background", check=False)
    assert result.returncode == 5
    assert not os.path.lexists(log)


def _log_of(place: Home) -> str:
    name = str(place.dir)[1:].replace("-", "%2d").replace("/", "-")
    return f"/run/imafs/{name}.log"


def test_a_second_background_mount_leaves_the_log_of_the_first(start: Starter) -> None:
    place = start.place()
    imafs("mount", place.dir, "--background", "--tpm", "none")
    try:
        assert os.path.exists(_log_of(place))
        result = imafs("mount", place.dir, "--background", "--tpm", "none", check=False)
        assert result.returncode == 5
        assert os.path.exists(_log_of(place))
    finally:
        imafs("umount", place.dir)
    assert not os.path.exists(_log_of(place))
    assert layers(place.dir) == 0


@pytest.mark.parametrize("command", [["mount", "--background"], ["mount"], ["run"]])
def test_a_log_file_that_cannot_be_written(start: Starter, command: list[str]) -> None:
    end = ["--", "true"] if command == ["run"] else [str(start.place().dir)]
    result = imafs(*command, "--log-file", "/nonexistent/log", *end, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "imafs: --log-file /nonexistent/log: No such file or directory\n"


@pytest.mark.swtpm
def test_a_full_disk_is_named_where_swtpm_does_not_start(start: Starter) -> None:
    place = start.place()
    full = place.base / "full"
    full.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(full)])
    (full / "state").mkdir()
    with (full / "fill").open("wb", buffering=0) as file:
        file.write(bytes(4096))
    status, error = start.refused("--tpm-state", full / "state", place=place)
    assert status == 4
    assert "swtpm did not start (exit code " in error
    assert f"{full / 'state'} has 0 bytes of room left" in error


_NO_SOCKET = f"""
set -eu
{ALONE}
mount -t tmpfs -o mode=0700 none /run/imafs
mkdir "$1/a" "$1/b"
for name in a b; do
    "$PYTHON" -P -m imafs mount "$1/$name" --tpm none --background >/dev/null
done
trap 'kill $(pgrep --full -- "imafs mount $1/[ab]")' EXIT
rm /run/imafs/*-b.sock
"$PYTHON" -P -m imafs status || echo "status: $?"
"$PYTHON" -P -m imafs umount "$1/b" || echo "umount: $?"
"""


def test_a_socket_that_somebody_removed(tmp_path: Path) -> None:
    """Nothing is asked of another emulator instead, and it is said what ends this one."""
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NO_SOCKET]
    os.makedirs("/run/imafs", mode=0o700, exist_ok=True)
    place = tmp_path / "place"
    place.mkdir()
    result = run([*words, "sh", str(place)], cwd=ROOT, env={"PYTHON": sys.executable})
    assert result.stdout == "status: 6\numount: 5\n"
    assert f"serves {place}/b" in result.stderr
    assert "end the daemon by: kill " in result.stderr


def test_umount_returns_when_the_process_has_ended(start: Starter) -> None:
    for _ in range(5):
        daemon = start("--tpm", "none")
        imafs("umount", daemon.dir)
        assert daemon.wait() == 0


def test_a_mount_by_a_link(start: Starter) -> None:
    """The mountpoint is what the link leads to, by either name."""
    place = start.place()
    os.rename(place.dir, place.base / "real")
    (place.base / "real").chmod(0o755)
    place.dir.symlink_to("real")
    daemon = start("--tpm", "none", place=place)
    assert daemon.call("status")["mountpoint"] == str(place.base / "real")
    assert layers(place.base / "real") == layers(place.dir) == 1
    imafs("umount", place.dir)
    assert daemon.wait() == 0
    assert layers(place.base / "real") == 0
