# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The scripts that Linux 7.2.13 answered, played on the emulator, line by line.

The emulator begins with the list that the kernel had. What FUSE cannot copy is in
differences.py, and nothing else may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import differences, recordings
from tests.conformance.oracle import BANKS
from tests.conformance.playing import compare, directory_for, play
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

SEVEN = recordings.load("7.2.13")
AGAIN = recordings.load("questions-7.2.13")
KINDS = ("ascii", "binary")
#: The policy that the start scripts of the recordings loaded.
RULE = "measure func=FILE_CHECK mask=MAY_READ fowner=1234\n"

#: Line of viol.script -> what the kernel did on its own after it: the audit lines at the end
#: of viol.out say which, the lists what was measured.
VIOLATIONS = {
    5: "violation /tmpm/f",  # open_writers: a reader comes while a writer is there
    13: "violation /tmpm/f",  # ToMToU: a writer comes while a reader is there
    32: "violation /tmpm/f",  # open_writers again, the list staged and deleted meanwhile
}
MEASURED = {32: f"measure /tmpm/f {b'zz'.hex()}0a"}  # rewritten since "one" was measured

StartAsRecorded = Callable[..., Daemon]


@pytest.fixture
def recorded(start: Starter, tmp_path: Path) -> StartAsRecorded:
    """Start an emulator with a recorded list; the list goes through the TPM, as it did."""

    def recorded(binary: bytes, *options: str) -> Daemon:
        file = tmp_path / "start.binary"
        file.write_bytes(binary)
        emulator = start("--load", str(file), *options)
        directory_for(emulator, "/tmpm")
        return emulator

    return recorded


def state(emulator: Daemon) -> dict[str, bytes]:
    """All lists of all banks and PCR 10 of every bank, with the names of the recordings."""
    lists = {
        f"{kind}.{bank}": emulator.read(f"{kind}_runtime_measurements_{bank}")
        for kind in KINDS
        for bank in BANKS
    }
    return lists | {f"pcr10.{bank}": emulator.pcr(bank) for bank in BANKS}


def recorded_state(files: dict[str, bytes], moment: str) -> dict[str, bytes]:
    """The same from the files ``start.*`` or ``end.*`` of a recording."""
    names = [f"{kind}.{bank}" for kind in (*KINDS, "pcr10") for bank in BANKS]
    found = {name: files[f"{moment}.{name}"] for name in names}
    return {
        name: bytes.fromhex(content.decode()) if name.startswith("pcr10") else content
        for name, content in found.items()
    }


def test_base(recorded: StartAsRecorded, tmp_path: Path) -> None:
    """150 operations: layout, growth, bad requests, staging, locking, delete N, policy."""
    rules = tmp_path / "rules"
    rules.write_text(RULE)
    policy = ("--policy", str(rules), "--policy-release", "7.2")
    emulator = recorded(SEVEN.files["start.binary.sha1"], *policy)
    files = dict(SEVEN.files)
    assert state(emulator) == recorded_state(files, "start")
    complaints = compare(
        SEVEN.text("base.out"),
        play(emulator, SEVEN.text("base.script")),
        differences.for_script("base"),
    )
    assert not complaints, "\n".join(complaints)
    assert state(emulator) == recorded_state(files, "end")


def test_reads(recorded: StartAsRecorded) -> None:
    """Short reads of seq_file."""
    emulator = recorded(SEVEN.files["start.binary.sha1"])
    complaints = compare(
        SEVEN.text("reads.out"),
        play(emulator, SEVEN.text("reads.script")),
        differences.for_script("reads"),
    )
    assert not complaints, "\n".join(complaints)


def directed(script: str) -> str:
    """viol.script with what the kernel did on its own put in."""
    lines = []
    for number, line in enumerate(script.splitlines(), 1):
        lines.append(line)
        for table in (VIOLATIONS, MEASURED):
            if number in table:
                lines.append(f"#emulator: {table[number]}")
    return "\n".join(lines) + "\n"


def hexdump(data: bytes) -> list[str]:
    """``hexdump -C``."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        halves = " ".join(f"{b:02x}" for b in row[:8]), " ".join(f"{b:02x}" for b in row[8:])
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{at:08x}  {halves[0]:<23}  {halves[1]:<23}  |{text}|")
    return [*lines, f"{len(data):08x}"]


def test_violations(recorded: StartAsRecorded) -> None:
    """Violations: count, lists with their bytes, and PCRs (from a start that is known)."""
    script = directed(SEVEN.text("viol.script"))
    known = AGAIN.below("viol")
    emulator = recorded(known["start.binary.sha1"])
    answers = play(emulator, script)
    lines = SEVEN.text("viol.out").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("00000000  "))
    complaints = compare("\n".join([*lines[:first], ""]), answers)
    assert not complaints, "\n".join(complaints)
    dump = hexdump(emulator.read("binary_runtime_measurements_sha256"))
    assert dump == lines[first : first + len(dump)]
    # The PCRs in viol.out depend on that boot's start script, which was not recorded: the
    # same script was therefore asked again.
    assert compare(known["viol.out"].decode(), answers) == []
    assert state(emulator) == recorded_state(known, "end")


@pytest.mark.long
@pytest.mark.parametrize(
    "parameter", ["", pytest.param("ima_flush_htable", marks=pytest.mark.nightly)]
)
def test_memory(recorded: StartAsRecorded, parameter: str) -> None:
    """Ten thousand records, staged, deleted and measured again; the hash table kept or not."""
    options = ("--flush-htable",) if parameter else ()
    emulator = recorded(SEVEN.files["start.binary.sha1"], *options)
    # Nobody waits for an extend of his own: they are made in large batches.
    emulator.call("tpm", behind=1_000_000)
    # Around the answers: uptime before and after, and the last record of the sha256 list.
    _, *lines, _, last = SEVEN.text(f"mem.out.{parameter}".rstrip(".")).splitlines()
    complaints = compare(
        "\n".join(lines),
        play(emulator, SEVEN.text("mem.script"), deadline=280),
        differences.for_script("mem"),
    )
    assert not complaints, "\n".join(complaints)
    assert emulator.read("ascii_runtime_measurements_sha256").splitlines()[-1].decode() == last
    emulator.call("tpm", work=True)
    emulator.assert_replays()
