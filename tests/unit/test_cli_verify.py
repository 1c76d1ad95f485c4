# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs verify`` through main(): what it answers, its exit codes, where PCRs come from."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imafs.cli.main import main
from tests.conformance.recordings import DATA, Moment, load, names
from tests.property.reference import WIDTHS, Rec, ascii_list, binary_list, extend, ng, violation

BINARY = "binary_runtime_measurements"
RECS = [ng(10, b"boot_aggregate"), ng(10, b"/a", b"1"), violation(10, b"/v"), ng(10, b"/b", b"2")]

Output = pytest.CaptureFixture[str]


def value(recs: list[Rec], bank: str, pcr: int = 10) -> bytes:
    """A PCR after these records, by hand."""
    now = bytes(WIDTHS[bank])
    for rec in recs:
        if rec.pcr == pcr:
            digest = b"\xff" * WIDTHS[bank] if rec.violation else rec.digest(bank)
            now = extend(now, digest, bank)
    return now


class Case:
    """A list and PCR values as files."""

    def __init__(self, directory: Path) -> None:
        self.list = directory / "list"
        self.pcrs = directory / "pcrs"
        self.list.write_bytes(binary_list(RECS, "sha1"))
        self.after(RECS)

    def after(self, recs: list[Rec]) -> None:
        """The PCRs are those after ``recs``."""
        banks = ("sha1", "sha256")
        self.pcrs.write_text("".join(f"{b} 10 {value(recs, b).hex()}\n" for b in banks))

    def verify(self, *words: str | Path) -> int:
        return main(["verify", "--pcrs", str(self.pcrs), *map(str, words or (self.list,))])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


# Answers


