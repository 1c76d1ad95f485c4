# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recorded kexecs, played: Linux 7.3.4 with 12 staged and 10 current records, Linux 7.2.13
with lists that were deleted from, that outgrew their segment, of other templates.

A kernel's next list was staged, current, kexec_execute, and then what the next kernel
measured from boot_aggregate on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from imafs.formats.binary import Parsed, read
from tests.conformance import recordings
from tests.conformance.recordings import Moment
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

MOMENTS = {moment.name: moment for moment in recordings.load("7.3.4-kexec").moments()}
BEFORE, AFTER = MOMENTS["first/before-kexec"], MOMENTS["after-kexec"]
STAGED, CURRENT = "binary_runtime_measurements_staged", "binary_runtime_measurements"
#: Records that crossed, kexec_execute included; boot_aggregate follows.
CROSSED = 23


def directory(files: Mapping[str, bytes], path: Path) -> Path:
    """A moment's files as a recording that ``--load`` takes."""
    folder = path / "moment"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return recordings.pack(folder, path / "moment.tar.xz")


def parsed(content: bytes) -> list[Parsed]:
    return list(read(content))


def named(records: list[Parsed], name: bytes) -> tuple[int, bytes]:
    """Place and buffer of the one critical data record with this name."""
    (found,) = [
        (number, parts[2])
        for number, record in enumerate(records)
        if record.record.template.label == "ima-buf"
        and (parts := record.record.template.split(record.record.data))[1] == name + b"\0"
    ]
    return found


def slices(content: bytes, records: list[Parsed], first: int, last: int | None = None) -> bytes:
    end = records[-1].end if last is None else records[last].start
    return content[records[first].start : end]


