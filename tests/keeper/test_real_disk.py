# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The store on a real file system over power cuts: at each flush of a disk that logs every write,
at places between, and of a machine that is killed.

A real kernel writes the log, with the target log-writes of device-mapper below an ext4, and a
mark in it behind each deletion (one machine, tests/machine.py: minutes). Then the disk is made
anew up to each place, and mounted here: what was deleted in that kernel is stored, and all that is
stored is the truth, which that machine's TPM confirms.

A machine whose emulator is killed loses what its kernel had not written. The records that were
deleted in it have left it before (the last of them perhaps in part), and lead what its disk has.
The same holds for the disk of an emulator that stands still.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from imafs.errors import ImafsError, NotThereError
from imafs.keeper import archive as archives
from imafs.keeper.reading import Reading, lives
from imafs.keeper.store import open_store
from tests import machine as machines
from tests.keeper.writelog import Replay, entries
from tests.mount.daemon import imafs
from tests.support import ExpectedLogs, may_take, require, run, wait_for

pytestmark = [pytest.mark.nightly, pytest.mark.root]

_MIB = 1 << 20
#: The file system's, and its log's behind it on the same disk.
_SIZE, _LOG = 64 * _MIB, 960 * _MIB
#: Of the writes between two flushes every so manieth is a place for a power cut as well.
_BETWEEN = 3
#: Of the marks every so manieth is looked at by the command as well.
_COMMANDS = 10
#: Segments become full too.
_SEGMENT = 200
#: How often a machine stands still before it is killed.
_MOMENTS = 4
#: Seconds for all of a test.
_ALL = 5400

_RECORDING_SH = """
mkdir -p /stored /root/many
recording() {
    rm -f /run/keep.out
    python3 /host/recording.py keep --mount $view --store /stored/keeper \\
        --config /host/keeper.toml > /run/keep.out 2>&1 &
    keeper=$!
    until_keeping $keeper
}
"""

_LOGGED = """
blocks() { echo "0 $(($1 / 512)) linear /dev/vdb $(($2 / 512))"; }
blocks SIZE 0 | dmsetup create data
blocks LOG SIZE | dmsetup create log
echo "0 $((SIZE / 512)) log-writes /dev/mapper/data /dev/mapper/log" | dmsetup create logged
mke2fs -q -t ext4 -E nodiscard /dev/mapper/logged
mount /dev/mapper/logged /stored
sync
dmsetup message logged 0 mark begin
load() {  # FROM TO
    for n in $(seq $1 $2); do echo $n > /root/many/$n; cat /root/many/$n > /dev/null; done
}
deleted() { stat -c %s /run/deleted; }
recording
before=$(deleted)
load 1 FILES &
loader=$!
until [ $(deleted) -gt $((before + 10000)) ]; do sleep 0.2; done
kill -9 $keeper
wait $keeper
recording
while [ -d /proc/$loader ]; do head -c 100 $view/$list > /dev/null; sleep 0.2; done
imafs keep flush --store /stored/keeper
cp $view/$list /host/confirmed
imafs verify $view/$list --tcti device:/dev/tpmrm0
imafs keep status --store /stored/keeper
keeper_ends TERM
imafs keep export --store /stored/keeper -o /host/truth
umount /stored
dmsetup remove logged && dmsetup remove log && dmsetup remove data && echo "logged all"
"""

#: Until the power is cut; 9p keeps nothing back: what is written to /host is out.
_KILLED = """
mount /dev/vdb /stored
recording
{
    n=0
    while n=$((n + 1)); do echo $n > /root/many/$n; cat /root/many/$n > /dev/null; done
} &
while head -c 100 $view/$list > /dev/null; do sleep 0.2; done
cat /run/keep.out
"""

