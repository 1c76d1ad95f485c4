# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""kill -9 of the daemon and of swtpm at random moments; a swtpm that stands still."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from imafs.testing.mounted import Home
from tests.crash.collected import Piece, records, replayed
from tests.crash.racer import BANKS
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon, alive, layers
from tests.mount.fixtures import Starter
from tests.support import kill_group, run, stopped, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: Seconds that a client may take to notice that its daemon is dead: more is a hang.
CLIENT = 60.0

#: Clients of the scripted workload: each goes on until the mount or the socket is dead.
READER = """
import errno, sys
while True:
    try:
        with open(sys.argv[1], "rb", buffering=0) as file:
            while file.read(65536):
                pass
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
"""
WRITER = """
import errno, os, sys
while True:
    try:
        fd = os.open(sys.argv[1], os.O_RDWR)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        continue
    try:
        for word in (b"A\\n", b"D\\n"):
            try:
                os.write(fd, word)
            except (FileExistsError, FileNotFoundError):
                pass
            os.lseek(fd, 0, os.SEEK_SET)
            while os.read(fd, 65536):
                pass
    finally:
        os.close(fd)
"""
ADDER = """
import sys
from imafs.verbs.client import ControlClient
with ControlClient(sys.argv[1]) as client:
    while True:
        client.call("generate", {"count": 700}, deadline=30)
"""
#: How a client of a daemon that was killed ends, by the last line of its stderr.
ENDS = (
    "not connected",
    "connection abort",
    "No such device",
    "imafs.errors.ControlError",
)


def clients(daemon: Daemon) -> list[subprocess.Popen[str]]:
    """The workload's processes; stdin and stdout are nothing."""
    words = [
        (READER, daemon.path(f"{ASCII}_sha256")),
        (READER, daemon.path(COUNT)),
        (WRITER, daemon.path(f"{BINARY}_staged")),
        (ADDER, daemon.control),
    ]
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for script, path in words
    ]


def all_ended(processes: list[subprocess.Popen[str]], what: str) -> None:
    """Every client has ended in time and for a reason that is no surprise."""
    try:
        for process in processes:
            _, err = process.communicate(timeout=CLIENT)
            last = err.strip().rsplit("\n", 1)[-1]
            assert any(end in last for end in ENDS), f"{what}: {err}"
    finally:
        for process in processes:
            kill_group(process)
            process.communicate()


def states() -> list[Path]:
    """Temporary states of swtpm of this session (TMPDIR is its own)."""
    return sorted(Path(os.environ["TMPDIR"]).glob("imafs-tpm-*"))


def kills(start: Starter, times: int) -> None:
    seed = random.SystemRandom().randrange(1 << 20)
    chance = random.Random(seed)
    place = start.place()
    before = states()
    for number in range(times):
        moment = chance.choice((0.05, 0.4, 1.0)) * chance.random()
        what = f"seed {seed}, kill {number} after {moment:.3f} s"
        if chance.random() < 0.2:
            # In the middle of its start: before, at or behind the mount.
            daemon = start.launch(place=place)
            processes = []
        else:
            daemon = start(place=place)
            assert layers(place.dir) == 1, what
            processes = clients(daemon)
        try:
            # Not a wait for anything: the moment is the experiment.
            threading.Event().wait(moment)
            os.kill(daemon.process.pid, signal.SIGKILL)
            daemon.wait(CLIENT)
        finally:
            all_ended(processes, what)
        # Also one that was started in the moment before.
        wait_for(lambda: not _swtpms(before), 60, f"{what}: swtpm died with the daemon")
        daemon.close()
    last = start(place=place)
    assert layers(place.dir) == 1
    assert last.count() == 1
    last.generate(100)
    last.assert_replays()
    assert last.stop() == 0
    assert layers(place.dir) == 0
    assert not Path(last.control).exists()
    assert states() == before, "states of dead swtpms are left"


def _swtpms(others: list[Path]) -> list[int]:
    """Those that live and have a temporary state of this session, none of ``others``."""
    pattern = f"{os.environ['TMPDIR']}/imafs-tpm-"
    rows = run(["pgrep", "--list-full", "--full", pattern], check=False).stdout.splitlines()
    mine = [row for row in rows if not any(str(state) in row for state in others)]
    return [pid for row in mine if alive(pid := int(row.split()[0]))]


@pytest.mark.long
def test_kill_of_the_daemon_at_random_moments(start: Starter) -> None:
    kills(start, 5)


@pytest.mark.nightly
def test_kill_of_the_daemon_at_200_random_moments(start: Starter) -> None:
    kills(start, 200)


