# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""ASCII lists as the emulator renders them, loaded: the same in all files, or refused with the
line of a record that nothing proves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imafs.errors import FormatError
from imafs.formats.algorithms import by_name
from imafs.formats.binary import Record
from imafs.formats.exports import Row, json_line
from imafs.formats.fields import Measurement
from imafs.formats.list_file import Fault, parse
from imafs.formats.templates import custom, lookup
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View
from imafs.sources.load import load
from tests.property.builders import BANKS, LABELS, banks, record, recs
from tests.property.reference import FORMATS, Rec, ascii_list, binary_list

#: Names that a kernel stores as they are, but for blanks, which become underscores.
NAMES = (
    *(b"boot_aggregate", b"/bin/ls", b"/sp ace", b" ", b"", b"/tab\there", b"/cr\r", b"/\x1b[2J"),
    *(b"/\xff\xfe", "/größe/\u4e16".encode(), b"/" + b"x" * 4095, b"/quote'\"\\", b"> /quoted"),
    *(b"/new\nline", b"/new\n\nlines\n", b"/a\r\nb", b"\n", b"/```", b"/#", b"\xef\xbb\xbf/bom"),
    *(b"/10 " + b"0" * 40 + b" ima-ng sha256:00 /x", b"/a\n10 " + b"a" * 40 + b" ima-ng a:b /x"),
    *(b"sha256:00", b"deadbeef", b"/a:b", b":", b"\x01\x02\x7f", b"/0", b"-", b"|"),
)
CUSTOM = ("n-ng|d-ng", "d-ng|n-ng|iuid|igid|imode")
TEMPLATES = (*FORMATS, *CUSTOM)
VIEWS = [View(form, bank) for form in (True, False) for bank in range(len(BANKS))]


def measurements(violations: bool) -> list[Measurement]:
    """One of every name, signed or not, and violations of the plain ones."""
    made = []
    for number, name in enumerate(NAMES):
        digest = hashlib.sha256(name).digest()
        made.append(
            Measurement(
                *(name, by_name("sha256"), digest),
                sha1=hashlib.sha1(name).digest(),
                signature=b"\3\2" + bytes((number,)) * (number % 3) if number % 2 else b"",
                buf=name * (number % 2),
                modsig_digest=b"sha1:\0" + bytes(20) if number % 3 == 0 else b"",
                modsig=b"\x30\x82" * (number % 3),
                xattr_names=b"security.ima|security.evm" if number % 2 else b"",
                xattr_lengths=b"\1\0\0\0\2\0\0\0",
                xattr_values=b"\1\2\3",
                uid=number,
                gid=number * 1000,
                mode=0o100644,
            )
        )
    if violations:
        for name in (name for name in NAMES if b"\n" not in name):
            made.append(Measurement(name, by_name("sha256"), bytes(32), violation=True))
    return made


def emulated(label: str, violations: bool) -> tuple[Queue, list[Record]]:
    """A list of the emulator."""
    template = custom(label) if label in CUSTOM else lookup(label)
    queue = Queue(Layout(banks(*BANKS)), disable_htable=True)
    records = []
    for measurement in measurements(violations):
        data = template.build(measurement)
        records.append(Record(10, template, data, measurement.violation))
        queue.append(records[-1])
    return queue, records


def files(queue: Queue) -> list[bytes]:
    return [b"".join(queue.current.pieces(view)) for view in VIEWS]


MANGLED: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "quoted": lambda text: b"".join(b"> " + line for line in text.splitlines(keepends=True)),
    "without the last newline": lambda text: text[:-1],
}


@pytest.mark.parametrize("violations", [False, True])
@pytest.mark.parametrize("label", TEMPLATES)
def test_an_ascii_list_of_the_emulator_comes_back(
    label: str, violations: bool, tmp_path: Path
) -> None:
    """20 lists, in each bank: byte-identical in all files."""
    queue, _ = emulated(label, violations)
    expected = files(queue)
    for at, bank in enumerate(BANKS):
        path = tmp_path / bank
        path.write_bytes(expected[at])
        loaded = load(str(path))
        assert loaded.bank.name == bank
        again = Queue(Layout(banks(*BANKS)), disable_htable=True)
        for one in loaded.records:
            again.append(one)
        assert files(again) == expected, (label, bank)
        assert loaded.unproven == sum(one.violation for one in loaded.records)


