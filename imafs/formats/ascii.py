# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The ASCII list, from which the binary one is made again.

Every record's template digest says whether it was made right (:mod:`imafs.formats.readings`);
violations have none. What people do to a list on its way is undone: quoting, CRLF, a
BOM, blanks at the ends of lines, a last newline that is missing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from imafs.errors import FormatError
from imafs.formats import pasted
from imafs.formats.algorithms import SHA1, Bank, HashAlgorithm, list_bank
from imafs.formats.binary import (
    LIST_BANKS,
    ONLY_VIOLATIONS,
    ORDERS,
    Record,
    encode,
    not_computed,
    of_width,
)
from imafs.formats.fields import NAME_MAX
from imafs.formats.readings import plain, readings
from imafs.formats.templates import TEMPLATE_NAME_MAX, Order, Template, named

#: PCR, template digest, template's name and the fields; " 9" has a blank in front.
_RECORD = re.compile(
    rb"[ \t]*(?P<pcr>[0-9]{1,10}) (?P<digest>(?:[0-9A-Fa-f]{2}){16,64})"
    rb" (?P<label>[^ \t\r\n]+)(?: (?P<text>.*))?",
    re.DOTALL,
)
_QUOTE = re.compile(rb"(?:[ \t]*>)*[ \t]*")
#: What ends a line too for some tools that quote (Python's splitlines), but not in a list.
_BREAK = rb"[\r\v\f\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]"
_FENCE = re.compile(rb"[ \t]*(```|~~~)[^`]*")
#: Bytes and lines that are looked at to tell a list.
_HEAD = 1 << 16
_HEAD_LINES = 64
#: Lines that one name may have.
_MOST_LINES = 16
#: Lines that a mail makes of one: every field, and some of a name with blanks.
_MOST_WRAPPED = 12
#: Bytes that are hashed in search of readings: so many, and so many times the list. Of a list
#: that is as kernels write them it takes its size; a hostile one has any number of readings.
_FREE, _TIMES = 2 << 20, 10
#: What a reading costs beside its bytes.
_READING = 200


@dataclass(slots=True)
class Bad:
    """A line that is no record, in front of record ``record``."""

    record: int
    line: int
    reason: str


@dataclass(slots=True)
class Rebuilt:
    """The binary list of the same bank: ``lines`` are those of its records, from 1.

    ``unproven`` are violations, which no digest proves; ``bad`` what could not be read;
    ``hints`` say of records that nothing proves why that may be.
    """

    bank: Bank | None
    order: Order = "little"
    data: bytearray = field(default_factory=bytearray)
    lines: array[int] = field(default_factory=lambda: array("Q"))
    unproven: int = 0
    bad: list[Bad] = field(default_factory=list)
    hints: dict[int, str] = field(default_factory=dict)

    @property
    def faults(self) -> int:
        """Lines that are no records, and records that nothing proves."""
        return len(self.bad) + len(self.hints)

    @property
    def sound(self) -> int:
        """Records that nothing speaks against."""
        return len(self.lines) - len(self.hints)


def is_ascii_list(data: bytes) -> bool:
    """Whether these bytes are meant to be an ASCII list: some of its first lines is a record."""
    head = _plain(data[:_HEAD])
    if b"\0" in head:
        return False
    lines = head.split(b"\n")[:_HEAD_LINES]
    if any(_RECORD.match(line, _QUOTE.match(line).end()) for line in lines):  # type: ignore[union-attr]
        return True
    return pasted.meant_as_list(head)


