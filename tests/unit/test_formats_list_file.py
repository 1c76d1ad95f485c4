# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Lists in every form that people have them: what is found out, and what is wrong with them."""

from __future__ import annotations

import hashlib
import struct
import textwrap
from collections.abc import Callable

import pytest

from imafs.errors import FormatError
from imafs.formats import kexec_buffer
from imafs.formats.algorithms import list_bank_named
from imafs.formats.binary import Parsed
from imafs.formats.list_file import Fault, MeasurementList, parse
from imafs.formats.templates import Template
from tests.property.reference import (
    FORMATS,
    Rec,
    ascii_list,
    binary_list,
    ng,
    u32,
    violation,
)

SHA256 = b"sha256:\0" + hashlib.sha256(b"content").digest()
#: One record of every template, its fields as kernels fill them.
EACH = {
    "ima": (hashlib.sha1(b"x").digest(), b"/bin/x"),
    "ima-ng": (SHA256, b"/bin/ng\0"),
    "ima-sig": (SHA256, b"/bin/sig\0", b"\3\2\4\xaa\xbb"),
    "ima-ngv2": (b"ima:" + SHA256, b"/bin/ngv2\0"),
    "ima-sigv2": (b"verity:" + SHA256, b"/bin/sigv2\0", b""),
    "ima-buf": (SHA256, b"keyring\0", b"a buffer\0"),
    "ima-modsig": (SHA256, b"/m.ko\0", b"", SHA256, b"\x30\x82"),
    "evm-sig": (
        *(SHA256, b"/e\0", b"\5\2", b"security.ima|security.evm\0", u32(3) + u32(4)),
        *(b"abcdefg", u32(0), u32(1000), b"\xa4\x81"),
    ),
    "d-ng|n-ng|imode": (SHA256, b"/custom\0", b"\xa4\x81"),
}
ALL = [
    ng(10, b"boot_aggregate"),
    *(Rec(10, label, parts) for label, parts in EACH.items()),
    violation(10, b"/v"),
    ng(9, b"/nine"),
]


def sound(data: bytes, **how: object) -> MeasurementList:
    """The list, of which every record must be sound."""
    found = parse(data, **how)  # type: ignore[arg-type]
    assert [item for item in found.items() if isinstance(item, Fault)] == []
    return found


def faults(found: MeasurementList) -> list[Fault]:
    return [item for item in found.items() if isinstance(item, Fault)]


# ASCII


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_an_ascii_list_becomes_the_binary_one(bank: str) -> None:
    found = sound(ascii_list(ALL, bank))
    assert (found.form, found.order, found.bank.name) == ("ascii", "little", bank)
    assert found.data == binary_list(ALL, bank)
    assert found.unproven == 1
    assert list(found.lines or ()) == list(range(1, len(ALL) + 1))


def test_every_template_is_there() -> None:
    assert set(FORMATS) < set(EACH)


def test_an_ascii_list_with_padded_digests() -> None:
    text = ascii_list(ALL, "sha512", padded=True)
    assert sound(text).data == binary_list(ALL, "sha512", padded=True)


def _quoted(text: bytes) -> bytes:
    return b"".join(b"> " + line for line in text.splitlines(keepends=True))


def _stripped(text: bytes) -> bytes:
    return b"".join(line.rstrip() + b"\n" for line in text.splitlines())


MANGLED: dict[str, Callable[[bytes], bytes]] = {
    "quoted": _quoted,
    "quoted twice": lambda text: _quoted(_quoted(text)).replace(b"> > ", b">> "),
    "quoted and stripped": lambda text: _stripped(_quoted(text)),
    "indented": lambda text: b"".join(b"    " + line for line in text.splitlines(keepends=True)),
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "CRLF without the last": lambda text: text.replace(b"\n", b"\r\n")[:-2],
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "no last newline": lambda text: text[:-1],
    "stripped": _stripped,
    "fenced": lambda text: b"\n```text\n" + text + b"```\n\n",
    "upper case": lambda text: b"".join(
        line.replace(line[3:43], line[3:43].upper()) for line in text.splitlines(keepends=True)
    ),
}


@pytest.mark.parametrize("how", MANGLED)
def test_what_happens_to_an_ascii_list_on_its_way(how: str) -> None:
    assert sound(MANGLED[how](ascii_list(ALL, "sha1"))).data == binary_list(ALL, "sha1")


