# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which files are known: every form of a reference, and what an enemy does about it."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from imafs.attest.evidence import check
from imafs.attest.excludes import Excludes, OutOfTimeError
from imafs.attest.kinds import Kind
from imafs.attest.reference import Files, Reference, judge, read
from imafs.attest.verifier import Verifier
from imafs.attest.walking import Part
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, list_bank
from imafs.formats.binary import Reader
from tests.papertpm import PaperTpm
from tests.property.reference import Rec, ascii_list, binary_list, ng, violation

OWN = list_bank(SHA1)
EMPTY = hashlib.sha256(b"").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
DIGEST_OF_BUFFER = b"sha256:\0" + hashlib.sha256(b"7.2").digest()
RECORDS = [
    ng(10, b"boot_aggregate", b"boot"),
    *(ng(10, b"/a"), ng(10, b"/b", b"other"), ng(10, b"/unknown"), ng(10, b"/tmp/x")),
    violation(10, b"/log"),
    Rec(10, "ima-buf", (DIGEST_OF_BUFFER, b"kernel_version\0", b"7.2")),
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


EVIL = b"sha256:\0" + b"1" * 32
HASHED = b"sha256:\0" + hashlib.sha256(b"\x03sig").digest()


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        # As a kernel has the name of a file in a mount that was detached: without a slash.
        ("ima-buf", (EVIL, b"evil\0", b"\x03sig")),
        ("d-ng|buf", (EVIL, b"evil\0")),
        ("d-ng|n-ng|buf", (EVIL, b"evil\0", b"")),
        ("whatever", (EVIL, b"evil\0", b"\x03sig")),
        ("ima-buf", (b"rot13:\0" + b"1" * 32, b"evil\0", b"\x03sig")),
    ],
)
def test_a_file_without_a_path_is_no_buffer(label: str, parts: tuple[bytes, ...]) -> None:
    """A kernel's buffer is in its record, and hashes to the record's digest."""
    reference = read(json.dumps(POLICY).encode(), "policy")
    files = judged(reference, [*RECORDS[:1], Rec(10, label, parts)])
    assert (list(files.unknown), files.other) == ([b"evil"], 1)
    buffer = Rec(10, "whatever", (HASHED, b"keys\0", b"\x03sig"))
    assert judged(reference, [buffer]).other == 1


def test_a_record_of_template_ima_is_read_as_it_is_hashed() -> None:
    """Its bytes may be called those of a template that nobody knows."""
    reference = read(f"{'11' * 20} /known\n".encode(), "lines")
    for digest, name, known in ((b"\x11", b"/known", 1), (b"\x12", b"/evil", 0)):
        plain = Rec(10, "ima", (digest * 20, name))
        data = plain.hashed
        front = struct.pack("<I20sI", 10, plain.digest("sha1"), 8) + b"whatever"
        record = front + struct.pack("<I", len(data)) + data
        files = judge(reference, [Part(record)], OWN)
        assert (files.known, list(files.unknown)) == (known, [] if known else [b"/evil"])


def test_a_file_that_is_called_boot_aggregate() -> None:
    """It began no kernel: its digest is that of no boot_aggregate."""
    known = read(json.dumps(POLICY).encode(), "policy")
    machine = PaperTpm()
    demand = machine.demand(reference=known)
    machine.measure(ng(10, b"boot_aggregate"))  # kexec: the PCRs of the firmware go on
    found = check(machine.bundle(), demand)
    assert (found.kind, found.boots) == (Kind.OK, 1)
    machine.measure(ng(10, b"boot_aggregate", b"evil"))
    found = check(machine.bundle(), demand)
    assert found.kind is Kind.FILES
    assert found.files is not None
    assert list(found.files.unknown) == [b"boot_aggregate"]


def test_a_boot_aggregate_that_the_firmware_explains_is_no_file() -> None:
    """Its hash is another kernel's: the first record does not tell, the quoted PCRs do."""
    known = read(json.dumps(POLICY).encode(), "policy")
    machine = PaperTpm()
    later = hashlib.sha1(bytes(20 * 8)).digest()
    machine.measure(Rec(10, "ima-ng", (b"sha1:\0" + later, b"boot_aggregate\0")))
    demand = machine.demand(reference=known)
    assert check(machine.bundle(), demand).kind is Kind.FILES
    quoted = check(machine.bundle(selection=machine.selection(*range(11))), demand)
    assert quoted.files is None or quoted.files.clean


