# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""kexec and reboot at the wrong moment: nothing is lost, nothing kept twice, nothing hangs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from imafs.errors import ImafsError, Refused
from imafs.sources.generate import PREFIX
from tests.crash.agent import STAGED, Agent
from tests.crash.collected import Piece, replayed
from tests.crash.racer import BANKS
from tests.mount.daemon import ASCII, BINARY, Daemon, alive, read_to_end
from tests.mount.fixtures import Starter
from tests.support import run, stopped, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: Records of a kernel's own per kexec: kexec_load, kexec_execute, the next boot_aggregate.
OWN = (b"kexec_load", b"kexec_execute", b"boot_aggregate")


def names(records: Piece) -> list[bytes]:
    return [name for name, _ in records]


def generated(first: int, end: int) -> list[bytes]:
    return [f"{PREFIX}{number:08d}".encode() for number in range(first, end)]


def whole(daemon: Daemon, records: Piece, *expected: list[bytes], kexecs: int) -> None:
    """Of each series every record once and in order, the kernels' own beside them; the PCRs."""
    found = names(records)
    for series in expected:
        members = set(series)
        assert [name for name in found if name in members] == series
    assert len([name for name in found if name not in OWN]) == sum(map(len, expected))
    counts = Counter(name for name in found if name in OWN)
    assert counts == {OWN[0]: kexecs, OWN[1]: kexecs, OWN[2]: 1 + kexecs}
    for bank in BANKS:
        assert daemon.pcr(bank) == replayed(records, bank), bank
    daemon.assert_replays()


def fails(call: str, descriptor: int, request: bytes = b"") -> int:
    """errno of a read or a write."""
    try:
        os.write(descriptor, request) if call == "write" else os.read(descriptor, 4096)
    except OSError as error:
        return error.errno or 0
    raise AssertionError(f"{call} did not fail")


# An agent at work


def test_kexec_between_stage_and_read(daemon: Daemon) -> None:
    daemon.generate(20)
    with Agent(daemon) as agent:
        agent.stage()
        daemon.call("kexec_execute")
        assert agent.error("read") == errno.ENODEV
        assert agent.error("delete") == errno.ENODEV
    # The stage is gone with its kernel, its records are current now.
    assert daemon.read(STAGED) == b""
    assert daemon.count() == 24
    agent.cycle()
    assert agent.counts == {"cycles": 1}
    assert daemon.count() == 0
    whole(daemon, agent.all(), generated(0, 20), kexecs=1)


def test_kexec_between_read_and_delete(daemon: Daemon) -> None:
    """What was read and not deleted appears again: it may not be kept twice."""
    daemon.generate(20)
    with Agent(daemon) as agent:
        agent.stage()
        first = agent.read()
        daemon.call("kexec_execute")
        assert agent.error("delete") == errno.ENODEV
    assert agent.kept == []
    assert daemon.read(BINARY).startswith(first)
    agent.cycle()
    whole(daemon, agent.all(), generated(0, 20), kexecs=1)


def test_delete_in_the_suspend_window_is_estale_and_the_records_appear_again(
    daemon: Daemon,
) -> None:
    daemon.generate(20)
    with Agent(daemon) as agent:
        agent.stage()
        first = agent.read()
        daemon.call("kexec_execute", hold=True)
        assert agent.error("delete") == errno.ESTALE
        daemon.call("kexec_finish")
        assert agent.error("delete") == errno.ENODEV
    assert daemon.read(BINARY).startswith(first)
    assert daemon.read(STAGED) == b""
    agent.cycle()
    whole(daemon, agent.all(), generated(0, 20), kexecs=1)


def test_an_agent_inside_a_held_kexec(daemon: Daemon) -> None:
    """Reading goes on, A is EACCES, D and N are ESTALE, new measurements are ENODEV."""
    daemon.generate(20)
    daemon.call("kexec_load")
    assert daemon.call("kexec_execute", hold=True) == {"held": True}
    before = daemon.read(BINARY)
    with Agent(daemon) as agent:
        assert agent.error("stage") == errno.EACCES
        assert agent.error("delete") == errno.ENOENT
        assert agent.read() == b""
    writer = os.open(daemon.path(ASCII), os.O_RDWR)
    assert fails("write", writer, b"5\n") == errno.ESTALE
    assert fails("write", writer, b"500\n") == errno.ENOENT
    os.close(writer)
    with pytest.raises(Refused, match="suspended") as caught:
        daemon.call("violation", name="/v")
    assert caught.value.errno == errno.ENODEV
    assert daemon.read(BINARY) == before
    answer = daemon.call("kexec_finish")
    assert (answer["carried"], answer["lost"]) == (23, 0)
    assert daemon.read(BINARY).startswith(before)
    agent.cycle()
    whole(daemon, agent.all(), generated(0, 20), kexecs=1)


