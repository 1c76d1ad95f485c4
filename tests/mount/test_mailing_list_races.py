# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The races that the mailing list argued about, played: who loses what, and who is told.

Several agents of their own thread each; the emulator answers as that proposal would have.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.mount.daemon import ASCII, BINARY, Daemon, read_to_end
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

STAGED = f"{ASCII}_sha256_staged"


def tries(path: os.PathLike[str], data: bytes) -> str:
    """A write through a descriptor of its own: ok or what the error says."""
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(data)
    except OSError as error:
        return error.strerror or ""
    return "ok"


def records(data: bytes) -> list[bytes]:
    return data.splitlines()


def test_agent_b_deletes_what_agent_c_has_staged(daemon: Daemon) -> None:
    """February 2026: A and D by separate opens. B's D takes C's stage before C has read it."""
    daemon.generate(4)
    of_c = records(daemon.read(f"{ASCII}_sha256"))
    staged = daemon.path(STAGED)
    agent_a = b"A\n"
    assert tries(staged, agent_a) == "ok", "agent A stages, reads, deletes"
    saved_by_a = records(daemon.read(STAGED))
    assert tries(staged, b"D\n") == "ok"
    daemon.generate(3)
    assert tries(staged, b"A\n") == "ok", "agent C stages"
    assert tries(staged, b"A\n") == "File exists", "agent B is told that somebody has"
    assert tries(staged, b"D\n") == "ok", "B takes it for its own leftover and deletes it"
    assert daemon.read(STAGED) == b"", "C reads an empty stage"
    assert tries(staged, b"D\n") == "No such file or directory", "and is told only now"
    assert saved_by_a == of_c
    assert daemon.count() == 0
    assert daemon.group("records")["deleted"] == 8
    daemon.assert_replays()


def test_one_descriptor_from_a_to_d_keeps_the_others_out(daemon: Daemon) -> None:
    """The answer to the race (why A moved back to _staged in v6)."""
    daemon.generate(4)
    expected = records(daemon.read(f"{ASCII}_sha256"))
    agent_c = os.open(daemon.path(STAGED), os.O_RDWR)
    os.write(agent_c, b"A\n")
    with ThreadPoolExecutor(2) as agents:
        for refused in agents.map(lambda data: tries(daemon.path(STAGED), data), (b"A\n", b"D\n")):
            assert refused == "Device or resource busy"
    assert records(read_to_end(agent_c)) == expected
    os.write(agent_c, b"D\n")
    os.close(agent_c)
    assert tries(daemon.path(STAGED), b"D\n") == "No such file or directory"


def test_v5_cannot_hold_one_descriptor_from_a_to_d(start: Starter) -> None:
    """In v5 A is on the original: between its close and the stage's open others get in."""
    daemon = start("--profile", "v5")
    daemon.generate(4)
    with open(daemon.path(BINARY), "r+b", buffering=0) as agent_c:
        agent_c.write(b"A\n")
        with pytest.raises(OSError, match="busy"):
            os.open(daemon.path(STAGED), os.O_RDWR)
    assert tries(daemon.path(STAGED), b"D\n") == "ok", "agent B is in between"
    assert daemon.read(STAGED) == b""


def test_two_agents_that_compute_n_on_one_list_trim_twice(daemon: Daemon) -> None:
    """December 2025: both verified the first 5 and write 5; the second takes 5 unsaved ones."""
    daemon.generate(11)
    before = records(daemon.read(f"{ASCII}_sha256"))
    computed = [len(before[:5]) for _ in range(2)]
    for number in computed:
        assert tries(daemon.path(BINARY), b"%d\n" % number) == "ok"
    assert records(daemon.read(f"{ASCII}_sha256")) == before[10:]
    assert daemon.group("records")["deleted"] == 10, "5 of which were read by nobody"


def test_a_number_larger_than_what_is_left_saves_the_second_agent(daemon: Daemon) -> None:
    """All or nothing: only where the second N is too large is the mistake told."""
    daemon.generate(7)
    assert tries(daemon.path(BINARY), b"5\n") == "ok"
    assert tries(daemon.path(BINARY), b"5\n") == "No such file or directory"
    assert daemon.count() == 3


