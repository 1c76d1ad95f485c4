# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Repairs of ASCII lists that mails, terminals and tools have changed.

:func:`restored` gives texts that a damaged one may have been. None of them is believed: the
template digests of the records choose (:func:`imafs.formats.ascii.rebuild`).
"""

from __future__ import annotations

import quopri
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

#: A line of the text, and the number of the line that it began in, from 1.
Line = tuple[int, bytes]
#: Whether the template digest of a line is that of a reading of it.
Proves = Callable[[bytes], bool]

_QUOTE = re.compile(rb"(?:[ \t]*[>|])*[ \t]*")
#: Number of the PCR and a digest, or a digest's beginning, behind whatever stands in front.
_START = re.compile(
    rb"(?<![0-9A-Za-z/])(?P<pcr>[0-9]{1,2})[ \t]+(?P<digest>[0-9A-Fa-f]{16,128})(?![0-9A-Za-z])"
)
_NUMBER = re.compile(rb"[0-9]{1,2}")
_HEX = re.compile(rb"[0-9A-Fa-f]{32,128}")
_DIGEST = re.compile(rb"(?<![0-9A-Za-z])[0-9A-Fa-f]{32,128}(?![0-9A-Za-z])")
#: The number in one line, the digest in the next one.
_APART = re.compile(
    rb"^(?:[ \t]*[>|])*[ \t]*[0-9]{1,2}[ \t]*\r?\n"
    rb"(?:[ \t]*[>|])*[ \t]*[0-9A-Fa-f]{32,128}[ \t\r\n]",
    re.MULTILINE,
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
#: Bytes of a record's first number, its PCR.
_SHORTEST = 4
_SOFT_BREAK = re.compile(rb"=\r?\n")
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_NO_BREAK = "\u00a0".encode()
#: Hexadecimal digits of the template digests of all banks.
_WIDTHS = (32, 40, 56, 64, 96, 128)
#: Lines that one record was broken into, and how many of its breaks are tried one by one.
_MOST_LINES = 16
_MOST_BREAKS = 6


def meant_as_list(head: bytes) -> bool:
    """Whether a text has what only a list has: a digest behind the number of a PCR."""
    cleaned = _cleaned(head)
    return (_START.search(cleaned) or _APART.search(cleaned)) is not None


def is_text(head: bytes) -> bool:
    """Whether this is a text of whatever kind; each record of a binary list has a NUL.

    Less than a PCR's number may be what is left of one.
    """
    return len(head) >= _SHORTEST and _CONTROL.search(head) is None


def restored(data: bytes, proves: Proves) -> Iterator[list[Line]]:
    """The lines of each text that ``data`` may have been, the likeliest first."""
    texts = [_numbered(data)]
    if _SOFT_BREAK.search(data):
        texts.insert(0, _unquoted_printable(texts[0]))
    for lines in texts:
        yield _joined([(number, _cleaned(line)) for number, line in lines], proves)


def _numbered(data: bytes) -> list[Line]:
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    lines = data.removesuffix(b"\n").split(b"\n")
    return [(at + 1, line.removesuffix(b"\r")) for at, line in enumerate(lines)]


def _cleaned(line: bytes) -> bytes:
    """Without the colours of a terminal and a browser's blanks."""
    return _ESCAPES.sub(b"", line).replace(_NO_BREAK, b" ")


def _unquoted_printable(lines: Sequence[Line]) -> list[Line]:
    """RFC 2045: a line that ends in = goes on in the next one."""
    out: list[Line] = []
    begun: Line | None = None
    for number, line in lines:
        first, text = begun or (number, b"")
        soft = line.endswith(b"=")
        text += line.removesuffix(b"=")
        begun = (first, text) if soft else None
        if not soft:
            out.append((first, quopri.decodestring(text)))
    if begun is not None:
        out.append((begun[0], quopri.decodestring(begun[1])))
    return out


@dataclass(slots=True)
class _Group:
    """The lines of one record: ``parts`` without quoting, and those behind the record."""

    number: int
    parts: list[bytes]
    rest: list[Line] = field(default_factory=list)
    found: bytes | None = None
    #: Whether an empty line is behind it.
    closed: bool = False


