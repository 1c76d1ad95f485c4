# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a write means: every row of the kernel's table, for both kinds of file."""

from __future__ import annotations

import errno

import pytest

from imafs.errors import Refused
from imafs.interface.grammar import Grammar, Operation, Request, Staging, parse
from imafs.interface.kstrtox import ULONG_MAX, kstrtoul
from imafs.interface.profiles import lookup

MAINLINE = lookup("mainline")
assert MAINLINE.current.grammar is not None
assert MAINLINE.staged is not None
assert MAINLINE.staged.grammar is not None
ORIGINAL: Grammar = MAINLINE.current.grammar
STAGED: Grammar = MAINLINE.staged.grammar

STAGE = Request(Operation.STAGE)
DELETE_STAGED = Request(Operation.DELETE_STAGED)
EINVAL, ERANGE = errno.EINVAL, errno.ERANGE


def first(number: int) -> Request:
    return Request(Operation.DELETE_FIRST, number)


#: bytes -> answer on an original file, answer on a _staged file (Linux 7.3 ima_fs.c:344-401,
#: executed and recorded on 7.2.13).
ROWS: list[tuple[bytes, Request | int, Request | int]] = [
    (b"A\n", EINVAL, STAGE),
    (b"D\n", EINVAL, DELETE_STAGED),
    *((data, EINVAL, EINVAL) for data in (b"A", b"D", b"5", b"\n", b"", b"AA", b"12", b"AD")),
    *(
        (data, EINVAL, EINVAL)
        for data in (b"A\n\n", b"A \n", b"AB\n", b"a\n", b"d\n", b" A\n", b"A\0\n", b"A\r\n")
    ),
    *((data, EINVAL, EINVAL) for data in (b"A\nD\n", b"\n\n", b"\0\n", b"A\n5", b"D\nA")),
    *((data, first(5), EINVAL) for data in (b"5\n", b"+5\n", b"005\n", b"5\n\n", b"5\0xyz\n")),
    *((data, first(1), EINVAL) for data in (b"1\n", b"01\n", b"1\0\n", b"+01\n\n")),
    (b"00000000000000000001\n", first(1), EINVAL),
    (b"9999\n", first(9999), EINVAL),
    *(
        (data, EINVAL, EINVAL)
        for data in (b"-5\n", b" 5\n", b"5 \n", b"0x5\n", b"5a\n", b"++5\n", b"+\n", b"5\r\n")
    ),
    *((data, EINVAL, EINVAL) for data in (b"1:1\n", b"abc\n", b"5\n\n\n", b"5\n6\n", b"-0\n")),
    *((data, EINVAL, EINVAL) for data in (b"0\n", b"000\n", b"+0\n", b"0\n\n")),
    (b"18446744073709551615\n", first(ULONG_MAX), EINVAL),
    *(
        (data, ERANGE, EINVAL)
        for data in (
            b"18446744073709551616\n",
            b"99999999999999999999\n",
            b"20000000000000000000\n",
        )
    ),
    *(
        (data, EINVAL, EINVAL)
        for data in (b"0000000000000000000005\n", b"123456789012345678901\n", b"1" * 4096)
    ),
]


def answer(grammar: Grammar, data: bytes, *, flush_htable: bool = False) -> Request | int:
    try:
        return parse(grammar, data, 0, flush_htable=flush_htable)
    except Refused as refused:
        return refused.errno


@pytest.mark.parametrize(("data", "original", "staged"), ROWS)
def test_every_row(data: bytes, original: Request | int, staged: Request | int) -> None:
    assert answer(ORIGINAL, data) == original
    assert answer(STAGED, data) == staged


@pytest.mark.parametrize(("data", "original", "staged"), ROWS)
def test_every_row_with_flush_htable(
    data: bytes, original: Request | int, staged: Request | int
) -> None:
    # Numbers are refused before they are parsed: ERANGE becomes EINVAL too.
    assert answer(ORIGINAL, data, flush_htable=True) == EINVAL
    assert answer(STAGED, data, flush_htable=True) == staged


