# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs list`` through main(): recorded lists in all forms, parts of them, malformed ones."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from imafs.cli.main import main
from imafs.formats import kexec_buffer
from imafs.formats.algorithms import by_name
from imafs.formats.exports import Row, json_line
from imafs.formats.list_file import parse
from tests.conformance.recordings import DATA, Moment, load, names
from tests.property import builders
from tests.property.reference import WIDTHS, Rec, ascii_list, binary_list, ng, u32, violation
from tests.schema import check
from tests.support import ROOT, run, unpack

BINARY = "binary_runtime_measurements"
ASCII = "ascii_runtime_measurements"
SCHEMA = json.loads((ROOT / "docs/list.schema.json").read_text())
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


def _zstd(data: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    packed: bytes = pytest.importorskip(name).compress(data)
    return packed


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": _zstd,
}


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("form", [binary_list, ascii_list])
def test_compressed_lists(
    how: str,
    form: Callable[[list[Rec], str], bytes],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: Output,
) -> None:
    """Of a file, and through a pipe."""
    packed = PACKED[how](form(RECS, "sha256"))
    file.write_bytes(packed)
    assert listed(capsysbinary, file) == ascii_list(RECS, "sha256")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
    assert listed(capsysbinary, "-") == ascii_list(RECS, "sha256")
    for broken in (packed[:-5], packed[: len(packed) // 2], packed[:20] + b"!" + packed[21:]):
        file.write_bytes(broken)
        assert str(file) in damaged(capsysbinary, file)[1]


def test_zstd_without_a_library_for_it(file: Path, capsysbinary: Output) -> None:
    file.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(50))
    error = refused(capsysbinary, file, code=3)
    assert error.startswith(f"imafs: {file}: ")
    assert "the zstd file is cut" in error or "unpack it first, with zstd -d" in error


def test_recordings_and_directories(tmp_path: Path, capsysbinary: Output) -> None:
    """What is staged, then what is current; one moment of several."""
    recording = DATA / "7.3.4-kexec.tar.xz"
    moments = {moment.name: moment.files for moment in load("7.3.4-kexec").moments()}
    unpack(recording, tmp_path)
    for name, files in moments.items():
        staged = files.get(f"{BINARY}_staged", b"")
        whole = listed(capsysbinary, recording, "--moment", name, "--binary")
        assert whole == staged + files[BINARY]
        assert listed(capsysbinary, tmp_path / "7.3.4-kexec" / name, "--binary") == whole
    assert "moments in it: name one with --moment" in refused(capsysbinary, recording, code=3)
    error = refused(capsysbinary, recording, "--moment", "none", code=2)
    assert "there is no moment 'none' in it; there are: " in error


def test_the_buffer_of_a_kexec(file: Path, capsysbinary: Output) -> None:
    file.write_bytes(kexec_buffer.encode(binary_list(RECS, "sha1"), len(RECS)) + bytes(4096))
    assert listed(capsysbinary, file) == ascii_list(RECS, "sha1")
    assert b"form        the buffer of a kexec\n" in listed(capsysbinary, file, "--stats")


def objects(output: Output, *words: str | Path) -> list[dict[str, Any]]:
    """What --json prints; every line is what docs/list.schema.json says."""
    rows = [json.loads(line) for line in listed(output, *words, "--json").splitlines()]
    for row in rows:
        check(row, SCHEMA)
    return rows


def test_json(file: Path, capsysbinary: Output) -> None:
    rows = objects(capsysbinary, file)
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
        "fields": [
            {"name": "d-ng", "text": f"sha256:{RECS[1].parts[0][-32:].hex()}"},
            {"name": "n-ng", "text": "/a"},
        ],
    }
    (other,) = objects(capsysbinary, file, "--to", "sha1", "--last", "1")
    assert other["template_digest"] == f"sha1:{RECS[5].digest('sha1').hex()}"
    (raw,) = objects(capsysbinary, file, "--raw", "--first", "1")
    assert raw["template_data"] == RECS[0].data.hex()


def test_json_of_an_ascii_list(file: Path, capsysbinary: Output) -> None:
    file.write_bytes(b"\n" + ascii_list(RECS, "sha256"))
    rows = objects(capsysbinary, file)
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 6, 7]
    assert [row["unproven"] for row in rows] == [False, False, False, True, False, False]
    assert not any("offset" in row for row in rows)


def fields_of(rec: Rec, file: Path, output: Output) -> list[dict[str, str]]:
    file.write_bytes(binary_list([rec], "sha1"))
    (row,) = objects(output, file)
    found: list[dict[str, str]] = row["fields"]
    return found


def test_json_tells_names_that_are_no_utf8_from_those_that_are(
    file: Path, capsysbinary: Output
) -> None:
    names = [b"/\xff", b"/\xc3\xbf", b"/a\0b", b"/no end", b"/\\xff"]
    shown = []
    for name in names:
        rec = Rec(10, "ima-ng", (RECS[0].parts[0], name + (b"" if b"end" in name else b"\0")))
        shown.append(fields_of(rec, file, capsysbinary)[1])
    assert shown == [
        {"name": "n-ng", "hex": "2fff00"},
        {"name": "n-ng", "text": "/ÿ"},
        {"name": "n-ng", "text": "/a", "hex": "2f61006200"},
        {"name": "n-ng", "text": "/no end", "hex": b"/no end".hex()},
        {"name": "n-ng", "text": "/\\xff"},
    ]


