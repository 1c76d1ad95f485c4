# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""From the line that says ready to the unmount, and everything that is refused."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imafs.control import paths
from imafs.host import mounts
from tests.mount.daemon import ALONE, ASCII, BINARY, Daemon, alive, close_dead, gone, imafs, layers
from tests.mount.fixtures import Starter
from tests.support import ROOT, run, stop, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def test_ready_line(daemon: Daemon) -> None:
    """One line on stdout, and the mount answers by then."""
    assert daemon.ready_line == (
        f"imafs: mounted {daemon.dir} control={daemon.control} tcti={daemon.tcti}\n"
    )
    assert daemon.tcti.startswith("swtpm:")
    assert daemon.path(ASCII).exists()
    assert daemon.count() == 1
    assert daemon.call("hello")["protocol"]


def test_sd_notify_after_the_mount_answers(start: Starter) -> None:
    place = start.place()
    address = place.base / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(address))
        service.settimeout(60)
        daemon = start.launch(place=place, env={"NOTIFY_SOCKET": str(address)})
        lines = service.recv(4096).decode().split("\n")
        assert "READY=1" in lines
        mount = mounts.top(str(place.dir))
        assert mount is not None
        assert mount.ours
        assert (place.dir / ASCII).exists()
        daemon.start()
        assert daemon.stop() == 0
        assert service.recv(4096).decode().split("\n") == ["STOPPING=1"]


def test_sd_notify_is_not_ready_when_refused(start: Starter) -> None:
    place = start.place()
    (place.dir / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(place.base / "notify"))
        service.setblocking(False)
        daemon = start.launch(place=place, env={"NOTIFY_SOCKET": str(place.base / "notify")})
        assert daemon.wait() == 5
        with pytest.raises(BlockingIOError):
            service.recv(4096)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount_and_exit_0(daemon: Daemon, number: signal.Signals) -> None:
    swtpm = daemon.swtpm()
    assert daemon.stop(number) == 0
    assert layers(daemon.dir) == 0
    assert not Path(daemon.control).exists()
    wait_for(lambda: not alive(swtpm), 60, "swtpm is gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_with_open_files(daemon: Daemon, number: signal.Signals) -> None:
    reader = os.open(daemon.path(BINARY), os.O_RDONLY)
    directory = os.open(daemon.dir, os.O_RDONLY)
    os.read(reader, 10)
    assert daemon.stop(number) == 0
    assert layers(daemon.dir) == 0
    for call in (lambda: os.read(reader, 10), lambda: os.listdir(directory)):
        with pytest.raises(OSError, match=r"not connected|caused connection abort"):
            call()
    close_dead(reader)
    close_dead(directory)


def test_sigterm_under_load(daemon: Daemon) -> None:
    """Readers in the middle of requests and a measurement that waits: exit 0 all the same."""
    daemon.generate(2000)
    stop = threading.Event()
    read = [0] * 4
    wrong: list[OSError] = []

    def reader(me: int) -> None:
        while not stop.is_set():
            try:
                read[me] += len(daemon.read(ASCII))
            except OSError as error:
                # ENOENT: the directory below the mount.
                if error.errno not in {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT}:
                    wrong.append(error)
                return

    threads = [threading.Thread(target=reader, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    load = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "imafs",
            "ctl",
            "--control",
            daemon.control,
            "generate",
            "1000000",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: all(read), 60, "every thread has read")
    status = daemon.stop()
    stop.set()
    for thread in threads:
        thread.join()
    assert status == 0
    assert load.wait(60) == 6
    assert wrong == []
    assert layers(daemon.dir) == 0


def test_sigterm_while_the_tpm_hangs(daemon: Daemon) -> None:
    swtpm = daemon.swtpm()
    stop(swtpm)
    daemon.call("generate", count=50)
    assert daemon.stop() == 0
    assert layers(daemon.dir) == 0
    wait_for(lambda: not alive(swtpm), 60, "swtpm is gone")


def test_ctl_stop_and_umount_end_the_daemon(start: Starter) -> None:
    first, second = start(), start()
    assert first.ctl("stop") == "the daemon unmounts and ends\n"
    assert first.wait() == 0
    imafs("umount", second.dir, "--control", second.control)
    assert layers(second.dir) == 0, "umount returns when it is unmounted"
    assert second.wait() == 0


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"], ["umount", "--lazy"]])
def test_an_external_unmount_ends_the_daemon(daemon: Daemon, command: list[str]) -> None:
    run([*command, str(daemon.dir)])
    assert daemon.wait() == 0
    assert not Path(daemon.control).exists()


def test_an_external_unmount_is_refused_while_files_are_open(daemon: Daemon) -> None:
    with daemon.path(BINARY).open("rb"):
        result = run(["umount", str(daemon.dir)], check=False)
        assert result.returncode != 0
        assert daemon.count() == 1


def test_a_lazy_external_unmount_with_an_open_file(daemon: Daemon) -> None:
    """The daemon serves what is open and ends with it."""
    with daemon.path(BINARY).open("rb", buffering=0) as file:
        run(["umount", "--lazy", str(daemon.dir)])
        assert file.read(101)
        assert daemon.process.poll() is None
    assert daemon.wait() == 0


# --background


def test_background_returns_when_the_mount_answers(start: Starter) -> None:
    place = start.place()
    control = place.base / "control"
    result = imafs("mount", place.dir, "--background", "--control", control)
    try:
        assert result.stdout.startswith(f"imafs: mounted {place.dir} control={control} tcti=")
        assert result.stderr == ""
        assert (place.dir / ASCII).read_bytes()
    finally:
        imafs("umount", place.dir, "--control", control, check=False)
    assert layers(place.dir) == 0


def test_background_log_file(start: Starter) -> None:
    place = start.place()
    control, log = place.base / "control", place.base / "log"
    imafs("mount", place.dir, "--background", "--control", control, "--log-file", log)
    imafs("umount", place.dir, "--control", control)
    gone(place.dir)
    assert "WARNING" not in log.read_text()


@pytest.mark.parametrize("to_file", [True, False], ids=["log-file", "stderr"])
def test_stacks_are_printed_where_log_lines_go(start: Starter, to_file: bool) -> None:
    place = start.place()
    log = place.base / "log"
    daemon = start("--tpm", "none", *(("--log-file", log) if to_file else ()), place=place)
    os.kill(daemon.pid, signal.SIGUSR1)
    read = log.read_text if to_file else daemon.log
    wait_for(lambda: "most recent call first" in read() and "daemon.py" in read(), 60, "stacks")
    assert daemon.stop() == 0
    if to_file:
        assert daemon.log() == ""


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["DEBUG: {}: removed by somebody else", "INFO: SIGTERM: unmounting"]),
        ("info", ["INFO: SIGTERM: unmounting"]),
        ("error", []),
    ],
)
def test_the_level_of_the_log(start: Starter, level: str, told: list[str]) -> None:
    daemon = start("--tpm", "none", "--log-level", level)
    socket, pid = Path(daemon.control), daemon.pid
    socket.unlink()
    os.kill(pid, signal.SIGTERM)
    assert daemon.wait() == 0
    lines = [line.removeprefix("imafs: ") for line in daemon.log().splitlines()]
    ends = ("removed by somebody else", "unmounting")
    assert [line for line in lines if line.endswith(ends)] == [
        line.format(socket) for line in told[::-1]
    ]
    if level == "error":
        assert lines == []


