# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The bundle: one file with a quote and the records that lead to it. Pure: bytes in, bytes out.

It is a tar of a few plain files with fixed names. What is written is deterministic: the same
evidence gives the same bytes. What is read is hostile: nothing is unpacked, and a name that is
not one of these, a link, a directory, a second file of a name, a size beyond its limit or
anything behind the end refuses the whole. ``manifest.json`` is a claim of the attested machine;
a bundle that tpm2-tools, ``cat`` and ``tar`` made has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, cast

from imafs.attest.quote import Clock
from imafs.errors import FormatError
from imafs.formats.algorithms import ALGORITHMS
from imafs.formats.templates import Order
from imafs.lists.replay import PcrValues

FORMAT = "imafs-bundle"
VERSION = 1

MANIFEST, RECORDS = "manifest.json", "records.bin"
MESSAGE, SIGNATURE, PCRS = "quote.msg", "quote.sig", "quote.pcrs"
KEY, CERTIFICATES, FIRMWARE = "ak.pub", "ak.crt", "firmware.bin"

#: Names in their order in a bundle, and bytes at most.
MEMBERS: Mapping[str, int] = {
    MANIFEST: 64 << 10,
    KEY: 16 << 10,
    CERTIFICATES: 256 << 10,
    MESSAGE: 4 << 10,
    SIGNATURE: 4 << 10,
    PCRS: 64 << 10,
    FIRMWARE: 16 << 20,
    RECORDS: 1 << 30,
}
_NEEDED = (MESSAGE, SIGNATURE, PCRS, RECORDS)
#: Bytes of a bundle at most: its members, their headers, and what tar pads with.
MOST = sum(MEMBERS.values()) + (1 << 20)

