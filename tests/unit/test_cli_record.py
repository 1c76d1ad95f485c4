# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs record`` through main(), and a recording of a running emulator played again."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tarfile
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs import __version__
from imafs.cli.main import main
from imafs.errors import UsageError
from imafs.sources.load import load as load_list
from imafs.verbs.client import ControlClient
from tests.conformance.recordings import Moment, load
from tests.mount.daemon import BINARY, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import unpack

#: How the names of lists begin.
FORMS = ("ascii_", "binary_")

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def moment() -> Moment:
    """A recorded kernel with a staged and a current list."""
    (found,) = (m for m in load("7.3.4-kexec").moments() if m.name == "first/before-kexec")
    return found


@pytest.fixture
def ima(moment: Moment, tmp_path: Path) -> Path:
    """The IMA directory of that kernel, and its PCRs beside it."""
    directory = tmp_path / "ima"
    directory.mkdir()
    for name, content in moment.files.items():
        if "_runtime_measurements" in name or name in {"runtime_measurements_count", "violations"}:
            (directory / name).write_bytes(content)
    (tmp_path / "pcrs").write_bytes(moment.files["pcrs.txt"])
    return directory


def record(ima: Path, target: Path, *words: str) -> int:
    pcrs = ["--pcrs", str(ima.parent / "pcrs")]
    return main(["record", str(ima), "-o", str(target), *pcrs, *words])


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as file:
        found = {member.name: file.extractfile(member) for member in file}
        return {name: content.read() for name, content in found.items() if content is not None}


def test_padded_banks_are_told(tmp_path: Path, capsys: Output) -> None:
    """Debian 6.1, which cannot hash two of its banks."""
    (old,) = (m for m in load("6.1.0-56-amd64-tcb").moments() if m.name == "boot")
    directory = tmp_path / "ima"
    directory.mkdir()
    (directory / BINARY).write_bytes(old.files[BINARY])
    (tmp_path / "pcrs").write_bytes(old.files["pcrs.txt"])
    assert record(directory, tmp_path / "case.tar") == 8
    said = "the PCRs of sha384,sha512 are those of zero-padded SHA-1: --padded-banks sha384,sha512."
    assert said in capsys.readouterr().err
    words = ["--padded-banks", "sha384,sha512"]
    assert record(directory, tmp_path / "case.tar", *words) == 0


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_a_recorded_kernel_is_recorded(
    ima: Path, moment: Moment, tmp_path: Path, suffix: str, capsys: Output
) -> None:
    target = tmp_path / f"case{suffix}"
    assert record(ima, target) == 0
    assert capsys.readouterr() == (f"{target}: 22 records, which the PCRs confirm\n", "")
    found = members(target)
    for path in ima.iterdir():
        assert found[f"case/{path.name}"] == path.read_bytes()
    assert found["case/pcrs.txt"].split() == moment.files["pcrs.txt"].split()
    about = json.loads(found["case/meta.json"])
    assert (about["imafs"], about["agree"], about["records"]) == (__version__, True, 22)
    loaded = load_list(str(target))
    assert (len(loaded.records), loaded.staged) == (22, 12)


def test_a_list_that_the_pcrs_do_not_confirm(ima: Path, tmp_path: Path, capsys: Output) -> None:
    (ima / f"{BINARY}_staged").write_bytes(b"")  # as after D
    target = tmp_path / "case.tar"
    assert record(ima, target) == 8
    error = capsys.readouterr().err
    assert error.startswith(f"imafs: {ima}: these PCRs are not of this list: no part of its 10 ")
    assert "--no-check" in error
    assert not target.exists()
    assert record(ima, target, "--no-check") == 0
    assert capsys.readouterr().out == f"{target}: unchecked\n"
    assert json.loads(members(target)["case/meta.json"])["agree"] is False


def test_a_malformed_list(ima: Path, tmp_path: Path, capsys: Output) -> None:
    path = ima / BINARY
    path.write_bytes(path.read_bytes()[:-1])
    assert record(ima, tmp_path / "case.tar") == 3
    assert "record 21, byte " in capsys.readouterr().err
    assert not (tmp_path / "case.tar").exists()


def test_what_is_no_ima_directory(ima: Path, tmp_path: Path, capsys: Output) -> None:
    shutil.rmtree(ima)
    assert record(ima, tmp_path / "case.tar") == 2
    assert f"{ima}/{BINARY}: No such file" in capsys.readouterr().err


def test_what_cannot_be_written(ima: Path, tmp_path: Path, capsys: Output) -> None:
    shutil.rmtree(ima)  # nothing is read
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    for place in (missing, file):
        assert record(ima, place / "case.tar") == 2
        said = f"{place / 'case.tar'}: there is no directory {place}; make it first"
        assert capsys.readouterr().err == f"imafs: {said}\n"