def load(emulator: Daemon, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    emulator.call("load", file=str(path))


def same_files(emulator: Daemon, moment: Moment) -> None:
    """Every list of every bank and form, and the counters, byte for byte."""
    wrong = [name for name in moment.lists if not moment.matches(name, emulator.read(name))]
    assert wrong == []
    assert emulator.read("runtime_measurements_count") == moment.count
    assert emulator.read("violations") == moment.violations


def same_pcrs(emulator: Daemon, moment: Moment) -> None:
    assert set(moment.pcrs) == {"sha1", "sha256", "sha384", "sha512"}
    for bank, values in moment.pcrs.items():
        assert emulator.pcr(bank) == values[10], bank


def test_the_state_before_crosses_record_by_record(start: Starter, tmp_path: Path) -> None:
    """boot_aggregate's own value aside, and only that: it is of another machine's PCRs."""
    emulator = start("--load", str(directory(BEFORE.files, tmp_path)))
    same_files(emulator, BEFORE)
    answer = emulator.call("kexec_execute")
    assert (answer["records"], answer["carried"], answer["lost"]) == (CROSSED, CROSSED, 0)
    theirs = parsed(AFTER.files[CURRENT])
    ours = parsed(emulator.read(CURRENT))
    assert len(ours) == CROSSED + 1
    assert [r.record for r in ours[:CROSSED]] == [r.record for r in theirs[:CROSSED]]
    assert emulator.read(CURRENT)[: ours[-1].start] == AFTER.files[CURRENT][: ours[-1].start]
    for record in (ours[CROSSED], theirs[CROSSED]):
        digest, name = record.record.template.split(record.record.data)
        assert name == b"boot_aggregate\0"
        assert digest.startswith(b"sha256:\0")
    assert ours[CROSSED].record.template == theirs[CROSSED].record.template
    assert emulator.read(STAGED) == b""
    assert emulator.read("runtime_measurements_count") == b"%d\n" % (CROSSED + 1)


def test_everything_after_it_too_in_every_bank(start: Starter, tmp_path: Path) -> None:
    """With the recorded boot_aggregate even the PCRs are equal; then A, then D."""
    recording = str(directory(BEFORE.files, tmp_path))
    emulator = start("--no-boot-aggregate", "--load", recording)
    same_pcrs(emulator, BEFORE)
    emulator.call("kexec_execute")
    content = AFTER.files[CURRENT]
    load(emulator, tmp_path / "rest", slices(content, parsed(content), CROSSED))
    same_files(emulator, AFTER)
    same_pcrs(emulator, AFTER)

    # What the recorder itself opened was measured between the two moments.
    staged = MOMENTS["after-kexec-A"].files[STAGED]
    assert staged.startswith(content)
    load(emulator, tmp_path / "more", staged[len(content) :])
    for request in ("A", "D"):
        assert emulator.write(STAGED, f"{request}\n".encode()) == "ok"
        same_files(emulator, MOMENTS[f"after-kexec-{request}"])
        same_pcrs(emulator, MOMENTS[f"after-kexec-{request}"])


def test_the_critical_data_is_the_kernels(start: Starter, tmp_path: Path) -> None:
    """The texts of kexec_load and kexec_execute, from lists loaded up to those moments."""
    staged, current = BEFORE.files[STAGED], BEFORE.files[CURRENT]
    records = parsed(current)
    place, text = named(records, b"kexec_load")
    (tmp_path / "staged").write_bytes(staged)
    emulator = start("--no-boot-aggregate", "--load", str(tmp_path / "staged"))
    assert emulator.write(STAGED, b"A\n") == "ok"
    load(emulator, tmp_path / "before", slices(current, records, 0, place))
    assert emulator.call("kexec_load")["segment_size"] == 4096
    assert text.startswith(b"kexec_segment_size=4096;ima_binary_runtime_size=1905;")
    assert emulator.read(CURRENT) == slices(current, records, 0, place + 1)

    load(emulator, tmp_path / "behind", slices(current, records, place + 1))
    same_files(emulator, BEFORE)
    emulator.call("kexec_execute")
    after = parsed(AFTER.files[CURRENT])
    place, text = named(after, b"kexec_execute")
    assert place == CROSSED - 1
    assert text.endswith(b"ima_binary_runtime_size=2423;ima_runtime_measurements_count=22;")
    assert emulator.read(CURRENT) == slices(AFTER.files[CURRENT], after, 0, CROSSED)


# Linux 7.2.13


class Case:
    """One kexec of kexec-7.2.13: the files of its moments."""

    def __init__(self, name: str) -> None:
        self._recording = recordings.load("kexec-7.2.13")
        self._name = name

    def moment(self, name: str) -> dict[str, bytes]:
        """The files of ``before``, ``after`` and the like."""
        return self._recording.below(f"{self._name}/{name}")

    def same(self, emulator: Daemon, name: str) -> None:
        """Lists, counters and PCR 10 of every bank."""
        moment = self.moment(name)
        for file in (CURRENT, STAGED, "runtime_measurements_count", "violations"):
            assert emulator.read(file) == moment[file], file
        for line in moment["pcr10.txt"].decode().splitlines():
            bank, index, value = line.split()
            assert emulator.pcr(bank, int(index)).hex().upper() == value, bank

    def restored(self, emulator: Daemon) -> int:
        """How many records the emulator's list shares with the kernel's ``after``."""
        ours, theirs = parsed(emulator.read(CURRENT)), parsed(self.moment("after")[CURRENT])
        assert [r.record for r in ours] == [r.record for r in theirs[: len(ours)]]
        return len(ours)


@pytest.mark.parametrize(
    ("name", "options", "carried", "lost"),
    [
        # One byte of the 84th record still went into the segment; it was not restored.
        ("grown", [], 83, 28),
        # The kernel counts each record's custom format as an empty name: 131 still fit, 411
        # do not, although nothing was added after the load.
        ("custom", ["--template-fmt", "d-ng|n-ng|iuid|igid|imode"], 131, 0),
        ("custom-long", ["--template-fmt", "d-ng|n-ng|iuid|igid|imode"], 356, 55),
        ("ima", ["--template", "ima", "--hash", "sha1"], 0, 21),
    ],
)
def test_what_a_kernel_restored(
    start: Starter,
    tmp_path: Path,
    name: str,
    options: list[str],
    carried: int,
    lost: int,
) -> None:
    """The cut list is the kernel's; the PCRs have what was lost as well."""
    case = Case(name)
    recording = str(directory(case.moment("before"), tmp_path))
    emulator = start("--no-boot-aggregate", "--load", recording, *options)
    emulator.logs.allow("kexec: .* records were not carried over")
    case.same(emulator, "before")
    answer = emulator.call("kexec_execute")
    assert (answer["carried"], answer["lost"]) == (carried, lost)
    assert case.restored(emulator) == carried
    content = case.moment("after")[CURRENT]
    load(emulator, tmp_path / "rest", slices(content, parsed(content), carried))
    case.same(emulator, "after")


def test_what_was_deleted_counts_in_the_critical_data(start: Starter, tmp_path: Path) -> None:
    """D and N before another load: the segment is for what is left, the texts for all."""
    case = Case("deleted")
    emulator = start("--no-boot-aggregate")
    load(emulator, tmp_path / "first", case.moment("before-D")[STAGED])
    assert emulator.write(STAGED, b"A\n") == "ok"
    case.same(emulator, "before-D")
    assert emulator.write(STAGED, b"D\n") == "ok"
    load(emulator, tmp_path / "second", case.moment("before-N")[CURRENT])
    case.same(emulator, "before-N")
    assert emulator.write(CURRENT, b"3\n") == "ok"
    assert emulator.write(STAGED, b"A\n") == "ok"
    before = case.moment("before")
    records = parsed(before[CURRENT])
    place, _ = named(records, b"kexec_load")
    load(emulator, tmp_path / "third", slices(before[CURRENT], records, 0, place))
    emulator.call("kexec_load")
    load(emulator, tmp_path / "fourth", slices(before[CURRENT], records, place + 1))
    case.same(emulator, "before")
    assert before["violations"] == b"1\n"
    answer = emulator.call("kexec_execute")
    assert answer["lost"] == 0
    carried = case.restored(emulator)
    assert carried == answer["carried"] == answer["records"]
    content = case.moment("after")[CURRENT]
    load(emulator, tmp_path / "rest", slices(content, parsed(content), carried))
    case.same(emulator, "after")
