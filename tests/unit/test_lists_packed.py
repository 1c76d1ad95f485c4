# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Packed lists: what is kept, what is given back (contents: tests/property)."""

from __future__ import annotations

import pytest

from imafs.formats import views
from imafs.lists import packed, segments
from imafs.lists.banks import Hasher, Layout, View
from imafs.lists.packed import PackedList
from imafs.lists.segments import ViewCache
from tests.property.builders import banks, record
from tests.property.reference import Rec, ascii_list, ng

ASCII = View(True, 1)
BINARY = View(False, 0)
LAYOUT = Layout(banks("sha1", "sha256"))
RECS = [ng(10, b"/%04d" % number) for number in range(100)]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SEGMENT", 10)


def made(recs: list[Rec], limit: int = 1 << 20) -> tuple[PackedList, ViewCache]:
    cache, hasher = ViewCache(LAYOUT, limit), Hasher(LAYOUT)
    records = PackedList(LAYOUT, cache)
    for rec in recs:
        records.append(record(rec), hasher.digests(record(rec)))
    return records, cache


def whole(records: PackedList, view: View) -> bytes:
    out = b""
    for index in range(len(records)):
        found = records.run(view, index)
        assert found is not None
        run, at = found
        out += run.data[run.offsets[at] : run.offsets[at + 1]]
    return out


@pytest.mark.parametrize("limit", [0, 2500, 10_000])
def test_the_cache_is_bounded(limit: int) -> None:
    records, cache = made(RECS, limit)
    assert whole(records, ASCII) == ascii_list(RECS, "sha256")
    one = len(ascii_list(RECS[:10], "sha256")) + 4 * 11
    # The newest stays whatever its size: somebody is reading it.
    assert cache.size <= max(limit, one)
    assert cache.size >= one
    assert cache.size % one == 0
    assert whole(records, ASCII) == ascii_list(RECS, "sha256")


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    one = len(ascii_list(RECS[:10], "sha256")) + 4 * 11
    records, _ = made(RECS, 2 * one)
    rendered = []
    render = views.render_ascii

    def counted(*args: object) -> object:
        rendered.append(args)
        return render(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(segments, "render_ascii", counted)
    for index in (0, 10, 0, 20, 0, 10):
        records.run(ASCII, index)
    assert len(rendered) == 4  # 0, 10, 20 and 10 again


def test_the_sha1_binary_form_is_not_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "render_binary", None)
    records, cache = made(RECS)
    assert len(whole(records, BINARY)) == records.size(BINARY)
    assert cache.size == 0


def test_growth_renders_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    records, _ = made(RECS[:5])
    hasher = Hasher(LAYOUT)
    whole(records, ASCII)
    counts = []
    render = views.render_ascii

    def counted(data: bytes, offsets: list[int], digests: bytes, width: int) -> object:
        counts.append(len(offsets) - 1)
        return render(data, offsets, digests, width)

    monkeypatch.setattr(segments, "render_ascii", counted)
    for rec in RECS[5:8]:
        records.append(record(rec), hasher.digests(record(rec)))
    assert whole(records, ASCII) == ascii_list(RECS[:8], "sha256")
    assert counts == [3]


def test_forgetting_gives_back_every_view() -> None:
    records, cache = made(RECS)
    for bank in (0, 1):
        for form in (False, True):
            whole(records, View(form, bank))
    assert cache.size > 0
    for segment in records.drop(100):
        cache.forget(segment)
    assert cache.size == 0


def test_size_renders_at_most_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    records, cache = made(RECS)
    assert records.size(ASCII) == len(ascii_list(RECS, "sha256"))
    assert cache.size == 0
    records.drop(15)
    assert records.size(ASCII) == len(ascii_list(RECS[15:], "sha256"))
    assert cache.size == len(ascii_list(RECS[10:20], "sha256")) + 44


@pytest.mark.parametrize(
    ("number", "segments"), [(0, 0), (1, 0), (9, 0), (10, 1), (11, 1), (99, 9), (100, 10)]
)
def test_dropping_hands_over_whole_segments(number: int, segments: int) -> None:
    records, _ = made(RECS)
    assert len(records.drop(number)) == segments
    assert len(records) == 100 - number
    assert whole(records, ASCII) == ascii_list(RECS[number:], "sha256")


def test_a_list_that_was_emptied_goes_on() -> None:
    records, _ = made(RECS[:15])
    hasher = Hasher(LAYOUT)
    records.drop(15)
    assert (len(records), records.size(ASCII), records.newest(ASCII)) == (0, 0, None)
    assert records.locate(ASCII, 0) == (0, 0)
    for rec in RECS[20:35]:
        records.append(record(rec), hasher.digests(record(rec)))
    assert whole(records, ASCII) == ascii_list(RECS[20:35], "sha256")


def test_a_sealed_list_gives_slices_without_copying() -> None:
    records, _ = made(RECS[:15])
    records.seal()
    found = records.run(BINARY, 12)
    assert found is not None
    assert isinstance(found[0].data, bytes)
