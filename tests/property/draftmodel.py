# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What each proposal does with a write, once more and by hand: the reference for profiles.

Written from the patches, as code with a branch per proposal, so that a mistake in the data of
``imafs/interface/profiles`` does not stand here too. Lists hold records as the test made them.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.property.reference import Rec

ULONG = 1 << 64
LONG = 1 << 63


class Refusal(Exception):
    """The name of the errno."""


def ulong(text: bytes, base: int) -> int:
    """kstrtoul."""
    text = text.split(b"\0")[0]
    digits = rb"[0-9]+" if base == 10 else rb"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*"
    match = re.match(rb"\+?(" + digits + rb")", text)
    if match is None:
        raise Refusal("EINVAL")
    value = _value(match[1], base)
    if value >= ULONG:
        raise Refusal("ERANGE")
    if text[match.end() :] not in (b"", b"\n"):
        raise Refusal("EINVAL")
    return value


def _value(digits: bytes, base: int) -> int:
    if base == 10:
        return int(digits)
    if digits[:2].lower() == b"0x":
        return int(digits, 16)
    return int(digits, 8) if digits.startswith(b"0") else int(digits)


def long_(text: bytes, base: int) -> int:
    """kstrtol."""
    minus = text.startswith(b"-")
    if minus and text[1:2] == b"+":
        raise Refusal("EINVAL")
    value = ulong(text[1:] if minus else text, base)
    if value >= LONG + minus:
        raise Refusal("ERANGE")
    return -value if minus else value


