# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a machine lacks or refuses: one clear line each, the documented exit code."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.errors import Refused
from imafs.kernel import queue as queues
from imafs.verbs.client import ControlClient
from tests.crash.collected import made
from tests.mount.daemon import Daemon, imafs, layers, patched
from tests.mount.fixtures import Starter
from tests.support import ROOT, find_command, require, run, stopped, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: As a plain user, in a mount namespace or not: the project may be out of that user's reach,
#: so the environment's own python may be too; then these tests have nothing to run.
USER = (
    find_command("setpriv") or "setpriv",
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "--inh-caps=-all",
)


def one_line(log: str, *words: str) -> None:
    """One line for a person, with these words."""
    lines = log.splitlines()
    assert len(lines) == 1, log
    assert lines[0].startswith("imafs: "), log
    for word in words:
        assert word in lines[0], log


def refused(
    start: Starter, prefix: tuple[str, ...], *options: str, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """A start behind ``prefix`` that must fail with nothing mounted: status and stderr."""
    place = start.place()
    place.dir.chmod(0o777)
    place.base.chmod(0o1777)
    daemon = start.launch(*options, place=place, prefix=prefix, env=env)
    daemon.logs.allow("")
    status = daemon.wait()
    assert daemon.process.stdout is not None
    assert daemon.process.stdout.read() == b""
    assert layers(place.dir) == 0
    return status, daemon.log()


# Memory


#: The codes that a start under a limit may end with: out of memory, and a swtpm or a mount that
#: found none (the limit is inherited).
OUT_OF_MEMORY = {1, 4, 5}


def _python_fits(prefix: tuple[str, ...]) -> bool:
    """Whether Python and its own library fit; below that they say what they like.

    hashlib logs a traceback for every hash that it finds no memory for, and goes on.
    """
    script = "import hashlib, imafs.cli.daemon, imafs.cli.main; imafs.cli.main.build_parser()"
    result = run([*prefix, sys.executable, "-c", script], check=False, cwd=ROOT)
    return (result.returncode, result.stderr) == (0, "")


# Not from 55 to 75: where a thread dies before it has begun, Python waits for it for ever
# (3.11, threading.Thread.start; met once at 66).
@pytest.mark.parametrize("megabytes", [12, 18, 24, 30, 36, 42, 48, 54, 80, 120, 250])
def test_a_memory_limit_at_the_start(start: Starter, megabytes: int) -> None:
    """One line and a documented status, with nothing left; or the limit is large enough."""
    place = start.place()
    before = set(Path(os.environ["TMPDIR"]).glob("imafs-tpm-*"))
    prefix = ("prlimit", f"--as={megabytes << 20}")
    daemon = start.launch(place=place, prefix=prefix)
    daemon.logs.allow("")
    assert daemon.process.stdout is not None
    if daemon.process.stdout.readline():
        assert daemon.stop() == 0
    elif _python_fits(prefix):
        assert daemon.wait() in OUT_OF_MEMORY
        lines = [x for x in daemon.log().splitlines() if "INFO" not in x]
        # libfuse writes by itself that it has no room for a request.
        one_line("\n".join(x for x in lines if not x.startswith("fuse: ")))
        assert (daemon.process.returncode == 1) == ("out of memory" in daemon.log())
    else:
        assert daemon.wait() != 0
    assert layers(place.dir) == 0
    assert set(Path(os.environ["TMPDIR"]).glob("imafs-tpm-*")) == before


def test_a_memory_limit_while_a_list_is_loaded(start: Starter, tmp_path: Path) -> None:
    saved = tmp_path / "list"
    saved.write_bytes(b"".join(made(number) for number in range(200_000)))
    status, log = start.refused("--load", saved, prefix=("prlimit", f"--as={90 << 20}"))
    assert status == 1
    one_line(log, "out of memory")


def test_a_memory_limit_under_load(start: Starter) -> None:
    """The operation that meets it fails; then the daemon goes on or ends with one line.

    libfuse makes a buffer of 1 MiB for requests and ends its loop without it, so there is
    no promise to go on; the promise is no hang, and ENOTCONN where it has died.
    """
    daemon = start("--tpm", "none")
    daemon.logs.allow("")
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") + (12 << 20)
    run(["prlimit", "--pid", str(daemon.pid), f"--as={limit}"])
    command = ("ctl", "--control", str(daemon.control), "generate", "1000000")
    result = imafs(*command, check=False, deadline=280)
    assert result.returncode in {1, 6}, "the limit was never met"
    one_line(result.stderr)
    wait_for(lambda: "MemoryError" in daemon.log(), 60, "the log names it")
    try:
        assert daemon.count() > 1000
    except OSError:  # it ended meanwhile, see below
        assert daemon.wait() == 1
    else:
        daemon.stop()
    if daemon.process.returncode:
        assert daemon.process.returncode == 1
        assert daemon.log().splitlines()[-1].startswith("imafs: out of memory: ")
    assert layers(daemon.dir) == (1 if daemon.process.returncode else 0)


# Disk


def test_a_full_disk_under_tpm_state(start: Starter) -> None:
    place = start.place()
    state = place.base / "state"
    state.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=8,mode=700", "none", str(state)])
    status, log = start.refused("--tpm-state", str(state), place=place)
    assert status == 4
    one_line(log)
    assert layers(place.dir) == 0


def test_a_disk_that_fills_up_later(start: Starter) -> None:
    """IMA's PCRs are no permanent state: nothing is lost, the end is an orderly one."""
    place = start.place()
    state = place.base / "state"
    state.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=200k,mode=700", "none", str(state)])
    daemon = start("--tpm-state", state, place=place)
    free = os.statvfs(state)
    (state / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
    assert os.statvfs(state).f_bavail == 0
    daemon.generate(200)
    daemon.assert_replays()
    assert daemon.stop() == 0
    assert daemon.wait() == 0


def test_a_tpm_state_that_may_not_be_written(start: Starter) -> None:
    place = start.place()
    state = place.base / "state"
    state.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "ro,mode=700", "none", str(state)])
    status, log = start.refused("--tpm-state", str(state), place=place)
    assert status == 4
    one_line(log, "Read-only file system")


