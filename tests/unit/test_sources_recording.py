# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recordings as archives: loading them, and archives that are broken or something else."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from imafs.errors import FileError, FormatError, ImafsError, MismatchError, NotThereError
from imafs.sources import recording
from imafs.sources import unpack as archives
from imafs.sources.load import load
from imafs.sources.recording import CURRENT, Snapshot, lists_of, take, write
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
    said = r"those after record 2 of 5: are they older than the list, or is the TPM behind"
    with pytest.raises(MismatchError, match=said):
        take(ima, lambda: values(STAGED_RECS))


def test_pcrs_that_move_and_never_agree(tmp_path: Path) -> None:
    ima = str(directory(tmp_path))
    asked: list[Rec] = []

    def moving() -> dict[str, dict[int, bytes]]:
        asked.append(ng(10, b"/%d" % len(asked)))
        return values(asked)

    with pytest.raises(MismatchError, match=r"did not agree: .* again and again\? \(20 tries"):
        take(ima, moving)
    assert len(asked) == 20


class Growing:
    """A machine that measures whenever a file of its directory has been read."""

    def __init__(self, ima: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ima = ima
        self.recs = [*CURRENT_RECS]
        self.moments: list[int] = []
        self._read = recording._content
        monkeypatch.setattr(recording, "_content", self._read_and_measure)
        self.write()

    def write(self) -> None:
        for bank in ("sha1", "sha256"):
            name = f"runtime_measurements_{bank}"
            (self.ima / f"binary_{name}").write_bytes(binary_list(self.recs, bank))
            (self.ima / f"ascii_{name}").write_bytes(ascii_list(self.recs, bank))
        (self.ima / "runtime_measurements_count").write_bytes(b"%d\n" % len(self.recs))

    def pcrs(self) -> dict[str, dict[int, bytes]]:
        self.moments.append(len(self.recs))
        return values(STAGED_RECS + self.recs)

    def _read_and_measure(self, path: Path, most: int) -> bytes | None:
        content = self._read(path, most)
        # The count is read at once behind this list.
        if path.parent == self.ima and path.name != "binary_runtime_measurements_sha1":
            self.recs.append(ng(10, b"/new\n%d" % len(self.recs)))
            self.write()
        return content


def test_a_machine_that_never_rests_is_recorded_at_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All views are cut where the PCRs were read; the staged list does not grow."""
    growing = Growing(directory(tmp_path), monkeypatch)
    taken = take(str(growing.ima), growing.pcrs)
    assert len(growing.moments) == 2, "the first try cannot tell old PCRs from a list that grew"
    kept = growing.recs[: growing.moments[1]]
    assert len(kept) > len(CURRENT_RECS)
    assert taken.later > 0
    assert taken.pcrs == values(STAGED_RECS + kept)
    for bank in ("sha1", "sha256"):
        name = f"runtime_measurements_{bank}"
        assert taken.files[f"binary_{name}"] == binary_list(kept, bank)
        assert taken.files[f"ascii_{name}"] == ascii_list(kept, bank)
    name = "runtime_measurements_sha1_staged"
    assert taken.files[f"binary_{name}"] == binary_list(STAGED_RECS, "sha1")
    assert taken.files[f"ascii_{name}"] == ascii_list(STAGED_RECS, "sha1")
    assert taken.files["runtime_measurements_count"] == b"%d\n" % len(kept)


def test_without_tpm_all_views_are_those_of_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = Growing(directory(tmp_path), monkeypatch)
    taken = take(str(growing.ima), dict)
    found = {len(taken.files[f"ascii_runtime_measurements_{bank}"]) for bank in ("sha1", "sha256")}
    kept = growing.recs[: int(taken.files["runtime_measurements_count"])]
    assert found == {len(ascii_list(kept, bank)) for bank in ("sha1", "sha256")}
    assert taken.later == 0


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


def refused(ima: Path) -> str:
    with pytest.raises(FileError) as caught:
        take(str(ima), dict)
    return str(caught.value)


def test_a_directory_of_somebody_who_wants_root_to_wait(tmp_path: Path) -> None:
    ima = directory(tmp_path)
    (ima / CURRENT).unlink()
    os.mkfifo(ima / CURRENT)
    assert "not a regular file" in refused(ima)
    target = ima / "binary_runtime_measurements_sha1"
    (ima / CURRENT).unlink()
    (ima / CURRENT).symlink_to(target.name)
    target.unlink()
    os.mkfifo(target)
    assert "not a regular file" in refused(ima)


@pytest.mark.parametrize("where", ["/etc/passwd", "../secret", "binary_runtime_measurements"])
def test_a_list_that_is_a_link_to_elsewhere(tmp_path: Path, where: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    for name in (CURRENT, "binary_runtime_measurements_staged"):
        ima = directory(tmp_path)
        (ima / name).unlink()
        (ima / name).symlink_to(where)
        if (name == CURRENT) or "/" in where:
            assert str(ima) in refused(ima)
        shutil.rmtree(ima)


def test_a_file_that_becomes_a_link_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner would have what root may read in the recording."""
    (tmp_path / "secret").write_bytes(b"secret")
    ima = directory(tmp_path)
    read = recording._content

    def late(entry: Path, most: int) -> bytes | None:
        entry.unlink()
        entry.symlink_to(tmp_path / "secret")
        return read(entry, most)

    monkeypatch.setattr(recording, "_content", late)
    assert os.strerror(errno.ELOOP) in refused(ima)


def test_a_directory_larger_than_any_kernels_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "MOST", 1 << 20)
    monkeypatch.setattr(recording, "_MOST_TOGETHER", 1 << 22)
    ima = directory(tmp_path)
    (ima / "junk").touch()
    os.truncate(ima / "junk", 60 << 30)
    assert "junk: is larger than 1 MiB" in refused(ima)
    for number in range(5):
        (ima / f"junk{number}").touch()
        os.truncate(ima / f"junk{number}", 1 << 20)
    (ima / "junk").unlink()
    assert "is larger than" in refused(ima)


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
    for size in range(1, len(data), max(1, len(data) // 12)):
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
    said = r"2 moments in it: name one with --moment .*: m/a, m/b$"
    with pytest.raises(FormatError, match=said):
        load(archive(tmp_path / "list.tar", *several))


def test_one_moment_of_several(tmp_path: Path) -> None:
    first, second = binary_list(CURRENT_RECS, "sha1"), binary_list(STAGED_RECS, "sha1")
    path = archive(
        tmp_path / "list.tar",
        (f"m/a/{CURRENT}", first, ""),
        (f"m/b/{CURRENT}", second, ""),
        (f"n/b/{CURRENT}", first, ""),
    )
    assert lists_of(path, "a") == lists_of(path, "m/a") == (b"", first)
    assert lists_of(path, "m/b/") == (b"", second)
    with pytest.raises(FormatError, match=r"2 moments in it: .*: m/a, m/b, n/b"):
        lists_of(path, "b")
    for missing in ("c", "", "a/b", "/m/a"):
        with pytest.raises(NotThereError, match=r"there are: m/a, m/b, n/b$"):
            lists_of(path, missing)


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
        tmp_path / "list.tar",
        (f"a/{recording.STAGED[0]}", staged[:-1], ""),
        (f"a/{CURRENT}", current, ""),
    )
    with pytest.raises(FormatError) as caught:
        load(path)
    assert caught.value.record == 1


def test_links_to_nowhere_to_themselves_and_in_circles_are_refused(tmp_path: Path) -> None:
    data = binary_list(CURRENT_RECS, "sha1")
    link, other = f"a/{CURRENT}", f"a/{recording.STAGED[0]}"
    for members in (
        ((link, b"", CURRENT),),
        ((link, b"", "nothing"),),
        ((link, b"", "/etc/passwd"),),
        ((link, b"", recording.STAGED[0]), (other, b"", CURRENT)),
        ((link, data, ""), (other, b"", "../../a/there"), ("b/there", data, "")),
    ):
        with pytest.raises(FormatError, match="is no file, and no link to one in it"):
            load(archive(tmp_path / "list.tar", *members))
    found = ((link, b"", "../b/list"), ("b/list", data, ""))
    assert lists_of(archive(tmp_path / "list.tar", *found)) == (b"", data)


def test_only_lists_are_read_and_only_so_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small archive may hold any amount of zeros."""
    data = binary_list(CURRENT_RECS, "sha1")
    members = ((f"a/{CURRENT}", data, ""), ("a/junk", bytes(64 << 20), ""))
    path = archive(tmp_path / "list.tar", *members)
    tracemalloc.start()
    try:
        assert lists_of(path) == (b"", data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(recording, "MOST", len(data) - 1)
    with pytest.raises(FormatError, match=f"a/{CURRENT} is larger than"):
        load(path)
    plain = tmp_path / "list"
    plain.write_bytes(data)
    with pytest.raises(FileError, match="list: is larger than"):
        load(str(plain))
    monkeypatch.setattr(archives, "MOST_ENTRIES", 1)
    with pytest.raises(FormatError, match="more than 1 files in it"):
        load(path)


def test_a_fifo_is_no_list(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CURRENT)  # must not wait for a writer
    for path in (tmp_path, tmp_path / CURRENT):
        with pytest.raises(FileError, match="is not a regular file"):
            load(str(path))