def test_json_keeps_fields_that_are_there_twice(file: Path, capsysbinary: Output) -> None:
    rec = Rec(10, "n-ng|n-ng|iuid|d-ng", (b"/a\0", b"/b\0", b"\1\0", b":\0\xaa"))
    assert fields_of(rec, file, capsysbinary) == [
        {"name": "n-ng", "text": "/a"},
        {"name": "n-ng", "text": "/b"},
        {"name": "iuid", "text": "1", "hex": "0100"},
        {"name": "d-ng", "text": "aa", "hex": "3a00aa"},
    ]


@settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(builders.recs())
def test_json_loses_nothing(rec: Rec) -> None:
    """Template data can be made again of the fields alone."""
    (parsed,) = parse(binary_list([replace(rec, violation=False)], "sha1")).records()
    row = Row(0, parsed, parsed.digest, by_name("sha1"))
    parts = []
    about = json.loads(json_line(row))
    check(about, SCHEMA)
    for field, name in zip(about["fields"], rec.field_names, strict=True):
        if "hex" in field:
            parts.append(bytes.fromhex(field["hex"]))
        else:
            parts.append(stored(name, field["text"].encode()))
    if rec.label == "ima":
        parts[1] = parts[1][:-1]
    assert replace(rec, parts=tuple(parts), violation=False).data == parsed.record.data


def stored(field: str, text: bytes) -> bytes:
    """The bytes that a field's text stands for, as docs/lists.md says."""
    if not text:
        return b"\0" if field in ("n", "n-ng") else b""
    if field in ("n", "n-ng", "xattrnames"):
        return text + b"\0"
    if field in ("d-ng", "d-ngv2", "d-modsig") and b":" in text:
        prefix, _, digits = text.rpartition(b":")
        return prefix + b":\0" + bytes.fromhex(digits.decode())
    if field in ("iuid", "igid", "imode"):
        return int(text).to_bytes(2 if field == "imode" else 4, "little")
    return bytes.fromhex(text.decode())


