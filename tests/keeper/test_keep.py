# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs keep`` as its users run it: a process, a store, a view; the emulator is the kernel."""

from __future__ import annotations

import errno
import grp
import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.keeper.process import Keepers
from tests.mount.daemon import BINARY, COUNT, VIOLATIONS, imafs, layers, read_to_end
from tests.mount.fixtures import Starter
from tests.support import ROOT, may_take, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
WAIT = 60.0


def test_view_is_the_untrimmed_list(start: Starter, keepers: Keepers) -> None:
    """Byte for byte the list of an emulator that had the same records and never lost one."""
    options = ("--banks", "sha1,sha256,sha384")
    kernel, untrimmed = start(*options), start(*options)
    keeper = keepers(kernel, records=20)
    for _ in range(10):
        for daemon in (kernel, untrimmed):
            daemon.generate(37)
            daemon.call("violation", name="/etc/shadow")
        assert lists(keeper.view) == lists(untrimmed.dir)
    wait_for(lambda: kernel.count() < 20, WAIT, "the kernel's list is short")
    assert keeper.read(COUNT) == untrimmed.read(COUNT)
    assert keeper.read(VIOLATIONS) == untrimmed.read(VIOLATIONS) == b"10\n"


def lists(directory: Path) -> dict[str, bytes]:
    """Every list file, in all banks and forms."""
    found = {}
    for path in sorted(directory.glob("*_measurements*")):
        if "staged" not in path.name and path.name != COUNT:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                found[path.name] = read_to_end(descriptor)
            finally:
                os.close(descriptor)
    assert len(found) == 8
    return found


@pytest.mark.nightly
def test_first_list_of_500_000_records(start: Starter, keepers: Keepers) -> None:
    """Of a kernel that no keeper has seen: it comes in pieces, in bounded memory."""
    may_take(900)
    kernel = start("--banks", "sha1")
    for _ in range(10):
        kernel.generate(50_000)
    whole = kernel.read(BINARY)
    keeper = keepers(kernel, allow="most of a long list is stored")
    status = keeper.emptied(kernel)
    assert (status["view"], status["alarms"], status["gaps"]) == ("served", {}, [])
    assert status["records"] == {
        **{"total": 500_001, "stored": 500_001, "in_kernel": 0},
        "deleted": 500_001,
    }
    assert keeper.read(BINARY) == whole
    assert keeper.read(COUNT) == b"500001\n"
    text = Path(f"/proc/{keeper.process.pid}/status").read_text()
    held = re.search(r"RssAnon:\s+(\d+) kB", text)
    assert held is not None
    # The cache is 64 MiB of it, a piece of the list some; the list is 70 MiB.
    assert int(held[1]) < 160 << 10


