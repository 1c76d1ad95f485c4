# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which files are known: every form of a reference, and what an enemy does about it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from imafs.attest.evidence import check
from imafs.attest.kinds import Kind
from imafs.attest.reference import Files, Reference, judge, read
from imafs.attest.walking import Part
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, list_bank
from tests.papertpm import PaperTpm
from tests.property.reference import Rec, ascii_list, binary_list, ng, violation

OWN = list_bank(SHA1)
EMPTY = hashlib.sha256(b"").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
RECORDS = [
    ng(10, b"boot_aggregate", b"boot"),
    *(ng(10, b"/a"), ng(10, b"/b", b"other"), ng(10, b"/unknown"), ng(10, b"/tmp/x")),
    violation(10, b"/log"),
    Rec(10, "ima-buf", (b"sha256:\0" + b"1" * 32, b"kernel_version\0", b"7.2")),
]
POLICY = {
    "meta": {"version": 1},
    "digests": {"/a": [EMPTY], "/b": [EMPTY]},
    "excludes": ["/tmp/.*"],
}


def judged(reference: Reference, records: list[Rec] = RECORDS) -> Files:
    return judge(reference, [Part(binary_list(records, "sha1"))], OWN)


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(POLICY).encode(),
        json.dumps({"hashes": POLICY["digests"], "exclude": ["/tmp/"]}).encode(),
    ],
)
def test_a_runtime_policy(data: bytes) -> None:
    files = judged(read(data, "policy"))
    assert (files.known, files.excluded, files.violations, files.other) == (1, 1, 1, 2)
    assert (list(files.unknown), list(files.changed)) == ([b"/unknown"], [b"/b"])


@pytest.mark.parametrize(
    "text",
    [
        f"{EMPTY}  /a\n{OTHER} */b\n",
        f"# known\n\nsha256:{EMPTY} /a\r\n{OTHER.upper()}\t/b",
        f"{EMPTY} /a\n{EMPTY} /b\n{OTHER} /b\n",
    ],
)
def test_lines(text: str) -> None:
    files = judged(read(text.encode(), "lines"))
    assert (files.known, list(files.changed)) == (2, [])
    assert list(files.unknown) == [b"/unknown", b"/tmp/x"]


def test_names_with_spaces_and_line_ends() -> None:
    """sha256sum escapes a line end, a kernel stores an underscore for a space."""
    lines = f"{EMPTY}  /with space\n\\{EMPTY}  /a\\nb\\\\c\n"
    records = [ng(10, b"/with_space"), ng(10, b"/a\nb\\c")]
    assert judged(read(lines.encode(), "lines"), records).clean


@pytest.mark.parametrize("make", [binary_list, ascii_list])
@pytest.mark.parametrize("bank", ["sha1", "sha256"])
def test_a_golden_machine(make: object, bank: str) -> None:
    assert callable(make)
    reference = read(make(RECORDS, bank), "golden")
    assert judged(reference).clean
    files = judged(reference, [*RECORDS, ng(10, b"/a", b"changed"), ng(10, b"/new")])
    assert (list(files.changed), list(files.unknown)) == ([b"/a"], [b"/new"])


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"{}", b'{"digests": []}', b'{"digests": {"/a": "x"}}'),
        *(b'{"digests": {"/a": ["xyz"]}}', b'{"digests": {}, "excludes": ["("]}'),
        *(b'{"digests": {}, "excludes": ["x{99999999999}"]}',),
        b'{"digests": {}, "excludes": ["%s"]}' % (b"(" * 20_000),
        *(b'{"digests": {}, "excludes": [1]}', b"[" * 100_000, b"nonsense", b"12345 /a"),
        *(EMPTY.encode() + b" /a\nwrong\n", b"abcd1234 /a\n", b'{"digests": {}, "excludes": {}}'),
    ],
)
def test_what_is_no_reference(data: bytes) -> None:
    with pytest.raises(FormatError):
        read(data, "reference")


def test_a_template_that_was_renamed_hides_nothing() -> None:
    """Its name is in no digest: three fields of ima-sig may be called ima-buf."""
    parts = (b"sha256:\0" + b"1" * 32, b"/evil\0", b"\x03sig")
    reference = read(json.dumps(POLICY).encode(), "policy")
    for label in ("ima-sig", "ima-buf", "d-ng|n-ng|buf", "whatever"):
        files = judged(reference, [Rec(10, label, parts)])
        assert list(files.unknown) == [b"/evil"], label


def test_the_verdict_of_files() -> None:
    machine = PaperTpm()
    machine.files(b"/a")
    known = read(json.dumps(POLICY).encode(), "policy")
    assert check(machine.bundle(), machine.demand(reference=known)).kind is Kind.OK
    machine.files(b"/evil")
    found = check(machine.bundle(), machine.demand(reference=known))
    assert (found.kind, found.state is None) == (Kind.FILES, False)
    assert found.files is not None
    assert list(found.files.unknown) == [b"/evil"]
    # Without proof of the records nothing is said about files.
    broken = replace(machine.bundle(), records=machine.list(1))
    assert check(broken, machine.demand(reference=known)).files is None
