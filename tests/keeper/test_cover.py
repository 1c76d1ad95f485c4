# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A view over the directory that it is made of."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from imafs.cli import leftovers
from imafs.host import covers, mounts
from tests.keeper.process import Keeper, Keepers
from tests.mount.daemon import BINARY, COUNT, Daemon, imafs, layers
from tests.mount.fixtures import Starter
from tests.support import run, wait_for
from tests.watch.disk import unmount

pytestmark = [pytest.mark.mount, pytest.mark.swtpm, pytest.mark.root]
WAIT = 60.0


def covering(keepers: Keepers, kernel: Daemon, *options: str, of: Keeper | None = None) -> Keeper:
    keeper = keepers(kernel, *options, of=of, cover=True)
    keeper.logs.allow("will be covered")
    return keeper


def kept_here(path: Path) -> bool:
    mount = mounts.top(str(path))
    return mount is not None and mount.kept


@pytest.mark.parametrize("layout", ["ima", "securityfs"])
def test_whole_list_is_at_the_kernels_own_path(
    start: Starter, keepers: Keepers, layout: str
) -> None:
    kernel = start("--banks", "sha1,sha256", "--layout", layout)
    other = start("--banks", "sha1,sha256")
    directory = kernel.dir
    keeper = keepers(kernel, cover=True, source=directory)
    keeper.logs.allow("will be covered")
    assert kept_here(directory)
    shown = set(os.listdir(other.dir))
    assert set(os.listdir(directory)) == {name for name in shown if not name.endswith("_staged")}
    kernel.generate(20)
    keeper.emptied(kernel)
    assert keeper.read(COUNT) == b"21\n"
    kernel.generate(3)
    assert keeper.read(COUNT) == b"24\n"
    words: list[str | os.PathLike[str]] = [
        "verify",
        directory / BINARY,
        "--control",
        kernel.control,
    ]
    assert "match after record 24" in imafs(*words).stdout
    assert keeper.status()["alarms"] == {}


def test_no_moment_of_a_restart_shows_the_files_below(start: Starter, keepers: Keepers) -> None:
    """Read all the time: the whole list, or ENOTCONN; and one layer at the end."""
    kernel = start("--banks", "sha1")
    keeper = covering(keepers, kernel)
    kernel.generate(20)
    keeper.flush()
    seen: set[bytes | int] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                seen.add((kernel.dir / COUNT).read_bytes())
            except OSError as error:
                seen.add(error.errno or 0)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for end in (Keeper.kill, Keeper.terminate, Keeper.kill):
            end(keeper)
            assert kept_here(kernel.dir)
            with pytest.raises(OSError, match="Transport endpoint"):
                os.listdir(kernel.dir)
            keeper = covering(keepers, kernel, of=keeper)
            assert keeper.read(COUNT) == b"21\n"
    finally:
        ended.set()
        reader.join()
    # ECONNABORTED: a request was under way.
    assert seen - {errno.ECONNABORTED} == {b"21\n", errno.ENOTCONN}
    assert layers(kernel.dir) == 2  # the emulator's and the view's
    assert not os.path.ismount(keeper.store / "view")


