# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Loading recorded lists, and generated load."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from imafs.errors import FileError, FormatError, UsageError
from imafs.formats.algorithms import by_name
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View
from imafs.sources.generate import PREFIX, generate
from imafs.sources.load import load
from tests.property.builders import banks, record
from tests.property.reference import Rec, ascii_list, binary_list, ng, violation

BINARY = "binary_runtime_measurements"
RECS = [ng(10, b"boot_aggregate"), violation(10, b"/v"), ng(11, b"/a"), ng(10, b"/b")]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("named", [True, False])
def test_load(tmp_path: Path, name: str, named: bool) -> None:
    path = write(tmp_path / "list", binary_list(RECS, name))
    loaded = load(path, name if named else None)
    records, bank = loaded.records, loaded.bank
    assert records == [record(rec) for rec in RECS]
    assert bank.name == name


def test_an_empty_list(tmp_path: Path) -> None:
    assert load(write(tmp_path / "list", b"")).records == []


def test_a_broken_list_is_refused_whole_with_file_record_and_byte(tmp_path: Path) -> None:
    data = bytearray(binary_list(RECS, "sha256"))
    data[-1] ^= 1
    path = write(tmp_path / "list", bytes(data))
    with pytest.raises(FormatError) as caught:
        load(path)
    error = caught.value
    start = len(binary_list(RECS[:3], "sha256"))
    assert (error.source, error.record, error.offset) == (path, 3, start)
    assert str(error).startswith(f"{path}: record 3, byte {start} (/b\\x01): the sha256")


@pytest.mark.parametrize("pcr", [17, 20, 22, 24, 63])
def test_a_pcr_that_ima_may_not_extend_is_taken(tmp_path: Path, pcr: int) -> None:
    """A kernel has such records, and the TPM refuses their extends alone."""
    path = write(tmp_path / "list", binary_list([*RECS, ng(23, b"/c"), ng(pcr, b"/d")], "sha1"))
    assert [record.pcr for record in load(path).records[-2:]] == [23, pcr]


def test_a_number_that_no_rule_says_is_no_pcr(tmp_path: Path) -> None:
    path = write(tmp_path / "list", binary_list([*RECS, ng(64, b"/d")], "sha1"))
    with pytest.raises(FormatError, match="PCR 64") as caught:
        load(path)
    assert caught.value.record == 4


@pytest.mark.parametrize("bank", ["sha256", "sha512", "sm3"])
def test_the_wrong_bank_is_refused(tmp_path: Path, bank: str) -> None:
    path = write(tmp_path / "list", binary_list(RECS, "sha1"))
    with pytest.raises(FormatError) as caught:
        load(path, bank)
    assert caught.value.source == path


@pytest.mark.parametrize("bank", ["wp512", "tpm_alg_27", "no such"])
def test_a_bank_that_is_none_is_refused(tmp_path: Path, bank: str) -> None:
    with pytest.raises(UsageError, match="is no bank of a list; there are: md5, sha1"):
        load(write(tmp_path / "list", binary_list(RECS, "sha1")), bank)


@pytest.mark.parametrize("bank", ["sha1", "sha256"])
@pytest.mark.parametrize("form", [binary_list, ascii_list])
def test_a_tampered_list_as_it_is(
    tmp_path: Path, bank: str, form: Callable[[list[Rec], str], bytes]
) -> None:
    path = write(tmp_path / "list", form(RECS, bank).replace(b"/b", b"/X"))
    with pytest.raises(FormatError, match="template digest"):
        load(path)
    loaded = load(path, as_is=True)
    assert (loaded.unsound, len(loaded.records)) == (1, len(RECS))
    assert [record.claimed for record in loaded.records[:3]] == [None] * 3
    assert loaded.records[3].claimed == (bank, RECS[3].digest(bank))
    assert "1 record with a wrong template digest: the list is not sound" in loaded.said()
    queue = Queue(Layout(banks("sha1", "sha256")), disable_htable=True)
    for one in loaded.records:
        queue.append(one)
    at = ("sha1", "sha256").index(bank)
    served = b"".join(queue.current.pieces(View(form is ascii_list, at)))
    assert served == form(RECS, bank).replace(b"/b", b"/X")
    # The PCRs get what the records say.
    extends = queue.pending_extends(queue.pending)
    assert RECS[3].digest(bank) in extends[-4 - 52 :]
    assert queue.totals.unsound == 1


def test_what_as_it_is_does_not_take(tmp_path: Path) -> None:
    """What cannot be served: a broken length, fields that do not fit, a bank without a file."""
    data = binary_list(RECS, "sha1")
    for content in (data[:-1], data.replace(b"/b\0", b"/b")):
        with pytest.raises(FormatError):
            load(write(tmp_path / "list", content), as_is=True)
    text = b"10 " + b"ab" * 20 + b" ima-ng nonsense /a\n"
    with pytest.raises(FormatError, match="line 5, record 4"):
        load(write(tmp_path / "list", ascii_list(RECS, "sha1") + text), as_is=True)
    tampered = write(tmp_path / "list", binary_list(RECS, "sha512").replace(b"/b", b"/X"))
    queue = Queue(Layout(banks("sha1", "sha256")), disable_htable=True)
    last = load(tampered, as_is=True).records[-1]
    with pytest.raises(FormatError, match="of bank sha512 cannot be shown here"):
        queue.append(last)


