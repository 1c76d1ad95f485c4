# SPDX-License-Identifier: GPL-2.0-only OR MIT
r"""The lines on the control socket: one JSON object each, ended by ``\n``.

Request ``{"op": "measure", "paths": ["/a"], "id": 1, "progress": true}``; any number of
``{"progress": {"done": 3, "total": 9}, "id": 1}``; then one answer ``{"ok": true, ...}`` or
``{"ok": false, "errno": "ENOENT", "error": "one line", "exit_code": 7}``. ``id`` (a string or
an integer) is optional and echoed. File names that are not UTF-8 travel as Python has them
(surrogateescape), which JSON's ``\udcXX`` can carry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from imafs.control.ops import RESERVED, Options, Table
from imafs.errors import ImafsError, UsageError
from imafs.text import shown

PROTOCOL = 1
MAX_REQUEST = 9 << 20  # bytes of one request line, its end included: 4 MiB as hexadecimal digits
#: Bytes above which a request is one long text, and values that stand beside it: everybody
#: else waits while it is parsed.
LONG_REQUEST, FEW = 1 << 20, 100
#: Rows of a list that are encoded between two turns of everybody else.
ROWS = 512
TEXT_MAX = 16384  # characters of an error: a path or two, and no request sent back

RequestId = str | int | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request that passed validation."""

    op: str
    options: Options = field(default_factory=Options)
    id: RequestId = None
    progress: bool = False


class BadRequestError(UsageError):
    """A request that is answered EINVAL; ``id`` is its id where it could be read."""

    def __init__(self, reason: str, request_id: RequestId = None) -> None:
        super().__init__(reason)
        self.id = request_id


def encode(message: Mapping[str, object]) -> bytes:
    """One line. Raises TypeError or ValueError for what JSON cannot say."""
    return _dumped(message) + b"\n"


def _dumped(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def pieces(message: Mapping[str, object]) -> Iterator[bytes]:
    """As :func:`encode`, in pieces of some rows each: a long list takes a while."""
    yield b"{"
    for number, (key, value) in enumerate(message.items()):
        yield (b"," if number else b"") + _dumped(key) + b":"
        if isinstance(value, list) and len(value) > ROWS:
            for start in range(0, len(value), ROWS):
                yield (b"," if start else b"[") + _dumped(value[start : start + ROWS])[1:-1]
            yield b"]"
        else:
            yield _dumped(value)
    yield b"}\n"


def decode(line: bytes) -> dict[str, object]:
    """The object on a line; :class:`UsageError` says what is wrong and where."""
    try:
        value = json.loads(
            line.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_no_duplicates,
        )
    except UnicodeDecodeError as error:
        raise UsageError(f"byte {error.start}: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"column {error.colno}: malformed JSON: {error.msg}") from None
    except RecursionError:
        raise UsageError("malformed JSON: nested too deeply") from None
    except ValueError as error:
        # int() refuses numbers of more than 4300 digits with a bare ValueError.
        raise UsageError(f"malformed JSON: {shown(error)}") from None
    if not isinstance(value, dict):
        raise UsageError("malformed request: not a JSON object")
    return value


def parse_request(table: Table, line: bytes) -> Request:
    """The request of ``table`` on a line; :class:`BadRequestError` says what is wrong and where."""
    try:
        if len(line) > LONG_REQUEST and sum(map(line.count, (b",", b"[", b"{"))) > FEW:
            raise UsageError(f"a request of more than {LONG_REQUEST} bytes has few values")
        message = decode(line)
    except UsageError as error:
        raise BadRequestError(str(error)) from None
    request_id = message.get("id")
    if request_id is not None and (
        isinstance(request_id, bool) or not isinstance(request_id, str | int)
    ):
        raise BadRequestError("id: expected a string or an integer")
    try:
        op = message.get("op")
        if not isinstance(op, str):
            raise UsageError("op: missing" if op is None else "op: expected a string")
        progress = message.get("progress", False)
        if not isinstance(progress, bool):
            raise UsageError("progress: expected true or false")
        options = {k: v for k, v in message.items() if k not in RESERVED}
        return Request(op, table.validate(op, options), request_id, progress)
    except UsageError as error:
        raise BadRequestError(str(error), request_id) from None


def success(result: Mapping[str, object], request_id: RequestId) -> dict[str, object]:
    """The answer to a request that was done."""
    return _with_id({"ok": True, **{k: v for k, v in result.items() if k != "ok"}}, request_id)


def failure(error: ImafsError, request_id: RequestId) -> dict[str, object]:
    """The answer to a request that was not done."""
    answer: dict[str, object] = {
        "ok": False,
        "errno": error.errno_name,
        "error": shown(error, TEXT_MAX),
        "exit_code": error.exit_code,
    }
    return _with_id(answer, request_id)


def progress(done: int, total: int, request_id: RequestId) -> dict[str, object]:
    """A progress line."""
    return _with_id({"progress": {"done": done, "total": total}}, request_id)


def _with_id(message: dict[str, object], request_id: RequestId) -> dict[str, object]:
    if request_id is not None:
        message["id"] = request_id
    return message


def _no_constant(name: str) -> NoReturn:
    raise UsageError(f"malformed JSON: {name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise UsageError("malformed JSON: a number is too large")
    return number


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise UsageError("malformed request: a key stands twice")
    return result


class LineBuffer:
    r"""Cuts received bytes into lines (without ``\n``), of at most ``limit`` bytes each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._searched = 0

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        self._data += data

    def next_line(self) -> bytes | None:
        """The next whole line, or None; :class:`UsageError` for one that is too long."""
        end = self._data.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._data)
        if (end if end >= 0 else self._searched) >= self._limit:
            raise UsageError(f"line longer than {self._limit} bytes")
        if end < 0:
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        self._searched = 0
        return line

    def rest(self) -> bytes:
        """What stands after the last line end, at the end of the stream."""
        rest, self._data, self._searched = bytes(self._data), bytearray(), 0
        return rest
