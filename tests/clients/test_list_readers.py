# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Libraries that replay ASCII lists reach the PCRs that another client reads from the TPM."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from imafs.attest import api
from imafs.formats import binary
from tests.clients.environments import client
from tests.conformance import recordings
from tests.conformance.test_recorded_lists import OPTIONS
from tests.mount.daemon import ASCII, IMAFS, Daemon
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.property.reference import replay
from tests.support import ROOT, run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

BANKS = ("sha1", "sha256", "sha384", "sha512")


@dataclass(frozen=True)
class Found:
    """What a library made of one list."""

    pcr: str
    events: list[str]
    records: int


@pytest.fixture(autouse=True)
def _installed() -> None:
    client("readers")


def read(library: str, *requests: tuple[Path, str, str], quoted: Sequence[str] = ()) -> list[Found]:
    """``library`` over lists: each with the algorithm of its digests and that of the PCR.

    ``quoted``: the PCRs that a TPM said, for a library that compares.
    """
    script = Path(__file__).with_name("reading.py")
    words = [str(client("readers") / "python"), str(script), library]
    text = json.dumps(
        [
            [str(path), *algorithms, pcr]
            for (path, *algorithms), pcr in zip_longest(requests, quoted)
        ]
    )
    # As in Keylime's own configuration; without any it reports each violation.
    settings = {"KEYLIME_VERIFIER_IGNORE_TOMTOU_ERRORS": "False"}
    done = run(words, stdin=text, env=settings, deadline=60)
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return [Found(**answer) for answer in answers]


def work(daemon: Daemon) -> None:
    """Records of every kind that a list has: files, violations, buffers, duplicates."""
    daemon.call("measure", paths=["/usr/bin/env", "/usr/bin/id"])
    daemon.call("violation", name="/with space")
    daemon.call("critical_data", label="selinux", name="selinux-state", data="00ff10")
    daemon.generate(50)
    daemon.call("violation", name="/violated")
    daemon.call("repeat")
    daemon.call("wait", extended=True)


@pytest.mark.parametrize("template", ["ima", "ima-ng", "ima-sig"])
def test_keylime_on_every_list(start: Starter, template: str) -> None:
    """Each bank's list leads to each bank's PCR: the verifier hashes the fields itself."""
    daemon = start("--template", template)
    work(daemon)
    requests = [
        (daemon.path(f"{ASCII}_{listed}"), listed, pcr) for listed in BANKS for pcr in BANKS
    ]
    found = read("keylime", (daemon.path(ASCII), "sha1", "sha1"), *requests)
    pcrs = {bank: daemon.pcr(bank).hex() for bank in BANKS}
    assert [one.pcr for one in found] == [pcrs["sha1"], *(pcrs[pcr] for _, _, pcr in requests)]
    assert {one.records for one in found} == {daemon.count()}
    assert [one.events for one in found] == [[]] * len(found)


#: Recording, moment, banks in which each record's digest is that of its own bank.
RECORDED = [
    ("6.1.0-56-amd64-critical", "keys", ("sha1", "sha256")),
    ("6.1.0-56-amd64-tcb", "work", ("sha1", "sha256")),
    ("7.3.4+deb13-amd64-ima-sig", "work", BANKS),
    ("7.3.4-critical", "keys", BANKS),
    ("7.3.4-ima-sha1", "work", BANKS),
    ("7.3.4-ima-sig", "work", BANKS),
    ("7.3.4-tcb-ima-ng", "work", BANKS),
]
#: The work of the recordings has a file of this name. An ASCII list shows it as it is: two
#: lines, of which no reader can make a record.
TWO_LINES = b"/mnt/new\nline"


def recorded_list(name: str, moment: str, *, two_lines: bool) -> bytes:
    """A binary list of a real kernel, with or without the record that takes two lines."""
    recorded = next(m for m in recordings.load(name).moments() if m.name == moment)
    data = recorded.files["binary_runtime_measurements"]
    found = list(binary.read(data))
    kept = [one for one in found if two_lines or TWO_LINES not in one.record.data]
    assert len(kept) == len(found) - (not two_lines)
    return b"".join(data[one.start : one.end] for one in kept)


@pytest.mark.parametrize(("name", "moment", "banks"), RECORDED, ids=[r[0] for r in RECORDED])
def test_keylime_on_recorded_lists(
    start: Starter, tmp_path: Path, name: str, moment: str, banks: tuple[str, ...]
) -> None:
    """Signatures, keyrings, critical data and violations of real kernels, loaded."""
    file = tmp_path / "list"
    file.write_bytes(recorded_list(name, moment, two_lines=False))
    daemon = start("--load", file, *OPTIONS[name])
    found = read("keylime", *((daemon.path(f"{ASCII}_{bank}"), bank, bank) for bank in banks))
    assert [one.pcr for one in found] == [daemon.pcr(bank).hex() for bank in banks]
    assert [one.events for one in found] == [[]] * len(banks)


def test_keylime_on_a_name_of_two_lines(start: Starter, tmp_path: Path) -> None:
    """The rest of the list is lost for it."""
    file = tmp_path / "list"
    file.write_bytes(recorded_list("7.3.4-ima-sig", "work", two_lines=True))
    daemon = start("--load", file, *OPTIONS["7.3.4-ima-sig"])
    (found,) = read("keylime", (daemon.path(ASCII), "sha1", "sha1"))
    assert found.pcr != daemon.pcr("sha1").hex()
    assert "ima.parser.entry" in found.events