def _joined(lines: Sequence[Line], proves: Proves) -> list[Line]:
    """Each record in a line of its own, whatever stood around the list left out."""
    before, groups = _groups(lines)
    style: bytes | None = None
    for group in groups:
        style = _prove(group, style, proves)
    spaced = all(group.closed for group in groups[:-1])
    out = [line for line in before if _DIGEST.search(line[1])]
    for group in groups:
        violation = _is_violation(group.parts[0])
        if group.found is None:
            _guess(group, style)
        assert group.found is not None
        out.append((group.number, group.found))
        # A line behind a violation may be of its name: nothing proves that it is not.
        kept = violation or group is not groups[-1]
        if violation and group.closed and not spaced:
            out.append((group.number, b""))
        out += [line for line in group.rest if kept or _DIGEST.search(line[1])]
    return out


def _groups(lines: Sequence[Line]) -> tuple[list[Line], list[_Group]]:
    before: list[Line] = []
    groups: list[_Group] = []
    for at, (number, line) in enumerate(lines):
        bare = _bare(line)
        start = _START.search(line)
        if start is not None and not _DIGEST.search(line[: start.start()]):
            groups.append(_Group(number, [line[start.start() :].rstrip(b" \t\r")]))
        elif _begins(bare, lines[at + 1 : at + 2]):
            groups.append(_Group(number, [bare]))
        elif not bare or bare.startswith((b"```", b"~~~")):
            if groups:
                groups[-1].closed = True
        elif not groups:
            before.append((number, line))
        elif groups[-1].closed or len(groups[-1].parts) >= _MOST_LINES:
            groups[-1].rest.append((number, line))
        else:
            groups[-1].parts.append(bare)
    for group in groups:
        group.parts[0] = _blanks(group.parts[0])
    return before, groups


def _blanks(text: bytes) -> bytes:
    """With one blank behind the number and the digest; with blanks for all tabs if it has any
    there."""
    if b"\t" in text[: text.find(b" ") if b" " in text else len(text)]:
        text = text.replace(b"\t", b" ")
    return re.sub(rb"[ \t]+", b" ", text, count=2)


def _bare(line: bytes) -> bytes:
    found = _QUOTE.match(line)
    assert found is not None
    return line[found.end() :].strip(b" \t\r")


def _begins(bare: bytes, following: Sequence[Line]) -> bool:
    """Whether the number of the PCR stands alone, since its digest took a whole line."""
    return (
        _NUMBER.fullmatch(bare) is not None
        and len(following) > 0
        and _HEX.match(_bare(following[0][1])) is not None
    )


def _prove(group: _Group, style: bytes | None, proves: Proves) -> bytes | None:
    """Finds the record in the group's lines; returns what joined them."""
    if len(group.parts) == 1:
        group.found = group.parts[0]
        return style
    for count in (1, *range(len(group.parts), 1, -1)):
        for joins in _joins(count - 1, style):
            text = _text(group.parts[:count], joins)
            if _has_digest(text) and proves(text):
                group.rest = _left(group, count) + group.rest
                group.found = text
                return joins[0] if joins else style
    return style


def _guess(group: _Group, style: bytes | None) -> None:
    """A record that nothing proves, broken as its neighbours were; or else its first line."""
    count = 1 if style is None else len(group.parts)
    for joins in _joins(count - 1, style):
        group.found = _text(group.parts[:count], joins)
        if _has_digest(group.found):
            break
    group.rest = _left(group, count) + group.rest


def _left(group: _Group, count: int) -> list[Line]:
    return [(group.number + n, group.parts[n]) for n in range(count, len(group.parts))]


def _joins(breaks: int, style: bytes | None) -> Iterator[tuple[bytes, ...]]:
    """The text that may stand where a line was broken: a blank that was there, or nothing."""
    style = b" " if style is None else style
    other = b"" if style else b" "
    alike = (style,) * breaks, (other,) * breaks
    yield from dict.fromkeys(alike)
    if 1 < breaks <= _MOST_BREAKS:
        for joins in product((style, other), repeat=breaks):
            if joins not in alike:
                yield joins


def _text(parts: Sequence[bytes], joins: Sequence[bytes]) -> bytes:
    return parts[0] + b"".join(join + part for join, part in zip(joins, parts[1:], strict=True))


def _has_digest(text: bytes) -> bool:
    words = text.split(b" ", 2)
    return len(words) > 2 and len(words[1]) in _WIDTHS


def _is_violation(text: bytes) -> bool:
    words = text.split(b" ", 2)
    return len(words) > 1 and not words[1].strip(b"0")