@dataclass
class Draft:
    """The state of a kernel with this proposal. ``told`` are the numbers of trim records."""

    name: str
    bugs: bool
    flush: bool
    table: bool
    default: str
    suspended: bool = False
    copied: tuple[bool, bool] = (False, False)
    current: list[Rec | int] = field(default_factory=list)
    staged: list[Rec | int] = field(default_factory=list)
    seen: set[tuple[bytes, int]] = field(default_factory=set)
    trimmed: int = 0
    last: int = 0
    deleted: int = 0
    twice: int = 0
    start: dict[str, bytes] = field(default_factory=dict)

    # Adding

    def add(self, rec: Rec) -> str:
        if self.suspended:
            return "ENODEV"
        if self.table and not rec.violation:
            key = (rec.digest(self.default), rec.pcr)
            if key in self.seen:
                return "EEXIST"
            self.seen.add(key)
        self.current.append(rec)
        return "ok"

    def suspend(self, value: bool) -> None:
        self.suspended = value
        if not value:
            self.copied = (False, False)

    def copy(self) -> None:
        """The dump for the next kernel, which only a kexec makes."""
        self.copied = (bool(self.current), bool(self.staged))

    @property
    def count(self) -> int:
        if self.name == "snap":
            return len(self.current) + len(self.staged) + self.deleted
        return len(self.current) + self.twice

    # Writing

    def write(self, file: str, data: bytes, position: int) -> str:
        """What a write to ``original``, ``staged`` or ``request`` is answered; "ok" or errno."""
        try:
            _FAMILIES[self.name.split("-")[0]](self, file, data, position)
        except Refusal as refusal:
            return str(refusal)
        return "ok"

    def _refuse(self, *pairs: tuple[object, str]) -> None:
        for condition, code in pairs:
            if condition:
                raise Refusal(code)

    def _plain(self, data: bytes, position: int, *, positions: bool = False) -> bytes:
        self._refuse(
            (position and not positions, "EINVAL"),
            (not 2 <= len(data) <= 21, "EINVAL"),
            (data[-1:] != b"\n", "EINVAL"),
        )
        return data[:-1]

    def _partial(self, text: bytes, base: int = 10) -> int:
        number = ulong(text, base)
        self._refuse((number == 0, "EINVAL"))
        return number

    def mainline(self, file: str, data: bytes, position: int) -> None:
        text = self._plain(data, position, positions=True)
        if file == "staged":
            self._refuse((text not in (b"A", b"D"), "EINVAL"))
            self._stage_all("EACCES") if text == b"A" else self._d(self.suspended)
            return
        self._refuse((text in (b"A", b"D") or self.flush, "EINVAL"))
        self._n(self._partial(text), self.suspended)

    def v5(self, file: str, data: bytes, position: int) -> None:
        text = self._plain(data, position)
        if file == "staged":
            self._refuse((text != b"D", "EINVAL"))
            self._d(self.copied[1])
        elif text == b"A":
            self._stage_all(None)
        else:
            self._refuse((self.flush, "EINVAL"))
            self._n(self._partial(text), self.copied[0])

    def v4(self, file: str, data: bytes, position: int) -> None:
        text = self._plain(data, position)
        if text == b"A":
            self._stage_all(None)
        elif text == b"D":
            self._d(self.copied[1])
        else:
            self._refuse((self.flush, "EINVAL"))
            number = self._partial(text)
            self._refuse((self.staged, "EEXIST"))
            self._n(number, False)

    def v3(self, file: str, data: bytes, position: int) -> None:
        text = self._plain(data, position)
        if text == b"A":
            self._stage_all(None)
            self.twice = 0
            return
        number = None
        if text != b"D":
            self._refuse((self.flush, "EINVAL"))
            number = self._partial(text)
            self._refuse((number == ULONG - 1, "ERANGE"))
        self._refuse((not self.staged, "ENOENT"), ((number or 0) > len(self.staged), "ENOENT"))
        self.twice += len(self.current) if self.bugs else 0
        rest = [] if number is None else self.staged[number:]
        self.deleted += len(self.staged) - len(rest)
        self.current = rest + self.current
        self.staged = []
        self._flushed()

    def rfc(self, file: str, data: bytes, position: int) -> None:
        if self.name == "rfc-v1":
            self._refuse((position, "EINVAL"), (not 2 <= len(data) <= 21, "EINVAL"))
            text = data.split(b"\n")[0]
        else:
            text = self._plain(data, position)
        if text == b"D":
            self._d(False)
            return
        minus = self.name == "rfc-v2" and text[:1] == b"-"
        number: int | None = None
        if text != b"A":
            number = ulong(text[1:] if minus else text, 0)
            if self.name == "rfc-v2":
                self._refuse((number == 0 or number >= LONG, "EINVAL"))
            everything = ULONG - 1 if self.name == "rfc-v1" else LONG - 1
            number = None if number == everything else number
        self._refuse(
            (self.staged, "EEXIST"),
            (not self.current, "ENOENT"),
            (number is not None and number > len(self.current), "ENOENT"),
            (number == 0, "ENOENT"),
        )
        taken = self.current[:number]
        if self.flush:
            self._forget(taken)
        self.current = self.current[len(taken) :]
        if minus:
            self._removed(len(taken))
        else:
            self.staged = taken

    def snap(self, file: str, data: bytes, position: int) -> None:
        self._refuse((position or len(data) != 2 or data[1:] != b"\n", "EINVAL"))
        if data == b"0\n":
            self._refuse((self.staged, "EEXIST"), (not self.current, "ENOENT"))
            if self.flush:
                self._forget(self.current)
            self.staged, self.current = self.current, []
            return
        self._refuse((data != b"1\n", "EINVAL"), (not self.staged, "ENOENT"))
        self.deleted += len(self.staged)
        self.staged = []

    def trim(self, file: str, data: bytes, position: int) -> None:
        longest = 32 if self.name in ("trim-v4", "trim-v5") else 11
        self._refuse((position, "EINVAL"), (not 2 <= len(data) <= longest, "EINVAL"))
        if self.name in ("trim-v1", "trim-v2"):
            self._refuse((re.fullmatch(rb"[0-9]+", data) is None, "EINVAL"))
            number = int(data)
        elif self.name == "trim-v3":
            number = self._natural(long_(data, 10))
        else:
            match = re.match(rb"([0-9]*)(.*)", data, re.DOTALL)
            assert match is not None
            total = int(match[1] or b"0")
            self._refuse(
                (total >= LONG, "ERANGE"),
                (match[2][:1] != b":", "EINVAL"),
                (total != self.trimmed, "EINVAL"),
            )
            given = ulong(match[2][1:], 0)
            number = self._natural(given - ULONG if given >= LONG else given)
        if self.name == "trim-v1":
            number = min(number, len(self.current))
        self._refuse((number > len(self.current), "ENOENT"))
        before = self.trimmed
        if self.flush or self.name == "trim-v1" or (self.name == "trim-v3" and self.bugs):
            self._forget(self.current[:number])
        self.current = self.current[number:]
        self._removed(number)
        told = {"trim-v2": number, "trim-v3": number, "trim-v4": before + number, "trim-v5": before}
        if number and self.name in told and not self.suspended:
            self.current.append(told[self.name])

    def _natural(self, number: int) -> int:
        if -4095 <= number < 0:
            raise Refusal(errno.errorcode.get(-number, str(-number)))
        self._refuse((number < 0, "EINVAL"))
        return number

    def flush_2020(self, file: str, data: bytes, position: int) -> None:
        self._refuse((not 1 <= len(data) <= 31, "EINVAL"))
        number = long_(data.removesuffix(b"\n"), 0)
        self._refuse((number < 0 or number > len(self.current), "EINVAL"))
        number = min(number + self.bugs, len(self.current))
        self._forget(self.current[:number])
        self.current = self.current[number:]
        self._removed(number)

    def pcrs(self, file: str, data: bytes, position: int) -> None:
        self._refuse((not 20 <= len(data) <= 4095, "EINVAL"))
        match = re.fullmatch(rb"pcr10:(md5|sha1|sha256|sha384|sha512):(.*)", data, re.DOTALL)
        self._refuse((match is None, "EINVAL"))
        assert match is not None
        bank = match[1].decode()
        self._refuse((len(match[2]) != hashlib.new(bank).digest_size, "EINVAL"))
        if bank not in self.start:
            return
        value = self.start[bank]
        for number, rec in enumerate(self.current):
            if value == match[2]:
                self._reached(number)
                return
            assert isinstance(rec, Rec)
            self._refuse((rec.pcr != 10, "EINVAL"))
            value = self._extended(bank, value, rec)
        if value == match[2]:
            self._reached(len(self.current))

    def _extended(self, bank: str, value: bytes, rec: Rec) -> bytes:
        digest = b"\xff" * len(value) if rec.violation else rec.digest(bank)
        return hashlib.new(bank, value + digest).digest()

    def _reached(self, number: int) -> None:
        for rec in self.current[:number]:
            assert isinstance(rec, Rec)
            for bank, value in self.start.items():
                self.start[bank] = self._extended(bank, value, rec)
        self._forget(self.current[:number])
        self.current = self.current[number:]
        self._removed(number)

    def export(self, file: str, data: bytes, position: int) -> None:
        self._refuse((not 2 <= len(data) <= 254, "EINVAL"), (data[:1] != b"/", "EINVAL"))
        # Without a directory of its own nothing is written.
        raise Refusal("EACCES")

    # What they have in common

    def _stage_all(self, suspended: str | None) -> None:
        self._refuse(
            (self.staged, "EEXIST"),
            (not self.current, "ENOENT"),
            (self.suspended and suspended, suspended or ""),
        )
        self.staged, self.current = self.current, []

    def _d(self, stale: bool) -> None:
        self._refuse((not self.staged, "ENOENT"), (stale, "ESTALE"))
        self.deleted += len(self.staged)
        self.staged = []
        if self.name.startswith(("mainline", "v")):
            self._flushed()

    def _flushed(self) -> None:
        if self.flush:
            self.seen.clear()

    def _n(self, number: int, stale: bool) -> None:
        self._refuse((number > len(self.current), "ENOENT"), (stale, "ESTALE"))
        self.current = self.current[number:]
        self._removed(number)

    def _removed(self, number: int) -> None:
        self.deleted += number
        self.trimmed += number
        self.last = number

    def _forget(self, records: list[Rec | int]) -> None:
        for rec in records:
            if isinstance(rec, Rec) and not rec.violation:
                self.seen.discard((rec.digest(self.default), rec.pcr))


_FAMILIES: dict[str, Callable[[Draft, str, bytes, int], None]] = {
    "mainline": Draft.mainline,
    "v5": Draft.v5,
    "v4": Draft.v4,
    "v3": Draft.v3,
    "rfc": Draft.rfc,
    "snap": Draft.snap,
    "trim": Draft.trim,
    "flush": Draft.flush_2020,
    "pcrs": Draft.pcrs,
    "export": Draft.export,
}