def test_the_directory_above_the_lists(ima: Path, tmp_path: Path, capsys: Output) -> None:
    """As the layout securityfs has it, and the real one."""
    above = tmp_path / "above"
    (above / "integrity").mkdir(parents=True)
    shutil.move(ima, above / "integrity" / "ima")
    (above / "ima").symlink_to("integrity/ima")
    shutil.copy(tmp_path / "pcrs", above)
    assert record(above, tmp_path / "case.tar") == 2
    said = f"{above}: there is no {BINARY} in it; did you mean {above}/ima?"
    assert capsys.readouterr().err == f"imafs: {said}\n"
    with pytest.raises(UsageError, match=re.escape(said)):
        load_list(str(above))
    assert record(above / "ima", tmp_path / "case.tar") == 0


@pytest.mark.parametrize("name", ["case.zip", "case", "case.xz", "case.tar.zst", "case.tar."])
def test_a_name_that_is_not_an_archives(
    ima: Path, tmp_path: Path, name: str, capsys: Output
) -> None:
    shutil.rmtree(ima)  # nothing is read
    assert record(ima, tmp_path / name) == 2
    said = "the name of a recording ends in .tar, .tar.gz, .tgz, .tar.xz, .txz"
    assert capsys.readouterr().err == f"imafs: {tmp_path / name}: {said}\n"


def test_an_unpacked_recording_is_recorded(ima: Path, tmp_path: Path, capsys: Output) -> None:
    """Each member once, those that a recording adds are the new one's; it plays as well."""
    for name in ("pcrs.txt", "ls-la.txt", "meta.json"):
        (ima / name).write_text("old")
    target = tmp_path / "case.tar"
    assert record(ima, target) == 0
    with tarfile.open(target) as archive:
        names = archive.getnames()
    unpack(target, tmp_path / "unpacked")
    assert len(set(names)) == len(names)
    assert {path.name for path in ima.iterdir()} == {Path(name).name for name in names}
    assert b"old" not in members(target).values()
    for path in (tmp_path / "unpacked" / "case", ima):
        loaded = load_list(str(path))
        assert (len(loaded.records), loaded.staged) == (22, 12)


