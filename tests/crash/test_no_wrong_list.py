# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Nobody reads, with success, a list that was never there.

Readers use every call that reads; lists grow, are staged and deleted, trimmed, and end with
their kernel; the kernel's caches are dropped; readers are killed in the middle of a call; every
so many reads wait in their handler.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from imafs.formats.binary import Reader
from imafs.verbs.client import ControlClient
from tests.crash import viewer
from tests.crash.viewed import Known
from tests.mount.daemon import ASCII, BINARY, Daemon
from tests.mount.fixtures import Starter
from tests.support import find_command, may_take, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

HERE = Path(__file__).parent
#: Reads that wait for the TPM, which is slow to take what was just added.
WAITING = """
summary = "some reads wait in their handler"

[[step]]
when = "before read"
nth = 5
every = 7
do = [{ op = "wait", extended = true }]
"""


#: Ways of reading that are refused nowhere.
PLAIN = {"read", "pread", "readv", "cat", "copyfile"}


def _lines(content: bytes) -> Iterable[int]:
    at = 0
    while (at := content.find(b"\n", at) + 1) > 0:
        yield at


def _records(content: bytes) -> Iterable[int]:
    return (end for *_, end in Reader(content, 20).walk())


FILES: dict[str, Callable[[bytes], Iterable[int]]] = {
    ASCII: _lines,
    BINARY: _records,
    f"{ASCII}_staged": _lines,
    f"{BINARY}_staged": _records,
}


class Kernel:
    """Changes the lists, one change at a time, and keeps every list that was there."""

    def __init__(self, daemon: Daemon, client: ControlClient, seed: int) -> None:
        self._daemon = daemon
        self._client = client
        self._chance = random.Random(seed)
        self.known = Known(FILES)
        self.done: Counter[str] = Counter()
        self._look(time.monotonic())

    def change(self) -> None:
        """One change, and a look at what there is now."""
        name = self._chance.choices(
            ["grow", "stage", "delete", "trim", "reboot", "kexec"], [10, 6, 6, 4, 2, 2]
        )[0]
        before = time.monotonic()
        if getattr(self, f"_{name}")():
            self.done[name] += 1
            if name != "grow":
                after = time.monotonic()
                for file in FILES:
                    self.known.another(file, before, after)
            self._look(before)

    def _look(self, before: float) -> None:
        for name in FILES:
            try:
                content = viewer.by_read(str(self._daemon.path(name)), 1 << 20)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
                content = b""
            self.known.seen(name, content, before, time.monotonic())

    def _grow(self) -> bool:
        self._client.call("generate", {"count": self._chance.randint(1, 90)}, deadline=30)
        return True

    def _wrote(self, name: str, request: bytes) -> bool:
        # Readers hold the file most of the time: one look more is as good as another change.
        for _ in range(50):
            try:
                descriptor = os.open(self._daemon.path(name), os.O_WRONLY)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                continue
            try:
                os.write(descriptor, request)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT, errno.EEXIST):
                    raise
                return False
            finally:
                os.close(descriptor)
            return True
        return False

    def _stage(self) -> bool:
        return self._wrote(f"{ASCII}_staged", b"A\n")

    def _delete(self) -> bool:
        return self._wrote(f"{ASCII}_staged", b"D\n")

    def _trim(self) -> bool:
        return self._wrote(ASCII, b"%d\n" % self._chance.randint(1, 20))

    def _reboot(self) -> bool:
        self._client.call("reboot", {}, deadline=60)
        return True

    def _kexec(self) -> bool:
        before = time.monotonic()
        self._client.call("kexec_load", {}, deadline=60)
        self._look(before)  # the load is measured itself: a list that lives for a moment
        self._client.call("kexec_execute", {}, deadline=60)
        return True


