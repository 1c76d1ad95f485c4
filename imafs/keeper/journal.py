# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The journal of a life: which bytes of its segments count, and what was known behind them.

One JSON object a line. Every line has the SHA-256 of the line before it (``prev``) and one of
itself (``sum``), so that a line counts only whole, unchanged and in its place. Kinds:

* ``frame``: records are in a segment, durably. It goes before the kernel is told to delete.
* ``done``: the kernel has deleted what the last frame holds.
* ``anchor``: replays begin here, with these PCRs; says why the earlier ones do not lead here.
* ``gap``: records may be missing here.
* ``seal``: a segment is full. A checkpoint: it stands for all its frames.

Pure. A journal may come from another machine or a broken disk: nothing in it is trusted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, NamedTuple

from imafs.errors import FormatError, StoreBrokenError
from imafs.formats.algorithms import by_name
from imafs.formats.binary import PCR_LIMIT
from imafs.keeper.facts import Anchor, Clock, Frame, Gap, How, Mode, Modes, PcrValues

Body = dict[str, Any]

#: What stands before the first line.
GENESIS = "0" * 64
#: Bytes of a line at most. Ours have about 1 KiB, four banks of 24 PCRs have 12, and a seal has all
#: anchors and kernels of its segment besides.
LINE_MAX = 1 << 20
#: Bytes of a journal at most: of 50,000 full segments. What it says stands in memory.
JOURNAL_MAX = 64 << 20
#: Lines that no sync has made durable, at most: a ``done`` and what goes before the next D.
UNSYNCED = 2
_SUM = re.compile(rb',"sum":"([0-9a-f]{64})"}\Z')
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_BANK = re.compile(r"[a-z0-9_-]{1,32}\Z")
_SEGMENT = re.compile(r"[0-9]{12}\.bin\Z")
_PCR = re.compile(r"[0-9]{1,2}\Z")
_LARGEST = 1 << 62
#: Banks in a table at most; TPMs have up to five.
_BANKS = 16


@dataclass(frozen=True, slots=True)
class Era:
    """From index ``first`` on records come from this kernel, whose banks have these modes."""

    first: int
    boot: str
    modes: Modes


@dataclass(frozen=True, slots=True)
class Seal:
    """A whole segment, and all that its lines said. ``frames``: how many of them there were so
    far; ``last``: the newest one, and ``done`` whether its batch is deleted."""

    segment: str
    first: int
    count: int
    size: int
    sha256: bytes
    index_sha256: bytes
    frames: int
    eras: tuple[Era, ...] = ()
    marks: tuple[Anchor | Gap, ...] = ()
    pcrs: PcrValues = field(default_factory=dict)
    last: Frame | None = None
    done: bool = True

    @property
    def end(self) -> int:
        """Index behind its last record."""
        return self.first + self.count


Item = Frame | Anchor | Gap | Seal | int


class Chain(NamedTuple):
    """What of a journal's bytes counts: the first ``good``, whose last line hashes to ``head``."""

    bodies: list[Body]
    head: str
    good: int


def line(body: Mapping[str, Any], prev: str) -> bytes:
    """The line of ``body`` behind the line that hashes to ``prev``."""
    text = json.dumps({"prev": prev, **body}, separators=(",", ":")).encode()
    return b'%s,"sum":"%s"}\n' % (text[:-1], hashlib.sha256(text).hexdigest().encode())


def hashed(whole: bytes) -> str:
    """What the next line names as ``prev``."""
    return hashlib.sha256(whole.removesuffix(b"\n")).hexdigest()


class Lines:
    """Which lines count, as the bytes of a journal come; no more than a line of them is kept.

    A torn tail does not count: lines that no sync made durable. Raises
    :class:`StoreBrokenError` where a line is damaged that was durable once.
    """

    def __init__(self) -> None:
        self.head, self.good = GENESIS, 0
        self._number = 0
        self._rest = b""
        self._damaged = 0  # the first line that is

    def feed(self, data: bytes) -> Iterator[Body]:
        """The bodies of the lines that ``data`` ends."""
        texts = (self._rest + data).split(b"\n")
        self._rest = texts.pop()
        for text in texts:
            self._number += 1
            body = None if self._damaged else _body(text, self.head)
            if body is None:
                self._behind(self._number)
                continue
            self.head = hashlib.sha256(text).hexdigest()
            self.good += len(text) + 1
            yield body
        if len(self._rest) > UNSYNCED * LINE_MAX:
            raise StoreBrokenError(
                f"journal, line {self._number + 1}: longer than any line of a keeper"
            )

    def end(self) -> None:
        """That was all."""
        if self._rest:
            self._behind(self._number + 1)

    def _behind(self, number: int) -> None:
        self._damaged = self._damaged or number
        if number - self._damaged >= UNSYNCED:
            raise StoreBrokenError(
                f"journal, line {self._damaged}: damaged, with {number - self._damaged} lines or "
                "more behind it"
            )