def test_pcrs_on_standard_input(
    ima: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """Read once, compared again and again."""
    monkeypatch.setattr(sys, "stdin", io.StringIO((tmp_path / "pcrs").read_text()))
    assert main(["record", str(ima), "-o", str(tmp_path / "a.tar"), "--pcrs", "-"]) == 0
    (ima / f"{BINARY}_staged").write_bytes(b"")
    monkeypatch.setattr(sys, "stdin", io.StringIO((tmp_path / "pcrs").read_text()))
    assert main(["record", str(ima), "-o", str(tmp_path / "b.tar"), "--pcrs", "-"]) == 8
    assert "these PCRs are not of this list" in capsys.readouterr().err


def test_a_bank_that_is_none(ima: Path, tmp_path: Path, capsys: Output) -> None:
    assert record(ima, tmp_path / "case.tar", "--padded-banks", "md9") == 2
    assert "'md9' is no PCR bank; there are: sha1" in capsys.readouterr().err


def test_usage(ima: Path, capsys: Output) -> None:
    assert main(["record", str(ima)]) == 2
    assert "-o/--output" in capsys.readouterr().err


@pytest.fixture
def no_tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without TPM and without an emulator; the name of a recording to be made."""
    monkeypatch.setattr("imafs.control.paths.socket_directory", lambda: tmp_path / "none")
    monkeypatch.setattr("imafs.cli.pcrsource.SYSFS", str(tmp_path / "tpm0"))
    return tmp_path / "case.tar"


def test_a_machine_without_tpm_needs_no_option(ima: Path, no_tpm: Path, capsys: Output) -> None:
    assert main(["record", str(ima), "-o", str(no_tpm)]) == 0
    said = f"{no_tpm}: 22 records, which no PCRs confirm: there is no TPM\n"
    assert capsys.readouterr() == (said, "")
    found = members(no_tpm)
    assert found["case/pcrs.txt"] == b""
    about = json.loads(found["case/meta.json"])
    assert (about["agree"], about["records"]) == (None, 22)
    assert len(load_list(str(no_tpm)).records) == 22


def test_a_malformed_list_without_tpm(ima: Path, no_tpm: Path, capsys: Output) -> None:
    path = ima / BINARY
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["record", str(ima), "-o", str(no_tpm)]) == 3
    assert "record 21, byte " in capsys.readouterr().err
    assert not no_tpm.exists()


def test_a_tpm_whose_pcrs_nobody_named(ima: Path, no_tpm: Path, capsys: Output) -> None:
    """An old kernel shows the TPM without its PCRs: that is no machine without one."""
    (no_tpm.parent / "tpm0").mkdir()
    assert main(["record", str(ima), "-o", str(no_tpm)]) == 2
    assert "give --pcrs FILE or --tcti TCTI" in capsys.readouterr().err
    assert not no_tpm.exists()


# A running emulator


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.swtpm
def test_a_recorded_emulator_without_tpm(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = Starter(stack)("--tpm", "none")
        first.generate(5)
        words = ("record", first.dir, "-o", tmp_path / "case.tar", "--control", first.control)
        assert "6 records, which no PCRs confirm: there is no TPM\n" in imafs(*words).stdout
        verify = ("verify", first.path(BINARY), "--control", first.control)
        result = imafs(*verify, check=False)
        assert (result.returncode, "has no TPM" in result.stderr) == (2, True)


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.swtpm
def test_a_recorded_emulator_is_played_again(tmp_path: Path) -> None:
    """Every file is the same, staged and current, in every bank, and so are the PCRs."""
    with ExitStack() as stack:
        start = Starter(stack)
        first = start()
        first.generate(30)
        first.call("violation", name="/violated")
        descriptor = os.open(first.path(f"{BINARY}_staged"), os.O_WRONLY)
        try:
            assert os.write(descriptor, b"A\n") == 2
        finally:
            os.close(descriptor)
        first.generate(10, name="/current")
        first.call("critical_data", label="l", name="c", data="ab" * 5000)
        files, target = first.lists(), tmp_path / "emulator.tar.xz"
        said = imafs("record", first.dir, "-o", target, "--control", first.control).stdout
        assert said == f"{target}: 43 records, which the PCRs confirm\n"
        pcrs = {bank: first.pcr(bank) for bank in ("sha1", "sha256", "sha384", "sha512")}
        assert first.stop() == 0
        again = start("--load", target)
        assert again.lists() == files
        assert {bank: again.pcr(bank) for bank in pcrs} == pcrs
        again.assert_replays()
        verify = ("verify", again.path(f"{BINARY}_staged"), again.path(BINARY), "--tcti")
        assert "match after record 43\n" in imafs(*verify, again.tcti).stdout
        assert again.stop() == 0


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.swtpm
@pytest.mark.parametrize(
    ("profile", "options", "stages"),
    [
        ("v5", (), True),
        ("rfc-v2", (), True),
        ("rfc-v1", (), True),
        ("snap", (), True),
        ("trim-v5", (), False),
        ("flush-2020", (), False),
        ("export-2020", ("--export-root", "/run"), False),
    ],
)
def test_drafts_are_recorded(
    tmp_path: Path, profile: str, options: tuple[str, ...], stages: bool
) -> None:
    """An empty stage may be ENOENT, a file for requests alone EINVAL: no list is left out."""
    with ExitStack() as stack:
        start = Starter(stack)
        first = start("--profile", profile, *options)
        first.generate(5)
        recorded(first, tmp_path / "nothing-staged.tar", 6)
        if stages:
            first.call("agent", action="stage")
        first.generate(3)
        lists = recorded(first, tmp_path / "all.tar", 9)
        assert first.stop() == 0
        again = start("--profile", profile, *options, "--load", tmp_path / "all.tar")
        assert recorded(again, tmp_path / "again.tar", 9) == lists
        assert again.stop() == 0


def recorded(daemon: Daemon, target: Path, records: int) -> dict[str, bytes]:
    """What a recording of it has of lists; which is what it shows."""
    said = imafs("record", daemon.dir, "-o", target, "--control", daemon.control).stdout
    assert said == f"{target}: {records} records, which the PCRs confirm\n"
    found = {Path(name).name: content for name, content in members(target).items()}
    lists = {name: found[name] for name in os.listdir(daemon.dir) if name.startswith(FORMS)}
    for name, content in lists.items():
        try:
            assert daemon.read(name) == content
        except FileNotFoundError:  # nothing is staged
            assert content == b""
    return lists


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.swtpm
def test_a_busy_emulator_is_recorded_at_one_moment(tmp_path: Path) -> None:
    """Records are added all the while: every recording is a list that its PCRs confirm."""
    with ExitStack() as stack:
        daemon = Starter(stack)()
        daemon.generate(500)
        ended = threading.Event()

        def add() -> None:
            with ControlClient(daemon.control) as client:
                while not ended.wait(0.05):
                    client.generate(3)

        adding = threading.Thread(target=add)
        adding.start()
        try:
            counts = []
            for number in range(3):
                target = tmp_path / f"{number}.tar"
                imafs("record", daemon.dir, "-o", target, "--control", daemon.control)
                found = members(target)
                (tmp_path / "list").write_bytes(found[f"{number}/{BINARY}"])
                (tmp_path / "pcrs").write_bytes(found[f"{number}/pcrs.txt"])
                done = imafs("verify", tmp_path / "list", "--pcrs", tmp_path / "pcrs", "--json")
                verdict = json.loads(done.stdout)
                assert verdict["excess"] == 0
                counts.append(verdict["records"])
        finally:
            ended.set()
            adding.join()
        assert 501 <= counts[0] < counts[1] < counts[2], "nothing was added meanwhile"
