# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs verify`` through main(): what it answers, its exit codes, where PCRs come from."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from imafs.cli.main import main
from imafs.cli.verify import MISMATCH
from tests.conformance.recordings import Moment, load, names
from tests.property.reference import WIDTHS, Rec, binary_list, extend, ng, violation

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
        "4 records of bank sha1, 1 violations; compared PCRs: sha1:10, sha256:10",
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


def test_mismatch(case: Case, capsys: Output) -> None:
    case.after([*RECS, ng(10, b"/more")])  # a list that is too short
    assert case.verify() == MISMATCH == 8
    more, whole = [*RECS, ng(10, b"/more")], RECS
    assert capsys.readouterr().out.splitlines()[1:] == [
        "no part of the list leads to these PCRs",
        *(
            f"  {bank}:10 is {value(more, bank).hex()}, "
            f"the whole list gives {value(whole, bank).hex()}"
            for bank in ("sha1", "sha256")
        ),
        "  were records deleted? Give what was kept of them first, in order",
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
    assert "were records deleted?" in capsys.readouterr().out
    case.after([])
    assert case.verify() == 0
    assert "match after record 0" in capsys.readouterr().out


def test_json(case: Case, capsys: Output) -> None:
    case.after(RECS[:3])
    assert case.verify(case.list, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "bank": "sha1",
        "records": 4,
        "violations": 1,
        "matched": 3,
        "excess": 1,
        "compared": ["sha1:10", "sha256:10"],
        "mismatches": [],
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
    assert f"{case.list}: record 1, byte {start + 4}: the sha1 template digest" in error


def test_a_cut_list(case: Case, capsys: Output) -> None:
    case.list.write_bytes(case.list.read_bytes()[:-1])
    assert f"{case.list}: record 3, byte " in refused(case, capsys, code=3)


def test_pcrs_that_are_none(case: Case, capsys: Output) -> None:
    case.pcrs.write_text("hello\n")
    assert f"{case.pcrs}: line 1 is no PCR value" in refused(case, capsys, code=3)
    case.pcrs.unlink()
    assert f"{case.pcrs}: No such file" in refused(case, capsys, code=7)


def test_what_cannot_be_read(case: Case, tmp_path: Path, capsys: Output) -> None:
    missing = tmp_path / "missing"
    assert f"{missing}: No such file" in refused(case, capsys, case.list, missing, code=7)


def test_an_unknown_algorithm(case: Case, capsys: Output) -> None:
    assert "sha999" in refused(case, capsys, case.list, "--bank", "sha999", code=3)


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
    (tmp_path / "pcr-sha256").mkdir()
    (tmp_path / "pcr-sha256/10").write_text(value(RECS, "sha256").hex().upper() + "\n")
    monkeypatch.setattr("imafs.cli.pcrsource.SYSFS", str(tmp_path))
    assert main(["verify", str(case.list)]) == 0
    assert "compared PCRs: sha256:10\n" in capsys.readouterr().out
