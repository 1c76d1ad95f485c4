# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values in all the forms that files have, and lines that are none."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from imafs.attest import pcrfile
from imafs.errors import FileError, FormatError, TpmError
from tests.conformance.recordings import Moment, load, names

ONE = hashlib.sha1(b"1").digest()
TWO = hashlib.sha256(b"2").digest()
THREE = hashlib.sha256(b"3").digest()

#: As tpm2_pcrread 5.4 prints it.
PCRREAD = f"""\
  sha1:
    0 : 0x{ONE.hex().upper()}
  sha256:
    10: 0x{TWO.hex().upper()}
    23: 0x{THREE.hex().upper()}
"""
VALUES = {"sha1": {0: ONE}, "sha256": {10: TWO, 23: THREE}}


def test_what_tpm2_pcrread_prints() -> None:
    assert pcrfile.parse(PCRREAD) == VALUES


def test_a_table() -> None:
    text = f"sha1 0 {ONE.hex()}\n\n# a comment\nsha256 10 {TWO.hex().upper()}\n"
    assert pcrfile.parse(text + f"  sha256\t23  {THREE.hex()}  \n") == VALUES


def test_lines_of_one_bank_are_told_by_their_size() -> None:
    """What evmctl takes, and the kernel's /sys/class/tpm/tpm0/device/pcrs with its spaces."""
    assert pcrfile.parse(f"PCR-10: {TWO.hex()}\nPCR-23: {THREE.hex()}\n") == {
        "sha256": {10: TWO, 23: THREE}
    }
    spaced = " ".join(f"{byte:02X}" for byte in ONE)
    assert pcrfile.parse(f"PCR-00: {spaced} \n") == {"sha1": {0: ONE}}


def test_the_last_value_of_a_pcr_counts() -> None:
    assert pcrfile.parse(f"sha256 10 {TWO.hex()}\nsha256 10 {THREE.hex()}\n") == {
        "sha256": {10: THREE}
    }


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pcrs"
    path.write_text(PCRREAD)
    assert pcrfile.read(str(path)) == VALUES


def test_the_directory_of_sysfs(tmp_path: Path) -> None:
    for bank, pcrs in VALUES.items():
        folder = tmp_path / f"pcr-{bank}"
        folder.mkdir()
        for number, value in pcrs.items():
            (folder / str(number)).write_text(f"{value.hex().upper()}\n")
    (tmp_path / "tpm_version_major").write_text("2\n")
    assert pcrfile.read(str(tmp_path)) == VALUES


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIME])
def test_a_tpm_behind_sysfs_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = tmp_path / "pcr-sha1" / "0"
    file.parent.mkdir()
    file.touch()

    def failing(self: Path) -> str:
        raise OSError(number, "why")

    monkeypatch.setattr(Path, "read_text", failing)
    with pytest.raises(TpmError) as caught:
        pcrfile.read(str(tmp_path))
    assert str(caught.value) == f"{file}: the TPM does not answer (why)"


MOMENTS = [m for name in names() for m in load(name).moments()]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_recorded_pcrs(moment: Moment, tmp_path: Path) -> None:
    path = tmp_path / "pcrs.txt"
    path.write_bytes(moment.files["pcrs.txt"])
    if moment.pcrs:
        assert pcrfile.read(str(path)) == moment.pcrs
    else:  # a kernel without a TPM
        with pytest.raises(FormatError, match="no PCR values in it"):
            pcrfile.read(str(path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no PCR values in it"),
        ("# nothing\n\n", "no PCR values in it"),
        ("sha256:\n", "no PCR values in it"),
        (f"sha1 0 {ONE.hex()}\nhello\n", "line 2 is no PCR value: 'hello'"),
        ("x" * 200, f"line 1 is no PCR value: '{'x' * 60}'"),
        (f"sha1 0 {ONE.hex()[1:]}", "line 1: an odd number of digits"),
        (f"sha1 0 {TWO.hex()}", "line 1: 64 hexadecimal digits are no value of bank sha1"),
        (f"sha1:\n  0 : 0x{TWO.hex()}", "line 2: 64 hexadecimal digits are no value of bank sha1"),
        (f"nobank 0 {ONE.hex()}", "line 1: 40 hexadecimal digits are no value of bank nobank"),
        ("PCR-10: 00", "line 1: 2 hexadecimal digits are no value of any bank"),
        ("0 : 0x", "line 1 is no PCR value"),
    ],
)
def test_what_is_no_pcr_value(text: str, complaint: str) -> None:
    with pytest.raises(FormatError) as caught:
        pcrfile.parse(text, source="file")
    assert str(caught.value).startswith(f"file: {complaint}")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing: No such file"):
        pcrfile.read(str(tmp_path / "missing"))
    with pytest.raises(FormatError, match="no pcr-<bank> directories"):
        pcrfile.read(str(tmp_path))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "pcrs"
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(FormatError, match="line 1 is no PCR value"):
        pcrfile.read(str(path))
