# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""After kill -9: never an empty directory, one restart heals; bind mounts."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from imafs.host import mounts
from imafs.testing.mounted import Home
from tests.mount.daemon import ASCII, BINARY, Daemon, alive, close_dead, imafs, layers
from tests.mount.fixtures import Starter
from tests.support import run, stopped, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def code(path: str | os.PathLike[str]) -> str:
    """ok, or the errno of a stat."""
    try:
        os.stat(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def dead(pid: int) -> bool:
    """Whether ``pid`` has ended."""
    return not alive(pid)


def test_a_dead_mount_is_enotconn(daemon: Daemon) -> None:
    reader = os.open(daemon.path(BINARY), os.O_RDONLY)
    swtpm = daemon.swtpm()
    daemon.kill()
    assert code(daemon.dir) == "ENOTCONN"
    assert code(daemon.path(BINARY)) == "ENOTCONN"
    with pytest.raises(OSError, match="not connected"):
        os.listdir(daemon.dir)
    with pytest.raises(OSError, match="not connected"):
        os.read(reader, 1)
    close_dead(reader)
    assert layers(daemon.dir) == 1
    wait_for(lambda: not alive(swtpm), 60, "swtpm died with the daemon")


_BUG = """
from imafs.scenarios.runner import Director

async def planted(*arguments):
    raise RuntimeError("planted")

Director._delayed = planted
"""


def test_a_daemon_that_a_bug_has_ended_is_enotconn(start: Starter, tmp_path: Path) -> None:
    """Also when it ends by itself: an empty directory would be a kernel without IMA."""
    (tmp_path / "sitecustomize.py").write_text(_BUG)
    daemon = start("--tpm", "none", env={"PYTHONPATH": str(tmp_path)})
    daemon.logs.expect("RuntimeError: planted")
    daemon.logs.allow("Exception|Traceback|raise RuntimeError")
    step = '[[step]]\nwhen = "start"\nseconds = 0.01\ndo = [{ op = "suspend" }]\n'
    (tmp_path / "step.toml").write_text(step)
    daemon.ctl("scenario", tmp_path / "step.toml", check=False)
    assert daemon.wait() == 1
    assert code(daemon.path(BINARY)) == code(daemon.dir) == "ENOTCONN"
    assert layers(daemon.dir) == 1
    assert start("--tpm", "none", place=daemon.place).count() == 1


def test_a_restart_on_the_same_directory(start: Starter) -> None:
    first = start()
    swtpm = first.swtpm()
    first.generate(10)
    first.kill()
    second = start(place=first.place)  # the stale control socket does not stand in the way
    assert layers(second.dir) == 1
    assert second.count() == 1
    assert "unmounted 1 dead mount of" in second.log()
    second.assert_replays()
    wait_for(partial(dead, swtpm), 60, "swtpm died with the first one")
    assert second.stop() == 0
    assert layers(second.dir) == 0
    assert not Path(second.control).exists()


def test_three_kills_in_a_row(start: Starter) -> None:
    place = start.place()
    for _ in range(3):
        daemon = start(place=place)
        assert layers(place.dir) == 1
        daemon.kill()
    assert start(place=place).count() == 1
    assert layers(place.dir) == 1


def test_three_dead_layers_and_open_files(start: Starter) -> None:
    """Mounts stacked by hand, as an older tool would: cleared layer by layer."""
    place = start.place()
    hidden = [start.place() for _ in range(3)]
    for other in hidden:
        daemon = start("--tpm", "none", place=other)
        run(["mount", "--bind", str(other.dir), str(place.dir)])
        daemon.kill()
    assert layers(place.dir) == 3
    assert start(place=place).count() == 1
    assert layers(place.dir) == 1


def test_umount_clears_a_dead_mount(daemon: Daemon) -> None:
    daemon.kill()
    imafs("umount", daemon.dir, "--control", daemon.control)
    assert layers(daemon.dir) == 0
    assert imafs("umount", daemon.dir, check=False).returncode == 5


def test_a_mount_is_not_its_path(start: Starter) -> None:
    """Who owns a directory above may turn its name into a link between look and unmount."""
    place, other = start.place(), start.place()
    daemon = start("--tpm", "none", place=place)
    daemon.kill()
    run(["mount", "-t", "tmpfs", "precious", str(other.dir)])
    seen = mounts.top(str(place.dir))
    assert seen is not None
    moved = place.base.rename(f"{place.base}.moved")
    place.base.symlink_to(other.base)
    try:
        with pytest.raises(mounts.OutOfReachError, match="covered or gone"):
            mounts.detach(seen)
        assert layers(other.dir) == 1
    finally:
        place.base.unlink()
        moved.rename(place.base)
    mounts.detach(seen)
    assert layers(place.dir) == 0


def test_a_dead_mount_with_an_open_file(start: Starter) -> None:
    first = start()
    reader = os.open(first.path(BINARY), os.O_RDONLY)
    first.kill()
    second = start(place=first.place)
    assert second.count() == 1
    with pytest.raises(OSError, match="not connected"):
        os.read(reader, 1)
    close_dead(reader)


def test_kill_during_load(start: Starter) -> None:
    """In the middle of everything; nothing of it may be in the way of the next one."""
    place = start.place()
    for _ in range(3):
        daemon = start(place=place)
        writer = os.open(daemon.path(f"{ASCII}_staged"), os.O_RDWR)
        os.write(writer, b"A\n")
        daemon.call("generate", count=3000)
        swtpm = daemon.swtpm()
        daemon.kill()
        close_dead(writer)
        wait_for(partial(dead, swtpm), 60, "swtpm died with the daemon")
    assert start(place=place).count() == 1


def test_a_stopped_daemon_is_not_taken_for_a_dead_one(start: Starter) -> None:
    first = start("--tpm", "none")
    with stopped(first.pid):
        second = start.launch("--tpm", "none", place=first.place, control=False)
        assert second.wait() == 5
        assert "does not answer" in second.log()
    assert first.count() == 1
    assert layers(first.dir) == 1


@contextmanager
def container(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A shell in a mount namespace of its own that runs one line of stdin after the other."""
    command = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c"]
    process = subprocess.Popen(
        [*command, script + '\nwhile read -r line; do eval "$line"; done', "sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def ask(process: subprocess.Popen[str], command: str) -> str:
    """One line of output of one command."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{command}\n")
    return process.stdout.readline()


@pytest.fixture
def shared(start: Starter) -> Home:
    """A place whose mounts propagate."""
    place = start.place()
    run(["mount", "--bind", str(place.base), str(place.base)])
    run(["mount", "--make-shared", str(place.base)])
    return place


COUNT_OF = 'cat "$2/{}runtime_measurements_count" 2>&1 | tail -1'


def test_an_rbind_of_the_parent_heals(start: Starter, shared: Home) -> None:
    """The recipe that the documentation gives."""
    first = start(place=shared)
    target = start.place().dir
    recipe = 'mount --rbind "$1" "$2" && mount --make-rslave "$2" && echo bound'
    with container(recipe, str(shared.base), str(target)) as inside:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "bound\n"
        assert ask(inside, COUNT_OF.format("ima/")) == "1\n"
        first.kill()
        assert "not connected" in ask(inside, COUNT_OF.format("ima/"))
        second = start(place=shared)
        second.generate(4)
        assert ask(inside, COUNT_OF.format("ima/")) == "5\n"
        assert second.stop() == 0


def test_a_bind_of_the_mountpoint_is_dead_for_ever(start: Starter, shared: Home) -> None:
    first = start(place=shared)
    target = start.place().dir
    with container('mount --bind "$1" "$2" && echo bound', str(first.dir), str(target)) as inside:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "bound\n"
        assert ask(inside, COUNT_OF.format("")) == "1\n"
        first.kill()
        second = start(place=shared)
        assert second.count() == 1
        assert "not connected" in ask(inside, COUNT_OF.format(""))