class Viewers:
    """Processes that read; each is killed and replaced now and then."""

    def __init__(self, daemon: Daemon, rings: str, place: Path, count: int) -> None:
        self._words = [sys.executable, str(HERE / "viewer.py"), str(daemon.dir), rings]
        self._place = place
        self._number = 0
        self._running = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[bytes]:
        self._number += 1
        with (self._place / f"said-{self._number}").open("wb") as out:
            return subprocess.Popen(
                [*self._words, str(self._number), *FILES], stdout=out, start_new_session=True
            )

    def kill_one(self, chance: random.Random) -> None:
        at = chance.randrange(len(self._running))
        self._end(self._running[at])
        self._running[at] = self._start()

    def close(self) -> None:
        for process in self._running:
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(60)

    def ways(self) -> set[str]:
        """By which of them somebody has read so far."""
        return {str(one["way"]) for one in self.said() if "error" not in one}

    def said(self) -> Iterable[dict[str, object]]:
        """What all of them told, without the line in whose middle one was killed."""
        for file in sorted(self._place.glob("said-*")):
            text = file.read_bytes()
            for line in text[: text.rfind(b"\n") + 1].splitlines():
                yield json.loads(line)


def _built(place: Path) -> str:
    """The program of asynchronous reads; "" where there is no compiler."""
    if find_command("gcc") is None:
        return ""
    run(["gcc", "-O1", "-o", str(place / "rings"), str(HERE / "rings.c")])
    return str(place / "rings")


@pytest.mark.parametrize("seconds", [8, pytest.param(600, marks=pytest.mark.nightly)])
def test_nobody_reads_a_list_that_never_was(start: Starter, tmp_path: Path, seconds: int) -> None:
    may_take(2 * seconds + 240)
    daemon = start("--banks", "sha1,sha256")
    scenario = tmp_path / "waiting.toml"
    scenario.write_text(WAITING)
    chance = random.Random(seconds)
    with ControlClient(daemon.control) as client:
        kernel = Kernel(daemon, client, seconds)
        viewers = Viewers(daemon, _built(tmp_path), tmp_path, 4)
        try:
            end = time.monotonic() + seconds
            rounds = 0
            # On a busy machine the time is over before all of it has happened.
            while time.monotonic() < end or not (
                kernel.done.keys() >= {"grow", "reboot", "kexec"} and viewers.ways() >= PLAIN
            ):
                rounds += 1
                kernel.change()
                if rounds % 9 == 4:
                    viewers.kill_one(chance)
                if rounds % 40 == 10:
                    client.call("scenario", {"file": str(scenario)}, deadline=30)
                elif rounds % 40 == 30:
                    client.call("scenario_end", {}, deadline=30)
                if rounds % 11 == 5:
                    Path("/proc/sys/vm/drop_caches").write_text("3\n")
        finally:
            viewers.close()
    said = list(viewers.said())
    read = [one for one in said if "error" not in one]
    complaints = [why for one in read if (why := kernel.known.complaint(one)) is not None]
    told = f"{len(read)} of {len(said)} reads succeeded; changes: {dict(kernel.done)}"
    assert not complaints, f"{len(complaints)} wrong; {told}\n" + "\n".join(complaints[:10])
    # It cannot pass by reading nothing: reads by each plain way succeeded.
    assert {str(one["way"]) for one in read} >= PLAIN, told
    print(told)
    # The files of a killed viewer's threads are closed one after the other.
    wait_for(lambda: daemon.call("status")["readers"] == [], 60, "all files are closed")


def test_the_judge_sees_what_never_was() -> None:
    known = Known({"f": _lines})
    known.seen("f", b"a\nbb\n", 0, 1)
    known.seen("f", b"a\nbb\nccc\n", 1, 2)
    known.another("f", 3, 4)
    known.seen("f", b"x\n", 3, 4)

    def wrong(content: bytes, begun: float, done: float, way: str = "read") -> bool:
        said = {"file": "f", "way": way, "begun": begun, "done": done}
        return known.complaint(said | _told(content)) is not None

    assert not wrong(b"a\nbb\nccc\n", 1, 1.5)
    assert not wrong(b"a\nbb\n", 1.5, 1.6)
    assert not wrong(b"x\n", 3.5, 3.6)
    assert not wrong(b"", 1, 2, "tar")
    for content, begun, done in (
        (b"", 1, 2),
        (b"a\n", 1, 2),  # shorter than it ever was
        (b"a\nbb\n", 2.5, 2.6),  # a record is lost
        (b"a\nbb\nc", 1, 2),
        (b"a\nbb\n\0\0\0\0", 1, 2),
        (b"a\nbb\nccc\n", 4.5, 5),  # of a kernel that is gone
        (b"x\n", 1, 2),
        (b"", 4.5, 5),
    ):
        assert wrong(content, begun, done), (content, begun, done)


def _told(content: bytes) -> dict[str, object]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
