# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recorded lists at the start and later, and files measured at the start."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from imafs.errors import FormatError, Refused
from imafs.formats.list_file import parse
from tests.conformance.recordings import DATA
from tests.mount.daemon import ASCII, BINARY, Daemon, layers
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.property.reference import replay
from tests.support import unpack

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """All files of a daemon that has ended."""
    with Daemon() as daemon:
        daemon.generate(40)
        daemon.call("violation", name="/violated")
        daemon.call("critical_data", label="l", name="c", data="abcd" * 3000)
        daemon.generate(40)
        files = daemon.lists()
        assert daemon.stop() == 0
    return files


@pytest.fixture
def lists(made: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """The same; they are in tmp_path too."""
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    return made


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_load_at_the_start(
    start: Starter, lists: dict[str, bytes], tmp_path: Path, bank: str
) -> None:
    daemon = start("--load", tmp_path / f"{BINARY}_{bank}")
    assert daemon.lists() == lists
    for one in ("sha1", "sha512"):
        assert daemon.pcr(one) == replay(lists[f"{ASCII}_{one}"], one)
    daemon.generate(2, name="/more")
    daemon.assert_replays()


def test_load_later(start: Starter, lists: dict[str, bytes], tmp_path: Path) -> None:
    daemon = start("--no-boot-aggregate")
    answer = daemon.call("load", file=str(tmp_path / f"{BINARY}_sha256"))
    assert answer.pop("extended") in {True, False}
    assert answer == {"loaded": 83, "bank": "sha256"}
    assert daemon.lists() == lists
    daemon.assert_replays()


@pytest.mark.parametrize("at_start", [True, False])
def test_load_of_a_kernels_list_with_pcr_0_to_63(start: Starter, at_start: bool) -> None:
    """Its records stay, the TPM refuses what it refused there, and the others are extended."""
    recorded = DATA / "pcrs-0-to-63-7.2.13"
    path, content = recorded / "list.bin", (recorded / "list.bin").read_bytes()
    daemon = start("--load", path) if at_start else start("--no-boot-aggregate")
    daemon.logs.expect("PCR 17 is not extended, the record stays: .*0x907")
    daemon.logs.expect("PCR 24 is not extended, the record stays: .*0x184")
    daemon.logs.allow("is not extended, the record stays")
    if not at_start:
        assert daemon.call("load", file=str(path))["loaded"] == 17
    daemon.call("wait", extended=True)
    assert daemon.read(BINARY) == content
    lines = daemon.read(ASCII).decode().splitlines()
    given = [int(line.split()[0]) for line in lines]
    assert given[-1] == 63
    refused = [pcr for pcr in given if pcr in range(17, 23) or pcr > 23]
    failures = daemon.group("failures")
    assert (failures["refused"], failures["mismatch"]) == (len(refused), None)
    for line in (recorded / "pcrs.txt").read_text().splitlines():
        bank, pcr, value = line.split()
        if int(pcr) not in (0, 4):  # which began with the firmware's
            assert daemon.pcr(bank, int(pcr)).hex().upper() == value, (bank, pcr)
    daemon.generate(3)
    daemon.assert_replays()
    assert daemon.stop() == 0


def test_load_of_an_empty_list(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    daemon = start("--load", tmp_path / "empty")
    assert daemon.read() == b""


def malformed(content: bytes, kind: str) -> bytes:
    changed = bytearray(content)
    if kind == "truncated":
        return content[:-3]
    if kind == "flipped":
        changed[4] ^= 1  # a template digest that is not the template data's
    elif kind == "length":
        changed[24:28] = b"\xff\xff\xff\x7f"  # template name length
    elif kind == "trailing":
        changed += b"\0" * 7
    else:
        changed[:] = random.Random(kind).randbytes(5000)
    return bytes(changed)


KINDS = ["truncated", "flipped", "length", "trailing", "random 1", "random 2"]


@pytest.mark.parametrize("kind", KINDS)
def test_load_of_a_malformed_list_mounts_nothing(
    start: Starter, lists: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    """Status 3, one line with the file, the record and the byte."""
    bad = tmp_path / "bad"
    bad.write_bytes(malformed(lists[BINARY], kind))
    place = start.place()
    status, log = start.refused("--load", bad, place=place)
    assert status == 3
    assert log.startswith(f"imafs: {bad}: record ")
    assert ", byte " in log
    assert log.count("\n") == 1
    if kind == "trailing":
        assert "record 83, byte " in log
    assert layers(place.dir) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_load_of_a_malformed_list_later_adds_nothing(
    daemon: Daemon, start: Starter, tmp_path: Path, kind: str
) -> None:
    daemon.generate(9)
    before = daemon.lists()
    bad = tmp_path / "bad"
    bad.write_bytes(malformed(before[BINARY], kind))
    with pytest.raises(Refused, match=r"record .* byte ") as caught:
        daemon.call("load", file=str(bad))
    assert caught.value.exit_code == FormatError.exit_code
    assert daemon.lists() == before
    daemon.assert_replays()


@pytest.mark.parametrize("option", ["--load", "--measure"])
def test_a_file_that_is_not_there(start: Starter, tmp_path: Path, option: str) -> None:
    """Status 2, one line with the option and the path, before anything is started."""
    place = start.place()
    missing = tmp_path / "missing"
    status, log = start.refused(option, missing, "--tpm", "no-tcti:", place=place)
    assert (status, log) == (2, f"imafs: {option} {missing}: No such file or directory\n")
    assert layers(place.dir) == 0


def test_load_of_an_unpacked_moment(start: Starter, tmp_path: Path) -> None:
    """Of a recording with several: refused as it is, played by its directory."""
    recording = DATA / "7.3.4-tcb-ima-ng.tar.xz"
    status, log = start.refused("--load", recording)
    assert status == 3
    moments = "7.3.4-tcb-ima-ng/boot, 7.3.4-tcb-ima-ng/work"
    said = f"2 moments in it: name one with --moment (imafs mount: --load-moment): {moments}"
    assert log == f"imafs: {recording}: {said}\n"
    unpack(recording, tmp_path)
    work = tmp_path / "7.3.4-tcb-ima-ng" / "work"
    daemon = start("--load", work)
    assert daemon.read() == (work / BINARY).read_bytes()
    assert f"loaded: {daemon.count()}\n" in daemon.ctl("load", work)
    daemon.assert_replays()


def test_load_of_a_moment(start: Starter, tmp_path: Path) -> None:
    recording = DATA / "7.3.4-tcb-ima-ng.tar.xz"
    unpack(recording, tmp_path)
    daemon = start("--load", recording, "--load-moment", "work")
    for name, moment in ((BINARY, "work"), (BINARY, "7.3.4-tcb-ima-ng/boot")):
        content = (tmp_path / "7.3.4-tcb-ima-ng" / moment.rpartition("/")[2] / name).read_bytes()
        before = daemon.read()
        daemon.ctl("load", recording, "--moment", moment)
        assert daemon.read() == before + content
    daemon.assert_replays()
    status, log = start.refused("--load", recording, "--load-moment", "none")
    assert status == 2
    assert "there is no moment 'none' in it; there are: 7.3.4-tcb-ima-ng/boot, 7.3.4" in log


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_load_of_an_ascii_list(
    start: Starter, lists: dict[str, bytes], tmp_path: Path, bank: str
) -> None:
    """As somebody pasted it; the log says what no digest proves."""
    pasted = tmp_path / "pasted"
    lines = lists[f"{ASCII}_{bank}"].splitlines()
    pasted.write_bytes(b"".join(b"> " + line.rstrip() + b"\r\n" for line in lines))
    daemon = start("--load", pasted)
    assert daemon.lists() == lists
    said = "1 violation stands as the text has it, which no digest proves"
    assert f"{pasted}: {said}" in daemon.log()
    assert f"but: {said}\n" in daemon.ctl("load", pasted)
    daemon.assert_replays()


def test_load_of_a_tampered_list_as_it_is(
    start: Starter, lists: dict[str, bytes], tmp_path: Path
) -> None:
    """A verifier's negative test: the list and its PCR agree, and one record lies."""
    data = bytearray(lists[f"{BINARY}_sha256"])
    last = list(parse(bytes(data)).records())[-1]
    data[last.end - 2] ^= 1
    path = tmp_path / "tampered"
    path.write_bytes(data)
    status, log = start.refused("--load", path)
    assert status == 3
    assert "template digest" in log
    daemon = start("--load", path, "--as-is")
    assert daemon.read(f"{BINARY}_sha256") == data
    shown = daemon.read(f"{ASCII}_sha256")
    assert daemon.pcr("sha256") == replay(shown, "sha256")
    assert "1 record with a wrong template digest: the list is not sound" in daemon.log()
    assert "not sound: 1 record with a wrong template digest" in daemon.ctl("status")
    assert daemon.group("records")["unsound"] == 1
    assert daemon.read(f"{BINARY}_sha1") != lists[f"{BINARY}_sha1"]


def test_load_of_a_directory_without_a_list(start: Starter, tmp_path: Path) -> None:
    status, log = start.refused("--load", tmp_path)
    missing = f"imafs: {tmp_path / BINARY}: No such file or directory\n"
    assert (status, log) == (2, missing)


def test_a_wrong_load_bank(start: Starter, lists: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"{BINARY}_sha256"
    status, log = start.refused("--load", path, "--load-bank", "sha1")
    assert status == 3
    said = "this is a list of bank sha256, not sha1; the bank need not be named"
    assert log == f"imafs: {path}: {said}\n"


def test_measure_at_the_start(start: Starter, tmp_path: Path) -> None:
    """Files and directories, before the mount is announced, in a fixed order."""
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    for name in ("b", "a", "below/c"):
        (tree / name).write_text(f"content of {name}")
    (tree / "same").write_text("content of a")
    (tree / "link").symlink_to("a")
    os.mkfifo(tree / "pipe")
    single = tmp_path / "single file"
    single.write_text("single")
    daemon = start("--measure", tree, single)
    shown = [line.split(maxsplit=4) for line in daemon.read(ASCII).decode().splitlines()]
    measured = {fields[4]: fields[3] for fields in shown[1:]}
    for path in (tree / "a", tree / "b", tree / "same", tree / "below/c", single):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        # The kernel shows a blank as "_" (ima_template_lib.c, ima_write_template_field_data).
        assert measured.pop(str(path).replace(" ", "_")) == f"sha256:{digest}"
    assert not [name for name in measured if "pipe" in name]
    assert set(measured) <= {str(tree / "link")}
    daemon.assert_replays()
