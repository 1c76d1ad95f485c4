# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Compressed files and tar archives, read as a stream with a bound for everything.

A small file can claim any size: an extended header or a long name of a GiB, a dictionary of
1.5 GiB, a file of zeros. Nothing is held here but one piece and one header, and each header,
name, count and sum has its most; nothing is ever written to a disk.

``tarfile`` (3.11, 3.12) is not fit for that, not even in a process with limits: an extended
header is read whole and searched in quadratic time, one that is broken is passed over with
what it says, a size that is no number counts as 0, and a broken header behind the first member
ends the archive in silence. A list would be shorter than it was, with success.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

BLOCK = 512
_PIECE = 1 << 18
#: Of a pax header (it may hold extended attributes), and of one long name.
_MOST_HEADER = 1 << 20
_MOST_NAME = 4096
#: Extended headers in a row: a pax header, a name, a link's target, one global.
_MOST_EXTENDED = 8
#: Bytes of all names together.
_MOST_NAMES = 4 << 20
_XZ, _GZIP, _BZIP2, _ZSTD = b"\xfd7zXZ\0", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd"
_COMPRESSIONS = {_XZ: "xz", _GZIP: "gzip", _BZIP2: "bzip2", _ZSTD: "zstd"}
#: log2 of zstd's largest window: as xz, 128 MiB.
_ZSTD_WINDOW = 27


class BrokenError(Exception):
    """``str()`` says in what the file is no archive, or more than a list can need."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``entries``: files in an archive; ``output``: bytes that may come out of what is
    compressed; ``memory``: bytes that a decompressor may take."""

    entries: int
    output: int
    memory: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of an archive. ``kind``: file, link (symbolic), hardlink, directory, or what
    else it is; ``target`` of a link, as it stands there."""

    name: str
    kind: str
    size: int
    target: str = ""


def compression(head: bytes) -> str | None:
    """How a file that begins so is compressed; None: not at all."""
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def is_header(block: bytes) -> bool:
    """Whether this is a member's header: no list begins so, its checksum says it."""
    if len(block) < BLOCK or not any(block[:BLOCK]):
        return False
    try:
        stored = _number(block[148:156])
    except BrokenError:
        return False
    return stored == sum(block[:148]) + 8 * 0x20 + sum(block[156:BLOCK])


def is_archive(block: bytes) -> bool:
    """Whether an archive begins so: with a header, or with the end of an empty one."""
    return len(block) == BLOCK and (not any(block) or is_header(block))


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's object with the manners of those of lzma and bz2."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


