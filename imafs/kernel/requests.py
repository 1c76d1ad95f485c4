# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a write means: one pure function over a grammar that is data.

Source: Linux 7.3 ima_fs.c:344-401 (``_ima_measurements_write``) and lib/kstrtox.c
(``kstrtoul``), in the order of the kernel's checks.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum

from imafs.errors import Refused

ULONG_MAX = (1 << 64) - 1


class Operation(Enum):
    """What a request asks the queue to do."""

    STAGE = "stage"
    DELETE_STAGED = "delete_staged"
    DELETE_FIRST = "delete_first"


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed request; ``number`` only for the operations that count records."""

    operation: Operation
    number: int = 0


@dataclass(frozen=True, slots=True)
class Grammar:
    """What one kind of file accepts.

    ``shortest`` and ``longest`` count all bytes; ``letters`` are whole requests
    without the newline; ``number`` is the operation of a plain number, None where
    numbers are EINVAL; ``base`` is kstrtoul's; ``number_with_flush`` tells whether
    numbers are taken under ``ima_flush_htable``; ``position`` whether a write at a
    position above 0 is.
    """

    letters: tuple[tuple[bytes, Operation], ...] = ()
    number: Operation | None = None
    base: int = 10
    number_with_flush: bool = False
    position: bool = True
    shortest: int = 2
    longest: int = 21


def parse(grammar: Grammar, data: bytes, position: int, *, flush_htable: bool = False) -> Request:
    """The request in ``data``. Raises :class:`Refused`: EINVAL or ERANGE."""
    if position > 0 and not grammar.position:
        raise Refused(errno.EINVAL, "a write at a position above 0")
    if not grammar.shortest <= len(data) <= grammar.longest:
        raise Refused(errno.EINVAL, f"a request of {len(data)} bytes")
    if not data.endswith(b"\n"):
        raise Refused(errno.EINVAL, "the request does not end in a newline")
    text = data[:-1]
    for letter, operation in grammar.letters:
        if text == letter:
            return Request(operation)
    if grammar.number is None:
        raise Refused(errno.EINVAL, "no such request on this file")
    if flush_htable and not grammar.number_with_flush:
        raise Refused(errno.EINVAL, "no partial delete with ima_flush_htable")
    number = kstrtoul(text, grammar.base)
    if number == 0:
        raise Refused(errno.EINVAL, "zero records")
    return Request(grammar.number, number)


def kstrtoul(text: bytes, base: int) -> int:
    """The kernel's kstrtoul on a C string. Raises :class:`Refused`: EINVAL or ERANGE.

    One ``+``, at least one digit, one newline at the end; bytes behind a NUL are not
    seen. Overflow is decided before trailing garbage is looked at.
    """
    string = text.split(b"\0", 1)[0]
    if string.startswith(b"+"):
        string = string[1:]
    if base == 0:
        base, string = _prefix(string)
    elif base == 16 and string[:2].lower() == b"0x":
        string = string[2:]
    digits = 0
    value = 0
    for byte in string:
        digit = _DIGITS.find(bytes((byte,)).lower())
        if not 0 <= digit < base:
            break
        value = value * base + digit
        digits += 1
    if not digits:
        raise Refused(errno.EINVAL, "not a number")
    if value > ULONG_MAX:
        raise Refused(errno.ERANGE, "the number does not fit into 64 bits")
    if string[digits:] not in (b"", b"\n"):
        raise Refused(errno.EINVAL, "something behind the number")
    return value


_DIGITS = b"0123456789abcdef"


def _prefix(string: bytes) -> tuple[int, bytes]:
    # _parse_integer_fixup_radix: 0x before a hex digit, else a leading 0 is octal.
    if string[:2].lower() == b"0x" and string[2:3].lower() in tuple(
        _DIGITS[i : i + 1] for i in range(16)
    ):
        return 16, string[2:]
    return (8, string) if string.startswith(b"0") else (10, string)