def rebuild(data: bytes, bank: Bank | None = None, fmt: str | None = None) -> Rebuilt:
    """The binary list that ``data`` is the ASCII form of.

    ``bank`` is the list's; else the first digest that a record proves says it. ``fmt`` has the
    fields of templates that are not known. A record that nothing proves stands in the binary
    list with its digest, as it reads at first. Raises :class:`FormatError` where the bank
    remains unknown.

    Where the text is no sound list, texts that it may have been are tried as well
    (:mod:`imafs.formats.pasted`); the one with the fewest faults is taken.
    """
    data = _plain(data)
    first = list(enumerate(_lines(data), 1))
    tried = [first, first[:-1]] if data.endswith(b"\n") else [first]
    refusal: FormatError | None = None
    best: Rebuilt | None = None
    try:
        best = _Rebuilder(first, bank, fmt).run()
    except FormatError as error:
        refusal = error
    if best is None or best.faults:
        others = pasted.restored(data, _Proof(len(data), bank, fmt))
        for lines in chain([_unbroken(first, _quote(data.split(b"\n")))], others):
            if lines in tried:
                continue
            tried.append(lines)
            with suppress(FormatError):
                made = _Rebuilder(lines, bank, fmt).run()
                if best is None or (made.faults < best.faults and len(made.lines) >= best.sound):
                    best = made
    if best is None or (refusal is not None and not best.lines):
        assert refusal is not None
        raise refusal
    return best