#: Names that a text shows in a way of their own. A kernel stores no blank since 3.13.
ODD = (
    *(b"/a b", b" ", b"/two  blanks", b"/ends in one ", b"ima-ng sha256:00", b"/a deadbeef"),
    *(b"/a\nb", b"/a\n\nb\n", b"/a\n10 " + b"0" * 40 + b" ima-ng sha256:00 /b", b"/tab\t"),
    *(b"/\xff\xfe", "/größe/\u4e16".encode(), b"/cr\r", b"/\r\n", b"/\x1b[2J", b"\x01", b"> /x"),
    *(b"/" + b"x" * 4000, b"", b"```"),
)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("label", ["ima-ng", "ima-sig", "n-ng|d-ng", "evm-sig"])
def test_odd_names_are_proven_by_their_digest(name: bytes, label: str) -> None:
    parts = {
        "ima-ng": (SHA256, name + b"\0"),
        "ima-sig": (SHA256, name + b"\0", b"\3\2"),
        "n-ng|d-ng": (name + b"\0", SHA256),
        "evm-sig": (SHA256, name + b"\0", *EACH["evm-sig"][2:]),
    }[label]
    recs = [ng(10, b"first"), Rec(10, label, parts), ng(10, b"last")]
    assert sound(ascii_list(recs, "sha256")).data == binary_list(recs, "sha256")


@pytest.mark.parametrize("name", [b"/ends in a blank ", b"/in  two  ", b"/a b"])
def test_blanks_that_an_editor_took_from_a_name_come_back(name: bytes) -> None:
    recs = [ng(10, b"first"), ng(10, name), ng(10, b"last")]
    assert sound(_stripped(ascii_list(recs, "sha1"))).data == binary_list(recs, "sha1")


def _violation(label: str, *parts: bytes) -> Rec:
    return Rec(10, label, (b"sha256:\0" + bytes(32), *parts), violation=True)


@pytest.mark.parametrize(
    ("recs", "mangle"),
    [
        ([_violation("ima-ng", b"/a b\0")], bytes),
        ([_violation("ima-sig", b"/a\0", b"")], bytes),
        ([_violation("ima-sig", b"/a\0", b"")], _stripped),
        ([_violation("ima-modsig", b"/a\0", b"", b"", b"")], bytes),
        ([_violation("ima-modsig", b"/a\0", b"", b"", b"")], _stripped),
        ([_violation("evm-sig", b"/a\0", b"", b"", b"", b"", u32(10), u32(20), b"\1\2")], bytes),
    ],
)
def test_a_violation_is_made_again_unproven(recs: list[Rec], mangle: object) -> None:
    recs = [ng(10, b"first"), *recs, ng(10, b"last")]
    found = sound(mangle(ascii_list(recs, "sha1")))  # type: ignore[operator]
    assert found.data == binary_list(recs, "sha1")
    assert found.unproven == 1


@pytest.mark.parametrize(
    ("rec", "reason"),
    [
        (_violation("ima-ng", b"/a\nb\0"), "newline in its name"),
        (_violation("ima-ng", b"/a\n\0"), "newline in its name"),
        (_violation("ima-sig", b"/a be\0", b""), "is ambiguous"),
        (_violation("ima-sig", b"/a b cafe\0", b"\xaa"), "is ambiguous"),
    ],
)
def test_a_violation_with_an_ambiguous_name_is_refused(rec: Rec, reason: str) -> None:
    text = _stripped(ascii_list([ng(10, b"first"), rec], "sha1")) + ascii_list(
        [ng(10, b"last")], "sha1"
    )
    with pytest.raises(FormatError, match=reason) as caught:
        list(parse(text).records("list"))
    assert (caught.value.line, caught.value.record) == (2, 1)
    assert str(caught.value).startswith("list: line 2, record 1: ")


@pytest.mark.parametrize("width", [76, 100])
def test_lines_that_a_mail_has_wrapped_are_proven(width: int) -> None:
    """At blanks; not those of a violation, of which no digest says where it ends."""
    recs = [rec for rec in ALL if not rec.violation and rec.label not in ("evm-sig", "ima-modsig")]

    lines = ascii_list(recs, "sha1").decode().splitlines()
    wrapped = [
        textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in lines
    ]
    text = "".join(f"> {piece}\n" for pieces in wrapped for piece in pieces)
    assert text.count("\n") > len(recs)
    assert sound(text.encode()).data == binary_list(recs, "sha1")


def test_violations_alone_do_not_say_their_bank() -> None:
    recs = [violation(10, b"/v"), violation(10, b"/w")]
    with pytest.raises(FormatError, match="name it with --bank"):
        parse(ascii_list(recs, "sha256"))
    named = sound(ascii_list(recs, "sha256"), bank=list_bank_named("sm3"))
    assert named.data == binary_list(recs, "sha256")