# FUSE

HIDDEN = ("unshare", "--mount", "--propagation", "private", "sh", "-c")


def test_dev_fuse_is_not_there(start: Starter) -> None:
    prefix = (*HIDDEN, 'mount -t tmpfs none /dev && exec "$@"', "sh")
    # The daemon's own streams: /dev/null is gone with /dev.
    status, log = refused(start, prefix, "--tpm", "none")
    assert status == 5
    one_line(log, "/dev/fuse is not there", "--device /dev/fuse")


def test_dev_fuse_is_forbidden(start: Starter) -> None:
    """As in a container: the node is there, and the file system it is on is nodev."""
    script = """
        dir=$(mktemp -d) && mount -t tmpfs -o nodev none "$dir" && mknod "$dir/fuse" c 10 229 &&
        mount --bind "$dir/fuse" /dev/fuse && umount --lazy "$dir" && rmdir "$dir" && exec "$@"
    """
    status, log = refused(start, (*HIDDEN, script, "sh"), "--tpm", "none")
    assert status == 5
    one_line(log, "/dev/fuse: Permission denied")


def _user_reaches_python() -> bool:
    command = [*USER, sys.executable, "-c", "import pyfuse3, imafs"]
    return run(command, check=False, cwd=ROOT).returncode == 0


@pytest.fixture
def as_user() -> tuple[str, ...]:
    """Prefix: uid 1000. Skips where that user has no name or cannot read this environment."""
    require("setpriv")
    try:
        pwd.getpwuid(1000)
    except KeyError:
        pytest.skip("uid 1000 has no name here, and fusermount3 mounts for named users only")
    if not _user_reaches_python():
        pytest.skip("uid 1000 cannot read the project or its environment")
    return USER


def test_no_fusermount3_for_a_plain_user(start: Starter, as_user: tuple[str, ...]) -> None:
    status, log = refused(start, as_user, "--tpm", "none", env={"PATH": "/nonexistent"})
    assert status == 5
    one_line(log, "fusermount3 is missing (package fuse3)")


def test_no_dev_fuse_for_a_plain_user(start: Starter, as_user: tuple[str, ...]) -> None:
    script = """
        dir=$(mktemp -d) && mount -t tmpfs none "$dir" && mknod --mode=600 "$dir/fuse" c 10 229 &&
        mount --bind "$dir/fuse" /dev/fuse && umount --lazy "$dir" && rmdir "$dir" && exec "$@"
    """
    status, log = refused(start, (*HIDDEN, script, "sh", *as_user), "--tpm", "none")
    assert status == 5
    one_line(log, "/dev/fuse: Permission denied")