def test_kexec_with_a_staged_list(daemon: Daemon) -> None:
    daemon.generate(12)
    with Agent(daemon) as agent:
        agent.stage()
    daemon.generate(10)
    staged, current = daemon.read(STAGED), daemon.read(BINARY)
    answer = daemon.call("kexec_execute")
    assert answer["carried"] == 1 + 12 + 10 + 2
    assert daemon.read(BINARY).startswith(staged + current)
    assert daemon.read(STAGED) == b""
    whole(daemon, agent.all(), generated(0, 22), kexecs=1)


def test_two_kexecs_in_a_row(daemon: Daemon) -> None:
    daemon.generate(20)
    agent = Agent(daemon)
    with agent:
        agent.stage()
        agent.read()
        daemon.call("kexec_execute")
        daemon.call("kexec_execute")
        assert agent.error("delete") == errno.ENODEV
    boot = daemon.group("boot")
    assert (boot["kexecs"], boot["carried"], boot["carried_in_all"]) == (2, 26, 49)
    agent.cycle()
    daemon.call("kexec_execute")
    whole(daemon, agent.all(), generated(0, 20), kexecs=3)


class Worker(threading.Thread):
    """Does ``work(turn)`` again and again until ``stop``; join() raises what it raised."""

    def __init__(self, work: Callable[[int], object], stop: threading.Event) -> None:
        super().__init__()
        self._work = work
        self._stop_event = stop
        self._wrong: BaseException | None = None
        self.start()

    def run(self) -> None:
        turn = 0
        try:
            while not self._stop_event.is_set():
                self._work(turn)
                turn += 1
        except (OSError, AssertionError, ImafsError) as error:
            self._wrong = error

    def end(self) -> None:
        self.join(60)
        assert not self.is_alive(), "it hangs"
        if self._wrong is not None:
            raise self._wrong


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.nightly)])
def test_kexecs_while_records_are_added_at_full_speed(daemon: Daemon, seconds: int) -> None:
    """In bulk and one by one, and while an agent stages, reads and deletes in a loop."""
    stop = threading.Event()
    bulk: list[bytes] = []
    single: list[bytes] = []
    agent = Agent(daemon)

    def generate(turn: int) -> None:
        daemon.call("generate", count=500)
        bulk.extend(generated(turn * 500, turn * 500 + 500))

    def violate(turn: int) -> None:
        daemon.call("violation", name=f"/violation/{turn}")
        single.append(f"/violation/{turn}".encode())

    workers = [Worker(work, stop) for work in (generate, violate, lambda turn: agent.cycle())]
    kexecs = 0
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end or agent.counts["cycles"] < 3:
            assert daemon.call("kexec_execute")["lost"] == 0
            kexecs += 1
    finally:
        stop.set()
        for worker in workers:
            worker.end()
    assert kexecs > 2
    print(f"{kexecs} kexecs, {len(bulk)} + {len(single)} records, {dict(agent.counts)}")
    whole(daemon, agent.all(), bulk, single, kexecs=kexecs)


# Descriptors and locks


@pytest.mark.parametrize("op", ["kexec_execute", "reboot", "reset"])
def test_descriptors_do_not_outlive_their_kernel(daemon: Daemon, op: str) -> None:
    daemon.generate(300)
    readers = [
        os.open(daemon.path(name), os.O_RDONLY)
        for name in (ASCII, f"{BINARY}_sha256", "runtime_measurements_count", "violations")
    ]
    head = os.read(readers[0], 4096)
    assert head
    daemon.call(op)
    for reader in readers:
        assert fails("read", reader) == errno.ENODEV
        os.lseek(reader, 0, os.SEEK_SET)
        assert fails("read", reader) == errno.ENODEV
    # They hold nobody up, and their close gives nobody's lock back.
    with Agent(daemon) as agent:
        for reader in readers:
            os.close(reader)
        with pytest.raises(OSError, match="busy"):
            daemon.read(BINARY)
        agent.stage()
    assert daemon.read(STAGED)


def test_reboot_with_open_writers(daemon: Daemon) -> None:
    daemon.generate(20)
    old = os.open(daemon.path(STAGED), os.O_RDWR)
    second = os.open(daemon.path(ASCII), os.O_RDWR)
    os.write(old, b"A\n")
    daemon.call("reboot")
    assert daemon.count() == 1
    assert daemon.call("status")["writer"] is None
    new = os.open(daemon.path(ASCII), os.O_RDWR)
    assert fails("write", old, b"D\n") == errno.ENODEV
    assert fails("write", second, b"1\n") == errno.ENODEV
    os.close(old)
    os.close(second)
    with pytest.raises(OSError, match="busy"):
        daemon.read(BINARY)
    os.write(new, b"1\n")
    os.close(new)
    assert daemon.count() == 0
    daemon.generate(3)
    assert daemon.count() == 3
    daemon.assert_replays()


def test_the_other_agent_does_not_outlive_its_kernel_either(daemon: Daemon) -> None:
    daemon.generate(3)
    daemon.call("agent", action="open-write")
    daemon.call("kexec_execute")
    assert daemon.call("status")["writer"] is None
    assert daemon.call("agent", action="open-read") == {"held": 1}
    daemon.call("reboot")
    assert daemon.call("agent", action="close") == {"held": 0}
    assert daemon.count() == 1