@pytest.mark.parametrize("profile", ["trim-v4", "trim-v5"])
def test_a_stale_t_saves_the_second_agent(start: Starter, profile: str) -> None:
    """February 2026: T:N is the answer of the trim series to two agents with one N."""
    daemon = start("--profile", profile)
    daemon.generate(11)
    before = records(daemon.read(f"{ASCII}_sha256"))
    log = daemon.path("ima_trim_log")
    totals = [daemon.read("ima_trim_log") for _ in range(2)]
    assert totals == [b"0\n", b"0\n"]
    assert tries(log, b"0:5\n") == "ok"
    assert tries(log, b"0:5\n") == "Invalid argument"
    assert daemon.read("ima_trim_log") == b"5\n"
    assert records(daemon.read(f"{ASCII}_sha256"))[:-1] == before[5:], "and a record of the trim"
    assert tries(log, b"5:5\n") == "ok", "it reads T, looks again, and goes on"
    daemon.assert_replays()


def test_trim_v2_has_no_such_answer(start: Starter) -> None:
    daemon = start("--profile", "trim-v2")
    daemon.generate(11)
    assert [tries(daemon.path("ima_trim_log"), b"05") for _ in range(2)] == ["ok", "ok"]
    assert daemon.group("records")["deleted"] == 10


@pytest.mark.parametrize(
    ("profile", "file", "request_"),
    [
        ("mainline", BINARY, b"1\n"),
        ("mainline", STAGED, b"A\n"),
        ("v5", BINARY, b"A\n"),
        ("rfc-v2", f"{BINARY}_staged", b"A\n"),
        ("trim-v2", "ima_trim_log", b"01"),
        ("trim-v5", "ima_trim_log", b"0:1\n"),
    ],
)
def test_a_reader_for_life_keeps_every_trimmer_out(
    start: Starter, profile: str, file: str, request_: bytes
) -> None:
    """A tail -f of the list; the records go on, nobody may trim, and all see why."""
    daemon = start("--profile", profile)
    reader = os.open(daemon.path(ASCII), os.O_RDONLY)
    collected = b""
    for _ in range(5):
        daemon.generate(10)
        collected += read_to_end(reader)
        assert tries(daemon.path(file), request_) == "Device or resource busy"
    assert len(records(collected)) == 51 == daemon.count()
    readers = daemon.call("status")["readers"]
    assert isinstance(readers, list)
    assert [row["pid"] for row in readers] == [threading.get_native_id()]
    os.close(reader)
    assert tries(daemon.path(file), request_) == "ok"


def test_in_trim_v1_nobody_is_kept_out(start: Starter) -> None:
    """Opens are not counted: the reader for life skips what is trimmed under it."""
    daemon = start("--profile", "trim-v1")
    daemon.generate(20)
    reader = os.open(daemon.path(ASCII), os.O_RDONLY)
    seen = records(read_to_end(reader))
    daemon.generate(10)
    assert tries(daemon.path("ima_trim_log"), b"25") == "ok"
    left = records(daemon.read(ASCII))
    assert read_to_end(reader) == b"", "its place is behind the end now"
    assert len(seen) == 21
    assert len(left) == 6, "of which it has read none"
    os.close(reader)


def test_many_agents_with_one_descriptor_each_lose_nothing(daemon: Daemon) -> None:
    """Eight agents stage, read and delete in any order while records are added: each record
    is read by exactly one of them."""
    collected: list[bytes] = []
    done = threading.Event()

    def agent() -> list[bytes]:
        mine: list[bytes] = []
        while not done.is_set():
            try:
                descriptor = os.open(daemon.path(STAGED), os.O_RDWR)
            except OSError:
                continue
            try:
                os.write(descriptor, b"A\n")
                mine += records(read_to_end(descriptor))
                os.write(descriptor, b"D\n")
            except FileNotFoundError:
                pass  # nothing to stage
            finally:
                os.close(descriptor)
        return mine

    with ThreadPoolExecutor(8) as agents:
        running = [agents.submit(agent) for _ in range(8)]
        for _ in range(20):
            daemon.call("generate", count=50)
        wait_for(lambda: daemon.group("records")["deleted"] == 1001, 60, "all are deleted")
        done.set()
        for each in running:
            collected += each.result()
    assert len(collected) == 1001
    assert len(set(collected)) == 1001
    daemon.assert_replays()