def test_match(case: Case, capsys: Output) -> None:
    assert case.verify() == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "4 records of bank sha1, 1 violation; compared PCRs: sha1:10, sha256:10",
        "match after record 4",
    ]
    assert printed.err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_only_on_a_terminal(
    case: Case, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert case.verify() == 0
    size = case.list.stat().st_size
    whole = f"\r[{'#' * 40}] 100% {size}/{size}\n"
    assert stderr.getvalue() == (whole if terminal else "")


def test_records_in_excess_are_no_error(case: Case, capsys: Output) -> None:
    case.after(RECS[:3])
    assert case.verify() == 0
    assert capsys.readouterr().out.splitlines()[1] == "match after record 3, 1 in excess"


#: Of a list that begins with boot_aggregate.
SHORT = (
    "the list begins with boot_aggregate, so none is missing in front of it: records are missing "
    "at the end (were the PCRs read after the list?) or in between, or the PCRs are of another "
    "boot or machine"
)


def test_mismatch(case: Case, capsys: Output) -> None:
    case.after([*RECS, ng(10, b"/more")])  # a list that is too short
    assert case.verify() == 8
    more, whole = [*RECS, ng(10, b"/more")], RECS
    assert capsys.readouterr().out.splitlines()[1:] == [
        "no part of the list leads to these PCRs",
        *(
            f"  {bank}:10 is {value(more, bank).hex()}, "
            f"the whole list gives {value(whole, bank).hex()}"
            for bank in ("sha1", "sha256")
        ),
        f"  {SHORT}",
    ]


def test_a_deleted_head_is_a_mismatch_until_it_is_given(
    case: Case, tmp_path: Path, capsys: Output
) -> None:
    kept, rest = tmp_path / "kept", tmp_path / "rest"
    kept.write_bytes(binary_list(RECS[:2], "sha1"))
    rest.write_bytes(binary_list(RECS[2:], "sha1"))
    assert case.verify(rest) == 8
    assert case.verify(rest, kept) == 8
    capsys.readouterr()
    assert case.verify(kept, rest) == 0
    assert capsys.readouterr().out.endswith("match after record 4\n")


def test_an_empty_list(case: Case, capsys: Output) -> None:
    case.list.write_bytes(b"")
    assert case.verify() == 8
    assert capsys.readouterr().out.splitlines() == [
        "the list is empty",
        "the PCR is not what it is without any record",
        "  were records deleted? Give what was kept of them first, in order",
    ]
    case.after([])
    assert case.verify() == 0
    assert "match after record 0" in capsys.readouterr().out


@pytest.mark.parametrize("tcti", ["device:/dev/tpmrm0", "swtpm:path=/run/x", "tabrmd"])
def test_a_tpm_is_no_file_of_pcrs(case: Case, capsys: Output, tcti: str) -> None:
    assert main(["verify", "--pcrs", tcti, str(case.list)]) == 2
    assert f"--pcrs {tcti}: that is a TPM, not a file: give --tcti" in capsys.readouterr().err


def test_pcrs_that_are_zero(case: Case, capsys: Output) -> None:
    """Of another TPM, or a reset one: that any list has nothing in common with."""
    case.after([])
    assert case.verify() == 8
    assert "these PCRs are zero: nothing was extended to them" in capsys.readouterr().out


def test_json(case: Case, capsys: Output) -> None:
    case.after(RECS[:3])
    assert case.verify(case.list, "--json") == 0

    def row(bank: str) -> dict[str, object]:
        return {
            "bank": bank,
            "pcr": 10,
            "value": "matches",
            "after": 3,
            "records": 4,
            "actual": value(RECS[:3], bank).hex(),
            "replayed": value(RECS, bank).hex(),
        }

    assert json.loads(capsys.readouterr().out) == {
        "bank": "sha1",
        "records": 4,
        "violations": 1,
        "matched": 3,
        "excess": 1,
        "compared": ["sha1:10", "sha256:10"],
        "mismatches": [],
        "padded": [],
        "why": None,
        "pcrs": [row("sha1"), row("sha256")],
    }
    wrong = "01" * 20
    case.pcrs.write_text(f"sha1 10 {wrong}\n")
    assert case.verify(case.list, "--json") == 8
    answer = json.loads(capsys.readouterr().out)
    assert (answer["matched"], answer["excess"]) == (None, 0)
    assert answer["mismatches"] == [
        {"bank": "sha1", "pcr": 10, "actual": wrong, "replayed": value(RECS, "sha1").hex()}
    ]


def test_standard_input(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    data = io.BytesIO(binary_list(RECS[2:], "sha1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    case.list.write_bytes(binary_list(RECS[:2], "sha1"))
    assert case.verify(case.list, "-") == 0
    assert "match after record 4" in capsys.readouterr().out


# Recorded kernels


@pytest.mark.parametrize(
    "moment",
    [m for name in names() for m in load(name).moments() if m.pcrs and m.name == "work"],
    ids=str,
)
def test_recorded_moments(moment: Moment, tmp_path: Path, capsys: Output) -> None:
    current, pcrs = tmp_path / "list", tmp_path / "pcrs.txt"
    current.write_bytes(moment.files[BINARY])
    pcrs.write_bytes(moment.files["pcrs.txt"])
    words = ["verify", str(current), "--pcrs", str(pcrs), "--json"]
    padded = ["--padded-banks", "sha384,sha512"] if moment.recording.startswith("6.1") else []
    assert main([*words, *padded]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["matched"], answer["excess"]) == (answer["records"], 0)
    assert answer["violations"] == int(moment.violations)
    if padded and "sha512" in moment.pcrs:
        assert main(words) == 8
        answer = json.loads(capsys.readouterr().out)
        assert {wrong["bank"] for wrong in answer["mismatches"]} == {"sha384", "sha512"}


# Recordings


def test_a_recording_is_compared_with_its_own_pcrs_at_every_moment(capsys: Output) -> None:
    path = str(DATA / "7.3.4-kexec.tar.xz")
    assert main(["verify", path, "--json"]) == 8
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["moment"]: (row["records"], row["matched"]) for row in rows} == {
        "7.3.4-kexec/first/boot": (4, 4),
        "7.3.4-kexec/first/before-kexec": (22, 22),
        "7.3.4-kexec/after-kexec": (88, 88),
        "7.3.4-kexec/after-kexec-A": (90, 90),
        "7.3.4-kexec/after-kexec-D": (0, None),  # everything was deleted
    }
    assert {row["moment"] for row in rows if row["why"]} == {
        "7.3.4-kexec/after-kexec",
        "7.3.4-kexec/after-kexec-A",
    }
    assert main(["verify", path]) == 8
    said = capsys.readouterr().out
    assert "7.3.4-kexec/first/boot:\n4 records of bank sha1, 0 violations; compared" in said
    for moment in ("after-kexec-A", "7.3.4-kexec/after-kexec-A"):
        assert main(["verify", path, "--moment", moment]) == 0
        assert "match after record 90\n" in capsys.readouterr().out


def test_a_recording_without_a_tpm(capsys: Output) -> None:
    assert main(["verify", str(DATA / "7.3.4-notpm.tar.xz"), "--moment", "work"]) == 8
    said = "there are no PCRs to compare with: nothing confirms the list"
    assert capsys.readouterr().out.splitlines()[1] == said


def test_an_unpacked_recording(case: Case, tmp_path: Path, capsys: Output) -> None:
    directory = tmp_path / "one"
    directory.mkdir()
    (directory / BINARY).write_bytes(case.list.read_bytes())
    (directory / "pcrs.txt").write_bytes(case.pcrs.read_bytes())
    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["match after record 4"]
    case.after(RECS[:2])  # PCRs that are named count
    assert case.verify(directory) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["match after record 2, 2 in excess"]
    (directory / "pcrs.txt").write_text("no value\n")
    assert main(["verify", str(directory)]) == 3
    said = capsys.readouterr().err
    assert said == f"imafs: {directory}: ./pcrs.txt: line 1 is no PCR value: 'no value'\n"


@pytest.mark.parametrize("name", ["pcrs-0-to-63-7.2.13"])
def test_rules_of_every_pcr_on_a_real_kernel(name: str, capsys: Output) -> None:
    """Linux 7.2.13 with rules pcr=0 to 63: the TPM took some of its extends alone."""
    directory = DATA / name
    words = ["verify", str(directory / "list.bin"), "--pcrs", str(directory / "pcrs.txt")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "match after record 17",
        "  PCR 9 to 11, 16, 23: matches",
        (
            "  PCR 0, 4: held the firmware's value before (PCR 0 to 9): the list alone cannot lead "
            "there, and a difference says nothing about it"
        ),
        "  PCR 17, 18, 22: cannot be extended by IMA: a TPM takes it from other localities only",
        "  PCR 24, 31, 40, 63: cannot be extended by IMA: no TPM has it",
    ]


# Refusals


def refused(case: Case, output: Output, *words: str | Path, code: int) -> str:
    assert case.verify(*words) == code
    printed = output.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("imafs: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_wrong_template_digest(case: Case, capsys: Output) -> None:
    data = bytearray(case.list.read_bytes())
    start = len(binary_list(RECS[:1], "sha1"))
    data[start + 4] ^= 1
    case.list.write_bytes(data)
    error = refused(case, capsys, code=3)
    assert f"{case.list}: record 1, byte {start} (/a): the sha1 template digest" in error


def test_a_cut_list(case: Case, capsys: Output) -> None:
    case.list.write_bytes(case.list.read_bytes()[:-1])
    assert f"{case.list}: record 3, byte " in refused(case, capsys, code=3)


def test_pcrs_that_are_none(case: Case, capsys: Output) -> None:
    case.pcrs.write_text("hello\n")
    assert f"{case.pcrs}: line 1 is no PCR value" in refused(case, capsys, code=3)
    case.pcrs.unlink()
    assert f"{case.pcrs}: No such file" in refused(case, capsys, code=2)


def test_what_cannot_be_read(case: Case, tmp_path: Path, capsys: Output) -> None:
    missing = tmp_path / "missing"
    assert f"{missing}: No such file" in refused(case, capsys, case.list, missing, code=2)


def test_a_missing_list_is_said_before_missing_pcrs(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr("imafs.cli.pcrsource.SYSFS", str(tmp_path / "no-tpm"))
    monkeypatch.setattr("imafs.control.paths.socket_directory", lambda: tmp_path)
    missing = tmp_path / "missing"
    for words in ([missing], [case.list, missing], [missing, "--pcrs", missing]):
        assert main(["verify", *map(str, words)]) == 2
        assert capsys.readouterr().err == f"imafs: {missing}: No such file or directory\n"


@pytest.mark.parametrize("option", ["--bank", "--padded-banks"])
@pytest.mark.parametrize("name", ["sha999", "wp512", "", "sha256,sha999"])
def test_a_bank_that_is_none(case: Case, option: str, name: str, capsys: Output) -> None:
    assert case.verify(case.list, option, name) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    what = "bank of a list" if option == "--bank" else "PCR bank"
    assert f"is no {what}; there are: " in printed.err


def test_sha1_is_not_padded(case: Case, capsys: Output) -> None:
    assert case.verify(case.list, "--padded-banks", "sha256,sha1") == 2
    assert "'sha1' is not padded" in capsys.readouterr().err


def test_a_list_of_another_bank(case: Case, tmp_path: Path, capsys: Output) -> None:
    error = refused(case, capsys, case.list, "--bank", "sha256", code=3)
    said = "this is a list of bank sha1, not sha256; the bank need not be named"
    assert error == f"imafs: {case.list}: {said}\n"
    other = tmp_path / "other"
    other.write_bytes(binary_list(RECS, "sha256"))
    error = refused(case, capsys, case.list, other, code=3)
    assert error.startswith(
        f"imafs: {other}: a list of bank sha256, but {case.list} is one of sha1: "
    )


def test_which_of_several_lists_is_malformed(case: Case, tmp_path: Path, capsys: Output) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(binary_list(RECS, "sha1")[:-1])
    for lists in ([case.list, cut], [cut, case.list]):
        error = refused(case, capsys, *lists, code=3)
        assert error.startswith(f"imafs: {cut}: record 3, byte ")


def test_a_list_that_is_split_anywhere(case: Case, tmp_path: Path, capsys: Output) -> None:
    data = binary_list(RECS, "sha1")
    one, two = tmp_path / "one", tmp_path / "two"
    for size in range(0, len(data), 37):
        one.write_bytes(data[:size])
        two.write_bytes(data[size:])
        assert case.verify(one, two) == 0, size
    assert "match after record 4" in capsys.readouterr().out


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress])
def test_a_compressed_list(case: Case, compress: Callable[[bytes], bytes], capsys: Output) -> None:
    case.list.write_bytes(compress(case.list.read_bytes()))
    assert case.verify() == 0
    assert "match after record 4\n" in capsys.readouterr().out


# Lists of other forms


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha512"])
def test_an_ascii_list(case: Case, bank: str, tmp_path: Path, capsys: Output) -> None:
    case.list.write_bytes(ascii_list(RECS, bank))
    assert case.verify() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"4 records of bank {bank}, 1 violation; compared PCRs: sha1:10")
    assert said[1] == "match after record 4"
    first, rest = tmp_path / "first", tmp_path / "rest"
    first.write_bytes(ascii_list(RECS[:2], bank))
    rest.write_bytes(binary_list(RECS[2:], bank))
    assert case.verify(first, rest) == 0
    capsys.readouterr()
    case.list.write_bytes(ascii_list(RECS, bank).replace(b" /a", b" /x"))
    assert refused(case, capsys, code=3).startswith(f"imafs: {case.list}: line 2, record 1 (/x): ")


def test_a_big_endian_list(case: Case, capsys: Output) -> None:
    """Of s390x: its template digests are over big-endian lengths."""
    banks, now = ("sha1", "sha256"), {"sha1": bytes(20), "sha256": bytes(32)}
    data = b""
    for rec in RECS[:2]:
        fields = b"".join(len(part).to_bytes(4, "big") + part for part in rec.parts)
        digest = hashlib.sha1(fields).digest()
        data += rec.pcr.to_bytes(4, "big") + digest + (6).to_bytes(4, "big") + b"ima-ng"
        data += len(fields).to_bytes(4, "big") + fields
        for bank in banks:
            now[bank] = extend(now[bank], hashlib.new(bank, fields).digest(), bank)
    case.list.write_bytes(data)
    case.pcrs.write_text("".join(f"{bank} 10 {now[bank].hex()}\n" for bank in banks))
    assert case.verify() == 0
    assert capsys.readouterr().out.splitlines()[1] == "match after record 2"


@pytest.mark.skipif("sm3" not in hashlib.algorithms_available, reason="no SM3 in this OpenSSL")
@pytest.mark.parametrize("word", ["sm3", "sm3_256", "TPM_ALG_SM3_256"])
def test_sm3(case: Case, monkeypatch: pytest.MonkeyPatch, word: str, capsys: Output) -> None:
    """The list's bank, and a bank of the PCRs as tpm2-tools call it."""
    monkeypatch.setitem(WIDTHS, "sm3", 32)
    now = {bank: value(RECS, bank).hex() for bank in ("sha256", "sm3")}
    case.pcrs.write_text(f"sha256:\n  10: 0x{now['sha256']}\n{word}:\n  10: 0x{now['sm3']}\n")
    for bank in ("sha256", "sm3"):
        case.list.write_bytes(binary_list(RECS, bank))
        assert case.verify() == 0
        said = f"4 records of bank {bank}, 1 violation; compared PCRs: sha256:10, sm3:10\n"
        assert capsys.readouterr().out == said + "match after record 4\n"
    assert case.verify(case.list, "--banks", word) == 0
    assert "compared PCRs: sm3:10\n" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["sha3_256", "sha3-256"])
def test_a_bank_that_the_kernel_has_no_hash_for(case: Case, word: str, capsys: Output) -> None:
    """SHA-3: extended with zero-padded SHA-1 by every kernel."""
    now = bytes(32)
    for rec in RECS:
        digest = b"\xff" * 32 if rec.violation else rec.digest("sha1").ljust(32, b"\0")
        now = hashlib.sha3_256(now + digest).digest()
    case.pcrs.write_text(f"sha1 10 {value(RECS, 'sha1').hex()}\n{word} 10 {now.hex()}\n")
    assert case.verify() == 0
    assert "compared PCRs: sha1:10, sha3-256:10\n" in capsys.readouterr().out


def test_a_template_of_a_patched_kernel(case: Case, capsys: Output) -> None:
    """Its fields are not known, but lengths and digests describe themselves."""
    fields = b"".join(len(p).to_bytes(4, "little") + p for p in (b"a\0", b"/cgroup\0", b"xyz"))
    head = (10).to_bytes(4, "little") + hashlib.sha256(fields).digest()
    label = b"ima-cgpath"
    record = head + len(label).to_bytes(4, "little") + label
    record += len(fields).to_bytes(4, "little") + fields
    case.list.write_bytes(binary_list(RECS[:1], "sha256") + record)
    for bank in ("sha1", "sha256"):
        now = extend(value(RECS[:1], bank), hashlib.new(bank, fields).digest(), bank)
        case.pcrs.write_text(f"{bank} 10 {now.hex()}\n")
        assert case.verify() == 0
        assert "match after record 2\n" in capsys.readouterr().out


def test_an_ascii_list_of_a_template_whose_fields_are_said(case: Case, capsys: Output) -> None:
    parts = (b"sha1:\0" + bytes(range(20)), b"/a b\0", b"\1\2")
    fields = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    digest = hashlib.sha1(fields).digest()
    text = f"10 {digest.hex()} ima-own sha1:{bytes(range(20)).hex()} /a b 0102\n"
    case.list.write_bytes(ascii_list(RECS[:1], "sha1") + text.encode())
    now = extend(value(RECS[:1], "sha1"), digest, "sha1")
    case.pcrs.write_text(f"sha1 10 {now.hex()}\n")
    assert case.verify(case.list, "--template-fmt", "d-ng|n-ng|sig") == 0
    assert "match after record 2\n" in capsys.readouterr().out


# What each PCR is


def values_of(case: Case, output: Output, *words: str | Path) -> tuple[int, dict[str, str]]:
    code = case.verify(*words, "--json") if words else case.verify(case.list, "--json")
    answer = json.loads(output.readouterr().out)
    return code, {f"{row['bank']}:{row['pcr']}": row["value"] for row in answer["pcrs"]}


def test_a_bank_that_the_kernel_does_not_extend(case: Case, capsys: Output) -> None:
    """Before Linux 4.20: SHA-1 alone."""
    case.pcrs.write_text(f"sha1 10 {value(RECS, 'sha1').hex()}\nsha256 10 {'00' * 32}\n")
    assert case.verify() == 8
    assert capsys.readouterr().out.splitlines()[1:] == [
        "the list does not lead to all of these PCRs",
        "  sha1:10 matches after record 4",
        "  sha256:10 is zero: nothing was extended to it",
        "  --banks sha1 leaves it at what was extended",
    ]
    assert values_of(case, capsys) == (8, {"sha1:10": "matches", "sha256:10": "zero"})
    assert case.verify(case.list, "--banks", "sha1") == 0
    assert "compared PCRs: sha1:10\n" in capsys.readouterr().out


@pytest.mark.parametrize("bank", ["sha256", "sha384", "sha512"])
def test_padded_banks_are_told(case: Case, bank: str, capsys: Output) -> None:
    """Linux 4.20 to 5.7 of all wide banks, Debian 6.1 of those that it cannot hash."""
    now = bytes(WIDTHS[bank])
    for rec in RECS:
        width = WIDTHS[bank]
        digest = b"\xff" * width if rec.violation else rec.digest("sha1").ljust(width, b"\0")
        now = extend(now, digest, bank)
    lines = f"sha1 10 {value(RECS, 'sha1').hex()}\n{bank} 10 {now.hex()}\n"
    case.pcrs.write_text(lines)
    for name in ("sha1", "sha256"):
        case.list.write_bytes(binary_list(RECS, name))
        assert case.verify() == 8
        assert capsys.readouterr().out.splitlines()[1:] == [
            "the list does not lead to all of these PCRs",
            "  sha1:10 matches after record 4",
            f"  {bank}:10 is what zero-padded SHA-1 gives after record 4",
            f"  padded: --padded-banks {bank}",
        ]
        assert case.verify(case.list, "--padded-banks", bank) == 0
        capsys.readouterr()


def test_pcrs_that_no_list_leads_to(case: Case, capsys: Output) -> None:
    """Rules send records to PCR 0 to 63; firmware and localities were there before."""
    recs = [ng(pcr, b"/%d" % pcr) for pcr in (10, 0, 4, 9, 11, 16, 17, 22, 23, 24, 40, 41, 42, 63)]
    case.list.write_bytes(binary_list(recs, "sha1"))

    def pcrs(eleven: bytes) -> str:
        rows = {pcr: value(recs, "sha1", pcr) for pcr in (9, 10, 16, 23)} | {11: eleven}
        rows |= {0: b"\1" * 20, 4: b"\2" * 20, 17: b"\xff" * 20, 22: b"\xff" * 20}
        return "".join(f"sha1 {pcr} {value.hex()}\n" for pcr, value in rows.items())

    case.pcrs.write_text(pcrs(value(recs, "sha1", 11)))
    assert case.verify() == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "match after record 14",
        "  PCR 9 to 11, 16, 23: matches",
        (
            "  PCR 0, 4: held the firmware's value before (PCR 0 to 9): the list alone cannot lead "
            "there, and a difference says nothing about it"
        ),
        "  PCR 17, 22: cannot be extended by IMA: a TPM takes it from other localities only",
        "  PCR 24, 40 to 42, 63: cannot be extended by IMA: no TPM has it",
    ]
    case.pcrs.write_text(pcrs(b"\3" * 20))
    code, found = values_of(case, capsys)
    assert code == 8
    assert {pcr for pcr, what in found.items() if what == "differs"} == {"sha1:11"}
    assert case.verify(case.list, "--pcrs-only", "9,10") == 0
    assert "compared PCRs: sha1:9, sha1:10\n" in capsys.readouterr().out
    case.pcrs.write_text(pcrs(b"").replace("sha1 11 \n", ""))
    assert case.verify() == 0
    assert "  PCR 11: not compared: no value of it is given\n" in capsys.readouterr().out