@pytest.mark.parametrize("name", [name for name in NAMES if b"\n" in name])
@pytest.mark.parametrize("label", TEMPLATES)
def test_a_violation_with_a_newline_is_refused_with_its_line(
    label: str, name: bytes, tmp_path: Path
) -> None:
    queue, records = emulated(label, False)
    text = files(queue)[0]
    template = records[0].template
    measurement = Measurement(name, by_name("sha256"), bytes(32), violation=True)
    queue.append(Record(10, template, template.build(measurement), True))
    queue.append(records[0])
    path = tmp_path / "list"
    path.write_bytes(files(queue)[0])
    with pytest.raises(FormatError) as caught:
        load(str(path))
    first = text.count(b"\n") + 1
    assert caught.value.line is not None
    # A line within the name may look like a record: then that one is the first that is none.
    assert first <= caught.value.line <= first + name.count(b"\n") + 1
    assert re.match(rf"{path}: line {caught.value.line}, record {len(records)}", str(caught.value))


def unambiguous(rec: Rec) -> bool:
    """No violation of which the text leaves open what it was."""
    return not rec.violation or not any(b"\n" in part or b" " in part for part in rec.parts)


@pytest.mark.parametrize("how", MANGLED)
@given(st.lists(recs(LABELS).filter(unambiguous), min_size=1, max_size=6), st.sampled_from(BANKS))
@example([Rec(10, "ima-modsig", (b"md5:\0" + bytes(16), b"\r\0", b"", b"", b""))], "sha1")
@example([Rec(10, "ima", (bytes(range(20)), b"\n"))], "sha1")
@example([Rec(10, "ima-ng", (b"sha1:\0" + bytes(20), b"a\n\n\0"))], "sha256")
def test_any_list_is_proven_or_refused(how: str, records: list[Rec], bank: str) -> None:
    """Never taken for another one, but for violations, which are counted."""
    try:
        found = parse(MANGLED[how](ascii_list(records, bank)))
        parsed = list(found.records())
    except FormatError:
        if any(rec.violation for rec in records) or odd(records):
            return
        raise
    proven = [one.record for one in parsed if not one.record.violation]
    assert proven == [record(rec) for rec in records if not rec.violation]
    assert found.unproven == sum(rec.violation for rec in records)
    if not found.unproven:
        assert found.data == binary_list(records, bank)


@given(
    st.lists(recs(LABELS), min_size=1, max_size=4),
    st.sampled_from(BANKS),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
)
def test_what_is_damaged_is_shown_or_refused(
    records: list[Rec], bank: str, ascii: bool, changes: list[tuple[int, int]]
) -> None:
    """Whatever form it has: nothing but a FormatError, and every item can be printed."""
    data = bytearray((ascii_list if ascii else binary_list)(records, bank))
    for at, value in changes:
        data[at % len(data)] = value
    with suppress(FormatError):
        found = parse(bytes(data))
        for number, item in enumerate(found.items()):
            if isinstance(item, Fault):
                assert str(item.error("list")).startswith("list: ")
            parsed = item.parsed if isinstance(item, Fault) else item
            if parsed is not None:
                line = json.loads(json_line(Row(number, parsed, parsed.digest, by_name(bank))))
                assert line["pcr"] == parsed.record.pcr


def odd(records: list[Rec]) -> bool:
    """Fields whose text does not say their bytes: no kernel writes them."""
    return any(
        (name == "d" and len(part) not in (16, 20)) or (name == "d-ng" and not part)
        for rec in records
        for name, part in zip(rec.field_names, rec.parts, strict=True)
    )