def test_a_changed_ascii_record_is_named_with_its_line() -> None:
    lines = ascii_list(ALL, "sha1").splitlines(keepends=True)
    lines[2] = lines[2].replace(b"/bin/ng", b"/bin/nG")
    (fault,) = faults(parse(b"\n" + b"".join(lines)))
    assert (fault.number, fault.line, fault.start, fault.name) == (2, 4, None, b"/bin/nG")
    assert "is not that of the template data" in fault.reason


def test_a_name_that_went_through_a_lossy_conversion() -> None:
    recs = [ng(10, b"first"), ng(10, b"/\xff"), ng(10, b"last")]
    text = ascii_list(recs, "sha1").decode(errors="replace").encode()
    (fault,) = faults(parse(text))
    assert "U+FFFD" in fault.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "no record"),
        (b"10 " + b"ab" * 20 + b" ima-ng sha256:xyz /a", "not those of template ima-ng"),
        (b"10 " + b"ab" * 32 + b" ima-ng sha256:00 /a", "of 256 bits in a list of sha1"),
        (b"99999999999 " + b"ab" * 20 + b" ima-ng sha256:00 /a", "no record"),
        (b"4294967296 " + b"ab" * 20 + b" ima-ng sha256:00 /a", "PCR 4294967296"),
        (b"64 " + ng(64, b"/a").ascii(ng(64, b"/a").digest("sha1"))[3:-1], "PCR 64 is out of"),
        (b"10 " + b"ab" * 20 + b" (x) sha256:00 /a", "unknown template"),
        (b"10 " + b"ab" * 20 + b" ima " + b"00" * 20 + b" /" + b"x" * 300, "of template ima"),
    ],
)
def test_lines_that_are_no_record_are_passed_over(line: bytes, reason: str) -> None:
    before, after = [ng(10, b"/one"), ng(10, b"/two")], [ng(11, b"/three")]
    text = ascii_list(before, "sha1") + line + b"\n" + ascii_list(after, "sha1")
    found = parse(text)
    items = list(found.items())
    (fault,) = faults(found)
    assert reason in fault.reason
    assert (fault.number, fault.line) == (2, 3)
    assert isinstance(items[-1], Parsed)
    assert items.index(fault) == 2


@pytest.mark.parametrize("label", ["ima-ng", "ima-sig", "evm-sig", "n-ng|n-ng|n-ng", "ima-x"])
def test_a_line_of_blanks_takes_no_time(label: str) -> None:
    """It has more readings than can be tried."""
    line = b"10 " + b"ab" * 20 + b" " + label.encode() + b" sha256:00" + b" z" * 20000 + b" "
    found = parse(ascii_list([ng(10, b"/one")], "sha1") + line + b"\n")
    assert len(faults(found)) == 1


