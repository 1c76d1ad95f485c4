# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The format of the lines: what is accepted, what is refused and how that is said."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imafs.control import wire
from imafs.control.ops import Options
from imafs.errors import FormatError, Refused, UsageError
from imafs.verbs.table import TABLE

BAD_LINES = [
    (b"", "column 1: malformed JSON"),
    (b"{", "column 2: malformed JSON"),
    (b'{"op": "status"} x', "column 18: malformed JSON"),
    (b'{"op": "\xff"}', "byte 8: not UTF-8"),
    (b"[1]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"op":"generate","count":NaN}', "NaN is not a JSON number"),
    (b'{"op":"generate","count":-Infinity}', "-Infinity is not a JSON number"),
    (b'{"op":"generate","count":1e999}', "a number is too large"),
    (b'{"op":"generate","count":' + b"9" * 5000 + b"}", "malformed JSON"),
    (b'{"op":"status","op":"stop"}', "a key stands twice"),
    (b"[" * 100_000, "nested too deeply"),
    (b"{}", "op: missing"),
    (b'{"op":1}', "op: expected a string"),
    (b'{"op":"status","progress":1}', "progress: expected true or false"),
    (b'{"op":"status","id":1.5}', "id: expected a string or an integer"),
    (b'{"op":"status","id":true}', "id: expected a string or an integer"),
    (b'{"op":"status","id":[]}', "id: expected a string or an integer"),
]


@pytest.mark.parametrize(("line", "text"), BAD_LINES)
def test_bad_line_is_named(line: bytes, text: str) -> None:
    with pytest.raises(wire.BadRequestError) as caught:
        wire.parse_request(TABLE, line)
    assert text in str(caught.value)
    assert caught.value.errno == errno.EINVAL


def test_request() -> None:
    request = wire.parse_request(TABLE, b'{"op":"load","file":"/f","id":"x","progress":true}')
    assert request == wire.Request("load", Options(file="/f"), "x", True)


def test_bad_request_keeps_its_id() -> None:
    with pytest.raises(wire.BadRequestError) as caught:
        wire.parse_request(TABLE, b'{"op":"fly","id":7}')
    assert caught.value.id == 7


def test_answers() -> None:
    assert wire.success({"a": 1, "ok": False}, 3) == {"ok": True, "a": 1, "id": 3}
    assert wire.success({}, None) == {"ok": True}
    assert wire.failure(Refused(errno.ENOENT, "two\nlines"), "i") == {
        **{"ok": False, "errno": "ENOENT", "error": "two\\x0alines", "exit_code": 7},
        "id": "i",
    }
    assert wire.failure(FormatError("short", record=3), None)["exit_code"] == 3


@given(st.binary())
def test_any_file_name_travels(name: bytes) -> None:
    text = os.fsdecode(name)
    line = wire.encode({"name": text})
    assert line.count(b"\n") == 1
    decoded = wire.decode(line[:-1])["name"]
    assert isinstance(decoded, str)
    assert os.fsencode(decoded) == name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
OPS = st.sampled_from(["measure", "violation", "generate", "load", "wait", "status", "hello", "x"])
KEYS = st.sampled_from(["paths", "digest", "name", "count", "file", "timeout", "id", "progress"])


@given(OPS | JSON, st.dictionaries(KEYS, JSON))
def test_any_object_is_a_request_or_refused(op: object, options: dict[str, object]) -> None:
    try:
        line = wire.encode({**options, "op": op})
    except ValueError:  # NaN and infinities cannot be said
        return
    with contextlib.suppress(wire.BadRequestError):
        assert wire.parse_request(TABLE, line[:-1]).op == op


@given(st.binary())
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    with pytest.raises(wire.BadRequestError):
        wire.parse_request(TABLE, line)


@given(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=20), st.data()
)
def test_lines_come_out_however_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    buffer = wire.LineBuffer(21)
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        buffer.feed(stream[:size])
        stream = stream[size:]
        while (line := buffer.next_line()) is not None:
            found.append(line)
    assert found == lines
    assert buffer.rest() == b"rest"


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_line_limit_counts_the_line_end(end: bytes) -> None:
    buffer = wire.LineBuffer(8)
    buffer.feed(b"1234567\n")
    assert buffer.next_line() == b"1234567"
    buffer.feed(b"12345678" + end)
    with pytest.raises(UsageError, match="longer than 8 bytes"):
        buffer.next_line()


def test_a_long_request_is_one_long_text() -> None:
    """Everybody waits while a request is parsed: a million numbers take too long."""
    data = "00" * (wire.LONG_REQUEST // 2)
    request = {"op": "critical_data", "label": "l", "name": "n", "data": data}
    assert wire.parse_request(TABLE, wire.encode(request)).options["data"] == data
    many = b'{"op": "status", "x": [' + b"1," * wire.LONG_REQUEST + b"1]}"
    with pytest.raises(wire.BadRequestError, match="has few values"):
        wire.parse_request(TABLE, many)
    with pytest.raises(wire.BadRequestError, match="longer than 1048576 characters"):
        wire.parse_request(TABLE, wire.encode({"op": "violation", "name": "x" * (1 << 20) + "x"}))


@pytest.mark.parametrize("rows", [0, 1, wire.ROWS, wire.ROWS + 1, 3 * wire.ROWS])
def test_pieces_make_the_same_line(rows: int) -> None:
    message = wire.success({"measured": [{"path": f"/{n}"} for n in range(rows)], "a": {"b": 1}}, 7)
    assert b"".join(wire.pieces(message)) == wire.encode(message)


def test_pieces_are_small() -> None:
    """Each is one turn of the event loop."""
    message = wire.success({"measured": [{"path": "/" * 100}] * 50 * wire.ROWS}, 1)
    assert max(map(len, wire.pieces(message))) < 120 * wire.ROWS