_BLOCK = 512
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_WORD = re.compile(r"[\x20-\x7e]{1,200}")
_MOST_NUMBER = 1 << 62
_MOST_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that are missing behind record ``after``; ``records`` of them, where known."""

    after: int
    records: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the attested machine says of its evidence. Nothing in it is signed.

    Records ``first`` to ``first + count`` of ``life``, all up to the quote; ``excess`` came
    behind it and were left out. ``start`` are PCRs in front of the first one, ``end`` at the
    quote. ``padded`` banks hold zero-padded SHA-1. ``gaps`` and ``diverged`` (numbers of
    records) are what a keeper knows to be wrong.
    """

    imafs: str
    first: int
    count: int
    excess: int
    clock: Clock
    start: PcrValues = field(default_factory=dict)
    end: PcrValues = field(default_factory=dict)
    order: Order = "little"
    padded: tuple[str, ...] = ()
    life: str | None = None
    boot_ids: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    diverged: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """JSON, always the same for the same."""
        clock = self.clock
        value = {
            "format": FORMAT,
            "version": VERSION,
            "imafs": self.imafs,
            "life": self.life,
            "boot_ids": list(self.boot_ids),
            "clock": {
                "clock": clock.clock,
                "reset_count": clock.reset_count,
                "restart_count": clock.restart_count,
                "safe": clock.safe,
            },
            "order": self.order,
            "padded": list(self.padded),
            "first": self.first,
            "count": self.count,
            "excess": self.excess,
            "start": _hexed(self.start),
            "end": _hexed(self.end),
            "gaps": [{"after": gap.after, "records": gap.records} for gap in self.gaps],
            "diverged": list(self.diverged),
        }
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of a bundle as they are; ``manifest`` is read already."""

    records: bytes = field(repr=False)
    message: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    pcrs: bytes = field(repr=False)
    key: bytes | None = field(default=None, repr=False)
    certificates: bytes | None = field(default=None, repr=False)
    firmware: bytes | None = field(default=None, repr=False)
    manifest: Manifest | None = None

    def encode(self) -> bytes:
        """The tar."""
        manifest = None if self.manifest is None else self.manifest.encode()
        contents = {
            MANIFEST: manifest,
            KEY: self.key,
            CERTIFICATES: self.certificates,
            MESSAGE: self.message,
            SIGNATURE: self.signature,
            PCRS: self.pcrs,
            FIRMWARE: self.firmware,
            RECORDS: self.records,
        }
        out = []
        for name in MEMBERS:
            content = contents[name]
            if content is None:
                continue
            if len(content) > MEMBERS[name]:
                raise FormatError(f"{name}: {len(content)} bytes, more than a bundle may have")
            out += [_header(name, len(content)), content, bytes(-len(content) % _BLOCK)]
        return b"".join([*out, bytes(2 * _BLOCK)])


def decode(data: bytes) -> Bundle:
    """Reads a bundle. Raises :class:`FormatError` (byte, reason) for anything else."""
    found = _members(data)
    for name in _NEEDED:
        if name not in found:
            raise FormatError(f"{name} is missing")
    text = found.get(MANIFEST)
    return Bundle(
        *(found[RECORDS], found[MESSAGE], found[SIGNATURE], found[PCRS]),
        *(found.get(KEY), found.get(CERTIFICATES), found.get(FIRMWARE)),
        None if text is None else parse_manifest(text),
    )


#: Bytes in which the key of a bundle stands, if it has one, whoever wrote the archive.
KEY_WITHIN = sum(size + 1024 for name, size in MEMBERS.items() if name not in (FIRMWARE, RECORDS))


def key_of(head: bytes) -> bytes | None:
    """The key in the first bytes of a bundle; None where there is none. Of the rest nothing is
    known yet."""
    at = 0
    try:
        while len(block := head[at : at + _BLOCK]) == _BLOCK and any(block):
            name, size = _member(block, at)
            at += _BLOCK
            if name == KEY:
                return head[at : at + size] if at + size <= len(head) else None
            at += size + -size % _BLOCK
    except FormatError:
        return None
    return None


# tar: POSIX.1-1988 ustar, and what GNU tar writes of short names


def _header(name: str, size: int) -> bytes:
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        b"0".ljust(101, b"\0"),
        b"ustar\x0000",
        bytes(64) + b"0000000\0" * 2,
    )
    block = b"".join(fields).ljust(_BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _members(data: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    at = 0
    while True:
        block = data[at : at + _BLOCK]
        if len(block) < _BLOCK:
            raise FormatError("the archive has no end" if at else "is no tar archive", offset=at)
        if not any(block):
            break
        name, size = _member(block, at)
        if name in found:
            raise FormatError(f"{name} is there twice", offset=at)
        begin, end = at + _BLOCK, at + _BLOCK + size
        at = end + -size % _BLOCK
        if at > len(data):
            raise FormatError(f"the archive ends inside {name}", offset=len(data))
        if any(data[end:at]):
            raise FormatError(f"bytes behind {name}", offset=end)
        found[name] = data[begin:end]
    _check_end(data, at)
    return found


def _member(block: bytes, at: int) -> tuple[str, int]:
    """Name and size of a member. Raises :class:`FormatError`."""
    if block[257:265] not in (b"ustar\x0000", b"ustar  \0"):
        raise FormatError("is no tar archive (ustar)" if not at else "no header", offset=at)
    if sum(block) - sum(block[148:156]) + 8 * 0x20 != _octal(block[148:156], "checksum", at):
        raise FormatError("the checksum of a header is wrong", offset=at)
    raw = block[:100]
    text = raw.rstrip(b"\0").decode("latin-1")
    if block[156:157] not in (b"0", b"\0"):
        raise FormatError(f"{text[:60]!a} is no plain file: links and the like", offset=at)
    if any(block[157:257]) or any(block[345:500]):
        raise FormatError(f"{text[:60]!a} has a link or a prefix", offset=at)
    if text not in MEMBERS:
        names = ", ".join(MEMBERS)
        raise FormatError(f"{text[:60]!a} is none of {names}", offset=at)
    size = _octal(block[124:136], "size", at)
    if size > MEMBERS[text]:
        raise FormatError(f"{text}: {size} bytes, more than {MEMBERS[text]}", offset=at)
    return text, size


def _octal(digits: bytes, what: str, at: int) -> int:
    found = _OCTAL.fullmatch(digits)
    if found is None:
        raise FormatError(f"the {what} of a header is no number", offset=at)
    return int(found[1], 8)


def _check_end(data: bytes, at: int) -> None:
    """Two blocks of zeros, and zeros up to the record that a tape would have."""
    rest = data[at:]
    if len(rest) < 2 * _BLOCK or len(rest) % _BLOCK or len(rest) > 1 << 20 or any(rest):
        raise FormatError("bytes behind the end of the archive, or no end", offset=at)


# manifest.json


def parse_manifest(data: bytes) -> Manifest:
    """Reads a manifest: every key known, none missing. Raises :class:`FormatError`."""
    value = _json(data)
    row = _object(value, "the manifest")
    if row.get("format") != FORMAT:
        raise _wrong("no manifest of a bundle")
    if row.get("version") != VERSION or row["version"] is True:
        raise _wrong("the manifest is of another version than 1: a newer imafs reads it")
    _only(row, _KEYS, "the manifest")
    clock = _object(row["clock"], "clock")
    _only(clock, _CLOCK, "clock")
    counters = [_number(clock[key], key) for key in ("clock", "reset_count", "restart_count")]
    order = row["order"]
    if order not in ("little", "big"):
        raise _wrong("order is neither little nor big")
    life = row["life"]
    return Manifest(
        imafs=_text(row["imafs"], "imafs"),
        first=_number(row["first"], "first"),
        count=_number(row["count"], "count"),
        excess=_number(row["excess"], "excess"),
        clock=Clock(counters[0], counters[1], counters[2], _truth(clock["safe"], "safe")),
        start=_values(row["start"], "start"),
        end=_values(row["end"], "end"),
        order=cast("Literal['little', 'big']", order),
        padded=tuple(_bank(name) for name in _list(row["padded"], "padded")),
        life=None if life is None else _text(life, "life"),
        boot_ids=tuple(_text(name, "boot_ids") for name in _list(row["boot_ids"], "boot_ids")),
        gaps=tuple(map(_gap, _list(row["gaps"], "gaps"))),
        diverged=tuple(_number(place, "diverged") for place in _list(row["diverged"], "diverged")),
    )


_KEYS = frozenset(
    {
        *("format", "version", "imafs", "life", "boot_ids", "clock", "order", "padded", "first"),
        *("count", "excess", "start", "end", "gaps", "diverged"),
    }
)
_CLOCK = frozenset({"clock", "reset_count", "restart_count", "safe"})
_BANKS = {a.name: a.digest_size for a in ALGORITHMS}


def _wrong(reason: str) -> FormatError:
    return FormatError(reason, source=MANIFEST)


def _json(data: bytes) -> object:
    def pairs(found: Iterable[tuple[str, object]]) -> dict[str, object]:
        out: dict[str, object] = {}
        for key, value in found:
            if key in out:
                raise _wrong(f"{key[:60]!a} is there twice")
            out[key] = value
        return out

    def no_number(text: str) -> NoReturn:
        raise _wrong(f"{text[:60]!a} is no whole number")

    try:
        return cast(
            "object",
            json.loads(
                data.decode("ascii"),
                object_pairs_hook=pairs,
                parse_constant=no_number,
                parse_float=no_number,
            ),
        )
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _wrong(f"no JSON: {why}") from None


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{what} is no object")
    return value


def _only(row: Mapping[str, object], keys: frozenset[str], what: str) -> None:
    for key in sorted(row.keys() ^ keys):
        raise _wrong(f"{key[:60]!a} is {'unknown' if key in row else 'missing'} in {what}")


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list) or len(value) > _MOST_ROWS:
        raise _wrong(f"{what} is no list of at most {_MOST_ROWS}")
    return value


def _number(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_NUMBER:
        raise _wrong(f"{what} is no number from 0 on")
    return value


def _truth(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(f"{what} is neither true nor false")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise _wrong(f"{what} is no short text")
    return value


def _bank(value: object) -> str:
    if not isinstance(value, str) or value not in _BANKS:
        raise _wrong("a bank that is none")
    return value


def _gap(value: object) -> Gap:
    row = _object(value, "a gap")
    _only(row, frozenset({"after", "records"}), "a gap")
    records = row["records"]
    return Gap(
        _number(row["after"], "after"), None if records is None else _number(records, "records")
    )


def _values(value: object, what: str) -> dict[str, dict[int, bytes]]:
    out: dict[str, dict[int, bytes]] = {}
    for bank, row in _object(value, what).items():
        name = _bank(bank)
        found = out[name] = {}
        for pcr, digits in _object(row, what).items():
            if not re.fullmatch("[1-9]?[0-9]", pcr) or int(pcr) > 63:
                raise _wrong(f"{what}: {pcr[:60]!a} is no PCR")
            if not isinstance(digits, str) or not _HEX.fullmatch(digits):
                raise _wrong(f"{what}: no digits in lower case")
            found[int(pcr)] = bytes.fromhex(digits)
            if len(found[int(pcr)]) != _BANKS[name]:
                raise _wrong(f"{what}: {len(digits)} digits are no value of bank {name}")
    return out


def _hexed(values: PcrValues) -> dict[str, dict[str, str]]:
    return {
        bank: {str(pcr): value.hex() for pcr, value in sorted(row.items())}
        for bank, row in values.items()
    }
