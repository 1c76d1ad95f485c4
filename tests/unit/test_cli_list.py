# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs list`` through main(): recorded lists in all forms, parts of them, malformed ones."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imafs.cli.main import main
from tests.conformance.recordings import Moment, load, names
from tests.property.reference import WIDTHS, Rec, ascii_list, binary_list, ng, violation
from tests.support import ROOT

BINARY = "binary_runtime_measurements"
ASCII = "ascii_runtime_measurements"
RECS = [
    ng(10, b"boot_aggregate"),
    ng(10, b"/a", b"1"),
    ng(11, b"/other", b"2"),
    violation(10, b"/v"),
    ng(10, b"/b", b"3"),
    ng(10, b"/a", b"1"),
]

Output = pytest.CaptureFixture[bytes]


def listed(output: Output, *words: str | Path, code: int = 0) -> bytes:
    """What ``imafs list`` prints on stdout."""
    assert main(["list", *map(str, words)]) == code
    printed = output.readouterr()
    assert (printed.err == b"") == (code == 0)
    return printed.out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "list"
    path.write_bytes(binary_list(RECS, "sha256"))
    return path


# Recorded kernels

MOMENTS = [m for name in names() for m in load(name).moments()]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_recorded_lists_read_as_the_kernel_shows_them(
    moment: Moment, tmp_path: Path, capsysbinary: Output
) -> None:
    path = tmp_path / "list"
    seen = 0
    for name in moment.files:
        if not name.startswith(BINARY):
            continue
        content = moment.files[name]
        path.write_bytes(content)
        bank = next((bank for bank in WIDTHS if f"_{bank}" in name), "sha1")
        # An empty list has no digests to find its bank by.
        words = ["--bank", bank] if not content else []
        shown = listed(capsysbinary, path, *words)
        assert moment.matches(name.replace(BINARY, ASCII), shown), name
        assert listed(capsysbinary, path, *words, "--binary") == content
        seen += 1
    assert seen


@pytest.mark.parametrize("bank", ["sha256", "sha384", "sha512"])
def test_a_recorded_list_becomes_that_of_another_bank(
    bank: str, tmp_path: Path, capsysbinary: Output
) -> None:
    for moment in load("7.3.4-ima-sig").moments():
        path = tmp_path / "list"
        path.write_bytes(moment.files[BINARY])
        other = moment.files[f"{BINARY}_{bank}"]
        assert listed(capsysbinary, path, "--to", bank, "--binary") == other
        shown = listed(capsysbinary, path, "--to", bank)
        assert moment.matches(f"{ASCII}_{bank}", shown)
        path.write_bytes(other)
        back = listed(capsysbinary, path, "--bank", bank, "--to", "sha1", "--binary")
        assert back == moment.files[BINARY]


# Forms


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsysbinary: Output) -> None:
    data = io.BytesIO(binary_list(RECS, "sha1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert listed(capsysbinary, "-") == ascii_list(RECS, "sha1")


def test_json(file: Path, capsysbinary: Output) -> None:
    rows = [json.loads(line) for line in listed(capsysbinary, file, "--json").splitlines()]
    assert [row["record"] for row in rows] == list(range(6))
    assert [row["pcr"] for row in rows] == [10, 10, 11, 10, 10, 10]
    assert [row["violation"] for row in rows] == [False, False, False, True, False, False]
    assert rows[1] == {
        "record": 1,
        "offset": len(binary_list(RECS[:1], "sha256")),
        "pcr": 10,
        "template_digest": f"sha256:{RECS[1].digest('sha256').hex()}",
        "template": "ima-ng",
        "violation": False,
        "fields": {"d-ng": f"sha256:{RECS[1].parts[0][-32:].hex()}", "n-ng": "/a"},
    }
    other = listed(capsysbinary, file, "--json", "--to", "sha1", "--last", "1")
    assert json.loads(other)["template_digest"] == f"sha1:{RECS[5].digest('sha1').hex()}"


def test_json_of_names_that_are_no_utf8(tmp_path: Path, capsysbinary: Output) -> None:
    path = tmp_path / "list"
    recs = [ng(10, "/größe".encode()), ng(10, b"/\xff\xfe")]
    path.write_bytes(binary_list(recs, "sha1"))
    rows = [json.loads(line) for line in listed(capsysbinary, path, "--json").splitlines()]
    assert [row["fields"]["n-ng"] for row in rows] == ["/größe", "/\xff\xfe"]


def test_stats(file: Path, capsysbinary: Output) -> None:
    size = file.stat().st_size
    assert listed(capsysbinary, file, "--stats").decode() == (
        "bank        sha256\n"
        "records     6\n"
        f"bytes       {size} of {size}\n"
        "templates   ima-ng 6\n"
        "PCRs        10: 5, 11: 1\n"
        "violations  1\n"
        "duplicates  1\n"
    )
    part = listed(capsysbinary, file, "--stats", "--pcr", "12").decode()
    assert "records     0\n" in part
    assert f"bytes       0 of {size}\n" in part
    assert "PCRs        none\n" in part


# Parts


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--first", "2"], [0, 1]),
        (["--first", "99"], [0, 1, 2, 3, 4, 5]),
        (["--last", "2"], [4, 5]),
        (["--last", "99"], [0, 1, 2, 3, 4, 5]),
        (["--pcr", "11"], [2]),
        (["--pcr", "12"], []),
        (["--pcr", "0"], []),
        (["--grep", " /[ab]$"], [1, 4, 5]),
        (["--grep", "^11 "], [2]),
        (["--grep", "nothing"], []),
        (["--grep", " /[ab]$", "--first", "2"], [1, 4]),
        (["--pcr", "10", "--last", "3"], [3, 4, 5]),
        (["--pcr", "10", "--grep", "/(a|other)$", "--last", "1"], [5]),
    ],
)
def test_parts(file: Path, words: list[str], expected: list[int], capsysbinary: Output) -> None:
    chosen: list[Rec] = [RECS[number] for number in expected]
    assert listed(capsysbinary, file, *words) == ascii_list(chosen, "sha256")
    assert listed(capsysbinary, file, *words, "--binary") == binary_list(chosen, "sha256")
    rows = listed(capsysbinary, file, *words, "--json").splitlines()
    assert [json.loads(row)["record"] for row in rows] == expected