def test_firmware_alone_confirms_no_list(case: Case, capsys: Output) -> None:
    case.list.write_bytes(binary_list([ng(0, b"/a")], "sha1"))
    case.pcrs.write_text(f"sha1 0 {'01' * 20}\n")
    assert case.verify() == 8
    assert "held the firmware's value before" in capsys.readouterr().out


def test_pcrs_of_different_moments(case: Case, capsys: Output) -> None:
    rows = {"sha1": value(RECS[:2], "sha1"), "sha256": value(RECS[:3], "sha256")}
    case.pcrs.write_text("".join(f"{bank} 10 {now.hex()}\n" for bank, now in rows.items()))
    assert case.verify() == 8
    assert capsys.readouterr().out.splitlines()[1:] == [
        "each of these PCRs fits a part of the list, but not the same: were they read apart?",
        "  sha1:10 matches after record 2",
        "  sha256:10 matches after record 3",
    ]


@pytest.mark.parametrize("option", ["--banks", "--pcrs-only"])
@pytest.mark.parametrize("name", ["", "sha999", "sha1,", "64", "-1"])
def test_what_can_be_compared(case: Case, option: str, name: str, capsys: Output) -> None:
    assert case.verify(case.list, f"{option}={name}") == 2
    assert capsys.readouterr().out == ""