def test_a_reader_in_the_middle_of_a_list_gets_an_error(daemon: Daemon, tmp_path: Path) -> None:
    """Never the end of the file: what it has is shorter than the list was."""
    daemon.generate(3000)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = 'exec 3<"$1"; head -c 1 <&3; read -r line <"$2"; exec cat <&3'
    reader = subprocess.Popen(
        ["sh", "-c", script, "sh", str(daemon.path(ASCII)), str(fifo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.read(1) == b"1"
        daemon.call("kexec_execute")
        fifo.write_text("on\n")
        _, error = reader.communicate(timeout=60)
    finally:
        reader.kill()
        reader.communicate()
    assert reader.returncode == 1
    assert b"No such device" in error


# Another profile


def test_names_and_inodes_of_another_profile(daemon: Daemon) -> None:
    """A name that is gone is ENOENT, also through what held its inode; no other file has it."""
    before = {name: daemon.path(name).lstat().st_ino for name in os.listdir(daemon.dir)}
    held = os.open(daemon.path(f"{BINARY}_sha256_staged"), os.O_PATH)
    kept = os.open(daemon.path(f"{BINARY}_sha256"), os.O_PATH)
    try:
        daemon.generate(4)
        daemon.call("kexec_execute", profile="legacy-single")
        assert set(os.listdir(daemon.dir)) == {
            *(ASCII, BINARY, "runtime_measurements_count", "violations", "policy"),
        }
        now = {name: daemon.path(name).lstat().st_ino for name in os.listdir(daemon.dir)}
        # The plain names were links to files of another kind.
        assert not {now[ASCII], now[BINARY]} & set(before.values())
        for name in ("runtime_measurements_count", "violations"):
            assert now[name] == before[name]
        with pytest.raises(FileNotFoundError):
            daemon.read(STAGED)
        for descriptor in (held, kept):
            with pytest.raises(FileNotFoundError):
                os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        assert daemon.count() == 8
        daemon.call("kexec_execute", profile="mainline")
        again = {name: daemon.path(name).lstat().st_ino for name in os.listdir(daemon.dir)}
        assert again == before
        reader = os.open(f"/proc/self/fd/{kept}", os.O_RDONLY)
        assert read_to_end(reader) == daemon.read(f"{BINARY}_sha256")
        os.close(reader)
        daemon.assert_replays()
    finally:
        os.close(held)
        os.close(kept)


def test_a_bind_of_one_file_lives_on(daemon: Daemon) -> None:
    """The inode of a name that stays is the same after a kexec."""
    target = daemon.place.base / "bound"
    target.touch()
    run(["mount", "--bind", str(daemon.path(f"{ASCII}_sha1")), str(target)])
    try:
        daemon.generate(2)
        daemon.call("kexec_execute")
        assert target.read_bytes() == daemon.read(ASCII)
        daemon.call("reboot")
        assert target.read_bytes() == daemon.read(ASCII)
    finally:
        run(["umount", str(target)])


def test_modes_are_the_new_kernels(daemon: Daemon) -> None:
    name = "violations"
    daemon.path(name).chmod(0o444)
    daemon.call("kexec_execute")
    assert daemon.path(name).stat().st_mode & 0o777 == 0o440


# A TPM that does not answer


def test_kexec_with_a_hung_tpm(daemon: Daemon) -> None:
    """Bounded; what waits is extended in order once the TPM is back, over two kexecs."""
    daemon.logs.expect("boot_aggregate is made of zeros")
    daemon.logs.allow("extending failed")
    daemon.generate(20)
    with stopped(daemon.swtpm()):
        daemon.call("generate", count=700)
        answer = daemon.call("kexec_execute")
        assert answer["lost"] == 0
        agent = Agent(daemon)
        agent.cycle()
        assert agent.counts == {"cycles": 1}
        daemon.call("kexec_execute")
        assert daemon.group("records")["pending"] == 700 + 6
    wait_for(lambda: daemon.group("records")["pending"] == 0, 60, "all is extended after all")
    assert daemon.group("failures")["mismatch"] is None
    whole(daemon, agent.all(), generated(0, 720), kexecs=2)


def test_kexec_with_a_dead_tpm(start: Starter) -> None:
    daemon = start()
    daemon.logs.expect("boot_aggregate is made of zeros")
    daemon.logs.allow("TPM|tpm|extending failed")
    daemon.generate(20)
    swtpm = daemon.swtpm()
    os.kill(swtpm, signal.SIGKILL)
    wait_for(lambda: not alive(swtpm), 60, "swtpm is gone")
    daemon.call("generate", count=10)
    answer = daemon.call("kexec_execute")
    assert (answer["carried"], answer["lost"]) == (33, 0)
    agent = Agent(daemon)
    agent.cycle()
    kept = [name for name in names(agent.kept) if name not in OWN]
    assert kept == generated(0, 30)
    assert daemon.group("records")["pending"] == 13