def test_a_directory_of_somebody_else(start: Starter, as_user: tuple[str, ...]) -> None:
    place = start.place()
    place.base.chmod(0o755)
    place.dir.chmod(0o700)
    daemon = start.launch("--tpm", "none", place=place, prefix=as_user)
    daemon.logs.allow("")
    assert daemon.wait() == 5
    one_line(daemon.log(), str(place.dir), "Permission denied")


# What others hold


def test_the_second_daemon_says_who_holds_the_directory(start: Starter) -> None:
    first = start("--tpm", "none")
    second = start.launch("--tpm", "none", place=first.place, control=False)
    assert second.wait() == 5
    one_line(second.log(), "another imafs is mounted here", f"held by process {first.process.pid}")
    assert first.count() == 1


def test_two_daemons_on_one_tpm_state(start: Starter, tmp_path: Path) -> None:
    """The second is told whose it is; the first does not notice."""
    first = start("--tpm-state", tmp_path)
    status, log = start.refused("--tpm-state", str(tmp_path), place=start.place())
    assert status == 4
    one_line(log, f"{tmp_path} is in use by swtpm process {first.swtpm()}")
    first.generate(3)
    first.assert_replays()


def test_a_foreign_swtpm_on_the_state(start: Starter, tmp_path: Path) -> None:
    """One that was started by hand there and knows nothing of our lock."""
    with ExitStack() as stack:
        where = tmp_path / "s"
        foreign = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}"),
                *("--server", f"type=unixio,path={where}"),
                *("--ctrl", f"type=unixio,path={where}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ]
        )
        stack.callback(foreign.wait)
        stack.callback(foreign.kill)
        wait_for(Path(f"{where}.ctrl").exists, 60, "swtpm listens")
        status, log = start.refused("--tpm-state", str(tmp_path), place=start.place())
        assert status == 4
        one_line(log)
        run(["tpm2_pcrread", "sha256:10"], env={"TPM2TOOLS_TCTI": f"swtpm:path={where}"})


def test_a_stale_socket_of_a_dead_daemon(start: Starter) -> None:
    place = start.place()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place.base / "control"))
    daemon = start("--tpm", "none", place=place)
    assert daemon.call("hello")


def test_something_else_in_the_place_of_the_socket(start: Starter) -> None:
    place = start.place()
    (place.base / "control").write_text("precious")
    daemon = start.launch("--tpm", "none", place=place)
    daemon.logs.allow("")
    assert daemon.wait() == 6
    one_line("\n".join(x for x in daemon.log().splitlines() if "INFO" not in x), "not a socket")
    assert (place.base / "control").read_text() == "precious"
    assert layers(place.dir) == 0


# The extend queue


#: A shorter extend queue than anybody would have the patience to fill.
_SHORT_QUEUE = patched(
    "from imafs.kernel import queue",
    'queue.Queue.__init__.__kwdefaults__["pending_limit"] = 100',
)


def test_a_full_extend_queue_is_enobufs(start: Starter) -> None:
    """Refused with a word of why; what is there stays; after the TPM is back it goes on."""
    assert queues.PENDING >= 1 << 16
    daemon = start(prefix=_SHORT_QUEUE)
    with stopped(daemon.swtpm()):
        with ControlClient(daemon.control) as client, pytest.raises(Refused) as caught:
            client.call("generate", {"count": 500}, deadline=60)
        assert caught.value.errno_name == "ENOBUFS"
        assert "records wait for the TPM" in str(caught.value)
        count = daemon.count()
        assert 50 < count <= 101
        digest = f"sha256:{'12' * 32}"
        assert "extend queue is full" in daemon_refusal(daemon, "measure", "--digest", digest)
    wait_for(lambda: daemon.group("records")["pending"] == 0, 60, "all is extended after all")
    daemon.generate(50)
    assert daemon.count() == count + 50
    daemon.assert_replays()


def daemon_refusal(daemon: Daemon, *words: str) -> str:
    """stderr of an ``imafs ctl`` that is refused as a kernel would (status 7)."""
    command = [sys.executable, "-P", "-m", "imafs", "ctl", "--control", str(daemon.control)]
    result = run([*command, *words, "--name", "/x"], check=False, cwd=ROOT)
    assert result.returncode == 7, result
    one_line(result.stderr)
    return result.stderr