def swtpm_kills(start: Starter, times: int) -> None:
    """Its list stays complete, the failure is counted and named, nobody waits for it."""
    seed = random.SystemRandom().randrange(1 << 20)
    chance = random.Random(seed)
    for number in range(times):
        what = f"seed {seed}, kill {number}"
        daemon = start()
        daemon.logs.expect("extending failed, records stay and are retried: .*swtpm has ended")
        added = 0
        kill_at = chance.randrange(1, 8)
        for turn in range(10):
            if turn == kill_at:
                os.kill(daemon.swtpm(), signal.SIGKILL)
            count = chance.choice((1, 10, 2000))
            daemon.call("generate", count=count)
            added += count
        names = [name for name, _ in records(daemon.read(), "sha1")]
        assert len(names) == added + 1, what
        assert len(set(names)) == added + 1, what
        wait_for(partial(_failed, daemon), 60, f"{what}: the failure is counted")
        failures = daemon.group("failures")
        assert "swtpm has ended (killed by SIGKILL)" in str(failures["last"]), what
        assert failures["mismatch"] is None
        pcrs = daemon.call("status")["pcrs"]
        assert isinstance(pcrs, list)
        assert not any(row["equal"] or row["value"] for row in pcrs), "no value is made up"
        # A, D and N are answered as ever.
        script = 'echo 2 > "$1" && echo A > "$1_staged" && cat "$1_staged" && echo D > "$1_staged"'
        shown = run(["sh", "-c", script, "sh", str(daemon.path(ASCII))], deadline=CLIENT).stdout
        assert len(shown.splitlines()) == added - 1, what
        assert daemon.stop() == 0
        daemon.close()


def _failed(daemon: Daemon) -> bool:
    return bool(daemon.group("failures")["extend"])


def test_kill_of_swtpm(start: Starter) -> None:
    swtpm_kills(start, 3)


@pytest.mark.nightly
def test_kill_of_swtpm_100_times(start: Starter) -> None:
    swtpm_kills(start, 100)


def test_a_swtpm_that_stands_still_several_times(daemon: Daemon) -> None:
    """Stopped and continued: records are extended afterwards, each once, in order."""
    daemon.logs.allow("extending failed, records stay and are retried")
    whole: Piece = []
    swtpm = daemon.swtpm()
    for _ in range(4):
        with stopped(swtpm):
            daemon.call("generate", count=300)
            daemon.read(ASCII)
            data = daemon.take(f"{BINARY}_staged")
            assert daemon.group("records")["pending"] != 0, "somebody waited for the TPM"
            whole += records(data, "sha1")
            daemon.call("generate", count=2)
            with pytest.raises(OSError, match="argument"):
                daemon.path(BINARY).write_bytes(b"0\n")
            assert daemon.group("records")["pending"] != 0
        wait_for(lambda: daemon.group("records")["pending"] == 0, 60, "all is extended after all")
    whole += records(daemon.read(), "sha1")
    assert len(whole) == 4 * 302 + 1
    assert len({name for name, _ in whole}) == len(whole)
    for bank in BANKS:
        assert daemon.pcr(bank) == replayed(whole, bank)
    assert daemon.group("failures")["mismatch"] is None


@contextmanager
def swtpm_at(place: Home) -> Iterator[str]:
    """A swtpm that is not the daemon's, on unix sockets; its TCTI string."""
    state, path = place.base / "state", place.base / "s"
    state.mkdir(exist_ok=True)
    control = Path(f"{path}.ctrl")
    control.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"),
            *("--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={control}"),
            *("--flags", "not-need-init,startup-clear"),
        ]
    )
    try:
        wait_for(control.exists, 60, "swtpm listens")
        yield f"swtpm:path={path}"
    finally:
        process.kill()
        process.wait()


def _mismatch(daemon: Daemon) -> str:
    return str(daemon.group("failures")["mismatch"] or "")


def test_a_swtpm_that_was_restarted_is_a_mismatch(start: Starter) -> None:
    """Every PCR is zero again: which banks, since which record; then it goes on."""
    place = start.place()
    with swtpm_at(place) as tcti:
        daemon = start("--tpm", tcti)
        daemon.logs.expect("PCRs .*sha256:10.* do not replay since record 51")
        daemon.logs.allow("extending failed, records stay and are retried")
        daemon.generate(50)
    daemon.call("generate", count=10)
    wait_for(partial(_failed, daemon), 60, "the failure is counted")
    assert _mismatch(daemon) == "", "that is known only once it answers again"
    assert daemon.count() == 61
    with swtpm_at(place):
        wait_for(partial(_mismatch, daemon), 60, "the mismatch is named")
        assert "do not replay since record 51" in _mismatch(daemon)
        daemon.call("wait", extended=True)
        assert daemon.group("records")["pending"] == 0
        pcrs = daemon.call("status")["pcrs"]
        assert isinstance(pcrs, list)
        assert [row["bank"] for row in pcrs if row["equal"]] == []
        assert daemon.count() == 61
        assert daemon.stop() == 0


@pytest.mark.nightly
def test_a_stranger_that_extends_while_a_call_hangs_is_named(daemon: Daemon) -> None:
    daemon.logs.expect("PCRs .*sha256:10.* do not replay since record 51")
    daemon.logs.allow("extending failed, records stay and are retried")
    daemon.generate(50)
    zeros = "00" * 32
    run(["tpm2_pcrextend", f"10:sha256={zeros}"], env={"TPM2TOOLS_TCTI": daemon.tcti})
    pcrs = daemon.call("status")["pcrs"]
    assert isinstance(pcrs, list)
    assert [row["bank"] for row in pcrs if not row["equal"]] == ["sha256"]
    with stopped(daemon.swtpm()):
        daemon.call("generate", count=10)
        # Its call hangs until the channel gives it up.
        wait_for(partial(_failed, daemon), 60, "the failure is counted")
    wait_for(partial(_mismatch, daemon), 60, "the mismatch is named")
    assert daemon.count() == 61