def test_an_unknown_level_of_the_log(start: Starter) -> None:
    status, log = start.refused("--log-level", "chatty")
    assert status == 2
    assert "invalid choice: 'chatty'" in log


@pytest.mark.parametrize("name", ["control.log", "other.log"])
def test_a_log_file_that_somebody_removed(start: Starter, name: str) -> None:
    """Also the one that --background would have chosen, which is removed at a good end."""
    place = start.place()
    log = place.base / name
    daemon = start("--log-file", log, place=place)
    assert log.exists()
    log.unlink()
    daemon.generate(3)
    assert daemon.stop() == 0
    assert daemon.log() == ""
    assert not log.exists()
    assert layers(place.dir) == 0


def test_background_gives_the_error_and_its_status(start: Starter) -> None:
    place = start.place()
    (place.dir / "file").touch()
    result = imafs("mount", "--background", place.dir, check=False)
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr.startswith(f"imafs: {place.dir}: is not empty")


def test_background_leaves_the_log_of_the_living_alone(start: Starter) -> None:
    """Whatever socket that one listens at."""
    place = start.place()
    control = place.base / "control"
    log = paths.default_socket(place.dir).with_suffix(".log")
    try:
        imafs("mount", place.dir, "--background", "--control", control)
        before = log.stat().st_ino
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        result = imafs("mount", place.dir, "--background", check=False)
        assert result.returncode == 5
        assert "another imafs is mounted here" in result.stderr
        assert log.stat().st_ino == before
    finally:
        imafs("umount", place.dir, "--control", control, check=False)
        log.unlink(missing_ok=True)


# What is refused


def test_umount_of_nothing(start: Starter) -> None:
    place = start.place()
    result = imafs("umount", place.dir, check=False)
    assert result.returncode == 5
    assert str(place.dir) in result.stderr


def test_umount_of_a_foreign_mount(start: Starter) -> None:
    place = start.place()
    run(["mount", "-t", "tmpfs", "none", str(place.dir)])
    (place.dir / "file").write_text("content")
    result = imafs("umount", place.dir, check=False)
    assert result.returncode == 5
    assert "not a mount of imafs" in result.stderr
    assert (place.dir / "file").read_text() == "content"