def test_look_is_that_of_linux_7_1(start: Starter, keepers: Keepers) -> None:
    legacy = start("--profile", "legacy", "--banks", "sha1,sha256")
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel)
    # Nobody but root can mount the kernel's file.
    shown = [n for n in os.listdir(legacy.dir) if n != "policy" or os.geteuid() == 0]
    assert os.listdir(keeper.view) == shown
    for name in shown:
        like = kernel.dir if name == "policy" else legacy.dir
        ours, theirs = (keeper.view / name).lstat(), (like / name).lstat()
        assert (ours.st_mode, ours.st_size) == (theirs.st_mode, theirs.st_size), name
    descriptor = os.open(keeper.view / BINARY, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.write(descriptor, b"A\n")
    finally:
        os.close(descriptor)


@pytest.mark.root
def test_files_are_of_the_group_that_is_set(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    config = kernel.place.base / "keeper.toml"
    config.write_text('[view]\ngroup = "daemon"\n')
    keeper = keepers(kernel, "--config", config)
    gid = grp.getgrnam("daemon").gr_gid
    names = [name for name in os.listdir(keeper.view) if name != "policy"]
    assert {(keeper.view / name).stat().st_gid for name in names} == {gid}
    config.write_text('[view]\ngroup = "nobody-at-all"\n')
    keeper.stop()
    store = kernel.place.base / "never-made"
    words: list[str | os.PathLike[str]] = ["keep", "--mount", keeper.view]
    words += ["--source", kernel.dir, "--store", store]
    result = imafs(*words, "--config", config, check=False)
    assert (result.returncode, "no such group" in result.stderr) == (2, True)
    assert not store.exists()


def test_held_descriptor_reads_on_over_deletions(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel, records=5)
    held = os.open(keeper.view / BINARY, os.O_RDONLY)
    try:
        data = read_to_end(held)
        for _ in range(30):
            kernel.generate(7)
            data += read_to_end(held)
        kernel.call("kexec_execute")
        keeper.until("the next kernel is kept", state="idle")
        data += read_to_end(held)
    finally:
        os.close(held)
    assert kernel.group("records")["deleted"] >= 200
    assert data == keeper.read(BINARY)
    assert data.count(b"boot_aggregate") == 2


def test_killed_keeper_is_no_empty_directory(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    kernel.generate(10)
    before = keeper.read(BINARY)
    keeper.kill()
    with pytest.raises(OSError, match="Transport endpoint"):
        os.listdir(keeper.view)
    kernel.generate(10)
    again = keepers(kernel, of=keeper)
    assert again.read(BINARY).startswith(before)
    assert again.read(COUNT) == b"21\n"


@pytest.mark.root
def test_no_moment_of_a_restart_shows_an_empty_directory(start: Starter, keepers: Keepers) -> None:
    """Behind kill -9. An agent that finds no file takes the kernel for one without a list."""
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    kernel.generate(20)
    keeper.flush()
    seen: set[bytes | int] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                seen.add((keeper.view / COUNT).read_bytes())
            except OSError as error:
                seen.add(error.errno or 0)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(3):
            keeper.kill()
            again = keepers(kernel, of=keeper)
            assert again.read(COUNT) == b"21\n"
            assert (again.view / "policy").exists()
            keeper = again
    finally:
        ended.set()
        reader.join()
    # ECONNABORTED: a request was under way.
    assert seen - {errno.ECONNABORTED} == {b"21\n", errno.ENOTCONN}
    assert layers(keeper.view) == 1
    keeper.stop()
    assert layers(keeper.view) == 0
    assert not os.path.ismount(keeper.store / "view")


def test_list_that_others_trimmed_is_refused(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    kernel.generate(10)
    assert keeper.read(COUNT) == b"11\n"
    keeper.flush()
    keeper.stop()
    kernel.generate(10)
    kernel.take("binary_runtime_measurements_sha1_staged")
    kernel.generate(1)
    again = keepers(kernel, of=keeper)
    again.logs.allow("gap|gets EIO")
    for name in (BINARY, COUNT, VIOLATIONS, "ascii_runtime_measurements_sha1"):
        with pytest.raises(OSError, match="Input/output error") as refused:
            again.read(name)
        assert refused.value.errno == errno.EIO
    status = again.status()
    assert status["view"] == "refused"
    assert "records may be missing" in str(status["refusal"])
    again.flush()
    behind = "records may be missing behind record 11: stored records and the kernel's do not lead"
    out = keeper.store.parent / "out.bin"
    for words in (["verify"], ["export", "-o", out]):
        result = imafs("keep", *words, "--store", keeper.store, check=False)
        assert (result.returncode, behind in result.stderr) == (10, True), result.stderr
    assert out.read_bytes().count(b"ima-ng") == 12
    assert imafs("keep", "export", "-o", out, "--since", "12", "--store", keeper.store).stderr == ""
    again.stop()
    served = keepers(kernel, "--accept-gap", of=keeper)
    served.logs.allow("gap")
    assert int(served.read(COUNT)) == 12
    # A restart ends neither the alarm nor what follows from it; the next reboot does.
    assert behind in str(served.status()["alarms"]["gap"])
    told = imafs("keep", "status", "--store", keeper.store).stdout
    assert re.search(r"^view +served, with 1 gap$", told, re.M), told
    assert re.search(r"^verified  from record 12 up to record 12, ", told, re.M), told
    kernel.call("reboot")
    status = served.until("the view of a new life", life=2, view="served")
    assert (status["alarms"], status["gaps"]) == ({}, [])


def test_view_is_whole_in_the_window_of_a_kexec(start: Starter, keepers: Keepers) -> None:
    """The kernel takes no more requests, and measures nothing more: all that it has is shown."""
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel)
    kernel.generate(10)
    keeper.flush()
    held = os.open(keeper.view / BINARY, os.O_RDONLY)
    try:
        data = read_to_end(held)
        kernel.generate(5)
        kernel.call("kexec_execute", hold=True)
        data += read_to_end(held)
        keeper.until("the keeper says so", state="suspended")
        assert data == keeper.read(BINARY)
        assert keeper.read(COUNT) == b"%d\n" % data.count(b"ima-")
        kernel.call("kexec_finish")
        keeper.until("the next kernel is kept", state="idle")
        behind = read_to_end(held)
    finally:
        os.close(held)
    assert data.count(b"kexec_execute") == 1
    # All but what the next kernel has measured.
    assert (behind.count(b"ima-"), behind.count(b"boot_aggregate")) == (1, 1)
    assert data + behind == keeper.read(BINARY)


def test_kexec_that_loses_records_is_a_gap_of_the_same_life(
    start: Starter, keepers: Keepers
) -> None:
    kernel = start("--banks", "sha1")
    kernel.logs.allow("records were not carried over")
    keeper = keepers(kernel)
    kernel.generate(10)
    keeper.flush()
    stored = keeper.read(BINARY)
    keeper.stop()
    kernel.call("kexec_load")
    kernel.generate(120)  # no room was reserved for so many
    assert kernel.call("kexec_execute")["lost"]
    again = keepers(kernel, "--accept-gap", of=keeper)
    again.logs.allow("gap")
    status = again.status()
    assert status["life"] == 1
    assert status["alarms"]["gap"].startswith("records may be missing behind record 11:")
    whole = again.read(BINARY)
    assert whole.startswith(stored)
    assert whole.count(b"boot_aggregate") == 2
    again.emptied(kernel)
    assert again.read(BINARY) == whole


def test_long_first_list_is_drained_in_pieces_and_shown(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    for _ in range(6):
        kernel.generate(4_200)
    whole = kernel.read(BINARY)
    keeper = keepers(kernel, allow="joining")
    keeper.until("all of it is confirmed", view="served")
    keeper.flush()
    assert keeper.read(BINARY) == whole
    keeper.emptied(kernel)
    frames = sum(file.read_text().count('"how":"N"') for file in keeper.store.rglob("journal"))
    assert frames >= 3


def test_reboot_begins_a_new_life(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    kernel.generate(10)
    held = os.open(keeper.view / BINARY, os.O_RDONLY)
    assert len(read_to_end(held)) > 10
    kernel.call("reset")
    keeper.until("the next life has begun", life=2)
    assert keeper.read(COUNT) == b"1\n"
    with pytest.raises(OSError, match="No such device"):
        os.read(held, 10)
    os.close(held)
    lives = imafs("keep", "verify", "--all", "--json", "--store", keeper.store).stdout.splitlines()
    assert [json.loads(line)["records"] for line in lives] == [11, 1]


def test_kernel_that_is_gone_for_a_while(start: Starter, keepers: Keepers) -> None:
    """The emulator is killed and another one started: EIO meanwhile, then the next life."""
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel, allow="suspended|joining|gets EIO")
    kernel.generate(5)
    assert keeper.read(COUNT) == b"6\n"
    kernel.kill()
    keeper.until("the keeper says so", state="suspended")
    with pytest.raises(OSError, match="Input/output error"):
        keeper.read(COUNT)
    start("--banks", "sha1", place=kernel.place)
    keeper.until("the next kernel is kept", life=2)
    assert keeper.read(COUNT) == b"1\n"
    if os.geteuid() == 0:  # its policy is another file
        policy = keeper.view / "policy"
        wait_for(lambda: _stat(policy) == _stat(kernel.dir / "policy"), WAIT, "it is in the view")


def _stat(path: Path) -> tuple[int, int] | int:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno or 0
    return found.st_dev, found.st_ino


def test_second_keeper_of_a_store_is_refused(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    result = imafs("keep", "--source", kernel.dir, "--store", keeper.store, check=False)
    assert result.returncode == 7
    assert re.fullmatch(r"imafs: .*: another keeper uses this store\n", result.stderr)


def test_reader_of_the_kernels_file_is_waited_for_and_named(
    start: Starter, keepers: Keepers
) -> None:
    kernel = start("--banks", "sha1")
    with open(kernel.dir / BINARY, "rb"):
        keeper = keepers(kernel, allow="waiting|gets EIO")
        keeper.until("the keeper waits", state="waiting")
        found = imafs("keep", "holders", "--source", kernel.dir).stdout
        assert f"{os.getpid()} " in found
    keeper.until("the keeper has the lists", state="idle")
    assert keeper.read(COUNT) == b"1\n"


def test_violations_are_those_of_all_kernels(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    kernel.call("violation", name="/a")
    kernel.call("violation", name="/b")
    assert keeper.read("violations") == b"2\n"
    keeper.flush()
    boots = keeper.status()["boots"]
    kernel.call("kexec_load")
    kernel.call("kexec_execute")
    assert kernel.read("violations") == b"0\n"
    kernel.call("violation", name="/c")
    keeper.until("the next kernel is kept", lambda status: status["boots"] != boots, state="idle")
    assert keeper.read("violations") == b"3\n"
    keeper.terminate()
    again = keepers(kernel, of=keeper)
    assert again.read("violations") == b"3\n"


def test_full_disk_deletes_nothing(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    config = kernel.place.base / "keeper.toml"
    config.write_text('[store]\nkeep_free = "99%"\n')
    keeper = keepers(kernel, "--config", config, allow="degraded|gets EIO")
    kernel.generate(10)
    assert keeper.read(COUNT) == b"11\n"
    keeper.until("the keeper says so", state="degraded")
    result = imafs("keep", "flush", "--store", keeper.store, check=False)
    assert result.returncode == 11
    assert "are needed" in result.stderr
    kernel.generate(10)
    assert keeper.read(COUNT) == b"21\n"
    keeper.stop()
    assert keeper.log().count("degraded") > 0
    assert kernel.group("records")["deleted"] == 0


def test_status_counts_what_the_kernel_deleted(start: Starter, keepers: Keepers) -> None:
    """Over a restart of the keeper, too."""
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    assert keeper.until("it has joined", state="idle")["records"]["deleted"] == 1
    kernel.generate(10)
    keeper.flush()
    found = keeper.until("it is noted", state="idle")["records"]
    assert found["deleted"] == kernel.group("records")["deleted"] == found["stored"] == 11
    keeper.terminate()
    again = keepers(kernel, of=keeper)
    assert again.until("it has joined", state="idle")["records"]["deleted"] == 11


def test_last_error_is_told_when_it_is_over(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    began = time.time()
    with (kernel.dir / BINARY).open("rb"):
        keeper = keepers(kernel, allow="waiting")
        keeper.until("it waits", state="waiting")
    found = keeper.until("it has joined", state="idle")
    assert found["why"] is None
    error = found["last_error"]
    assert error["text"].startswith("waiting: somebody else has a measurement list open")
    assert began <= error["when"] <= time.time()
    told = imafs("keep", "status", "--store", keeper.store).stdout
    assert re.search(
        "^error     .*, waiting: somebody else has a measurement list open", told, re.M
    )


def test_export_is_the_kernels_form(start: Starter, keepers: Keepers, tmp_path: Path) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel, records=4)
    kernel.generate(20)
    keeper.flush()
    whole = keeper.read(BINARY)
    out = tmp_path / "records"
    imafs("keep", "export", "--store", keeper.store, "-o", out)
    assert out.read_bytes() == whole
    imafs("keep", "export", "--store", keeper.store, "--since", "15", "-o", out)
    assert whole.endswith(out.read_bytes())
    assert imafs("list", out).stdout.count("\n") == 6
    result = imafs(
        "keep", "export", "--store", keeper.store, "--since", "22", "-o", out, check=False
    )
    assert (result.returncode, "has 21 records" in result.stderr) == (2, True)


def test_broken_journal_ends_the_keeper_with_its_own_code(start: Starter, keepers: Keepers) -> None:
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel)
    kernel.generate(10)
    keeper.flush()
    keeper.stop()
    (journal,) = keeper.store.glob("lives/*/journal")
    data = bytearray(journal.read_bytes())
    data[40] ^= 1
    journal.write_bytes(data)
    result = imafs("keep", "--source", kernel.dir, "--store", keeper.store, check=False)
    assert result.returncode == 12
    result = imafs("keep", "verify", "--store", keeper.store, check=False)
    assert result.returncode == 12


@pytest.mark.parametrize("option", [(), ("--accept-gap",)], ids=["refused", "accepted"])
def test_damaged_records_are_a_gap(
    option: tuple[str, ...], start: Starter, keepers: Keepers, tmp_path: Path
) -> None:
    """They are gone from the kernel, too. The keeper goes on; its view is refused, or, where
    somebody accepts the gap, EIO at the place alone."""
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel)
    for _ in range(3):
        kernel.generate(10)
        keeper.flush()
    whole = keeper.read(BINARY)
    keeper.stop()
    (segment,) = keeper.store.glob("lives/*/*.bin")
    size = len(whole)
    data = bytearray(segment.read_bytes())
    data[size // 2] ^= 1
    segment.write_bytes(data)
    allowed = "are not those that were stored|gets EIO"
    keeper = keepers(kernel, *option, of=keeper, allow=allowed)
    status = keeper.until("it has joined", state="idle")
    assert set(status["alarms"]) == {"gap", "damaged"}
    (gap,) = status["gaps"]
    assert gap["records"] == 10
    kernel.generate(10)
    keeper.flush()
    assert keeper.status()["records"]["stored"] == 41
    assert kernel.count() == 0
    view = keeper.view / BINARY
    if option:
        with view.open("rb") as file:
            front = os.pread(file.fileno(), 100, 0)
            assert front == whole[:100]
            with pytest.raises(OSError, match="Input/output error"):
                keeper.read(BINARY)
            behind = size - 200
            assert os.pread(file.fileno(), 100, behind) == whole[behind : behind + 100]
    else:
        with pytest.raises(OSError, match="Input/output error"):
            keeper.read(BINARY)
    keeper.stop()
    done = imafs("keep", "verify", "--json", "--store", keeper.store, check=False)
    assert done.returncode == 12
    (complaint,) = json.loads(done.stdout)["complaints"]  # what is behind it is as it was stored
    assert "the bytes are not those that were stored" in complaint
    out = tmp_path / "behind"
    first = str(gap["after"] + gap["records"])
    imafs("keep", "export", "--store", keeper.store, "--since", first, "-o", out)
    assert imafs("list", out).stdout.count("\n") == 41 - int(first)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[stage]\nrecords = 0\n", "line 2: records = 0 is no number from 1 to 20000"),
        ("[stage]\nage = 60\n", "line 2: age = 60 is no time"),
        ("\n[stage]\n\nrecord = 5\n", "line 4: unknown key 'record' (did you mean records?)"),
        ("[stages]\n", "line 1: unknown table or key 'stages' (did you mean stage?)"),
        ('[view]\non_gap = "never"\n', "line 2: on_gap = 'never' is neither"),
        ('[stage]\nmode = "stage"\n', "line 2: mode = 'stage' is not \"auto\""),
        ('[store]\nsegment = "1MiB"\n', "line 2: segment = '1MiB' is not \"16MiB\""),
        ('[store]\ndisk_full_action = "halt"\n', 'is not "suspend", all that there is'),
        ("[view\n", "Expected"),
    ],
)
def test_wrong_setting_is_refused_with_its_line(text: str, why: str, tmp_path: Path) -> None:
    config = tmp_path / "keeper.toml"
    config.write_text(text)
    result = imafs("keep", "--config", config, "--source", tmp_path, check=False)
    assert result.returncode == 2
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_setting_of_the_documents_is_known(
    start: Starter, keepers: Keepers, tmp_path: Path
) -> None:
    text = (ROOT / "docs/keeper.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```$", text, flags=re.S | re.M)
    config = tmp_path / "keeper.toml"
    config.write_text(block.replace('group = "tss"', 'group = "root"'))
    keeper = keepers(start("--banks", "sha1"), "--config", config)
    keeper.until("the keeper has the lists", state="idle")


def test_service_manager_is_told(start: Starter, keepers: Keepers, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(WAIT)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        keepers(start("--banks", "sha1"), env=env)
        seen = [sock.recv(4096).decode()]
        # A start that takes longer than TimeoutStartSec= is no failed one.
        while seen[-1].startswith("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=starting, "):
            seen.append(sock.recv(4096).decode())
        assert len(seen) > 1
        seen = [seen[-1], *(sock.recv(4096).decode() for _ in range(4))]
        while "idle, 1 records" not in seen[-1]:  # until WAIT is over
            seen.append(sock.recv(4096).decode())
            assert len(seen) < 10 * WAIT
    assert seen[0] == "READY=1"
    assert all(text.startswith("WATCHDOG=1\nSTATUS=") for text in seen[1:])


def test_file_of_the_store_that_shrinks_is_no_end(start: Starter, keepers: Keepers) -> None:
    """A page of a mapped file that is cut would be SIGBUS: a reader gets EIO, the keeper lives."""
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel)
    kernel.generate(200)
    keeper.flush()
    (path,) = keeper.store.glob("lives/*/*.bin")
    whole = path.read_bytes()
    keeper.logs.allow("damaged")
    os.truncate(path, 100)
    for name in (BINARY, "ascii_runtime_measurements_sha256"):
        with pytest.raises(OSError, match="Input/output error"):
            keeper.read(name)
    assert "somebody cut it" in str(keeper.status()["alarms"])
    assert keeper.log().count("somebody cut it") == 1
    path.write_bytes(whole)
    assert keeper.read(BINARY) == whole
