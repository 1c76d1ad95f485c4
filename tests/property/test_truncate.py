# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Every view of a list, cut behind any record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imafs.sources.truncate import ShorterError, count, cut
from tests.property.builders import BANKS, recs
from tests.property.reference import WIDTHS, Rec, ascii_list, binary_list


@given(st.lists(recs(), max_size=6), st.integers(0, 6), *[st.sampled_from(BANKS)] * 2)
def test_views_end_where_the_list_does(
    records: list[Rec], number: int, own: str, other: str
) -> None:
    number = min(number, len(records))
    data = binary_list(records, own)
    assert count(data, WIDTHS[own]) == len(records)
    found = cut(data, WIDTHS[own], number)
    kept = records[:number]
    assert found.binary(binary_list(records, other)) == binary_list(kept, other)
    assert found.ascii(ascii_list(records, other)) == ascii_list(kept, other)
    for rest in range(number):
        with pytest.raises(ShorterError):
            found.binary(binary_list(records[:rest], other))
    if number:
        with pytest.raises(ShorterError):
            found.ascii(ascii_list(kept, other)[:-1])
