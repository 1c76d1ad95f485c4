# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Every list that a real kernel showed together with its PCRs, loaded into an emulator.

The loaded binary list goes through the TPM record by record; then every file of the IMA
directory is the kernel's, byte for byte, in every bank, and so are the PCRs, as another
client reads them from the TPM.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import recordings
from tests.conformance.recordings import Moment
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

#: Options that make an emulator the recorded kernel, from that kernel's command line.
OPTIONS: dict[str, list[str]] = {
    "6.1.0-56-amd64-critical": ["--profile", "legacy", "--padded-banks", "sha384,sha512"],
    "6.1.0-56-amd64-notpm": ["--profile", "legacy", "--tpm", "none"],
    "6.1.0-56-amd64-sha256bank": ["--profile", "legacy", "--banks", "sha256"],
    "6.1.0-56-amd64-tcb": ["--profile", "legacy", "--padded-banks", "sha384,sha512"],
    "7.3.4+deb13-amd64-ima-modsig": ["--template", "ima-modsig", "--no-staging"],
    "7.3.4+deb13-amd64-ima-sig": ["--template", "ima-sig", "--no-staging"],
    "7.3.4-critical": [],
    "7.3.4-customfmt": ["--template-fmt", "d-ng|n-ng|iuid|igid|imode"],
    "7.3.4-gen5000": [],
    "7.3.4-ima-sha1": ["--template", "ima", "--hash", "sha1"],
    "7.3.4-ima-sig": ["--template", "ima-sig"],
    "7.3.4-kexec": [],
    "7.3.4-mixed-pcr11": [],
    "7.3.4-notpm": ["--tpm", "none"],
    "7.3.4-tcb-ima-ng": [],
}
#: PCRs that a recording's records extend, where it is not PCR 10 alone.
EXTENDED = {"7.3.4-mixed-pcr11": (10, 11)}

ALL = [
    moment
    for name in recordings.names()
    if not name.startswith(("7.2.13", "questions"))
    for moment in recordings.load(name).moments()
]
#: Moments whose lists are empty while the PCR is not: what was deleted is in another moment.
DELETED = {"7.3.4-kexec/after-kexec-D": "after-kexec-A"}


def test_all_recordings_are_here() -> None:
    assert {moment.recording for moment in ALL} == set(OPTIONS)
    assert len(ALL) == 34


def before(moment: Moment) -> Moment:
    """The moment whose lists explain this one's PCRs."""
    name = DELETED.get(str(moment), moment.name)
    return next(m for m in recordings.load(moment.recording).moments() if m.name == name)


@pytest.mark.parametrize("moment", ALL, ids=str)
def test_recorded_list(moment: Moment, start: Starter, tmp_path: Path) -> None:
    source = before(moment)
    staged = source.files.get("binary_runtime_measurements_staged", b"")
    current = source.files["binary_runtime_measurements"]
    file = tmp_path / "list"
    file.write_bytes(staged or current)
    emulator = start("--load", str(file), *OPTIONS[moment.recording])
    if staged:
        assert emulator.write("ascii_runtime_measurements_staged", b"A\n") == "ok"
        file.write_bytes(current)
        if current:
            emulator.call("load", file=str(file))
    if source.name != moment.name:
        assert emulator.write("ascii_runtime_measurements_staged", b"D\n") == "ok"

    wrong = [name for name in moment.lists if not moment.matches(name, emulator.read(name))]
    assert not wrong, "\n".join(first_difference(moment, emulator, name) for name in wrong)
    shown = {path.name for path in emulator.dir.iterdir() if "_runtime_" in path.name}
    if moment.recording.startswith("6.1"):
        # The profile `legacy` is Linux 6.10 to 7.1, where each bank has files of its own.
        shown &= {"ascii_runtime_measurements", "binary_runtime_measurements"}
    assert shown == set(moment.lists)
    assert emulator.read("runtime_measurements_count") == moment.count
    for bank, values in moment.pcrs.items():
        for index in EXTENDED.get(moment.recording, (10,)):
            assert emulator.pcr(bank, index) == values[index], f"PCR {index} of {bank}"


def first_difference(moment: Moment, emulator: Daemon, name: str) -> str:
    """Where a list begins to differ, for the reader of a failure."""
    ours, theirs = emulator.read(name), moment.files.get(name, b"")
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    at = min(len(ours), len(theirs)) if at is None else at
    start = max(0, at - 40)
    return (
        f"{moment}/{name}: {len(ours)} bytes, the kernel has {len(theirs)}; at byte {at}\n"
        f"  kernel:   {theirs[start : at + 40]!r}\n  emulator: {ours[start : at + 40]!r}"
    )
