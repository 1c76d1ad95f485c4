# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""kstrtol, and what the drafts make of numbers (kstrtoul: test_kernel_requests.py)."""

from __future__ import annotations

import errno

import pytest

from imafs.errors import Refused
from imafs.interface.grammar import PathName, PcrSet, PcrValue, Signed, Totalled, parse
from imafs.interface.kstrtox import LONG_MAX, kstrtol


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        (b"5", 10, 5),
        (b"+5\n", 10, 5),
        (b"-5\n", 10, -5),
        (b"-0", 10, 0),
        (b"-0x10", 0, -16),
        (b"010\0x", 0, 8),
        (b"9223372036854775807", 10, LONG_MAX),
        (b"-9223372036854775808", 10, -LONG_MAX - 1),
    ],
)
def test_kstrtol_takes(text: bytes, base: int, value: int) -> None:
    assert kstrtol(text, base) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *((text, errno.EINVAL) for text in (b"", b"-", b"--5", b"-+5", b"+-5", b" 5", b"5 ", b"x")),
        *((text, errno.ERANGE) for text in (b"9223372036854775808", b"-9223372036854775809")),
    ],
)
def test_kstrtol_refuses(text: bytes, error: int) -> None:
    with pytest.raises(Refused) as caught:
        kstrtol(text, 10)
    assert caught.value.errno == error


def test_a_negative_number_is_an_errno_where_the_draft_returns_it() -> None:
    trim_v3 = Signed(negative_is_errno=True)
    for number in (1, 5, 22, 4095):
        with pytest.raises(Refused) as caught:
            parse(trim_v3, b"-%d\n" % number, 0)
        assert caught.value.errno == number
    for grammar, data in ((trim_v3, b"-4096\n"), (Signed(), b"-1\n")):
        with pytest.raises(Refused) as caught:
            parse(grammar, data, 0)
        assert caught.value.errno == errno.EINVAL


def test_t_is_judged_before_n() -> None:
    for data, error in (
        (b"8:99999999999999999999", "EINVAL"),
        (b"7:99999999999999999999", "ERANGE"),
    ):
        with pytest.raises(Refused) as caught:
            parse(Totalled(), data, 0, trimmed=7)
        assert caught.value.errno_name == error
    assert parse(Totalled(), b"7:010\n", 0, trimmed=7).number == 8


def test_a_path_ends_at_its_newline() -> None:
    assert parse(PathName(), b"/a b\n", 99).path == b"/a b"
    assert parse(PathName(), b"/a\n\n", 0).path == b"/a\n"
    assert parse(PathName(), b"/a\0b", 0).path == b"/a"


def test_pcr_values_follow_each_other_without_a_mark() -> None:
    data = b"pcr10:sha1:" + b"\n" * 20 + b"pcr11:sha256:" + b"p" * 32
    assert parse(PcrSet(), data, 0).values == (
        PcrValue(10, "sha1", b"\n" * 20),
        PcrValue(11, "sha256", b"p" * 32),
    )
    for wrong in (data[:-1], data + b"\n", data.replace(b"11", b"24"), data.replace(b"sha1", b"")):
        with pytest.raises(Refused) as caught:
            parse(PcrSet(), wrong, 0)
        assert caught.value.errno == errno.EINVAL