class Stream:
    """The content of a file, uncompressed: bytes one after the other."""

    def __init__(self, descriptor: int, limits: Limits) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        self._descriptor = descriptor
        self.limits = limits
        head = os.pread(descriptor, BLOCK, 0)
        self.compression = compression(head)
        self._source = self._pieces() if self.compression else self._plain()
        self._buffer = b""
        self._start = 0

    def _plain(self) -> Iterator[bytes]:
        while piece := os.read(self._descriptor, _PIECE):
            yield piece

    def _pieces(self) -> Iterator[bytes]:
        room = self.limits.output
        make = _DECOMPRESSORS[self.compression or ""]
        rest = os.read(self._descriptor, _PIECE)
        while rest:
            decompressor = make(self.limits.memory)
            while not decompressor.eof:
                if decompressor.needs_input and not rest:
                    rest = os.read(self._descriptor, _PIECE)
                    if not rest:
                        raise BrokenError(f"the {self.compression} file is cut")
                piece = decompressor.decompress(rest, _PIECE)
                rest = b""
                room -= len(piece)
                if room < 0:
                    raise BrokenError(
                        f"more than {self.limits.output >> 20} MiB come out of it, which no "
                        "lists of this size do"
                    )
                if piece:
                    yield piece
            rest = self._behind(decompressor.unused_data)

    def _behind(self, rest: bytes) -> bytes:
        """The bytes of another stream of the same kind behind a whole one; zeros are skipped."""
        while True:
            rest = rest.lstrip(b"\0")
            more = b"" if len(rest) > len(_XZ) else os.read(self._descriptor, _PIECE)
            if not more:
                break
            rest += more
        if rest and compression(rest) != self.compression:
            raise BrokenError(f"something else follows the end of the {self.compression} file")
        return rest

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the end only."""
        found = []
        while size:
            piece = self.some(size)
            if not piece:
                break
            found.append(piece)
            size -= len(piece)
        return b"".join(found)

    def some(self, most: int) -> bytes:
        """Some bytes, ``most`` at most; none at the end."""
        if self._start == len(self._buffer):
            self._buffer, self._start = next(self._source, b""), 0
        piece = self._buffer[self._start : self._start + most]
        self._start += len(piece)
        return piece

    def skip(self, size: int) -> bool:
        """Whether so many bytes were there; those of a plain file are not read."""
        inside = min(size, len(self._buffer) - self._start)
        self._start += inside
        size -= inside
        if size and self.compression is None:
            here = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            if size > os.fstat(self._descriptor).st_size - here:
                return False  # and perhaps more than lseek(2) takes
            os.lseek(self._descriptor, size, os.SEEK_CUR)
            return True
        while size:
            piece = self.some(size)
            if not piece:
                return False
            size -= len(piece)
        return True


def prepare(descriptor: int) -> None:
    """Loads what this file needs, while modules can be opened. Raises :class:`BrokenError`."""
    if compression(os.pread(descriptor, BLOCK, 0)) == "zstd":
        _zstd_module()


def _xz(memory: int) -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)


class _Zstd:
    """As it has an error of its own, which nobody else can name where there is no zstd."""

    def __init__(self, memory: int) -> None:
        zstd = _zstd_module()
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
        self._object = zstd.ZstdDecompressor(options=options)
        self._error: type[Exception] = zstd.ZstdError

    @property
    def eof(self) -> bool:
        return bool(self._object.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._object.needs_input)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._object.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        try:
            return bytes(self._object.decompress(data, max_length))
        except self._error as error:
            raise BrokenError(f"broken archive: {error}") from None


@cache
def _zstd_module() -> Any:
    """Python's from 3.14 on, else that of its developers; found once (see :func:`prepare`)."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        try:
            from backports import zstd  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise BrokenError(
                "is compressed with zstd: unpack it first, with zstd -d (or install backports.zstd)"
            ) from None
    return zstd


_DECOMPRESSORS: dict[str, Callable[[int], _Decompressor]] = {
    "xz": _xz,
    "gzip": lambda memory: _Gzip(),  # 32 KiB of window
    "bzip2": lambda memory: bz2.BZ2Decompressor(),  # 4 MiB
    "zstd": _Zstd,
}

#: What a broken file makes these raise.
ERRORS: tuple[Any, ...] = (lzma.LZMAError, zlib.error, EOFError, OSError, ValueError)


class Content:
    """The bytes of one file in an archive."""

    def __init__(self, stream: Stream, entry: Entry) -> None:
        self._stream = stream
        self._name = entry.name
        self._left = entry.size
        self._padding = -entry.size % BLOCK

    def pieces(self) -> Iterator[bytes]:
        """All of them, once. Raises :class:`BrokenError` where the archive ends before."""
        while self._left:
            piece = self._stream.some(self._left)
            if not piece:
                raise BrokenError(f"the archive is cut: {self._name} is not whole")
            self._left -= len(piece)
            yield piece

    def skip(self) -> None:
        """Goes to the next header."""
        if not self._stream.skip(self._left + self._padding):
            raise BrokenError(f"the archive is cut: {self._name} is not whole")


