# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which digests a record gets and what a TPM extends for it, against hashlib."""

from __future__ import annotations

import pytest

from imafs.formats.algorithms import SHA1, Bank, bank_for, by_name
from imafs.lists.banks import Hasher, Layout
from tests.property.builders import banks, record
from tests.property.reference import Rec, ng, u32, violation

REC = ng(10, b"/bin/a", b"content")
UNKNOWN = Bank(0x27, 32, None)  # sha3-256 in the TPM's registry; the kernel maps it to nothing


def names(found: tuple[Bank, ...]) -> list[str]:
    return [bank.name for bank in found]


@pytest.mark.parametrize(
    ("tpm", "lists"),
    [
        (("sha1", "sha256"), ["sha1", "sha256"]),
        (("sha256", "sha384"), ["sha256", "sha384", "sha1"]),
        (("sha512", "sha1"), ["sha512", "sha1"]),
        ((), ["sha1"]),
    ],
)
def test_sha1_has_files_always(tpm: tuple[str, ...], lists: list[str]) -> None:
    assert names(Layout(banks(*tpm)).lists) == lists


def test_a_default_hash_without_a_bank_has_no_files() -> None:
    layout = Layout(banks("sha1"), by_name("sha512"))
    assert names(layout.lists) == ["sha1"]
    assert layout.stored == ()
    digests = Hasher(layout).digests(record(REC))
    assert digests.default == REC.digest("sha512")


@pytest.mark.parametrize("default", ["md5", "sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("rec", [REC, Rec(10, "ima", (b"\x11" * 20, b"/bin/a"))])
def test_digests(default: str, rec: Rec) -> None:
    layout = Layout(banks("sha512", "sha256", "sha1"), by_name(default))
    assert [algorithm.name for algorithm in layout.stored] == ["sha512", "sha256"]
    digests = Hasher(layout).digests(record(rec))
    assert digests.sha1 == rec.digest("sha1")
    assert digests.stored == (rec.digest("sha512"), rec.digest("sha256"))
    assert digests.default == rec.digest(default)


def test_digests_of_a_violation_are_zeros() -> None:
    layout = Layout(banks("sha1", "sha256"), by_name("sha512"))
    digests = Hasher(layout).digests(record(violation(10, b"/v")))
    assert digests == (bytes(20), (bytes(32),), bytes(64))


def test_extend_entries() -> None:
    layout = Layout(banks("sha256", "sha1", "sha384"))
    hasher = Hasher(layout)
    entry = hasher.extend_entry(record(REC), hasher.digests(record(REC)))
    assert entry == u32(10) + REC.digest("sha256") + REC.digest("sha1") + REC.digest("sha384")
    assert len(entry) == layout.entry_size == 4 + 32 + 20 + 48


def test_the_pcr_of_an_extend_entry_is_the_records() -> None:
    hasher = Hasher(Layout(banks("sha1")))
    other = record(ng(23, b"/x"))
    assert hasher.extend_entry(other, hasher.digests(other))[:4] == b"\x17\0\0\0"


def test_padded_banks_extend_sha1_and_zeros() -> None:
    # Debian 6.1: IMA cannot hash sha384 and sha512, the TPM can (observed).
    layout = Layout(banks("sha1", "sha256", "sha384", "sha512", padded=("sha384", "sha512")))
    hasher = Hasher(layout)
    sha1 = REC.digest("sha1")
    assert hasher.extend_entry(record(REC), hasher.digests(record(REC))) == (
        u32(10) + sha1 + REC.digest("sha256") + sha1 + bytes(28) + sha1 + bytes(44)
    )
    assert [algorithm.name for algorithm in layout.stored] == ["sha256"]


def test_banks_that_the_kernel_does_not_know() -> None:
    layout = Layout((*banks("sha256"), UNKNOWN))
    hasher = Hasher(layout)
    assert names(layout.lists) == ["sha256", "tpm_alg_27", "sha1"]
    assert hasher.extend_entry(record(REC), hasher.digests(record(REC))) == (
        u32(10) + REC.digest("sha256") + REC.digest("sha1") + bytes(12)
    )


@pytest.mark.parametrize("tpm_id", [0x27, 0x28, 0x29, 0x10, 0xABC])
def test_the_names_of_unknown_banks_are_lower_case_hex(tpm_id: int) -> None:
    assert Bank(tpm_id, 48, None).name == f"tpm_alg_{tpm_id:x}"
    assert Bank(tpm_id, 48, None).is_padded


def test_violations_extend_0xff() -> None:
    padded = bank_for(by_name("sha512"), padded=True)
    layout = Layout((*banks("sha1", "sha256"), padded, UNKNOWN))
    hasher = Hasher(layout)
    entry = record(violation(10, b"/v"))
    # Over the whole width even where the bank is padded; only an unknown bank gets 20 bytes.
    assert hasher.extend_entry(entry, hasher.digests(entry)) == (
        u32(10) + b"\xff" * 20 + b"\xff" * 32 + b"\xff" * 64 + b"\xff" * 20 + bytes(12)
    )


def test_without_a_tpm_an_entry_is_only_the_pcr() -> None:
    layout = Layout(())
    hasher = Hasher(layout)
    assert layout.entry_size == 4
    assert hasher.extend_entry(record(REC), hasher.digests(record(REC))) == u32(10)


def test_a_padded_default_hash_still_keys_the_hash_table() -> None:
    layout = Layout((bank_for(by_name("sha384"), padded=True), bank_for(SHA1)), by_name("sha384"))
    first, second = (Hasher(layout).digests(record(ng(10, name))) for name in (b"/a", b"/b"))
    assert len(first.default) == 48
    assert first.default != second.default