def chain(data: bytes) -> Chain:
    """The lines of a whole journal that count. Raises :class:`StoreBrokenError`."""
    lines = Lines()
    bodies = list(lines.feed(data))
    lines.end()
    return Chain(bodies, lines.head, lines.good)


def _body(text: bytes, prev: str) -> Body | None:
    """A line's object; None where it is not whole, or not the one behind ``prev``."""
    found = _SUM.search(text)
    if found is None or len(text) > LINE_MAX:
        return None
    plain = text[: found.start()] + b"}"
    if hashlib.sha256(plain).hexdigest().encode() != found[1]:
        return None
    try:
        body = json.loads(plain)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) and body.get("prev") == prev else None


# Bodies. A line that is whole and says what no keeper writes breaks the store.


def body_of(item: Item) -> Body:
    """The line's object of what is to be told; a number is that of a frame that is done."""
    match item:
        case Frame():
            return _frame_body(item)
        case Anchor():
            return _anchor_body(item)
        case Gap():
            return _gap_body(item)
        case Seal():
            return _seal_body(item)
        case number:
            return {"kind": "done", "n": number}


def _frame_body(frame: Frame) -> Body:
    clock = _clock_body(frame.clock)
    return {
        **{"kind": "frame", "n": frame.n, "first": frame.first, "count": frame.count},
        **{"seg": frame.seg, "off": frame.off, "len": frame.len, "sha256": frame.sha256.hex()},
        **{"boot": frame.boot, "g_count": frame.g_count, "g_sha256": frame.g_sha256.hex()},
        **{"skip": frame.skip, "how": frame.how.value, "clock": clock},
        **{"pcrs": _pcrs_body(frame.pcrs), "modes": _modes_body(frame.modes)},
    }


def _anchor_body(anchor: Anchor) -> Body:
    pcrs, clock = _pcrs_body(anchor.pcrs), _clock_body(anchor.clock)
    return {
        **{"kind": "anchor", "index": anchor.index, "why": anchor.why},
        **{"pcrs": pcrs, "clock": clock},
    }


def _gap_body(gap: Gap) -> Body:
    return {"kind": "gap", **asdict(gap)}


def _seal_body(seal: Seal) -> Body:
    eras = [{"first": e.first, "boot": e.boot, "modes": _modes_body(e.modes)} for e in seal.eras]
    return {
        **{"kind": "seal", "seg": seal.segment, "first": seal.first, "count": seal.count},
        **{"len": seal.size, "sha256": seal.sha256.hex(), "idx_sha256": seal.index_sha256.hex()},
        **{"frames": seal.frames, "eras": eras, "marks": list(map(body_of, seal.marks))},
        **{"pcrs": _pcrs_body(seal.pcrs)},
        **{"last": None if seal.last is None else _frame_body(seal.last), "done": seal.done},
    }


def _pcrs_body(pcrs: PcrValues) -> Body:
    return {bank: {str(n): v.hex() for n, v in values.items()} for bank, values in pcrs.items()}


def _clock_body(clock: Clock | None) -> list[int] | None:
    return None if clock is None else list(astuple(clock))


def _modes_body(modes: Modes) -> Body:
    return {bank: mode.value for bank, mode in modes.items()}