def test_pcrs_on_standard_input(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(case.pcrs.read_text()))
    assert main(["verify", str(case.list), "--pcrs", "-"]) == 0
    assert "match after record 4" in capsys.readouterr().out
    piped = io.TextIOWrapper(io.BytesIO(case.pcrs.read_text().encode("utf-16")))
    monkeypatch.setattr(sys, "stdin", piped)
    assert main(["verify", str(case.list), "--pcrs", "-"]) == 0
    assert "match after record 4" in capsys.readouterr().out
    assert main(["verify", "-", "--pcrs", "-"]) == 2
    assert main(["verify", "-", "-", "--pcrs", str(case.pcrs)]) == 2
    assert "can be read once" in capsys.readouterr().err


def test_pcrs_that_the_list_never_went_to(case: Case, capsys: Output) -> None:
    case.pcrs.write_text(f"sha1 7 {'00' * 20}\n")
    assert case.verify() == 8
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == ["the PCR values hold no PCR that a record of the list went to"]


def test_a_tpm_that_hangs(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """A terminal is one: it takes a command and says nothing."""
    monkeypatch.setattr("imafs.cli.pcrsource.DEADLINE", 0.2)
    master, slave = os.openpty()
    try:
        tcti = f"device:{os.ttyname(slave)}"
        os.close(slave)
        assert main(["verify", str(case.list), "--tcti", tcti]) == 4
        assert capsys.readouterr().err == f"imafs: the TPM {tcti} did not answer within 0.2 s\n"
    finally:
        os.close(master)  # ends the thread that was left behind


def test_one_source_of_pcrs_only(case: Case, capsys: Output) -> None:
    assert case.verify(case.list, "--tcti", "swtpm:port=1") == 2
    assert "not allowed with" in capsys.readouterr().err


def test_no_source_of_pcrs(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """Neither a mount that holds the list, nor a TPM of this machine, nor one imafs."""
    monkeypatch.setattr("imafs.cli.pcrsource.SYSFS", str(tmp_path / "no-tpm"))
    monkeypatch.setattr("imafs.control.paths.socket_directory", lambda: tmp_path)
    assert main(["verify", str(case.list)]) == 2
    assert "give --pcrs FILE or --tcti TCTI" in capsys.readouterr().err


def test_the_tpm_of_this_machine(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    chip = tmp_path / "tpm0"  # the case's own file of PCRs lies beside it
    (chip / "pcr-sha256").mkdir(parents=True)
    (chip / "pcr-sha256/10").write_text(value(RECS, "sha256").hex().upper() + "\n")
    monkeypatch.setattr("imafs.cli.pcrsource.SYSFS", str(chip))
    assert main(["verify", str(case.list)]) == 0
    assert "compared PCRs: sha256:10\n" in capsys.readouterr().out