def test_cover_that_is_taken_away_ends_the_keeper(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = covering(keepers, kernel)
    keeper.logs.allow("uncovered")
    run(["umount", "--lazy", kernel.dir])  # the kernel's policy is mounted below
    assert keeper.process.wait(WAIT) == 5
    assert "somebody unmounted the view" in keeper.log()


def test_cover_that_is_hidden_is_an_alarm(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = covering(keepers, kernel)
    keeper.logs.allow("uncovered")
    run(["mount", "-t", "tmpfs", "none", kernel.dir])
    keeper.until("the keeper notices", lambda status: "uncovered" in status["alarms"])
    unmount(kernel.dir)
    keeper.until("the keeper sees that it is well", alarms={})


def test_list_that_was_trimmed_is_not_covered(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    kernel.generate(5)
    kernel.take("binary_runtime_measurements_sha1_staged")
    store = kernel.place.base / "store"
    words: list[str | os.PathLike[str]] = ["keep", "--source", kernel.dir, "--store", store]
    result = imafs(*words, "--cover", check=False)
    assert result.returncode == 10, result.stderr
    assert "--accept-gap, or reboot" in result.stderr.splitlines()[-1]
    assert layers(kernel.dir) == 1
    accepting = covering(keepers, kernel, "--accept-gap")
    accepting.logs.allow("gap")
    assert kept_here(kernel.dir)


def test_list_that_a_keeper_made_short_is_covered_whatever_has_become_of_it(
    start: Starter, keepers: Keepers
) -> None:
    """As behind a kexec that lost records: nothing covers the list, and agents would take what is
    left for all of it. While somebody reads it, too."""
    kernel = start("--banks", "sha1")
    keeper = covering(keepers, kernel)
    kernel.generate(5)
    keeper.emptied(kernel)
    keeper.terminate()
    run(["umount", "--lazy", kernel.dir])
    kernel.generate(3)
    kernel.take("binary_runtime_measurements_sha1_staged")
    with open(kernel.dir / BINARY, "rb"):
        again = covering(keepers, kernel, of=keeper)
        again.logs.allow("gap|waiting|gets EIO")
        assert kept_here(kernel.dir)
        with pytest.raises(OSError, match="Input/output error"):
            again.read(BINARY)
    again.until("the keeper looks", lambda status: "gap" in status["alarms"])
    with pytest.raises(OSError, match="Input/output error"):
        again.read(BINARY)


def test_what_cannot_be_covered_is_refused(
    start: Starter, keepers: Keepers, tmp_path: Path
) -> None:
    kernel = start("--banks", "sha1")
    words: list[str | os.PathLike[str]] = ["keep", "--cover", "--store", tmp_path / "store"]

    def refused(source: Path) -> tuple[int, str]:
        result = imafs(*words, "--source", source, check=False)
        assert "Traceback" not in result.stderr
        return result.returncode, result.stderr.splitlines()[-1]

    code, line = refused(tmp_path)
    assert (code, "neither a kernel's securityfs nor an emulator's" in line) == (5, True)
    first = covering(keepers, kernel)
    code, line = refused(kernel.dir)
    assert (code, "another keeper's view covers it" in line) == (5, True)
    first.terminate()
    run(["umount", "--lazy", kernel.dir])
    run(["mount", "-t", "tmpfs", "none", kernel.dir])
    code, line = refused(kernel.dir)
    assert (code, "is mounted over it" in line) == (5, True)
    result = imafs(*words, "--mount", tmp_path, check=False)
    assert (result.returncode, "not allowed with" in result.stderr) == (2, True)


def test_reader_of_the_kernels_list_is_waited_for_before_it_is_covered(
    start: Starter, keepers: Keepers
) -> None:
    """Nothing is deleted meanwhile, and what is read is the whole list."""
    kernel = start("--banks", "sha1")
    kernel.generate(5)
    with open(kernel.dir / BINARY, "rb") as held:
        keeper = keepers(kernel, cover=True, ready=False)
        keeper.logs.allow("will be covered|waiting")
        wait_for(lambda: "waiting" in keeper.log(), WAIT, "the keeper waits")
        assert not kept_here(kernel.dir)
        assert held.read().count(b"boot_aggregate") == 1
    keeper.start()
    assert kept_here(kernel.dir)
    assert keeper.read(COUNT) == b"6\n"


def test_policy_of_the_kernel_is_in_the_view(start: Starter, keepers: Keepers) -> None:
    """A bind: it is loaded by the kernel that it belongs to, also after a restart.

    Where mounts are shared, as under systemd, it does not go with the place it was made in.
    """
    place = start.place()
    run(["mount", "--bind", place.base, place.base])
    run(["mount", "--make-shared", place.base])
    kernel = start("--banks", "sha1", place=place)
    keeper = covering(keepers, kernel)
    for restarted in (False, True):
        if restarted:
            keeper.kill()
            keeper = covering(keepers, kernel, of=keeper)
        policy = kernel.dir / "policy"
        mount = mounts.top(str(policy))
        assert mount is not None
        assert mount.emulated
        policy.write_bytes(b"dont_measure fsmagic=0x9fa0\n")
        assert b"dont_measure" in policy.read_bytes()


def test_long_first_list_is_covered(start: Starter, keepers: Keepers) -> None:
    """It is looked at whole before anything is deleted, and drained in pieces behind that."""
    kernel = start("--banks", "sha1")
    for _ in range(5):
        kernel.generate(4_200)
    keeper = covering(keepers, kernel)
    assert keeper.read(COUNT) == b"21001\n"
    keeper.emptied(kernel)
    assert keeper.read(COUNT) == b"21001\n"


def test_umount_takes_a_dead_view_away_and_nothing_below(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = covering(keepers, kernel)
    refused = imafs("umount", kernel.dir, check=False)
    assert refused.returncode == 5
    assert f"a keeper (process {keeper.process.pid}) shows its view here" in refused.stderr
    keeper.terminate()
    assert kept_here(kernel.dir)
    told = imafs("umount", kernel.dir).stdout
    assert "the view that a keeper left is gone; the emulator below goes on" in told
    assert layers(kernel.dir) == 1
    kernel.generate(2)
    assert kernel.count() == 2


def test_stale_leaves_the_cover_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trimmed list would show. Of an emulator nothing is to be saved."""
    kernel = mounts.Mount(1, "/sys/kernel/security", "securityfs", "securityfs", 1)
    path = "/sys/kernel/security/integrity/ima"
    view = mounts.Mount(2, path, "fuse.imafs", mounts.KEPT, 2, os.geteuid())
    alone = mounts.Mount(3, "/run/view", "fuse.imafs", mounts.KEPT, 3, os.geteuid())
    table = [mounts.Mount(0, "/", "ext4", "disk", 0), kernel, view, alone]
    monkeypatch.setattr(mounts, "mounts", lambda: table)
    monkeypatch.setattr(mounts, "probe", lambda path: errno.ENOTCONN)
    monkeypatch.setattr(mounts, "detach", table.remove)
    assert list(leftovers.unmount_dead()) == ["/run/view"]
    assert covers.beneath(path) == kernel


def test_readers_of_the_cover_hold_nobody_up(start: Starter, keepers: Keepers) -> None:
    """The kernel's files below it have the same names: the keeper alone has one of those open."""
    kernel = start("--banks", "sha1")
    keeper = covering(keepers, kernel)
    words = ("keep", "holders", "--source", kernel.dir)
    before = imafs(*words).stdout
    with open(keeper.view / BINARY, "rb") as reader:
        assert reader.read(1)
        assert imafs(*words).stdout == before
    assert f" {os.getpid()} " not in f" {before} "