def walk(stream: Stream) -> Iterator[tuple[Entry, Content]]:
    """The entries of an archive, in order; a content is read before the next one is asked for.

    Raises :class:`BrokenError` and :data:`ERRORS`.
    """
    entries = names = extended = 0
    said: dict[str, str] = {}
    while True:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise BrokenError("the archive is cut: its end mark is missing")
        if not any(block):
            break
        if not is_header(block):
            raise BrokenError("broken archive: a header's checksum is wrong")
        kind = block[156:157]
        if kind in _EXTENDED:
            extended += 1
            if extended > _MOST_EXTENDED:
                raise BrokenError(f"more than {_MOST_EXTENDED} extended headers in a row")
            said |= _EXTENDED[kind](_header(stream, kind, _number(block[124:136])))
            continue
        entry = _entry(block, said)
        extended, said = 0, {}
        entries += 1
        if entries > stream.limits.entries:
            raise BrokenError(f"more than {stream.limits.entries} files in it")
        names += len(entry.name) + len(entry.target)
        if names > _MOST_NAMES:
            raise BrokenError(f"more than {_MOST_NAMES >> 20} MiB of names in it")
        content = Content(stream, entry)
        yield entry, content
        content.skip()
    if stream.compression is not None:
        # To its very end, where its own checksum stands.
        while stream.some(_PIECE):
            pass


_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"1": "hardlink", b"2": "link"}
_KINDS |= {b"5": "directory", b"S": "sparse file"}
#: No content follows, whatever their size says.
_EMPTY = frozenset({"hardlink", "link", "directory", "device"})


def _entry(block: bytes, said: dict[str, str]) -> Entry:
    """Of a header, and of what the extended headers before it said."""
    name, target = _text(block[:100]), _text(block[157:257])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    kind = _KINDS.get(block[156:157], "device")
    size = _number(block[124:136])
    if "size" in said:
        size = _decimal(said["size"])
    if kind == "file" and name.endswith("/"):
        kind = "directory"
    if kind == "file" and any(key.startswith("GNU.sparse.") for key in said):
        kind = "sparse file"
    name, target = said.get("path", name), said.get("linkpath", target)
    if max(len(name), len(target)) > _MOST_NAME:
        raise BrokenError(f"a name of more than {_MOST_NAME} characters in it")
    return Entry(name, kind, 0 if kind in _EMPTY else size, target)


def _header(stream: Stream, kind: bytes, size: int) -> bytes:
    most = _MOST_HEADER if kind in b"xgX" else _MOST_NAME
    if size > most:
        raise BrokenError(f"an extended header of {size} bytes in it, more than {most}")
    data = stream.read(size + -size % BLOCK)
    if len(data) < size:
        raise BrokenError("the archive is cut: an extended header is not whole")
    return data[:size]


def _pax(data: bytes) -> dict[str, str]:
    """``LENGTH KEY=VALUE\\n`` again and again (POSIX, pax)."""
    said: dict[str, str] = {}
    while data:
        digits, space, _ = data[:20].partition(b" ")
        size = _decimal(_text(digits))
        record = data[len(digits) + 1 : size]
        key, equals, value = record.partition(b"=")
        if not space or not equals or size > len(data) or value[-1:] != b"\n":
            raise BrokenError("broken archive: an extended header makes no sense")
        if len(key) <= _MOST_KEY:
            said[_text(key)] = _text(value[:-1])
        data = data[size:]
    return {key: value for key, value in said.items() if key in _WANTED or "sparse" in key}


#: What is taken from a pax header; times, owners and attributes are nobody's business here.
_WANTED = frozenset({"path", "linkpath", "size"})
_MOST_KEY = 256
_EXTENDED: dict[bytes, Callable[[bytes], dict[str, str]]] = {
    b"x": _pax,
    b"X": _pax,  # Solaris
    b"g": lambda data: {},  # for all that follow: comments, in practice
    b"L": lambda data: {"path": _text(data)},
    b"K": lambda data: {"linkpath": _text(data)},
}


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise BrokenError("broken archive: a number makes no sense")
    return int(text)


def _number(field: bytes) -> int:
    """Octal digits, or after a byte of 0x80 a binary number (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    if not text:
        return 0
    try:
        return int(text, 8) if text.isdigit() else _no_number()
    except ValueError:
        return _no_number()


def _no_number() -> int:
    raise BrokenError("broken archive: a number makes no sense")
