# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs check`` and ``imafs attest`` as commands: lines, JSON, exit codes, mistakes."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from imafs.attest.kinds import Kind, worse
from imafs.cli.main import main
from tests.papertpm import NONCE, PaperTpm
from tests.property.reference import violation


@pytest.fixture
def machine(tmp_path: Path) -> PaperTpm:
    made = PaperTpm()
    made.files(b"/a", b"/evil\x1b[31m\n")
    made.measure(violation(10, b"/log"))
    (tmp_path / "ak.pub").write_bytes(made.area)
    (tmp_path / "b.tar").write_bytes(made.bundle().encode())
    return made


def checked(tmp_path: Path, *words: str | Path, nonce: str = NONCE.hex()) -> int:
    return main(["check", "--nonce", nonce, "--ak", str(tmp_path / "ak.pub"), *map(str, words)])


def test_a_verdict(machine: PaperTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.tar"
    assert checked(tmp_path, path) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{path}: ok: records 0 to 3"
    assert any("1 violations" in line for line in rest)
    assert checked(tmp_path, path, nonce="00") == Kind.NONCE.code
    line = capsys.readouterr().out
    assert line.startswith(f"{path}: nonce: the quote has the nonce 0badc0de, not the nonce 00")
    assert line.count("\n") == 1


def test_json(machine: PaperTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = tmp_path / "known"
    known.write_text("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  /a\n")
    words: list[str | Path] = [
        tmp_path / "b.tar",
        "--json",
        "--reference",
        known,
        "--state",
        tmp_path / "s",
        "--new",
    ]
    assert checked(tmp_path, *words) == Kind.FILES.code
    row = json.loads(capsys.readouterr().out)
    assert (row["verdict"], row["accepted"], row["records"], row["index"]) == ("files", True, 4, 4)
    assert row["files"]["unknown"] == ["/evil\x1b[31m\n"]
    assert (row["files"]["known"], row["violations"]) == (1, 1)
    assert row["quoted"] == ["sha1:10", "sha256:10"]
    # On a terminal a name is one printable line.
    again = machine.bundle(b"2")
    (tmp_path / "b.tar").write_bytes(again.encode())
    code = checked(
        tmp_path, tmp_path / "b.tar", "--reference", known, "--state", tmp_path / "s", nonce="32"
    )
    assert code == Kind.FILES.code
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert "unknown: /evil\\x1b[31m\\x0a" in out


def test_the_worst_of_several(
    machine: PaperTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 2048)
    (tmp_path / "n.tar").write_bytes(machine.bundle(b"other").encode())
    paths = [tmp_path / f"{name}.tar" for name in "bxn"]
    assert checked(tmp_path, *paths, "--json", "--jobs", "2") == Kind.MALFORMED.code
    words = [json.loads(line)["verdict"] for line in capsys.readouterr().out.splitlines()]
    assert words == ["ok", "malformed", "nonce"]
    assert worse(Kind.OK, Kind.KEXEC) is Kind.KEXEC
    assert worse(Kind.MISMATCH, Kind.SIGNATURE) is Kind.MISMATCH


def test_nonces_of_a_file(machine: PaperTpm, tmp_path: Path) -> None:
    path, nonces = tmp_path / "b.tar", tmp_path / "nonces"
    nonces.write_text(f"\n{path} {NONCE.hex()}\n")
    words = ["check", str(path), "--nonces", str(nonces), "--ak", str(tmp_path / "ak.pub")]
    assert main(words) == 0
    nonces.write_text(f"{path} xyz\n")
    assert main(words) == 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["check", "b", "--nonce", "0g"], 2, "hexadecimal"),
        (["check", "b"], 2, "no nonce for b"),
        (["check", "b", "--nonce", ""], 2, "no nonce: it is empty"),
        (["attest", "d", "--nonce", "", "-o", "b", "--ak", "0x81000001"], 2, "it is empty"),
        (["check", "b", "--nonce", "00"], 2, "b: No such file"),
        (["check", "b", "--nonce", "00", "--new"], 2, "--state"),
        (["check", "a", "b", "--nonce", "00", "--state", "s"], 2, "is a directory"),
        (["check", "b", "--nonce", "00", "--ak", "none"], 2, "none: No such file"),
        (["check", "b", "--nonce", "00", "--ak", "here"], 3, "here: byte 0: a key of type"),
        (["check", "b", "--nonce", "00", "--ca", "here"], 3, "here: is no certificate"),
        (["check", "b", "--nonce", "00", "--reference", "here"], 3, "here"),
        (["attest", "d", "--nonce", "00", "-o", "b"], 2, "--ak"),
        (["attest", "d", "--nonce", "00", "-o", "b", "--ak", "0x1"], 2, "persistent handle"),
        (["attest", "d", "--nonce", "00", "-o", "b", "--ak", "none"], 2, "none: No such"),
        (["attest", "d", "--nonce", "00", "-o", "b", "--ak", "0x81000001", "--banks", "x"], 2, "x"),
        (["attest", "d", "--nonce", "00" * 65, "-o", "b", "--ak", "0x81000001"], 2, "65 bytes"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("no key")
    (tmp_path / "d").mkdir()
    if words[0] == "attest":
        words = [*words, "--tcti", "swtpm:port=1"]
    assert main(words) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 4


def test_a_tpm_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attest", str(tmp_path), "--nonce", "00", "-o", "b", "--ak", "0x81000001"]
    assert main([*words, "--tcti", "swtpm:port=1"]) == 4
    error = capsys.readouterr().err
    assert error.startswith("imafs: cannot open the TPM swtpm:port=1")
    assert len(error.splitlines()) == 1


def test_a_bundle_of_tar(machine: PaperTpm, tmp_path: Path) -> None:
    """As tpm2-tools, cat and tar make one: no manifest, records behind the quote."""
    bundle = machine.bundle(manifest=False)
    machine.files(b"/late")
    bundle = replace(bundle, records=machine.list())
    with tarfile.open(tmp_path / "t.tar", "w") as made:
        for name, content in (
            *(("records.bin", bundle.records), ("quote.msg", bundle.message)),
            *(("quote.sig", bundle.signature), ("quote.pcrs", bundle.pcrs)),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 1_700_000_000, "someone"
            made.addfile(info, io.BytesIO(content))
    assert checked(tmp_path, tmp_path / "t.tar") == 0


def test_cryptography_is_not_needed_by_others() -> None:
    """The other commands start without it, and the manual pages are made without it."""
    import subprocess

    code = "import sys; from imafs.cli.main import build_parser; build_parser(); "
    code += "print([m for m in ('cryptography', 'tpm2_pytss') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