def test_a_big_endian_list_is_converted(tmp_path: Path) -> None:
    parts = (b"sha1:\0" + bytes(range(20)), b"/a\0", b"\x81\xa4", b"\0\0\3\xe8")
    data = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    label = b"d-ng|n-ng|imode|iuid"
    front = struct.pack(">I", 10) + hashlib.sha1(data).digest() + struct.pack(">I", len(label))
    path = write(tmp_path / "list", front + label + struct.pack(">I", len(data)) + data)
    little = Rec(10, label.decode(), (*parts[:2], b"\xa4\x81", b"\xe8\3\0\0"))
    assert load(path).records == [record(little)]


def test_an_unknown_template_is_not_played(tmp_path: Path) -> None:
    path = write(tmp_path / "list", binary_list([*RECS, Rec(10, "ima-new", (b"a\0",))], "sha1"))
    with pytest.raises(FormatError, match="unknown template 'ima-new': no profile plays it") as e:
        load(path)
    assert (e.value.source, e.value.record) == (path, 4)


def test_violations_of_an_ascii_list_are_counted(tmp_path: Path) -> None:
    loaded = load(write(tmp_path / "list", ascii_list(RECS, "sha256")))
    assert loaded.records == [record(rec) for rec in RECS]
    assert loaded.unproven == 1
    assert loaded.said() == "1 violation stands as the text has it, which no digest proves"
    assert load(write(tmp_path / "list", binary_list(RECS, "sha256"))).said() == ""


def test_a_list_of_violations_wants_a_bank(tmp_path: Path) -> None:
    path = write(tmp_path / "list", binary_list([violation(10, b"/v")], "sha256"))
    with pytest.raises(FormatError, match="name it"):
        load(path)
    assert len(load(path, "sha256").records) == 1


@pytest.mark.parametrize("name", ["missing", ".", "list/below"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """Nor a directory without a list: what is missing is named."""
    write(tmp_path / "list", b"")
    with pytest.raises(FileError) as caught:
        load(str(tmp_path / name))
    assert caught.value.errno == (errno.ENOTDIR if "/" in name else errno.ENOENT)
    assert caught.value.exit_code == UsageError.exit_code
    place = tmp_path / BINARY if name == "." else tmp_path / name
    assert str(caught.value).startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(errno.ENOENT, 2), (errno.EACCES, 2), (errno.EBUSY, 7), (errno.ENOSPC, 1), (errno.EIO, 1)],
)
def test_exit_codes_of_files(code: int, exit_code: int) -> None:
    """A wrong name, a file that the kernel keeps for a writer, and what no name mends."""
    error = FileError("/a", OSError(code, os.strerror(code)))
    assert (error.errno, error.exit_code) == (code, exit_code)
    assert str(error) == f"/a: {os.strerror(code)}"


def test_a_directory_as_a_kernel_has_it(tmp_path: Path) -> None:
    write(tmp_path / f"{BINARY}_sha1", binary_list(RECS[2:], "sha1"))
    (tmp_path / BINARY).symlink_to(f"{BINARY}_sha1")
    loaded = load(str(tmp_path))
    assert (loaded.records, loaded.staged) == ([record(rec) for rec in RECS[2:]], 0)
    write(tmp_path / f"{BINARY}_staged", binary_list(RECS[:2], "sha1"))
    loaded = load(str(tmp_path))
    assert (loaded.records, loaded.staged) == ([record(rec) for rec in RECS], 2)


def test_progress(tmp_path: Path) -> None:
    recs: list[Rec] = [ng(10, b"/%d" % number) for number in range(9000)]
    data = binary_list(recs, "sha1")
    seen: list[tuple[int, int]] = []
    load(write(tmp_path / "list", data), None, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(data), len(data))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 3
    assert {total for _, total in seen} == {len(data)}


def test_generate() -> None:
    made = list(generate(3, by_name("sha256")))
    assert [m.name.decode() for m in made] == [f"{PREFIX}{n:08d}" for n in range(3)]
    assert [m.digest for m in made] == [hashlib.sha256(m.name).digest() for m in made]
    assert made[0].sha1 is None


def test_the_same_number_is_the_same_record() -> None:
    sha1 = by_name("sha1")
    first = list(generate(10, sha1, prefix="/g/"))
    assert list(generate(4, sha1, prefix="/g/", start=6)) == first[6:]
    assert not list(generate(0, sha1))


def test_generated_sha1() -> None:
    (made,) = generate(1, by_name("sha512"), prefix="/g", want_sha1=True)
    assert made.sha1 == hashlib.sha1(b"/g00000000").digest()


def test_generating_is_lazy() -> None:
    assert len(list(islice(generate(1 << 60, by_name("sha1")), 2))) == 2


def test_what_a_plain_list_costs(tmp_path: Path) -> None:
    """Calls of functions, C's too, for each record: people load lists of a million."""
    calls = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    path = write(tmp_path / "list", binary_list([ng(10, b"/%d" % n) for n in range(500)], "sha1"))
    load(path)  # what is done once
    before = sys.getprofile()
    sys.setprofile(called)
    try:
        loaded = load(path)
    finally:
        sys.setprofile(before)
    assert len(loaded.records) == 500
    assert calls / 500 < 40
