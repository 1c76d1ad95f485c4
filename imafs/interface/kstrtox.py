# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Numbers as the kernel reads them: lib/kstrtox.c of Linux 7.3 (``kstrtoul``, ``kstrtol``)."""

from __future__ import annotations

import errno

from imafs.errors import Refused

ULONG_MAX = (1 << 64) - 1
LONG_MAX = (1 << 63) - 1

_DIGITS = b"0123456789abcdef"


def kstrtoul(text: bytes, base: int) -> int:
    """The kernel's kstrtoul on a C string. Raises :class:`Refused`: EINVAL or ERANGE.

    One ``+``, at least one digit, one newline at the end; bytes behind a NUL are not
    seen. Overflow is decided before trailing garbage is looked at. Base 0 takes the
    base from the number: 0x, a leading 0 for octal, else decimal.
    """
    string = text.split(b"\0", 1)[0]
    return _unsigned(string.removeprefix(b"+"), base)


def kstrtol(text: bytes, base: int) -> int:
    """The kernel's kstrtol: as :func:`kstrtoul`, or ``-`` and a number within 64 bits."""
    string = text.split(b"\0", 1)[0]
    minus = string.startswith(b"-")
    value = _unsigned(string[1:], base) if minus else _unsigned(string.removeprefix(b"+"), base)
    if value > LONG_MAX + minus:
        raise Refused(errno.ERANGE, "the number does not fit into a signed 64-bit one")
    return -value if minus else value


def _unsigned(string: bytes, base: int) -> int:
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


def _prefix(string: bytes) -> tuple[int, bytes]:
    # _parse_integer_fixup_radix: 0x before a hex digit, else a leading 0 is octal.
    if string[:2].lower() == b"0x" and string[2:3].lower() in tuple(
        _DIGITS[i : i + 1] for i in range(16)
    ):
        return 16, string[2:]
    return (8, string) if string.startswith(b"0") else (10, string)