@pytest.mark.parametrize("label", ["ima-sig", "evm-sig", "ima-x"])
@pytest.mark.parametrize("first", [True, False])
def test_a_hostile_list_is_hashed_some_times_at_most(
    label: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line with all its readings, alone and with those behind it, would take minutes."""
    hashed = 0
    real = Template.hash_input

    def counting(template: Template, data: bytes) -> bytes:
        nonlocal hashed
        hashed += len(data) + 200
        return real(template, data)

    monkeypatch.setattr(Template, "hash_input", counting)
    line = b"10 " + b"ab" * 20 + b" " + label.encode() + b" sha256:00" + b" aa" * 200 + b"\n"
    data = first * ascii_list([ng(10, b"/one")], "sha1") + line * 400
    found = parse(data)
    assert len(found.lines or ()) == 400 + first
    # Half of it goes into readings of lines behind which the budget was found to be spent.
    assert hashed < 2 * (10 * len(data) + (2 << 20))


# Other hashes


@pytest.mark.parametrize(
    ("bank", "known"),
    [
        *(("sm3", "sm3"), ("sha3-256", "sha3_256"), ("sha3-512", "sha3_512")),
        *(("sha224", "sha224"), ("md5", "md5"), ("rmd160", "ripemd160")),
    ],
)
def test_hashes_are_told_apart_by_their_digests(bank: str, known: str) -> None:
    recs = [ng(10, b"boot_aggregate"), ng(10, b"/a")]

    def digest(rec: Rec) -> bytes:
        return hashlib.new(known, rec.hashed).digest()

    data = b"".join(rec.binary(digest(rec)) for rec in recs)
    assert sound(data).bank.name == bank
    text = b"".join(rec.ascii(digest(rec)) for rec in recs)
    found = sound(text)
    assert (found.bank.name, found.data) == (bank, data)


def test_a_hash_that_cannot_be_computed_is_named() -> None:
    rec = ng(10, b"/a")
    with pytest.raises(FormatError, match=r"of rmd256, wp256, streebog256 this machine knows"):
        list(parse(rec.binary(b"\x99" * 32)).records())
    with pytest.raises(FormatError, match=r"of rmd256, wp256, streebog256 this machine knows"):
        list(parse(rec.ascii(b"\x99" * 32)).records())


# Big endian


def big(rec: Rec, algorithm: str = "sha1") -> bytes:
    """The record as s390x writes it without ima_canonical_fmt; lengths are hashed so too."""
    label = rec.label.encode()
    if rec.label == "ima":
        digest, name = rec.parts
        data = digest + struct.pack(">I", len(name)) + name
        hashed = rec.hashed
    else:
        data = hashed = b"".join(struct.pack(">I", len(part)) + part for part in rec.parts)
    shown = bytes(20) if rec.violation else hashlib.new(algorithm, hashed).digest()
    length = b"" if rec.label == "ima" else struct.pack(">I", len(data))
    return (
        struct.pack(">I", rec.pcr) + shown + struct.pack(">I", len(label)) + label + length + data
    )


#: As :data:`ALL` on such a machine, and on a little-endian one.
BIG = [
    *(rec for rec in ALL if rec.label not in ("evm-sig", "d-ng|n-ng|imode")),
    Rec(10, "d-ng|n-ng|imode", (SHA256, b"/custom\0", b"\x81\xa4")),
    Rec(
        *(10, "evm-sig"),
        (
            *EACH["evm-sig"][:4],
            struct.pack(">II", 3, 4),
            b"abcdefg",
            *(struct.pack(">I", 0), struct.pack(">I", 1000), b"\x81\xa4"),
        ),
    ),
]


def test_a_big_endian_list_is_recognised() -> None:
    data = b"".join(map(big, BIG))
    found = sound(data)
    assert (found.form, found.order, found.bank.name) == ("binary", "big", "sha1")
    texts = [p.record.template.text(p.record.data) for p in found.records()]
    assert texts[-1].endswith(" 0 1000 33188")
    assert " /bin/x" in texts[1]


def test_a_big_endian_ascii_list_is_proven() -> None:
    data = b"".join(map(big, BIG))
    lines = []
    for parsed in parse(data).records():
        record = parsed.record
        text = record.template.text(record.data)
        lines.append(f"{record.pcr:2d} {parsed.digest.hex()} {record.template.label}{text}\n")
    found = sound("".join(lines).encode("latin-1"))
    assert (found.order, found.data) == ("big", data)


def test_numbers_become_little_endian_when_a_list_is_converted() -> None:
    for parsed in sound(b"".join(map(big, BIG[-2:]))).records():
        template, data = parsed.record.template.little(parsed.record.data)
        expected = EACH[template.label]
        assert template.order == "little"
        assert data == Rec(10, template.label, expected).data


# Templates that are not known

CGROUP = Rec(
    *(10, "ima-cgpath"),
    (b"ima-cgpath\0", b"/sys/fs/cgroup/user.slice\0", SHA256, b"/bin/x\0", b"\1\2", b""),
)
CGROUP_FIELDS = "n-ng|n-ng|d-ng|n-ng|sig|buf"


def _text_of(rec: Rec) -> bytes:
    as_custom = Rec(rec.pcr, CGROUP_FIELDS, rec.parts)
    line = as_custom.ascii(rec.digest("sha1"))
    return line.replace(CGROUP_FIELDS.encode(), rec.label.encode())


def test_an_unknown_template_shows_its_fields() -> None:
    recs = [ng(10, b"first"), CGROUP, ng(10, b"last")]
    found = sound(binary_list(recs, "sha1"))
    parsed = list(found.records())[1]
    assert parsed.record.template.opaque
    assert parsed.record.template.split(parsed.record.data) == list(CGROUP.parts)
    shown = parsed.record.template.text(parsed.record.data).encode()
    assert _text_of(CGROUP).endswith(shown + b"\n")


@pytest.mark.parametrize("fmt", [None, CGROUP_FIELDS])
def test_an_unknown_template_of_an_ascii_list(fmt: str | None) -> None:
    recs = [ng(10, b"first"), CGROUP, ng(10, b"last")]
    lines = [_text_of(rec) if rec is CGROUP else ascii_list([rec], "sha1") for rec in recs]
    assert sound(b"".join(lines), fmt=fmt).data == binary_list(recs, "sha1")


def test_unknown_template_data_without_lengths_is_one_field() -> None:
    body = b"\xff\xff\xff\xffraw"
    rec = ng(10, b"first")
    front = u32(10) + hashlib.sha1(body).digest() + u32(7) + b"ima-new" + u32(len(body))
    found = sound(rec.binary(rec.digest("sha1")) + front + body)
    assert [p.record.template.split(p.record.data) for p in found.records()][1] == [body]


def test_a_name_that_no_template_can_have_is_damage() -> None:
    data = binary_list(ALL, "sha1").replace(b"ima-sig", b"ima\0sig", 1)
    assert [fault.number for fault in faults(parse(data))] == [3]


# Damage


def test_a_changed_record_is_whole_and_named_by_its_start() -> None:
    data = bytearray(binary_list(ALL, "sha1"))
    start = len(binary_list(ALL[:3], "sha1"))
    data[start + 70] ^= 1
    found = parse(bytes(data))
    (fault,) = faults(found)
    assert (fault.number, fault.start, fault.name) == (3, start, b"/bin/sig")
    assert fault.parsed is not None
    assert len(list(found.items())) == len(ALL)
    message = f"x: record 3, byte {start} (/bin/sig): the sha1 template digest "
    assert str(fault.error("x")).startswith(message)


@pytest.mark.parametrize("inside", [24, 28, 34])
def test_behind_a_broken_length_the_next_proven_record_is_found(inside: int) -> None:
    """Of the template's name, the name itself, the length of the template data."""
    data = bytearray(binary_list(ALL, "sha1"))
    start = len(binary_list(ALL[:2], "sha1"))
    data[start + inside + 1] = 0xFF
    found = parse(bytes(data))
    (fault,) = faults(found)
    assert (fault.number, fault.start, fault.parsed) == (2, start, None)
    assert fault.resumed == len(binary_list(ALL[:3], "sha1"))
    assert len(list(found.items())) == len(ALL)


def test_a_list_that_is_cut_ends_in_a_fault() -> None:
    data = binary_list(ALL, "sha256")
    for size in range(len(binary_list(ALL[:1], "sha256")), len(data)):
        wrong = faults(parse(data[:size]))
        whole = max(n for n in range(len(ALL) + 1) if len(binary_list(ALL[:n], "sha256")) <= size)
        if len(binary_list(ALL[:whole], "sha256")) == size:
            assert wrong == []
            continue
        (fault,) = wrong
        assert (fault.number, fault.resumed) == (whole, None)
        assert fault.start == len(binary_list(ALL[:whole], "sha256"))


@pytest.mark.parametrize("pcr", [0, 17, 24, 63])
def test_records_of_every_pcr_that_a_rule_can_name(pcr: int) -> None:
    recs = [ng(10, b"first"), ng(pcr, b"/a")]
    assert sound(binary_list(recs, "sha1")).data == binary_list(recs, "sha1")
    assert sound(ascii_list(recs, "sha1")).data == binary_list(recs, "sha1")


def test_a_pcr_beyond_them_leaves_the_record_whole() -> None:
    data = binary_list([ng(10, b"first"), ng(64, b"/a"), ng(10, b"/b")], "sha1")
    found = parse(data)
    (fault,) = faults(found)
    assert fault.reason == "PCR 64 is out of range"
    assert fault.name == b"/a"
    assert len(list(found.items())) == 3


# The buffer of a kexec


def test_the_buffer_of_a_kexec() -> None:
    recs = ALL[2:]
    buffer = kexec_buffer.encode(binary_list(recs, "sha1"), len(recs))
    found = sound(buffer + bytes(100))
    assert (found.form, found.bank.name) == ("kexec", "sha1")
    assert next(found.records()).start == 24
    (fault,) = faults(parse(kexec_buffer.encode(binary_list(recs, "sha1"), len(recs) + 1)))
    assert fault.reason == f"the buffer ends after {len(recs)} of {len(recs) + 1} records"
    (fault,) = faults(parse(kexec_buffer.encode(binary_list(recs, "sha1"), len(recs) - 1)))
    assert fault.reason == f"the buffer goes on behind {len(recs) - 1} records"


def test_nothing_is_an_empty_list() -> None:
    found = sound(b"")
    assert (found.form, found.bank.name, list(found.items())) == ("binary", "sha1", [])


@pytest.mark.parametrize("data", [b"\n", b"hello world, this is no list at all\n", b"\x7fELF" * 30])
def test_what_is_no_list(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(parse(data).records())