def test_grep_looks_at_the_line_that_is_printed(file: Path, capsysbinary: Output) -> None:
    digest = RECS[4].digest("sha384").hex()
    words = ("--grep", digest, "--to", "sha384")
    assert listed(capsysbinary, file, *words) == ascii_list([RECS[4]], "sha384")
    assert listed(capsysbinary, file, "--grep", digest) == b""


# Refusals


def refused(output: Output, *words: str | Path, code: int) -> str:
    assert main(["list", *map(str, words)]) == code
    printed = output.readouterr()
    assert printed.out == b""
    return printed.err.decode()


def test_malformed_lists_are_refused_whole_with_the_place(file: Path, capsysbinary: Output) -> None:
    data = file.read_bytes()
    start = len(binary_list(RECS[:2], "sha256"))
    changed = bytearray(data)
    changed[start + 4] ^= 1
    for content, place in (
        (data[:-1], f"record 5, byte {len(binary_list(RECS[:5], 'sha256'))}"),
        (data + b"\0", f"record 6, byte {len(data)}"),
        (bytes(changed), f"record 2, byte {start}"),
    ):
        file.write_bytes(content)
        error = refused(capsysbinary, file, "--first", "1", code=3)
        assert re.match(f"imafs: {re.escape(str(file))}: {place}[ :]", error), error
        assert error.count("\n") == 1


def test_malformed_standard_input(monkeypatch: pytest.MonkeyPatch, capsysbinary: Output) -> None:
    data = io.BytesIO(binary_list(RECS, "sha1")[:-1])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert refused(capsysbinary, "-", code=3).startswith("imafs: record 5, byte ")


def test_the_wrong_bank_is_malformed(file: Path, capsysbinary: Output) -> None:
    said = "this is a list of bank sha256, not sha1; the bank need not be named"
    error = refused(capsysbinary, file, "--bank", "sha1", code=3)
    assert error == f"imafs: {file}: {said}\n"


def test_a_malformed_list_of_a_named_bank(file: Path, capsysbinary: Output) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    error = refused(capsysbinary, file, "--bank", "sha256", code=3)
    assert error.startswith(f"imafs: {file}: record 5, byte ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--bank sha999", "'sha999' is no PCR bank; there are: sha1, sha256, "),
        ("--bank md5", "'md5' is no PCR bank"),
        ("--to sha999", "unknown hash algorithm 'sha999'"),
        ("--to rmd128", "hash algorithm rmd128 cannot be computed"),
        ("--grep (", "'('"),
        ("--first 0", "0: 1 or more"),
        ("--last -1", "-1: 1 or more"),
        ("--last many", "'many' is no number"),
        ("--pcr -3", "-3: 0 to 63"),
        ("--pcr 64", "64: 0 to 63"),
    ],
)
def test_values_that_make_no_sense(file: Path, words: str, said: str, capsysbinary: Output) -> None:
    """A mistake on the command line, whatever the file holds."""
    file.unlink()
    error = refused(capsysbinary, file, *words.split(), code=2)
    assert f"argument {words.split()[0]}: {said}" in error
    assert str(file) not in error


def test_an_ascii_list(file: Path, capsysbinary: Output) -> None:
    file.write_bytes(ascii_list(RECS, "sha256"))
    for words in ((), ("--bank", "sha256")):
        assert listed(capsysbinary, file, *words) == ascii_list(RECS, "sha256")
        assert listed(capsysbinary, file, *words, "--binary") == binary_list(RECS, "sha256")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed(file: Path, closed: str) -> None:
    """Nobody listens: no traceback, and nothing goes to the other stream instead."""
    words = [sys.executable, "-P", "-m", "imafs", "list"]
    for path, expected in ((file, 0), (file.parent / "missing", 2)):
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *words, str(path)]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=30)
        assert done.returncode == expected
        assert done.stdout in (b"", ascii_list(RECS, "sha256"))
        assert b"Traceback" not in done.stderr


def test_a_full_disk_below_the_output(file: Path) -> None:
    for recs in (RECS, RECS * 500):  # within and beyond what is buffered
        file.write_bytes(binary_list(recs, "sha1"))
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "imafs", "list", file],
                stdout=full,
                stderr=subprocess.PIPE,
                cwd=ROOT,
                timeout=30,
            )
        said = b"imafs: standard output: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, said)


def test_what_cannot_be_read(tmp_path: Path, capsysbinary: Output) -> None:
    for path, reason in ((tmp_path / "missing", "No such file"), (tmp_path, "directory")):
        error = refused(capsysbinary, path, code=2)
        assert str(path) in error
        assert reason in error


@pytest.mark.parametrize(
    "words", [["--json", "--binary"], ["--stats", "--json"], ["--first", "1", "--last", "1"]]
)
def test_options_that_exclude_each_other(
    file: Path, words: list[str], capsysbinary: Output
) -> None:
    assert "not allowed with" in refused(capsysbinary, file, *words, code=2)