def test_no_template_name_hides_a_boot() -> None:
    """Whether a boot_aggregate is what the firmware gives is asked of the hashed bytes."""
    machine = PaperTpm()
    machine.boot_only()
    machine.measure(ng(10, b"boot_aggregate", b"other firmware"))
    bundle = machine.bundle(selection=machine.selection(*range(11)))
    demand = machine.demand()
    assert check(bundle, demand).kind is Kind.BOOT
    for label in (b"hidden", b"n-ng|d"):  # as long as ima-ng
        hidden = bundle.records.replace(b"ima-ng", label)
        assert check(replace(bundle, records=hidden), demand).kind is Kind.BOOT


def test_no_template_name_hides_a_kexec() -> None:
    machine = PaperTpm()
    first = check(machine.bundle(), machine.demand())
    machine.measure(ng(10, b"boot_aggregate"))
    bundle = machine.bundle(b"\1", first=1)
    hidden = replace(bundle, records=bundle.records.replace(b"ima-ng", b"hidden"))
    for one in (bundle, hidden):
        assert check(one, machine.demand(nonce=b"\1"), first.state).kind is Kind.KEXEC


def in_big_endian(records: bytes) -> bytes:
    """The same template data in the other byte order's frame, under a name that nobody knows."""
    out = b""
    for parsed in Reader(records, 20):
        data = parsed.record.data
        out += struct.pack(">I20sI6sI", parsed.record.pcr, parsed.digest, 6, b"hidden", len(data))
        out += data
    return out


def test_no_byte_order_hides_a_boot_or_a_kexec() -> None:
    """It is the manifest's word alone, and the frame of a record is in no digest."""
    machine = PaperTpm()
    machine.boot_only()
    machine.measure(ng(10, b"boot_aggregate", b"other firmware"), ng(10, b"/a"))
    whole = machine.bundle(selection=machine.selection(*range(11)))
    assert check(whole, machine.demand()).kind is Kind.BOOT
    assert whole.manifest is not None
    other = replace(
        whole,
        records=in_big_endian(whole.records),
        manifest=replace(whole.manifest, order="big"),
    )
    assert check(other, machine.demand()).kind is Kind.BOOT
    machine = PaperTpm()
    first = check(machine.bundle(), machine.demand())
    machine.measure(ng(10, b"boot_aggregate"))
    part = machine.bundle(b"\1", first=1)
    assert part.manifest is not None
    other = replace(
        part,
        records=in_big_endian(part.records),
        manifest=replace(part.manifest, order="big"),
    )
    for one in (part, other):
        assert check(one, machine.demand(nonce=b"\1"), first.state).kind is Kind.KEXEC


def test_a_violation_is_no_boot_whatever_it_is_called() -> None:
    """No digest proves its name: who holds the list would tell a kexec that was none."""
    known = read(json.dumps(POLICY).encode(), "policy")
    machine = PaperTpm()
    first = check(machine.bundle(), machine.demand())
    machine.measure(violation(10, b"/log/messages"))
    bundle = machine.bundle(b"\1")
    head = machine.list()[: -len(machine.list(1))]
    records = head + binary_list([violation(10, b"boot_aggregate")], "sha1")
    for one in (bundle, replace(bundle, records=records)):
        demand = machine.demand(nonce=b"\1", reference=known)
        found = check(one, demand, first.state)
        assert (found.kind, found.boots, found.violations) == (Kind.OK, 0, 1)
        assert found.files is not None
        assert (found.files.violations, found.files.other) == (1, 1)


def test_a_file_without_a_digest_is_no_boot() -> None:
    """A kernel stores zeros for a file that it could not read (a FUSE that says EINVAL)."""
    known = read(json.dumps(POLICY).encode(), "policy")
    machine = PaperTpm()
    machine.measure(Rec(10, "ima-ng", (b"sha256:\0" + bytes(32), b"boot_aggregate\0")))
    found = check(machine.bundle(), machine.demand(reference=known))
    assert found.files is not None
    assert list(found.files.unknown) == [b"boot_aggregate"]


