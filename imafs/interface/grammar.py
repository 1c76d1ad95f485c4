# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Grammars of requests: data, and one pure function that reads a write by them.

Sources: Linux 7.3 ima_fs.c:344-401 (``_ima_measurements_write``) and the same function
of each draft on the mailing list, in the order of the kernel's checks.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

from imafs.errors import FormatError, Refused
from imafs.formats.algorithms import by_name
from imafs.interface.kstrtox import LONG_MAX, ULONG_MAX, kstrtol, kstrtoul

#: The largest errno that a system call can return (include/linux/err.h).
MAX_ERRNO = 4095


class Operation(Enum):
    """The operations of requests; :class:`imafs.kernel.queue.Queue` has a method for each.

    The first three take the request's number: so many of the first records, None all.
    """

    STAGE = "stage"
    DELETE_STAGED = "delete_staged"
    DELETE_FIRST = "delete_first"
    DELETE_MATCHING = "delete_matching"
    EXPORT = "export"


@dataclass(frozen=True, slots=True)
class PcrValue:
    """A PCR's value in one bank, as the ``pcrs`` file takes it."""

    pcr: int
    algorithm: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed request. ``number`` None: all records; ``path`` is an export's, ``values`` are
    those of a replay."""

    operation: Operation
    number: int | None = None
    path: bytes = b""
    values: tuple[PcrValue, ...] = ()


@dataclass(frozen=True, slots=True)
class Grammar(ABC):
    """The checks that every kind of file makes first.

    ``shortest`` and ``longest`` count all bytes; ``position`` tells whether a write at a
    position above 0 is taken; ``text`` is how ``imafs profiles`` shows the grammar.
    """

    text: str = ""
    shortest: int = 2
    longest: int = 21
    position: bool = False

    @abstractmethod
    def read(self, data: bytes, *, flush_htable: bool, trimmed: int | None) -> Request:
        """The request in ``data``, whose length and position are right.

        ``trimmed`` None: any number of trimmed records is the right one.
        """

    @abstractmethod
    def spell(self, request: Request, total: int = 0) -> bytes | None:
        """The words of ``request``, which :meth:`read` takes for it; None: there are none.

        ``total`` is the number of records trimmed since boot. What a kernel refuses can be
        spelled too: more records than there are, or none.
        """

    @property
    def counted(self) -> Operation | None:
        """The operation of a plain number, None: the grammar has no numbers."""
        return None


@dataclass(frozen=True, slots=True)
class Staging(Grammar):
    """Letters and numbers of the staging series.

    ``letters`` are whole requests without the newline; ``number`` and ``minus`` are the
    operations of ``N`` and ``-N``, None where they are EINVAL; ``base`` is kstrtoul's;
    ``number_with_flush``: numbers are taken under ``ima_flush_htable``; ``zero``: 0 is left
    to the operation; a number above ``largest`` is ``too_large``; ``everything`` is the
    number that means all records; ``newline`` False: none is needed, what follows the
    first one is not seen.
    """

    letters: tuple[tuple[bytes, Operation], ...] = ()
    number: Operation | None = None
    minus: Operation | None = None
    base: int = 10
    number_with_flush: bool = False
    zero: bool = False
    largest: int = ULONG_MAX
    too_large: int = errno.ERANGE
    everything: int | None = None
    newline: bool = True

    def read(self, data: bytes, *, flush_htable: bool, trimmed: int | None) -> Request:
        if self.newline and not data.endswith(b"\n"):
            raise Refused(errno.EINVAL, "the request does not end in a newline")
        text = data[:-1] if self.newline else data.split(b"\n", 1)[0]
        for letter, operation in self.letters:
            if text == letter:
                return Request(operation)
        minus = self.minus is not None and text.startswith(b"-")
        operation_ = self.minus if minus else self.number
        if operation_ is None:
            raise Refused(errno.EINVAL, "no such request on this file")
        if flush_htable and not self.number_with_flush:
            raise Refused(errno.EINVAL, "no partial delete with ima_flush_htable")
        return Request(operation_, self._count(text[1:] if minus else text))

    def spell(self, request: Request, total: int = 0) -> bytes | None:
        for letter, operation in self.letters:
            if request == Request(operation):
                return letter + b"\n"
        number = self.everything if request.number is None else request.number
        if number is None:
            return None
        if request.operation is self.number:
            return b"%d\n" % number
        return b"-%d\n" % number if request.operation is self.minus else None

    @property
    def counted(self) -> Operation | None:
        return self.number

    def _count(self, text: bytes) -> int | None:
        number = kstrtoul(text, self.base)
        if number == 0 and not self.zero:
            raise Refused(errno.EINVAL, "zero records")
        if number > self.largest:
            raise Refused(self.too_large, "more records than this draft takes")
        return None if number == self.everything else number


@dataclass(frozen=True, slots=True)
class Digits(Grammar):
    """trim v1 and v2: every byte is a digit, so a newline is EINVAL."""

    longest: int = 11

    def read(self, data: bytes, *, flush_htable: bool, trimmed: int | None) -> Request:
        if not all(48 <= byte <= 57 for byte in data):
            raise Refused(errno.EINVAL, "something that is no digit")
        return Request(Operation.DELETE_FIRST, int(data))

    def spell(self, request: Request, total: int = 0) -> bytes | None:
        number = _first(request)
        return None if number is None else b"%0*d" % (self.shortest, number)

    @property
    def counted(self) -> Operation | None:
        return Operation.DELETE_FIRST


@dataclass(frozen=True, slots=True)
class Signed(Grammar):
    """A number of kstrtol. ``negative_is_errno``: -n is answered with errno n (observed),
    else with EINVAL. ``strip``: one newline is taken off before (kstrtol takes another)."""

    longest: int = 11
    base: int = 10
    negative_is_errno: bool = False
    strip: bool = False

    def read(self, data: bytes, *, flush_htable: bool, trimmed: int | None) -> Request:
        text = data.removesuffix(b"\n") if self.strip else data
        number = kstrtol(text, self.base)
        return Request(Operation.DELETE_FIRST, _natural(number, self.negative_is_errno))

    def spell(self, request: Request, total: int = 0) -> bytes | None:
        number = _first(request)
        if number is None:
            return None
        # The newline may be left out, and a number of all digits has no room for it.
        words = b"%d\n" % number
        return words if len(words) <= self.longest else words[:-1]

    @property
    def counted(self) -> Operation | None:
        return Operation.DELETE_FIRST


@dataclass(frozen=True, slots=True)
class Totalled(Grammar):
    """``T:N`` of trim v4 and v5: N records, if T is what was trimmed since boot."""

    longest: int = 32

    def read(self, data: bytes, *, flush_htable: bool, trimmed: int | None) -> Request:
        total = 0
        at = 0
        while data[at : at + 1].isdigit():
            total = total * 10 + data[at] - 48
            if total > LONG_MAX:
                raise Refused(errno.ERANGE, "T does not fit into a signed 64-bit number")
            at += 1
        if data[at : at + 1] != b":":
            raise Refused(errno.EINVAL, "no colon behind T")
        if trimmed is not None and total != trimmed:
            raise Refused(errno.EINVAL, f"T is {total}, but {trimmed} records were trimmed")
        number = kstrtoul(data[at + 1 :], 0)
        # The kernel keeps it in a signed number.
        signed = number if number <= LONG_MAX else number - ULONG_MAX - 1
        return Request(Operation.DELETE_FIRST, _natural(signed, True))

    def spell(self, request: Request, total: int = 0) -> bytes | None:
        number = _first(request)
        return None if number is None else b"%d:%d\n" % (total, number)

    @property
    def counted(self) -> Operation | None:
        return Operation.DELETE_FIRST


def _first(request: Request) -> int | None:
    """So many of the first records, None: something else is asked for."""
    return request.number if request.operation is Operation.DELETE_FIRST else None


def _natural(number: int, negative_is_errno: bool) -> int:
    if number >= 0:
        return number
    if negative_is_errno and -number <= MAX_ERRNO:
        raise Refused(-number, "a negative number, returned as it is")
    raise Refused(errno.EINVAL, "a negative number of records")


@dataclass(frozen=True, slots=True)
class PathName(Grammar):
    """``list_name``: an absolute path; one newline at the end is left out."""

    longest: int = 254
    position: bool = True

    def read(self, data: bytes, *, flush_htable: bool, trimmed: int | None) -> Request:
        if not data.startswith(b"/"):
            raise Refused(errno.EINVAL, "not an absolute path")
        path = data.removesuffix(b"\n").split(b"\0", 1)[0]
        return Request(Operation.EXPORT, path=path)

    def spell(self, request: Request, total: int = 0) -> bytes | None:
        if request.operation is not Operation.EXPORT:
            return None
        # A path as long as may be has no room for a newline.
        return request.path + b"\n"[: self.longest - len(request.path)]


@dataclass(frozen=True, slots=True)
class PcrSet(Grammar):
    """``pcrNN:ALG:`` and a raw digest, one for each configured PCR, nothing between."""

    shortest: int = 20
    longest: int = 4095
    position: bool = True

    def read(self, data: bytes, *, flush_htable: bool, trimmed: int | None) -> Request:
        values: list[PcrValue] = []
        at = 0
        while at < len(data):
            value, size = _pcr_value(data[at:])
            values.append(value)
            at += size
        return Request(Operation.DELETE_MATCHING, values=tuple(values))

    def spell(self, request: Request, total: int = 0) -> bytes | None:
        if request.operation is not Operation.DELETE_MATCHING:
            return None
        return b"".join(
            b"pcr%02d:%s:%s" % (one.pcr, one.algorithm.encode(), one.value)
            for one in request.values
        )


def _pcr_value(data: bytes) -> tuple[PcrValue, int]:
    name, colon, _ = data[6:22].partition(b":")
    if data[:3] != b"pcr" or not data[3:5].isdigit() or data[5:6] != b":":
        raise Refused(errno.EINVAL, "not pcrNN: with two digits")
    pcr = int(data[3:5])
    if pcr >= 24:
        raise Refused(errno.EINVAL, f"PCR {pcr} is none")
    if not colon or not name:
        raise Refused(errno.EINVAL, "no name of an algorithm of 1 to 15 letters")
    try:
        algorithm = by_name(name.decode("ascii", "replace"))
    except FormatError:
        raise Refused(errno.EINVAL, "an unknown algorithm") from None
    start = 6 + len(name) + 1
    value = data[start : start + algorithm.digest_size]
    if len(value) < algorithm.digest_size:
        raise Refused(errno.EINVAL, "the digest is cut off")
    return PcrValue(pcr, algorithm.name, value), start + algorithm.digest_size


def parse(
    grammar: Grammar,
    data: bytes,
    position: int,
    *,
    flush_htable: bool = False,
    trimmed: int | None = 0,
) -> Request:
    """The request in ``data``, written at ``position``. Raises :class:`Refused`.

    ``trimmed`` is the number of records trimmed since boot, which ``T:N`` names.
    """
    if position > 0 and not grammar.position:
        raise Refused(errno.EINVAL, "a write at a position above 0")
    if not grammar.shortest <= len(data) <= grammar.longest:
        raise Refused(errno.EINVAL, f"a request of {len(data)} bytes")
    return grammar.read(data, flush_htable=flush_htable, trimmed=trimmed)


def asked(grammar: Grammar, data: bytes) -> Operation | None:
    """The operation that ``data`` asks for, None: it is no request of ``grammar``.

    By the words alone: a kernel may refuse the request for the state of its lists, for
    ``ima_flush_htable`` or for the position of the write.
    """
    try:
        return parse(grammar, data, 0, trimmed=None).operation
    except Refused:
        return None
