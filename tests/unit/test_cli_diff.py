# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs diff``: lists of any form and bank, compared record by record."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from imafs.cli.main import main
from tests.property.reference import Rec, ascii_list, binary_list, ng, violation

Output = pytest.CaptureFixture[str]
RECS = [ng(10, b"boot_aggregate"), *(ng(10, b"/%d" % n, b"%d" % n) for n in range(5))]
MORE = [*RECS[:3], violation(10, b"/v"), *RECS[3:]]


class Pair:
    def __init__(self, directory: Path, output: Output) -> None:
        self.a, self.b = directory / "a", directory / "b"
        self._output = output

    def diff(self, one: bytes, other: bytes, *words: str) -> tuple[int, list[str]]:
        self.a.write_bytes(one)
        self.b.write_bytes(other)
        code = main(["diff", str(self.a), str(self.b), *words])
        said = self._output.readouterr().out
        return code, said.replace(str(self.a.parent) + "/", "").splitlines()


@pytest.fixture
def pair(tmp_path: Path, capsys: Output) -> Pair:
    return Pair(tmp_path, capsys)


FORMS = {
    "binary sha1": lambda recs: binary_list(recs, "sha1"),
    "binary sha512": lambda recs: binary_list(recs, "sha512"),
    "ascii sha256": lambda recs: ascii_list(recs, "sha256"),
    "quoted": lambda recs: b"".join(
        b"> " + line + b"\r\n" for line in ascii_list(recs, "sha1").splitlines()
    ),
}


@pytest.mark.parametrize("one", FORMS)
@pytest.mark.parametrize("other", FORMS)
def test_the_same_in_any_form(pair: Pair, one: str, other: str) -> None:
    code, said = pair.diff(FORMS[one](MORE), FORMS[other](MORE))
    assert (code, said[2:]) == (0, ["the same records in the same order"])
    code, said = pair.diff(FORMS[one](MORE), FORMS[other](RECS))
    assert code == 8
    assert said[0].startswith("a: 7 records of bank ")
    assert said[1].startswith("b: 6 records of bank ")
    assert said[2] == "the first difference is record 3"
    assert said[3].startswith("  a: 10 ima-ng ")
    assert said[3].endswith(" /v")
    assert said[5] == "only in a: 1 record"
    assert said[6].startswith("  3: 10 ima-ng ")


def test_the_beginning_and_the_end(pair: Pair) -> None:
    whole = binary_list(RECS, "sha1")
    code, said = pair.diff(binary_list(RECS[:4], "sha1"), whole)
    assert (code, said[2]) == (8, "a is the beginning of b, which has 2 records more")
    code, said = pair.diff(whole, binary_list(RECS[2:], "sha256"))
    assert (code, said[2]) == (8, "b is the end of a: the first 2 records are not in it")
    code, said = pair.diff(whole, b"")
    assert (code, said[2]) == (8, "b is the beginning of a, which has 6 records more")


def test_another_order(pair: Pair) -> None:
    moved = [*RECS[:1], RECS[4], *RECS[1:4], RECS[5]]
    code, said = pair.diff(binary_list(RECS, "sha1"), binary_list(moved, "sha1"))
    assert code == 8
    assert said[5] == "in another order: 1 record"
    assert said[6].startswith("  4, there 1: 10 ima-ng ")


def test_a_record_twice(pair: Pair) -> None:
    twice = [*RECS, RECS[2]]
    _, said = pair.diff(binary_list(RECS, "sha1"), binary_list(twice, "sha1"), "--json")
    found = json.loads(said[0])
    assert (found["only"], found["moved"], found["first"]) == ([[], [6]], [], 6)


def test_a_tampered_list(pair: Pair) -> None:
    """Compared as far as it can be read; its status stays that of a malformed one."""
    good = binary_list(RECS, "sha1")
    bad = good.replace(b"/1\0", b"/x\0")
    code, said = pair.diff(good, bad)
    assert code == 3
    assert said[2].startswith("  record 2, byte ")
    assert said[3] == "the first difference is record 2"
    assert said[4].endswith(" /1")
    assert said[5].endswith(" /x")
    other = bytearray(good)
    other[4 + len(binary_list(RECS[:1], "sha1"))] ^= 1  # a digest: the record is another
    code, said = pair.diff(good, bytes(other))
    assert code == 3
    assert "only in a: 1 record" in said
    assert "only in b: 1 record" in said


def test_long_differences_are_cut(pair: Pair) -> None:
    many = [ng(10, b"/%d" % n) for n in range(30)]
    _, said = pair.diff(binary_list(many, "sha1"), b"")
    assert said[-1] == "  and 10 more (--all)"
    _, said = pair.diff(binary_list(many, "sha1"), b"", "--all")
    assert len(said) == 4 + 30


def test_names_are_shown_harmless(pair: Pair) -> None:
    _, said = pair.diff(binary_list([ng(10, "/größe\x1b[31m\n".encode())], "sha1"), b"")
    assert said[-1].endswith(" /größe\\x1b[31m\\x0a")


def test_standard_input_and_what_is_no_list(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    pair.a.write_bytes(binary_list(RECS, "sha1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ascii_list(RECS, "sha1"))))
    assert main(["diff", str(pair.a), "-"]) == 0
    assert main(["diff", "-", "-"]) == 2
    pair.b.write_bytes(b"nothing of the kind")
    assert main(["diff", str(pair.a), str(pair.b)]) == 3
    assert f"imafs: {pair.b}: " in capsys.readouterr().err
    assert main(["diff", str(pair.a), str(pair.b.parent / "missing")]) == 2


def test_records_of_another_pcr_are_others(pair: Pair) -> None:
    eleven = Rec(11, RECS[1].label, RECS[1].parts)
    code, said = pair.diff(binary_list(RECS[:2], "sha1"), binary_list([RECS[0], eleven], "sha1"))
    assert (code, said[2]) == (8, "the first difference is record 1")