#: A keeper that tells the records of each deletion behind it, in the file DELETED, and in the log
#: with how many bytes were deleted so far.
_RECORDING = '''
import fcntl, os, struct, sys
from imafs.cli.main import main
from imafs.formats.binary import Reader
from imafs.keeper import archive
from imafs.keeper.files import Disk
from imafs.keeper.source import Source

PLANTED = sys.argv[1] == "planted" and sys.argv.pop(1)
archive.SEGMENT_RECORDS = SEGMENT


def mark(text):
    """As dmsetup message: the ioctl DM_TARGET_MSG (include/uapi/linux/dm-ioctl.h)."""
    message = struct.pack("<Q", 0) + b"mark " + text.encode() + b"\\0"
    head = struct.pack("<3IIIIiIIIQ", 4, 0, 0, 312 + len(message), 312, *(0,) * 6)
    buffer = bytearray(head.ljust(312, b"\\0") + message)
    buffer[48:54] = b"logged"
    with open("/dev/mapper/control", "rb") as control:
        fcntl.ioctl(control, 0xC138FD0E, buffer)


def doomed(self, request):
    """What is to be deleted."""
    if request == b"A\\n":
        return b""
    if request == b"D\\n":
        return self.staged()
    data = self.current()
    ends = [end for *_, end in Reader(data, 20, opaque=True).walk()]
    return data[: ends[int(request) - 1]]


def write(self, descriptor, request):
    data = doomed(self, request)
    refused = real(self, descriptor, request)
    if data and not refused:
        told = os.open(DELETED, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        assert os.write(told, data) == len(data)
        size = os.fstat(told).st_size
        os.close(told)
        if os.path.exists("/dev/mapper/logged"):
            mark(f"deleted.{size}")
    return refused


real, Source._write = Source._write, write
if PLANTED:
    Disk.sync = Disk.sync_directory = lambda *words: None
sys.exit(main())
'''


@dataclass
class Seen:
    """What was found at all places."""

    places: int = 0
    durable: int = 0
    between: int = 0
    marks: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def _host(place: Path, script: str, *, deleted: str, planted: bool) -> Path:
    """What is /host in a machine that runs ``script``."""
    host = place / "host"
    host.mkdir()
    machines.pack(host)
    script = _RECORDING_SH + script
    if planted:
        script = script.replace("recording.py keep", "recording.py planted keep")
    (host / "run.sh").write_text(machines.HEAD + script)
    constants = f"SEGMENT, DELETED = {_SEGMENT}, {deleted!r}\n"
    (host / "recording.py").write_text(constants + _RECORDING)
    (host / "keeper.toml").write_text('[stage]\nrecords = 20\nage = "1s"\n')
    return host


def _logged(request: pytest.FixtureRequest, place: Path, files: int, planted: bool) -> Path:
    """The disk behind a run in the machine; ``host`` in ``place`` is its directory."""
    machine = machines.found(request)
    may_take(_ALL)
    require("/dev/loop-control")
    script = _LOGGED.replace("SIZE", str(_SIZE)).replace("LOG", str(_LOG))
    script = script.replace("FILES", str(files))
    host = _host(place, script, deleted="/run/deleted", planted=planted)
    disk = place / "disk"
    disk.touch()
    with disk.open("r+b") as file:
        file.truncate(_SIZE + _LOG)
    out = machines.ask(machine, host, disk=disk)
    print(out)  # figures
    assert "logged all" in out.splitlines(), out
    confirmed, truth = (host / "confirmed").read_bytes(), (host / "truth").read_bytes()
    match = re.search(r"match after record (\d+)", out)
    assert match is not None, out
    assert int(match[1]) >= len(machines.names(confirmed))
    assert truth.startswith(confirmed)
    return disk


@contextmanager
def _mounted(image: Path, place: Path) -> Iterator[Path]:
    """A copy of the image, mounted: ext4 replays its journal into it."""
    copy = place / "copy"
    run(["cp", "--sparse=always", image, copy])
    where = place / "mounted"
    where.mkdir(exist_ok=True)
    run(["mount", "-o", "loop", copy, where])
    try:
        yield where
    finally:
        run(["umount", where])
        copy.unlink()


def _stored(store: Path) -> bytes:
    """What a keeper would serve that starts now; each check of it comes to the same."""
    try:
        if not lives(str(store)):
            return b""
    except NotThereError:
        return b""
    opened = open_store(str(store))
    try:
        life = opened.newest()
        if life is None:
            return b""
        end = life.archive.end
        life.archive.close()
    finally:
        opened.close()
    reading = Reading(str(store), lives(str(store))[-1])
    verdict = reading.verify()
    assert not verdict.complaints, verdict
    data = b"".join(reading.export(0))
    assert len(machines.names(data)) == end
    return data


def _wrong(store: Path, truth: bytes, deleted: int) -> str | None:
    """Why a store is not what it must be where so many bytes of records were deleted."""
    try:
        data = _stored(store)
    except ImafsError as error:
        return f"no keeper starts: {error}"
    if not truth.startswith(data):
        return "what is stored is not the truth"
    if len(data) < deleted:
        return f"{deleted} bytes were deleted, {len(data)} are stored"
    return None