def test_keylime_on_the_slices_of_bundles(daemon: Daemon, tmp_path: Path) -> None:
    """The records of two bundles, one behind the other, as an ASCII list of the quoted bank."""
    work(daemon)
    key = api.create_key(daemon.tcti)
    slices = tmp_path / "slices"
    since = 0
    for number in range(2):
        bundle = api.attest(
            daemon.dir, tcti=daemon.tcti, key=key, nonce=b"%d" % number, since=since
        )
        assert bundle.manifest is not None
        since += bundle.manifest.count
        (tmp_path / "records.bin").write_bytes(bundle.records)
        text = run([*IMAFS, "list", tmp_path / "records.bin", "--to", "sha256"], cwd=ROOT).stdout
        with slices.open("a") as file:
            file.write(text)
        if not number:
            daemon.generate(7)
    (found,) = read("keylime", (slices, "sha256", "sha256"), quoted=[daemon.pcr("sha256").hex()])
    assert (found.records, found.events) == (since, [])


def test_keylime_after_trims(daemon: Daemon, tmp_path: Path) -> None:
    """What was deleted and what is left lead to the PCRs together, the rest alone does not."""
    kept = dict.fromkeys(BANKS, b"")

    def keep(name: str, records: int | None = None) -> None:
        for bank in BANKS:
            lines = daemon.read(name.format(bank)).splitlines(keepends=True)
            kept[bank] += b"".join(lines[:records])

    work(daemon)
    keep(f"{ASCII}_{{}}", 20)
    daemon.path(ASCII).write_text("20\n")
    work(daemon)
    staged = f"{ASCII}_{{}}_staged"
    daemon.path(staged.format("sha256")).write_text("A\n")
    daemon.generate(30)
    keep(staged)
    daemon.path(staged.format("sha1")).write_text("D\n")
    daemon.generate(10)
    for bank in BANKS:
        (tmp_path / bank).write_bytes(kept[bank] + daemon.read(f"{ASCII}_{bank}"))

    pcrs = [daemon.pcr(bank).hex() for bank in BANKS]
    whole = read("keylime", *((tmp_path / bank, bank, bank) for bank in BANKS), quoted=pcrs)
    left = [(daemon.path(f"{ASCII}_{bank}"), bank, bank) for bank in BANKS]
    rest = read("keylime", *left, quoted=pcrs)
    assert [(one.pcr, one.events) for one in whole] == [(pcr, []) for pcr in pcrs]
    assert not {one.pcr for one in rest} & set(pcrs)
    assert [(one.records, one.events) for one in rest] == [(40, ["ima.pcr_mismatch"])] * 4


def policy(daemon: Daemon, made: Path, *, check: bool = True) -> str:
    """What ``keylime-policy create runtime`` says; ``made`` is the policy."""
    command = [client("readers") / "keylime-policy", "create", "runtime"]
    done = run([*map(str, command), "-m", daemon.path(ASCII), "-o", made], check=check)
    return done.stdout + done.stderr


def listed(daemon: Daemon) -> dict[str, list[str]]:
    """Digests by name, from the list."""
    lines = [line.split(" ", 4) for line in daemon.read(ASCII).decode().splitlines()]
    return {name: [digest.partition(":")[2]] for _, _, _, digest, name in lines}


def test_keylime_policy_create_runtime(daemon: Daemon, tmp_path: Path) -> None:
    """Every file and digest of the list is in the policy, and no other."""
    daemon.call("measure", paths=["/usr/bin/env", "/usr/bin/id"])
    daemon.generate(50)
    policy(daemon, tmp_path / "made")
    assert json.loads((tmp_path / "made").read_text())["digests"] == listed(daemon)
    assert len(listed(daemon)) == 53


def test_keylime_policy_after_a_trim(daemon: Daemon, tmp_path: Path) -> None:
    """It takes the algorithm from boot_aggregate, which must be the first record."""
    daemon.generate(50)
    daemon.path(ASCII).write_text("1\n")
    said = policy(daemon, tmp_path / "made", check=False)
    assert "Invalid digest algorithm found in the IMA measurement list" in said
    assert not (tmp_path / "made").exists()


def test_keylime_policy_of_a_name_that_is_no_utf8(daemon: Daemon, tmp_path: Path) -> None:
    """It reads the list as text and dies of the first such byte; so does Keylime's agent."""
    odd = tmp_path.joinpath(os.fsdecode(b"\xff"))
    odd.write_text("content")
    daemon.call("measure", paths=[str(odd)])
    assert b"\xff\n" in daemon.read(ASCII)
    said = policy(daemon, tmp_path / "made", check=False)
    assert "UnicodeDecodeError" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("bank", BANKS)
def test_evidence_api(daemon: Daemon, bank: str) -> None:
    daemon.generate(42)
    (found,) = read("evidence", (daemon.path(f"{ASCII}_{bank}"), bank, bank))
    assert (found.records, found.pcr) == (43, daemon.pcr(bank).hex())


def test_evidence_api_extends_zeros_for_violations(daemon: Daemon) -> None:
    """It takes the digest of the list as it is; a kernel extends ones there."""
    daemon.generate(5)
    daemon.call("violation", name="/violated")
    (found,) = read("evidence", (daemon.path(ASCII), "sha1", "sha1"))
    assert found.records == 7
    assert found.pcr != daemon.pcr("sha1").hex()


def test_evidence_api_after_a_trim(daemon: Daemon) -> None:
    """It replays what is left."""
    daemon.generate(5)
    daemon.path(ASCII).write_text("1\n")
    (found,) = read("evidence", (daemon.path(ASCII), "sha1", "sha1"))
    assert found.records == 5
    assert bytes.fromhex(found.pcr) == replay(daemon.read(ASCII), "sha1") != daemon.pcr("sha1")