def test_stats(file: Path, capsysbinary: Output) -> None:
    size = file.stat().st_size
    assert listed(capsysbinary, file, "--stats").decode() == (
        "form        binary\n"
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


def damaged(output: Output, *words: str | Path) -> tuple[bytes, str]:
    """What is printed of a damaged list, and what is said of it."""
    assert main(["list", *map(str, words)]) == 3
    printed = output.readouterr()
    return printed.out, printed.err.decode()


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_a_damaged_list_is_shown_up_to_the_fault(file: Path, capsysbinary: Output) -> None:
    data = file.read_bytes()
    start = len(binary_list(RECS[:2], "sha256"))
    for content, place, whole in (
        (data[:-1], f"record 5, byte {len(binary_list(RECS[:5], 'sha256'))}: ", 5),
        (data + b"\0", f"record 6, byte {len(data)}: ", 6),
        (changed(data, start + 4), rf"record 2, byte {start} \(/other\): ", 2),
    ):
        file.write_bytes(content)
        shown, said = damaged(capsysbinary, file)
        assert re.match(f"imafs: {re.escape(str(file))}: {place}", said), said
        assert said.count("\n") == 1
        assert said.endswith("; --keep-going shows what is behind it\n") == (whole == 2)
        lines = shown.splitlines(keepends=True)
        assert b"".join(lines[:whole]) == ascii_list(RECS[:whole], "sha256")
        assert [line[:2] for line in lines[whole:]] == [b"! "] * (whole == 2)
        first, again = damaged(capsysbinary, file, "--first", "1")
        assert (first, again) == (ascii_list(RECS[:1], "sha256"), said)


@pytest.mark.parametrize("form", ["binary", "ascii"])
def test_behind_the_fault_with_keep_going(form: str, file: Path, capsysbinary: Output) -> None:
    """A changed name, and a line or a length that is lost: all others are shown."""
    recs = [rec for rec in RECS if not rec.violation]
    if form == "binary":
        data = binary_list(recs, "sha1")
        one, two, four = (len(binary_list(recs[:number], "sha1")) for number in (1, 2, 3))
        file.write_bytes(changed(changed(data, four + 25), two - 2))
        places = [f"record 1, byte {one} (/`): ", f"record 3, byte {four}: "]
    else:
        lines = ascii_list(recs, "sha1").splitlines(keepends=True)
        lines[1], lines[3] = lines[1].replace(b"/a", b"/`"), b"?\n"
        file.write_bytes(b"".join(lines))
        places = ["line 2, record 1 (/`): ", "line 4, record 3: "]
    _, said = damaged(capsysbinary, file)
    assert said.endswith("; --keep-going shows what is behind it\n")
    shown, said = damaged(capsysbinary, file, "--keep-going")
    assert "--keep-going" not in said
    expected = ascii_list(recs, "sha1").splitlines(keepends=True)
    expected[1] = b"! " + expected[1].replace(b"/a", b"/`")
    del expected[3]
    assert shown == b"".join(expected)
    for line, place in zip(said.splitlines(), places, strict=True):
        assert line.startswith(f"imafs: {file}: {place}")
    assert b"faults      2\n" in damaged(capsysbinary, file, "--keep-going", "--stats")[0]
    rows = [
        json.loads(line)
        for line in damaged(capsysbinary, file, "--keep-going", "--json")[0].splitlines()
    ]
    for row in rows:
        check(row, SCHEMA)
    assert [row["pcr"] for row in rows if "fault" not in row] == [10, 11, 10]
    assert "template digest" in rows[1]["fault"]


def test_a_record_whose_fields_do_not_fit_is_shown_by_its_bytes(
    file: Path, capsysbinary: Output
) -> None:
    body = b"\1\0\0\0a\xff"
    front = u32(10) + hashlib.sha1(body).digest() + u32(6) + b"ima-ng" + u32(len(body))
    file.write_bytes(binary_list(RECS, "sha1") + front + body)
    shown, said = damaged(capsysbinary, file, "--last", "1")
    assert shown.endswith(b" ima-ng 0100000061ff\n")
    assert shown.startswith(b"! 10 ")
    assert "record 6" in said
    row = json.loads(damaged(capsysbinary, file, "--last", "1", "--json")[0])
    check(row, SCHEMA)
    assert (row["fields"], row["template_data"]) == ([], "0100000061ff")


def test_a_part_by_numbers(file: Path, capsysbinary: Output) -> None:
    assert listed(capsysbinary, file, "--from", "1", "--to", "2") == ascii_list(RECS[1:3], "sha256")
    assert listed(capsysbinary, file, "--from", "4") == ascii_list(RECS[4:], "sha256")
    both = listed(capsysbinary, file, "--to", "0", "--to", "sha1")
    assert both == ascii_list(RECS[:1], "sha1")
    assert listed(capsysbinary, file, "--from", "6") == b""


def test_fields_of_an_unknown_template(file: Path, capsysbinary: Output) -> None:
    rec = Rec(10, "ima-new", (b"a text\0", b"1234\0", b"\xaa"))
    file.write_bytes(binary_list([rec], "sha1"))
    shown = listed(capsysbinary, file)
    assert shown.endswith(b" ima-new a text 1234 aa\n")
    file.write_bytes(shown)
    assert listed(capsysbinary, file, "--binary", "--template-fmt", "n-ng|n-ng|sig") == (
        binary_list([rec], "sha1")
    )
    assert "unknown field" in refused(capsysbinary, file, "--template-fmt", "n-ng|x", code=2)


def test_violations_of_an_ascii_list_are_said_to_be_unproven(
    file: Path, capsysbinary: Output
) -> None:
    file.write_bytes(ascii_list(RECS, "sha256"))
    assert main(["list", str(file), "--binary"]) == 0
    printed = capsysbinary.readouterr()
    assert printed.out == binary_list(RECS, "sha256")
    assert b": 1 violation stands as the text has it" in printed.err
    assert b"violations  1, unproven\n" in listed(capsysbinary, file, "--stats")


def test_malformed_standard_input(monkeypatch: pytest.MonkeyPatch, capsysbinary: Output) -> None:
    data = io.BytesIO(binary_list(RECS, "sha1")[:-1])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert damaged(capsysbinary, "-")[1].startswith("imafs: record 5, byte ")


def test_the_wrong_bank_is_malformed(file: Path, capsysbinary: Output) -> None:
    said = "this is a list of bank sha256, not sha1; the bank need not be named"
    error = refused(capsysbinary, file, "--bank", "sha1", code=3)
    assert error == f"imafs: {file}: {said}\n"


def test_a_malformed_list_of_a_named_bank(file: Path, capsysbinary: Output) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    shown, said = damaged(capsysbinary, file, "--bank", "sha256")
    assert shown == ascii_list(RECS[:5], "sha256")
    assert said.startswith(f"imafs: {file}: record 5, byte ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--bank sha999", "'sha999' is no bank of a list; there are: md5, sha1, "),
        ("--bank wp512", "'wp512' is no bank of a list"),
        ("--from -1", "-1: 0 or more"),
        ("--to -1", "-1: 0 or more"),
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


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed(file: Path, closed: str) -> None:
    """Nobody listens: no traceback, and nothing goes to the other stream instead."""
    words = [sys.executable, "-P", "-m", "imafs", "list"]
    for path, expected in ((file, 0), (file.parent / "missing", 2)):
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *words, str(path)]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60)
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
                timeout=60,
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


def test_a_command_loads_no_other_one() -> None:
    """Each start of it would wait for all of them."""
    code = (
        "import sys; from imafs.cli.main import COMMANDS, main; main(['list', '/dev/null']); "
        "print(*(name for name in COMMANDS if f'imafs.cli.{name}' in sys.modules))"
    )
    assert run([sys.executable, "-c", code], cwd=ROOT).stdout == "list\n"