def test_no_pattern_is_tried_on_what_is_longer_than_a_path() -> None:
    """PATH_MAX: over a megabyte a pattern with two stars goes on for hours."""
    policy = {"digests": {}, "excludes": ["/.*a.*b.*c$", "/tmp/"]}
    reference = read(json.dumps(policy).encode(), "policy")
    longest = b"/tmp/" + b"a" * 4090
    files = judged(reference, [ng(10, longest), ng(10, b"/tmp/" + b"ab" * (1 << 19))])
    assert (files.excluded, len(files.unknown)) == (1, 1)


#: Patterns that come to no end -> a path over which they do not.
ENDLESS = {
    "one in the other": ("(a+)+$", b"a" * 60 + b"!"),
    "two that are alike": ("(a|a)*$", b"a" * 60 + b"!"),
    "many stars": ("/.*a.*a.*a.*a.*a.*a.*!", b"/" + b"a" * 900),
    "ahead": ("(?=(a+)+$)", b"a" * 60 + b"!"),
    "again": (r"(a*)*\1b", b"a" * 60),
    "bytes": ("(?s:(.+)+)x", b"\xff" * 60),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_pattern_without_end_is_no_verdict(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can name a file on the machine kept its verifier busy for years."""
    monkeypatch.setattr("imafs.attest.excludes.SECONDS", 0.2)
    pattern, path = ENDLESS[what]
    machine = PaperTpm()
    known = read(json.dumps({"digests": {}, "excludes": ["/tmp/", pattern]}).encode(), "policy")
    first = check(machine.bundle(), machine.demand(reference=known))
    assert (first.kind, first.state is None) == (Kind.OK, False)
    machine.files(b"/tmp/x", path)
    found = check(machine.bundle(b"\1"), machine.demand(nonce=b"\1", reference=known), first.state)
    assert (found.kind, found.state, found.files) == (Kind.REFERENCE, None, None)
    assert pattern in found.said
    assert not found.kind.accepted
    assert found.said.isprintable()
    # What ran out of time once keeps nobody else's files from being judged.
    other = PaperTpm(number=1)
    other.files(b"/tmp/y", b"/evil")
    found = check(other.bundle(), other.demand(reference=known))
    assert found.files is not None
    assert (list(found.files.unknown), found.files.excluded) == ([b"/evil"], 1)


def test_many_paths_have_their_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each path adds what an honest pattern takes, and hostile ones share that."""
    monkeypatch.setattr("imafs.attest.excludes.SECONDS", 0.2)
    monkeypatch.setattr("imafs.attest.excludes._SOME", 100)
    honest = Excludes(tuple(re.compile(f"/opt/{n}/.*") for n in range(100)))
    paths = [b"/opt/%d/x" % (n % 200) for n in range(5000)]
    assert len(honest.matched(paths)) == 100
    slow = Excludes((re.compile("(a+)+$"),))
    with pytest.raises(OutOfTimeError):
        slow.matched(b"a" * 18 + b"%d!" % n for n in range(5000))


def test_a_matcher_that_was_killed_is_told_and_the_next_one_asked() -> None:
    excludes = Excludes((re.compile("/tmp/"),))
    assert excludes.matched([b"/tmp/\xff", b"/var"]) == {b"/tmp/\xff"}
    process = excludes._process
    assert process is not None
    process.kill()
    process.wait(60)
    assert excludes.matched([b"/tmp/1"]) == {b"/tmp/1"}
    assert excludes._process is not process


def test_processes_of_a_pool_have_a_matcher_each(tmp_path: Path) -> None:
    """Two that share one would read each other's answers."""
    known = read(json.dumps(POLICY | {"digests": {}}).encode(), "policy")
    assert known.excludes.matched([b"/tmp/here"]) == {b"/tmp/here"}
    machine = PaperTpm()
    machine.files(*(b"/tmp/%d" % n for n in range(200)))
    paths = []
    for number in range(12):
        machine.files(b"/evil/%d" % number)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(machine.bundle().encode())
        paths.append(str(path))
    found = Verifier(machine.demand(reference=known)).check_all(paths, 3)
    counts = [(j.files.excluded, len(j.files.unknown)) for _, j in found if j.files is not None]
    assert counts == [(200, number + 1) for number in range(12)]


def test_a_pattern_that_python_warns_of_is_no_line_of_its_own() -> None:
    """A possible nested set (FutureWarning): Keylime compiles it as this does."""
    reference = read(json.dumps({"digests": {}, "excludes": ["/[[a-z]x/"]}).encode(), "policy")
    assert judged(reference, [ng(10, b"/[x/")]).excluded == 1


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
