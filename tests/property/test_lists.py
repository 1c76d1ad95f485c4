# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Lists of any records, there and back; broken lists; any bytes at all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imafs.errors import FormatError
from imafs.formats.algorithms import Bank, by_name
from imafs.formats.binary import Parsed, detect, encode, read
from imafs.formats.fields import Measurement
from imafs.formats.templates import TEMPLATES, lookup
from imafs.formats.views import render_ascii, render_binary
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout
from tests.property.builders import BANKS, LABELS, banks, record, recs
from tests.property.reference import WIDTHS, Rec, ascii_list, binary_list, ng

lists = st.lists(recs(), max_size=8)
bank_names = st.sampled_from(BANKS)


@given(lists, bank_names)
def test_records_to_a_list_and_back(records: list[Rec], name: str) -> None:
    data = b"".join(encode(record(rec), rec.shown(name)) for rec in records)
    assert data == binary_list(records, name)
    parsed = list(read(data, banks(name)[0]))
    assert [p.record for p in parsed] == [record(rec) for rec in records]
    assert [p.digest for p in parsed] == [rec.shown(name) for rec in records]
    assert [p.end for p in parsed] == list(
        accumulate(len(rec.binary(rec.shown(name))) for rec in records)
    )


@pytest.mark.parametrize("label", LABELS)
@given(st.data())
def test_every_template_in_every_bank(label: str, data: st.DataObject) -> None:
    rec = data.draw(recs((label,)))
    for name in BANKS:
        (parsed,) = read(rec.binary(rec.shown(name)), banks(name)[0])
        assert parsed.record == record(rec)
        if not rec.violation:
            assert detect(rec.binary(rec.shown(name))).name == name


@given(lists, bank_names)
def test_the_views_are_the_lists_written_by_hand(records: list[Rec], name: str) -> None:
    offsets = [0, *accumulate(len(rec.binary(rec.shown("sha1"))) for rec in records)]
    data = binary_list(records, "sha1")
    digests = b"".join(rec.shown(name) for rec in records)
    text, ends = render_ascii(data, offsets, digests, WIDTHS[name])
    assert text == ascii_list(records, name)
    assert ends == list(accumulate(len(rec.ascii(rec.shown(name))) for rec in records))
    binary, ends = render_binary(data, offsets, digests, WIDTHS[name])
    assert binary == binary_list(records, name)
    assert ends == list(accumulate(len(rec.binary(rec.shown(name))) for rec in records))


@given(st.binary(max_size=200), st.sampled_from([None, *BANKS]))
def test_any_bytes_are_a_list_or_a_format_error(data: bytes, name: str | None) -> None:
    _read_or_refuse(data, name)


@given(
    lists.filter(bool),
    bank_names,
    st.sampled_from([None, *BANKS]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    st.integers(0, 1 << 16),
)
@example([ng(10, b"/a")], "sha1", None, [], 26)
def test_mutated_lists_are_a_list_or_a_format_error(
    records: list[Rec], written: str, name: str | None, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(binary_list(records, written))
    for at, value in changes:
        data[at % len(data)] = value
    if cut % 3:
        del data[cut % len(data) :]
    _read_or_refuse(bytes(data), name)


def refusal(call: Callable[[], object]) -> FormatError | None:
    """The only exception that malformed input may raise, if it is raised."""
    try:
        call()
    except FormatError as error:
        return error
    return None


def _read_or_refuse(data: bytes, name: str | None) -> None:
    chosen: Bank | None = banks(name)[0] if name is not None else None
    parsed: list[Parsed] = []
    error = refusal(lambda: parsed.extend(read(data, chosen)))
    if error is not None:
        assert error.reason
        assert error.record is None or error.record >= 0
        assert error.offset is None or error.offset >= 0
        return
    # What is taken can be written again, without a difference.
    assert b"".join(encode(p.record, p.digest) for p in parsed) == data
    for p in parsed:
        p.record.template.text(p.record.data)


@given(st.sampled_from(sorted(TEMPLATES)), st.binary(max_size=300))
def test_any_template_data_splits_or_is_refused(label: str, data: bytes) -> None:
    template = lookup(label)
    error = refusal(lambda: template.split(data))
    if error is not None:
        assert error.offset is not None
        assert 0 <= error.offset <= len(data)
        return
    parts = template.split(data)
    assert len(parts) == len(template.fields)
    assert Rec(10, label, _parts(label, parts)).data == data
    template.text(data)


def _parts(label: str, parts: list[bytes]) -> tuple[bytes, ...]:
    return (parts[0], parts[1][:-1]) if label == "ima" else tuple(parts)


@given(
    st.sampled_from(sorted(TEMPLATES)),
    st.binary(max_size=400).map(lambda name: name.replace(b"\0", b"")),
    st.sampled_from(["md5", "sha1", "sha256", "sha512"]),
    st.booleans(),
)
def test_what_is_built_is_taken_back(
    label: str, name: bytes, algorithm: str, violation: bool
) -> None:
    chosen = by_name(algorithm)
    measurement = Measurement(
        name, chosen, b"\x5a" * chosen.digest_size, sha1=b"\xa5" * 20, violation=violation
    )
    template = TEMPLATES[label]
    data = template.build(measurement)
    parts = template.split(data)
    stored = name.replace(b" ", b"_")
    if label != "ima":
        assert parts[1] == stored + b"\0"
    else:
        assert len(parts[1]) <= 256
        assert stored.endswith(parts[1][:-1]) or len(name) > 255
    assert b" " not in parts[1]


@given(lists, st.sampled_from([("sha1", "sha256"), ("sha512", "sha384"), ("sha256",), ()]))
def test_a_queue_shows_what_was_put_in(records: list[Rec], tpm: tuple[str, ...]) -> None:
    queue = Queue(Layout(banks(*tpm)), disable_htable=True)
    for rec in records:
        queue.append(record(rec))
    newest = records[-1].binary(records[-1].shown("sha1")) if records else None
    assert queue.newest() == newest