def test_mount_over_a_foreign_mount(start: Starter) -> None:
    place = start.place()
    run(["mount", "-t", "tmpfs", "none", str(place.dir)])
    (place.dir / "file").write_text("content")
    status, log = start.refused(place=place)
    assert status == 5
    assert "tmpfs" in log
    assert (place.dir / "file").read_text() == "content"


def test_mount_on_the_root_of_an_empty_file_system(start: Starter) -> None:
    """Made to mount upon: a tmpfs that a container gave."""
    place = start.place()
    run(["mount", "-t", "tmpfs", "none", str(place.dir)])
    daemon = start(place=place)
    assert daemon.count() == 1
    assert daemon.stop() == 0
    assert layers(place.dir) == 1


def test_a_second_daemon_on_the_same_directory(start: Starter) -> None:
    first = start()
    daemon = start.launch("--tpm", "none", place=first.place, control=False)
    assert daemon.wait() == 5
    assert f"{first.dir}: another imafs is mounted here" in daemon.log()
    assert layers(first.dir) == 1
    assert first.count() == 1


def test_a_second_daemon_on_the_same_control_socket(start: Starter) -> None:
    first = start()
    second = start.place()
    daemon = start.launch("--control", first.control, "--tpm", "none", place=second, control=False)
    assert daemon.wait() == 6
    assert str(first.control) in daemon.log()
    assert layers(second.dir) == 0
    assert first.call("hello")


@pytest.mark.parametrize("kind", ["not empty", "missing", "a file", "below a file"])
def test_directories_that_are_refused(start: Starter, kind: str) -> None:
    place = start.place()
    if kind == "not empty":
        (place.dir / ".hidden").touch()
    else:
        place.dir.rmdir()
    if kind == "a file":
        place.dir.write_text("")
    if kind == "below a file":
        place.dir.write_text("")
        place.dir = place.dir / "below"
    status, log = start.refused("--tpm", "none", place=place)
    assert status == 5
    assert log.startswith(f"imafs: {place.dir}: ")
    assert log.count("\n") == 1, "one line, no traceback"


@pytest.mark.parametrize(
    "options",
    [
        ["--profile", "none"],
        ["--template", "none"],
        ["--template-fmt", "d-ng|none"],
        ["--hash", "none"],
        ["--pcr", "16"],
        ["--pcr", "ten"],
        ["--banks", "none"],
        ["--padded-banks", "none"],
        ["--cache", "64X"],
        ["--cache", ""],
        ["--tpm", ""],
        ["--tpm", "none", "--banks", "sha1"],
        ["--layout", "none"],
        ["--st-size", "2"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense(start: Starter, options: list[str]) -> None:
    """Status 2, a short message, nothing mounted."""
    place = start.place()
    status, log = start.refused(*options, place=place)
    assert status == 2, log
    assert "Traceback" not in log
    assert layers(place.dir) == 0


# Two instances and their default sockets: in a mount namespace with a /run/imafs of its own,
# because other daemons of this machine use the real one.

TWO = """
set -eu
mkdir -p /run/imafs
mount -t tmpfs none /run/imafs
imafs() { "$PYTHON" -P -m imafs "$@"; }
imafs mount --background "$1"
imafs ctl generate 4
echo "one: $(cat "$1/runtime_measurements_count")"
imafs mount --background "$2"
status=0; imafs ctl status > /dev/null || status=$?
echo "two: $status"
for dir in "$1" "$2"; do
    for socket in /run/imafs/*.sock; do
        case $(imafs ctl --control $socket status) in *" $dir, "*) echo "$dir by $socket" ;; esac
    done
done
imafs umount "$1"
imafs ctl status | grep -c "$2, "
imafs umount "$2"
status=0; imafs ctl status || status=$?
echo "none: $status"
ls -A /run/imafs
"""


def test_two_instances_with_default_sockets(start: Starter, tmp_path: Path) -> None:
    first, second = start.place().dir, start.place().dir
    script = tmp_path / "script"
    script.write_text(f"{ALONE}\n{TWO}")
    result = run(
        ["unshare", "--mount", "sh", str(script), str(first), str(second)],
        cwd=ROOT,
        env={"PYTHON": sys.executable},
    )
    lines = result.stdout.splitlines()
    assert "one: 5" in lines
    assert "two: 6" in lines
    assert "--control" in result.stderr
    assert str(first) in result.stderr
    assert str(second) in result.stderr
    sockets = {line.split(" by ")[0]: line.split(" by ")[1] for line in lines if " by " in line}
    assert sorted(sockets) == sorted([str(first), str(second)])
    assert sockets[str(first)] != sockets[str(second)]
    assert lines[-2:] == ["1", "none: 6"], "and no socket left behind"