def _replayed(disk: Path, truth: bytes, place: Path, most: int | None = None) -> Seen:
    """Power cuts at all places of the log (at ``most`` losses no further)."""
    replay = Replay(disk, place / "image", _SIZE)
    seen, deleted, between = Seen(), 0, 0
    for number, entry in enumerate(entries(disk, _SIZE)):
        replay.do(entry)
        if entry.mark is not None:
            if told := entry.mark.partition("deleted.")[2]:
                deleted = int(told)
                assert deleted <= len(truth), f"entry {number}: {deleted} bytes were deleted"
            seen.marks.append(deleted)
        between = 0 if entry.durable else between + 1
        if not seen.marks or between % _BETWEEN:
            continue
        with _mounted(replay.path, place) as where:
            if entry.mark is not None and deleted and not len(seen.marks) % _COMMANDS:
                imafs("keep", "verify", "--store", where / "keeper", check=most is None)
            wrong = _wrong(where / "keeper", truth, deleted)
        seen.places += 1
        seen.durable += entry.durable
        seen.between += not entry.durable
        if wrong is not None:
            seen.lost.append(f"entry {number}: {wrong}")
            if most is not None and len(seen.lost) >= most:
                break
    replay.close()
    return seen


@pytest.fixture
def _small_segments(monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs) -> None:
    """What is told of a store that a power cut has left, is expected."""
    expected_logs.allow(r"imafs\.keeper\.(archive|book)")
    monkeypatch.setattr(archives, "SEGMENT_RECORDS", _SEGMENT)


@pytest.mark.usefixtures("_small_segments")
def test_power_cut_at_every_flush(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Nothing that was deleted is missing, and nothing else is stored."""
    disk = _logged(request, tmp_path, files=500, planted=False)
    truth = (tmp_path / "host" / "truth").read_bytes()
    seen = _replayed(disk, truth, tmp_path)
    print(len(machines.names(truth)), "records,", len(truth), "bytes:", seen)  # figures
    assert seen.lost == []
    assert len(seen.marks) > 10
    assert seen.durable > len(seen.marks)
    assert seen.between
    assert len(machines.names(truth)) > 500
    assert max(seen.marks) > len(truth) // 2


@pytest.mark.usefixtures("_small_segments")
def test_a_store_that_is_not_synced_is_caught(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same with a keeper that leaves out every sync: the log tells on it."""
    disk = _logged(request, tmp_path, files=200, planted=True)
    truth = (tmp_path / "host" / "truth").read_bytes()
    seen = _replayed(disk, truth, tmp_path, most=1)
    print(seen)
    assert seen.lost


@dataclass
class Cut:
    """A disk when its power was cut, and the records that had been deleted till then."""

    disk: Path
    deleted: bytes


def _cuts(machine: Path, host: Path, disk: Path, rng: random.Random) -> Iterator[Cut]:
    """One machine's, each some time behind a deletion; the last one is of ``disk`` itself."""
    told = host / "deleted"
    told.unlink(missing_ok=True)
    with machines.running(machine, host, disk=disk) as running:

        def grown(least: int) -> bool:
            running.check()
            return told.exists() and told.stat().st_size >= least

        def written(least: int) -> bool:
            running.check()
            return running.written() >= least

        least = 1  # the records of the boot, at once
        for number in range(_MOMENTS + 1):
            wait_for(partial(grown, least), _ALL, "more is deleted")
            some = running.written() + rng.randrange(60_000)
            wait_for(partial(written, some), _ALL, "more is written")
            if number == _MOMENTS:
                running.cut()
                yield Cut(disk, told.read_bytes())
                return
            copy = disk.with_name(f"{disk.name}.{number}")
            with running.standing():
                run(["cp", "--sparse=always", disk, copy])
                cut = Cut(copy, told.read_bytes())
            least = len(cut.deleted) + rng.randrange(1_000, 5_000)
            yield cut


@pytest.mark.usefixtures("_small_segments")
@pytest.mark.parametrize("number", range(5))
def test_killed_machine(number: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What was deleted leads what is stored."""
    machine = machines.found(request)
    may_take(_ALL)
    require("/dev/loop-control")
    host = _host(tmp_path, _KILLED, deleted="/host/deleted", planted=False)
    disk = tmp_path / "disk"
    run(["mke2fs", "-q", "-t", "ext4", disk, f"{_SIZE // _MIB}M"])
    before = 0
    for cut in list(_cuts(machine, host, disk, random.Random(number))):
        with _mounted(cut.disk, tmp_path) as where:
            stored = _stored(where / "keeper")
        print(f"{cut.disk.name}: {len(cut.deleted)} bytes were deleted, {len(stored)} are stored")
        assert len(cut.deleted) > before
        assert stored.startswith(cut.deleted)
        before = len(cut.deleted)