@pytest.mark.parametrize("position", [0, 1, 4096, 1 << 62])
def test_the_position_is_ignored(position: int) -> None:
    assert parse(STAGED, b"A\n", position) == STAGE
    assert parse(ORIGINAL, b"7\n", position) == first(7)


def test_a_draft_that_minds_the_position() -> None:
    draft = Staging(letters=((b"A", Operation.STAGE),), position=False)
    assert parse(draft, b"A\n", 0) == STAGE
    with pytest.raises(Refused) as caught:
        parse(draft, b"A\n", 1)
    assert caught.value.errno == EINVAL


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        (b"0", 10, 0),
        (b"1", 10, 1),
        (b"+1", 10, 1),
        (b"0001", 10, 1),
        (b"1\n", 10, 1),
        (b"1\0garbage", 10, 1),
        (b"1\n\0garbage", 10, 1),
        (b"18446744073709551615", 10, ULONG_MAX),
        (b"0000000000018446744073709551615", 10, ULONG_MAX),
        (b"0", 0, 0),
        (b"10", 0, 10),
        (b"010", 0, 8),
        (b"+010\n", 0, 8),
        (b"0x10", 0, 16),
        (b"0X1f", 0, 31),
        (b"0xAbCdEf", 0, 0xABCDEF),
        (b"0xffffffffffffffff", 0, ULONG_MAX),
        (b"01777777777777777777777", 0, ULONG_MAX),
        (b"00", 0, 0),
        (b"+0x2\n", 0, 2),
        (b"0x1f", 16, 31),
        (b"1F", 16, 31),
        (b"77", 8, 63),
        (b"101", 2, 5),
    ],
)
def test_kstrtoul_takes(text: bytes, base: int, value: int) -> None:
    assert kstrtoul(text, base) == value


@pytest.mark.parametrize(
    ("text", "base", "code"),
    [
        *((text, 10, EINVAL) for text in (b"", b"\n", b"+", b"-1", b"-0", b" 1", b"1 ", b"1\n\n")),
        *((text, 10, EINVAL) for text in (b"++1", b"+-1", b"0x1", b"1a", b"\x001", b"1\r", b"a")),
        *((text, 10, EINVAL) for text in (b"\xb2", b"1\xff", b"1_0", "\u0661".encode())),
        (b"18446744073709551616", 10, ERANGE),
        (b"99999999999999999999999999999", 10, ERANGE),
        # Overflow is decided before what follows is looked at.
        (b"18446744073709551616x", 10, ERANGE),
        *(
            (text, 0, EINVAL)
            for text in (b"", b"0x", b"0xg", b"08", b"019", b"0x\n", b"x1", b"0b1")
        ),
        (b"0x10000000000000000", 0, ERANGE),
        (b"02000000000000000000000", 0, ERANGE),
        (b"8", 8, EINVAL),
        (b"0x", 16, EINVAL),
    ],
)
def test_kstrtoul_refuses(text: bytes, base: int, code: int) -> None:
    with pytest.raises(Refused) as caught:
        kstrtoul(text, base)
    assert caught.value.errno == code


def test_other_limits_are_data() -> None:
    # "T:N" has 32 bytes; a grammar without letters and numbers takes nothing.
    wide = Staging(number=Operation.DELETE_FIRST, longest=32, number_with_flush=True, base=0)
    assert answer(wide, b"0" * 30 + b"1\n") == first(1)
    assert answer(wide, b"0x10\n", flush_htable=True) == first(16)
    assert answer(wide, b"0" * 31 + b"1\n") == EINVAL
    assert answer(Staging(), b"1\n") == EINVAL


def test_a_refusal_is_one_readable_line() -> None:
    with pytest.raises(Refused) as caught:
        parse(ORIGINAL, b"1", 0)
    assert caught.value.errno_name == "EINVAL"
    assert str(caught.value)
    assert "\n" not in str(caught.value)