class _Reader:
    """Takes the fields of a body; each must be there, of its type and in its range."""

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict):
            raise StoreBrokenError("journal: something inside a line is no object")
        self._body: Body = body

    def number(self, name: str) -> int:
        value = self._body.get(name)
        if type(value) is not int or not 0 <= value < _LARGEST:
            raise self.wrong(name)
        return value

    def number_if_any(self, name: str) -> int | None:
        return None if self._body.get(name) is None else self.number(name)

    def text(self, name: str, most: int = 1000) -> str:
        value = self._body.get(name)
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise self.wrong(name)
        return value

    def digest(self, name: str) -> bytes:
        value = self.text(name)
        if not _HEX.match(value):
            raise self.wrong(name)
        return bytes.fromhex(value)

    def segment(self) -> str:
        value = self.text("seg")
        if not _SEGMENT.match(value):
            raise self.wrong("seg")
        return value

    def flag(self, name: str) -> bool:
        value = self._body.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name)
        return value

    def among(self, name: str) -> list[Any]:
        value = self._body.get(name)
        if not isinstance(value, list):
            raise self.wrong(name)
        return value

    def table(self, name: str) -> Body:
        value = self._body.get(name)
        if not isinstance(value, dict) or len(value) > _BANKS or not all(map(_BANK.match, value)):
            raise self.wrong(name)
        return value

    def clock(self) -> Clock | None:
        if self._body.get("clock") is None:
            return None
        match self.among("clock"):
            case [time, clock, reset, restart, bool(safe)]:
                if all(map(_is_counter, (time, clock, reset, restart))):
                    return Clock(time, clock, reset, restart, safe)
        raise self.wrong("clock")

    def pcrs(self) -> dict[str, dict[int, bytes]]:
        try:
            found = {
                bank: {_pcr(number): bytes.fromhex(value) for number, value in values.items()}
                for bank, values in self.table("pcrs").items()
            }
        except (AttributeError, TypeError, ValueError):
            raise self.wrong("pcrs") from None
        for bank, values in found.items():
            size = _size_of(bank)
            if size is not None and any(len(value) != size for value in values.values()):
                raise self.wrong("pcrs")
        return found

    def modes(self) -> dict[str, Mode]:
        try:
            return {bank: Mode(mode) for bank, mode in self.table("modes").items()}
        except ValueError:
            raise self.wrong("modes") from None

    def how(self) -> How:
        try:
            return How(self.text("how"))
        except ValueError:
            raise self.wrong("how") from None

    def wrong(self, name: str) -> StoreBrokenError:
        return StoreBrokenError(
            f"journal, {self._body.get('kind')!r}: {name!r} is not to be understood"
        )


def _pcr(text: str) -> int:
    """Raises ValueError."""
    if not _PCR.match(text) or int(text) >= PCR_LIMIT:
        raise ValueError(text)
    return int(text)


def _size_of(bank: str) -> int | None:
    """Bytes of a bank's values; None for one that nothing is replayed in."""
    try:
        return by_name(bank).digest_size
    except FormatError:
        return None


def _is_counter(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _frame(body: object, prev: bytes) -> Frame:
    take = _Reader(body)
    return Frame(
        n=take.number("n"),
        first=take.number("first"),
        count=take.number("count"),
        seg=take.segment(),
        off=take.number("off"),
        len=take.number("len"),
        sha256=take.digest("sha256"),
        prev=prev,
        boot=take.text("boot"),
        g_count=take.number("g_count"),
        g_sha256=take.digest("g_sha256"),
        skip=take.number("skip"),
        how=take.how(),
        clock=take.clock(),
        pcrs=take.pcrs(),
        modes=take.modes(),
    )


def _mark(body: object) -> Anchor | Gap:
    take = _Reader(body)
    match take.text("kind"):
        case "anchor":
            return Anchor(take.number("index"), take.pcrs(), take.text("why"), take.clock())
        case "gap":
            when = body.get("verified_at") if isinstance(body, dict) else None
            # Nor NaN, which is less than nothing, or a number of a thousand digits.
            if not isinstance(when, int | float | None) or not 0 <= (when or 0) < _LARGEST:
                raise take.wrong("verified_at")
            return Gap(
                take.number("index"),
                take.text("why"),
                take.number_if_any("missing"),
                take.number_if_any("verified"),
                when,
            )
        case _:
            raise take.wrong("kind")


def _era(body: object) -> Era:
    take = _Reader(body)
    return Era(take.number("first"), take.text("boot"), take.modes())


def _seal(body: Body) -> Seal:
    take = _Reader(body)
    return Seal(
        take.segment(),
        take.number("first"),
        take.number("count"),
        take.number("len"),
        take.digest("sha256"),
        take.digest("idx_sha256"),
        take.number("frames"),
        tuple(map(_era, take.among("eras"))),
        tuple(map(_mark, take.among("marks"))),
        take.pcrs(),
        None if body.get("last") is None else _frame(body["last"], b""),
        take.flag("done"),
    )


def item_of(body: Body) -> Item:
    """What a line told. Raises :class:`StoreBrokenError`."""
    match body.get("kind"):
        case "frame":
            return _frame(body, bytes.fromhex(body["prev"]))
        case "done":
            return _Reader(body).number("n")
        case "anchor" | "gap":
            return _mark(body)
        case "seal":
            return _seal(body)
        case kind:
            raise StoreBrokenError(f"journal: a line of kind {kind!r}: of a newer imafs?")
