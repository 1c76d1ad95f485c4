# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Bundles as archives: what tar makes is read, what an enemy makes is refused."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from imafs.attest.bundle import MEMBERS, Bundle, Gap, decode, parse_manifest
from imafs.errors import FormatError
from tests.papertpm import PaperTpm
from tests.support import require, run


def a_bundle() -> Bundle:
    machine = PaperTpm()
    machine.files(b"/a")
    return replace(machine.bundle(), certificates=b"certificate", firmware=b"log")


def parts(bundle: Bundle) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(bundle.encode())) as tar:
        return {m.name: reader.read() for m in tar if (reader := tar.extractfile(m)) is not None}


def tar(members: Mapping[str, bytes], form: int = tarfile.USTAR_FORMAT, **about: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in about.items():
                setattr(info, key, value)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_what_is_written_is_read_and_always_the_same() -> None:
    bundle = a_bundle()
    data = bundle.encode()
    assert decode(data) == bundle
    assert data == decode(data).encode()
    assert list(parts(bundle)) == list(MEMBERS)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_others_in_any_order(form: int) -> None:
    bundle = a_bundle()
    members = dict(reversed(parts(bundle).items()))
    data = tar(members, form, mtime=1_700_000_000, uname="someone", uid=1000, mode=0o600)
    assert decode(data) == bundle
    del members["manifest.json"]
    assert decode(tar(members, form)).manifest is None


def test_an_archive_of_tar_itself(tmp_path: Path) -> None:
    require("tar")
    members = parts(a_bundle())
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    run(["tar", "cf", tmp_path / "b.tar", "-C", tmp_path, *members])
    assert decode((tmp_path / "b.tar").read_bytes()) == a_bundle_like(members)


def a_bundle_like(members: Mapping[str, bytes]) -> Bundle:
    return decode(tar(members))


NAMES = [
    *("../records.bin", "/etc/passwd", "./records.bin", "records.bin/", "RECORDS.BIN", ""),
    *("records.bin\x00x", "a" * 99, "quote.msg.", "é", "manifest.json\n"),
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(name: str) -> None:
    data = bytearray(a_bundle().encode())
    raw = name.encode().ljust(100, b"\0")
    with pytest.raises(FormatError):
        decode(resummed(data, raw))


def resummed(data: bytearray, raw: bytes, at: int = 0) -> bytes:
    """With another front of its header, and the checksum of that."""
    data[at : at + len(raw)] = raw
    block = data[at : at + 512]
    total = sum(block) - sum(block[148:156]) + 8 * 32
    data[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(data)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"g", b"L", b"S", b"Z"])
def test_links_directories_devices_and_long_names(kind: bytes) -> None:
    data = bytearray(a_bundle().encode())
    data[156:157] = kind
    with pytest.raises(FormatError, match="no plain file"):
        decode(resummed(data, b""))


def test_a_link_in_a_plain_file_and_a_prefix() -> None:
    for at in (157, 345):
        data = bytearray(a_bundle().encode())
        data[at : at + 1] = b"x"
        with pytest.raises(FormatError, match="link or a prefix"):
            decode(resummed(data, b""))


@pytest.mark.parametrize(
    "size",
    [
        *(b"77777777777\0", b"00000200001\0", b"\x80" + bytes(10) + b"\x01", b"-0000000001\0"),
        *(b"0000000001x\0", b"            ", b"\0" * 12, b"08888888888\0"),
    ],
)
def test_sizes(size: bytes) -> None:
    data = bytearray(a_bundle().encode())
    data[124:136] = size
    with pytest.raises(FormatError):
        decode(resummed(data, b""))


def test_every_member_may_only_have_so_many_bytes() -> None:
    for name, most in MEMBERS.items():
        header = bytearray(tar({name: b""})[:512])
        header[124:136] = b"%011o\0" % (most + 1)
        with pytest.raises(FormatError, match="more than"):
            decode(resummed(header, b""))


def test_twice() -> None:
    members = tar(parts(a_bundle()))
    once = tar({"records.bin": b""})[:512]
    with pytest.raises(FormatError, match=r"records\.bin is there twice"):
        decode(once + members)


@pytest.mark.parametrize("name", ["quote.msg", "quote.sig", "quote.pcrs", "records.bin"])
def test_what_must_be_there(name: str) -> None:
    members = parts(a_bundle())
    del members[name]
    with pytest.raises(FormatError, match=f"{name} is missing"):
        decode(tar(members))


def test_ends() -> None:
    data = a_bundle().encode()
    for cut in range(0, len(data), 100):
        with pytest.raises(FormatError):
            decode(data[:cut])
    for behind in (b"x", b"x" * 512, bytes(511), data, bytes(2 << 20)):
        with pytest.raises(FormatError):
            decode(data + behind)
    assert decode(data + bytes(512 * 18)) == a_bundle_like(parts(decode(data)))


def test_bytes_between_members() -> None:
    data = bytearray(a_bundle().encode())
    at = 512 + len(parts(a_bundle())["manifest.json"])
    data[at] = 1
    with pytest.raises(FormatError, match=r"bytes behind manifest\.json"):
        decode(bytes(data))


# manifest.json


def test_a_manifest_comes_back() -> None:
    manifest = a_bundle().manifest
    assert manifest is not None
    full = replace(
        manifest, life="000042-x", boot_ids=("a", "b"), gaps=(Gap(3), Gap(4, 5)), diverged=(1, 2)
    )
    assert parse_manifest(full.encode()) == full
    assert parse_manifest(manifest.encode()) == manifest


@pytest.mark.parametrize(
    "change",
    [
        *({"first": -1}, {"first": 1.0}, {"first": True}, {"first": None}, {"first": "1"}),
        *({"count": 1 << 63}, {"order": "middle"}, {"life": ""}, {"life": "x" * 201}),
        *({"life": "a\nb"}, {"gaps": [1]}, {"gaps": [{"after": 1}]}, {"diverged": [-1]}),
        *({"start": {"sha256": {"10": "00"}}}, {"start": {"sha0": {}}}, {"start": []}),
        *({"start": {"sha1": {"010": "00" * 20}}}, {"start": {"sha1": {"64": "00" * 20}}}),
        *({"start": {"sha1": {"10": "zz" * 20}}}, {"padded": ["sha0"]}, {"padded": [[]]}),
        *({"boot_ids": ["x"] * 1001}, {"clock": {}}, {"clock": None}, {"version": 2}),
        *({"format": "x"}, {"more": 1}, {"clock": {"clock": 1}}, {"boot_ids": "x"}),
    ],
)
def test_manifests_that_are_none(change: dict[str, object]) -> None:
    manifest = a_bundle().manifest
    assert manifest is not None
    row = json.loads(manifest.encode()) | change
    with pytest.raises(FormatError):
        parse_manifest(json.dumps(row).encode())


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"null", b"[" * 60_000, b'{"a":' * 20_000, b"\xff", b"\xef\xbb\xbf{}"),
        *(b"1" * 60_000, b'{"first": NaN}', b'{"first": 1e400}', b'{"a": 1, "a": 2}', b"{} {}"),
    ],
)
def test_json_that_is_none(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse_manifest(text)


def test_every_key_is_needed() -> None:
    manifest = a_bundle().manifest
    assert manifest is not None
    row = json.loads(manifest.encode())
    for key in row:
        left = {name: value for name, value in row.items() if name != key}
        with pytest.raises(FormatError):
            parse_manifest(json.dumps(left).encode())


def test_errors_are_one_printable_line() -> None:
    data = bytearray(a_bundle().encode())
    with pytest.raises(FormatError) as caught:
        decode(resummed(data, b"\x1b[31m\n".ljust(100, b"\0")))
    assert str(caught.value).isprintable()
    assert re.search("is none of manifest.json", str(caught.value))