def _plain(data: bytes) -> bytes:
    """Without the mark of an editor, and of two bytes for each character (PowerShell) one."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace").encode("utf-8", "surrogatepass")
    return data.removeprefix(b"\xef\xbb\xbf")


def _lines(data: bytes) -> list[bytes]:
    """The lines without quoting and line ends; behind the last newline an empty one.

    That one is needed where a name ends with a newline and the list's own last one is missing.
    """
    lines = data.split(b"\n")
    if all(line.endswith(b"\r") for line in lines[:-1]) and len(lines) > 1:
        lines = [line.removesuffix(b"\r") for line in lines]
    elif len(lines) == 1:
        lines = [lines[0].removesuffix(b"\r")]
    quote = _quote(lines)
    bare = quote.rstrip()
    return [
        line[len(quote) :] if line.startswith(quote) else line.removeprefix(bare) for line in lines
    ]


def _unbroken(lines: Sequence[pasted.Line], quote: bytes) -> list[pasted.Line]:
    """Without the quoting that stands within a name, behind a CR or the like."""
    if b">" not in quote:
        return list(lines)
    marks = re.escape(quote) + b"|" + re.escape(quote.rstrip())
    within = re.compile(b"(" + _BREAK + b")(?:" + marks + b")")
    return [(number, within.sub(rb"\1", line)) for number, line in lines]


def _quote(lines: Sequence[bytes]) -> bytes:
    """The text in front of every record, but for the blank in front of a narrow number."""
    common: bytes | None = None
    for line in lines:
        found = _QUOTE.match(line)
        assert found is not None
        record = _RECORD.match(line, found.end())
        if record is None:
            continue
        prefix = found[0]
        if len(record["pcr"]) == 1:
            prefix = prefix.removesuffix(b" ")
        if common is None:
            common = prefix
        while not prefix.startswith(common):
            common = common[:-1]
        if not common:
            break
    return common or b""


class _Rebuilder:
    def __init__(self, lines: Sequence[pasted.Line], bank: Bank | None, fmt: str | None) -> None:
        self._lines = [line for _, line in lines]
        self._numbers = [number for number, _ in lines]
        self._fmt = fmt
        self._known: dict[tuple[bytes, Order], Template] = {}
        self._last = 0
        self._others = ""
        self._budget = _FREE + _TIMES * sum(map(len, self._lines))
        self.out = Rebuilt(bank)

    def run(self) -> Rebuilt:
        """Line by line, once it is known of which bank and byte order the list is."""
        at, self._last = _edges(self._lines)
        self._identify(range(at, self._last))
        while at < self._last:
            match = _RECORD.fullmatch(self._lines[at])
            try:
                if match is None:
                    raise FormatError("this is no record")
                at += self._record(match, at)
            except FormatError as error:
                self.out.bad.append(Bad(len(self.out.lines), self._numbers[at], error.reason))
                at += 1
        return self.out

    def _identify(self, places: range) -> None:
        """Bank and byte order, of the first record that any of them proves."""
        out, width, doubt = self.out, 0, False
        for at in places:
            match = _RECORD.fullmatch(self._lines[at])
            if match is None:
                continue
            digest = _digest(match)
            width = width or len(digest)
            if not any(digest) or len(digest) != width or (doubt and self._budget < 0):
                continue
            algorithms = of_width(width)
            if out.bank is not None and out.bank.algorithm is not None:
                algorithms = (out.bank.algorithm,)
            for order in ORDERS:
                for algorithm in algorithms:
                    out.order = order
                    with suppress(FormatError):
                        if self._proven(match, match["text"], algorithm):
                            out.bank = out.bank or list_bank(algorithm)
                            return
            doubt = True
        out.order = "little"
        if out.bank is not None and width not in (0, out.bank.digest_size):
            raise FormatError(
                f"this is a list with digests of {8 * width} bits, not one of {out.bank.name}"
            )
        if width == 0:
            raise FormatError("no line of this text is a record of a list")
        if out.bank is None and not doubt:
            raise FormatError(ONLY_VIOLATIONS)
        if out.bank is None:
            out.bank = next((bank for bank in LIST_BANKS if bank.digest_size == width), None)
        if out.bank is None:
            raise FormatError(f"no hash has template digests of {8 * width} bits")
        self._others = not_computed(out.bank)

    def _record(self, match: re.Match[bytes], at: int) -> int:
        """Adds the record that begins in line ``at``; returns how many lines it has."""
        bank = self.out.bank
        assert bank is not None
        assert bank.algorithm is not None
        digest = _digest(match)
        if len(digest) != bank.digest_size:
            raise FormatError(
                f"a template digest of {8 * len(digest)} bits in a list of {bank.name}"
            )
        if not any(digest):
            self._add(match, self._violation(match, at), at)
            self.out.unproven += 1
            return 1
        text = match["text"]
        for more in range(_MOST_LINES):
            if more:
                if text is None or at + more >= len(self._lines) or self._budget < 0:
                    break
                text += b"\n" + self._lines[at + more]
            data = self._proven(match, text, bank.algorithm)
            if data is not None:
                self._add(match, data, at)
                return more + 1
        wrapped = self._wrapped(match, at, bank.algorithm)
        if wrapped is not None:
            self._add(match, wrapped[0], at)
            return wrapped[1]
        if (match["text"] or b"").endswith(b"\r"):
            data = self._proven(match, match["text"].removesuffix(b"\r"), bank.algorithm)
            if data is not None:
                self._add(match, data, at)
                return 1
        self._doubtful(match, at)
        return 1

    def _wrapped(
        self, match: re.Match[bytes], at: int, algorithm: HashAlgorithm
    ) -> tuple[bytes, int] | None:
        """The template data, and its number of lines, of a record that a mail broke at blanks."""
        text = match["text"]
        for end in range(at + 1, min(at + _MOST_WRAPPED, len(self._lines))):
            if self._begins_record(end) or self._budget < 0:
                break
            text = self._lines[end] if text is None else text + b" " + self._lines[end]
            data = self._proven(match, text, algorithm)
            if data is not None:
                return data, end + 1 - at
        return None

    def _doubtful(self, match: re.Match[bytes], at: int) -> None:
        """Adds a record that no reading of its line proves, as it reads at first."""
        template = self._template(match)
        first = next(_data(template, readings(template, match["text"])), None)
        if first is None:
            raise FormatError(f"the fields are not those of template {template.label}")
        self.out.hints[len(self.out.lines)] = self._hint(match, at)
        self._add(match, first, at)

    def _hint(self, match: re.Match[bytes], at: int) -> str:
        if "\ufffd".encode() in (match["text"] or b""):
            return "U+FFFD stands where bytes of its name were lost"
        if at + 1 < self._last and not self._begins_record(at + 1):
            return "was there more than a newline in its name?"
        return self._others

    def _begins_record(self, at: int) -> bool:
        return _RECORD.match(self._lines[at]) is not None

    def _violation(self, match: re.Match[bytes], at: int) -> bytes:
        template = self._template(match)
        found = list(_data(template, plain(template, match["text"])))
        if not found:
            raise FormatError(f"the fields are not those of template {template.label}")
        if len(found) > 1:
            raise FormatError(
                "the name of this violation is ambiguous: where it ends no digest says"
            )
        if at + 1 < self._last and not self._begins_record(at + 1):
            raise FormatError(
                "a violation, behind which is no record: a newline in its name, which no digest "
                "proves"
            )
        return found[0]

    def _proven(
        self, match: re.Match[bytes], text: bytes | None, algorithm: HashAlgorithm
    ) -> bytes | None:
        """The template data whose digest is that of the line, if any reading has it."""
        template, digest = self._template(match), _digest(match)
        for data in _data(template, readings(template, text)):
            message = template.hash_input(data)
            self._budget -= len(message) + _READING
            if algorithm.digest(message) == digest:
                return data
            if algorithm is not SHA1 and SHA1.digest(message).ljust(len(digest), b"\0") == digest:
                return data
            if self._budget < 0:  # the likeliest alone
                break
        return None

    def _template(self, match: re.Match[bytes]) -> Template:
        key = match["label"], self.out.order
        known = self._known.get(key)
        if known is None:
            if len(key[0]) > TEMPLATE_NAME_MAX:
                raise FormatError(f"a template name of {len(key[0])} bytes")
            known = self._known[key] = named(key[0].decode("latin-1"), key[1], self._fmt)
        return known

    def _add(self, match: re.Match[bytes], data: bytes, at: int) -> None:
        pcr = int(match["pcr"])
        if pcr >= 1 << 32:
            raise FormatError(f"PCR {pcr} is out of range")
        digest = _digest(match)
        self.out.data += encode(Record(pcr, self._template(match), data), digest)
        self.out.lines.append(self._numbers[at])


class _Proof(_Rebuilder):
    """Whether a line is a record, by its template digest: of any bank and byte order."""

    def __init__(self, size: int, bank: Bank | None, fmt: str | None) -> None:
        super().__init__([], bank, fmt)
        self._budget = _FREE + _TIMES * size

    def __call__(self, line: bytes) -> bool:
        match = _RECORD.fullmatch(line)
        if match is None or self._budget < 0:
            return False
        with suppress(FormatError):
            for self.out.order in ORDERS:
                for algorithm in of_width(len(match["digest"]) // 2):
                    if self._proven(match, match["text"], algorithm) is not None:
                        return True
        return False


def _digest(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match["digest"].decode("ascii"))


def _data(template: Template, found: Iterable[list[bytes]]) -> Iterator[bytes]:
    """Template data of those readings that the template can hold."""
    for parts in found:
        if len(parts) != len(template.fields) and not template.opaque:
            continue
        if template.is_ima and not _is_of_ima(*parts):
            continue
        yield template.join(parts)


def _is_of_ima(digest: bytes, name: bytes) -> bool:
    """Template data of ``ima`` has no lengths to tell other sizes."""
    return len(digest) in (16, 20) and 0 < len(name) <= NAME_MAX + 1 and name.endswith(b"\0")


def _edges(lines: Sequence[bytes]) -> tuple[int, int]:
    """First and behind the last line, without empty ones and fences around the list."""
    first, last = 0, len(lines)
    while first < last and _is_edge(lines[first]):
        first += 1
    while first < last and _is_edge(lines[last - 1]):
        last -= 1
    return first, last


def _is_edge(line: bytes) -> bool:
    return not line.strip() or _FENCE.fullmatch(line) is not None
