# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recordings as archives: loading them, and archives that are broken or something else."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from imafs.errors import FileError, FormatError, ImafsError, MismatchError
from imafs.sources.lists import load
from imafs.sources.recording import CURRENT, STAGED, Snapshot, lists_of, take, write
from tests.property.builders import record
from tests.property.reference import Rec, ascii_list, binary_list, extend, ng

STAGED_RECS = [ng(10, b"boot_aggregate"), ng(10, b"/a")]
CURRENT_RECS = [ng(10, b"/b"), ng(10, b"/c"), ng(10, b"/d")]


def values(recs: list[Rec]) -> dict[str, dict[int, bytes]]:
    value = bytes(20)
    for rec in recs:
        value = extend(value, rec.digest("sha1"), "sha1")
    return {"sha1": {10: value}}


def directory(root: Path) -> Path:
    """An IMA directory with a staged and a current list."""
    ima = root / "ima"
    ima.mkdir()
    for suffix, recs in (("", CURRENT_RECS), ("_staged", STAGED_RECS)):
        for form, content in (("binary", binary_list), ("ascii", ascii_list)):
            name = f"{form}_runtime_measurements"
            (ima / f"{name}_sha1{suffix}").write_bytes(content(recs, "sha1"))
            (ima / f"{name}{suffix}").symlink_to(f"{name}_sha1{suffix}")
    (ima / "runtime_measurements_count").write_bytes(b"3\n")
    return ima


def snapshot(root: Path) -> Snapshot:
    return take(str(directory(root)), lambda: values(STAGED_RECS + CURRENT_RECS))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.xz"])
def test_written_and_loaded(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"case{suffix}")
    write(snapshot(tmp_path), path, {"version": 1})
    assert lists_of(path) == (binary_list(STAGED_RECS, "sha1"), binary_list(CURRENT_RECS, "sha1"))
    loaded = load(path)
    assert loaded.records == [record(rec) for rec in STAGED_RECS + CURRENT_RECS]
    assert (loaded.staged, loaded.bank.name) == (2, "sha1")
    with tarfile.open(path) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith("/pcrs.txt"))
        pcrs = archive.extractfile(name)
        assert pcrs is not None
        value = values(STAGED_RECS + CURRENT_RECS)["sha1"][10]
        assert pcrs.read().decode() == f"sha1 10 {value.hex().upper()}\n"


def test_lists_and_pcrs_that_do_not_agree_are_not_recorded(tmp_path: Path) -> None:
    ima = str(directory(tmp_path))
    asked = []

    def slow() -> dict[str, dict[int, bytes]]:
        asked.append(1)  # agrees at the third look
        return values((STAGED_RECS + CURRENT_RECS)[: 2 + len(asked)])

    taken = take(ima, slow)
    assert taken.verdict is not None
    assert taken.verdict.matched == 5
    assert len(asked) == 3
    said = r"those after record 2 of 5: are they older than the list, .* \(2 tries\)"
    with pytest.raises(MismatchError, match=said):
        take(ima, lambda: values(STAGED_RECS), tries=2)


def test_pcrs_that_move_and_never_agree(tmp_path: Path) -> None:
    ima = str(directory(tmp_path))
    asked: list[Rec] = []

    def moving() -> dict[str, dict[int, bytes]]:
        asked.append(ng(10, b"/%d" % len(asked)))
        return values(asked)

    with pytest.raises(MismatchError, match=r"did not agree: is the machine too busy\? \(20 tries"):
        take(ima, moving)
    assert len(asked) == 20


def test_pcrs_of_another_list_are_refused_at_once(tmp_path: Path) -> None:
    """Where neither moves and no part of the list leads to them, waiting is of no use."""
    ima = str(directory(tmp_path))
    asked = []

    def foreign() -> dict[str, dict[int, bytes]]:
        asked.append(1)
        return values([ng(10, b"/another")])

    with pytest.raises(MismatchError, match="not of this list: no part of its 5 records"):
        take(ima, foreign)
    assert len(asked) == 2


def test_unchecked(tmp_path: Path) -> None:
    ima = str(directory(tmp_path))
    assert take(ima, lambda: values(STAGED_RECS), check=False).verdict is None


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        take(str(tmp_path), lambda: values([]))


def test_nothing_is_left_of_a_recording_that_cannot_be_written(tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    target.mkdir()
    with pytest.raises(FileError):
        write(snapshot(tmp_path), str(target), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ima", "out.tar"]


def whole_archive(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.tar"
    write(snapshot(tmp_path), str(path), {"version": 1})
    return path.read_bytes()


def refusal(path: Path) -> ImafsError | None:
    try:
        load(str(path))
    except ImafsError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["tar", "gz", "xz"])
def test_a_cut_archive_is_refused_or_whole(tmp_path: Path, kind: str) -> None:
    data = whole_archive(tmp_path)
    data = {"tar": data, "gz": gzip.compress(data), "xz": lzma.compress(data)}[kind]
    path = tmp_path / "cut"
    expected = [record(rec) for rec in STAGED_RECS + CURRENT_RECS]
    for size in range(1, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:size])
        error = refusal(path)
        if error is None:
            assert load(str(path)).records == expected, size


def archive(path: Path, *members: tuple[str, bytes, str]) -> str:
    with tarfile.open(path, "w") as out:
        for name, content, link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return str(path)


def test_an_archive_without_a_list_or_with_two_is_refused(tmp_path: Path) -> None:
    data = binary_list(CURRENT_RECS, "sha1")
    for members in (
        (),
        (("a/readme", b"x", ""),),
    ):
        with pytest.raises(FormatError, match=f"there is no {CURRENT} in it"):
            load(archive(tmp_path / "list.tar", *members))
    several = ((f"m/a/{CURRENT}", data, ""), (f"m/b/{CURRENT}", data, ""))
    said = r"2 moments in it: unpack it and name the directory of one \(m/a, m/b\)"
    with pytest.raises(FormatError, match=said):
        load(archive(tmp_path / "list.tar", *several))


def test_a_recording_without_staging(tmp_path: Path) -> None:
    data = binary_list(CURRENT_RECS, "sha1")
    loaded = load(archive(tmp_path / "list.tar", (f"a/{CURRENT}", data, "")))
    assert (len(loaded.records), loaded.staged) == (3, 0)


@pytest.mark.parametrize("link", ["missing", "../missing"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, link: str) -> None:
    with pytest.raises(FormatError):
        load(archive(tmp_path / "list.tar", (f"a/{CURRENT}", b"", link)))


def test_a_broken_staged_list_is_refused(tmp_path: Path) -> None:
    staged, current = binary_list(STAGED_RECS, "sha1"), binary_list(CURRENT_RECS, "sha1")
    path = archive(
        tmp_path / "list.tar", (f"a/{STAGED}", staged[:-1], ""), (f"a/{CURRENT}", current, "")
    )
    with pytest.raises(FormatError) as caught:
        load(path)
    assert caught.value.record == 1
