# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The directory of each profile, as kernels showed it to ls."""

from __future__ import annotations

import pytest

from imafs.errors import UsageError
from imafs.formats.algorithms import Bank
from imafs.interface.grammar import Operation, Staging
from imafs.interface.opens import FREE, Opening, Role
from imafs.interface.profiles import PROFILES, Entry, Kind, directory, lookup
from imafs.lists.banks import Layout
from tests.conformance.recordings import load
from tests.property.builders import banks

FOUR = ("sha1", "sha256", "sha384", "sha512")

#: ``ls`` of Linux 7.2.13 with CONFIG_IMA_STAGING=y and four banks, sorted.
RECORDED = load("7.2.13").text("base.out").splitlines()[0].removeprefix("ls -> ").split()

#: name -> link target, ``ls -la`` of the same.
LINKS = {
    "ascii_runtime_measurements": "ascii_runtime_measurements_sha1",
    "binary_runtime_measurements": "binary_runtime_measurements_sha1",
    "ascii_runtime_measurements_staged": "ascii_runtime_measurements_sha1_staged",
    "binary_runtime_measurements_staged": "binary_runtime_measurements_sha1_staged",
}


def entries(profile: str, tpm: tuple[Bank, ...], *, staging: bool = True) -> list[Entry]:
    return directory(lookup(profile), Layout(tpm).lists, staging=staging)


def test_mainline_is_what_7_2_13_showed() -> None:
    found = entries("mainline", banks(*FOUR))
    assert sorted(entry.name for entry in found) == RECORDED
    assert {e.name: e.target for e in found if e.kind is Kind.LINK} == LINKS
    modes = {e.name: e.mode for e in found}
    assert {modes[name] for name in RECORDED if "_sha" in name} == {0o660}
    assert {modes[name] for name in LINKS} == {0o444}
    assert modes["runtime_measurements_count"] == modes["violations"] == 0o440
    assert modes["policy"] == 0o600


def test_mainline_without_staging_has_no_staged_files_but_writable_originals() -> None:
    # Debian's 7.3.4: CONFIG_IMA_STAGING=n, and echo 1 > ascii_runtime_measurements deletes.
    found = entries("mainline", banks(*FOUR), staging=False)
    assert sorted(e.name for e in found) == [name for name in RECORDED if "staged" not in name]
    lists = [e for e in found if e.kind is Kind.LIST]
    assert {e.mode for e in lists} == {0o660}
    for entry in lists:
        assert entry.files is not None
        assert entry.files.grammar is not None
        assert isinstance(entry.files.grammar, Staging)
        assert entry.files.grammar.number is Operation.DELETE_FIRST


def test_the_order_of_creation() -> None:
    found = [e.name for e in entries("mainline", banks("sha256", "sha1"))]
    lists = [
        f"{form}_runtime_measurements_{bank}{suffix}"
        for suffix in ("", "_staged")
        for bank in ("sha256", "sha1")
        for form in ("ascii", "binary")
    ]
    assert found[:8] == lists
    assert set(found[8:10]) == {name for name in LINKS if name.endswith("_staged")}
    assert found[10:] == [
        "binary_runtime_measurements",
        "ascii_runtime_measurements",
        "runtime_measurements_count",
        "violations",
        "policy",
    ]


@pytest.mark.parametrize("tpm", [(), ("sha256",), ("sha384", "sha512")])
def test_sha1_files_are_there_without_a_sha1_bank(tpm: tuple[str, ...]) -> None:
    found = {e.name: e for e in entries("mainline", banks(*tpm))}
    assert {name for name in found if name.endswith("_sha1")} == {
        "ascii_runtime_measurements_sha1",
        "binary_runtime_measurements_sha1",
    }
    for name, target in LINKS.items():
        assert found[name].target == target
        assert target in found


def test_without_a_tpm_there_are_only_sha1_files() -> None:
    # 7.3.4-notpm.
    found = [e.name for e in entries("mainline", ()) if e.kind is Kind.LIST]
    assert found == [
        "ascii_runtime_measurements_sha1",
        "binary_runtime_measurements_sha1",
        "ascii_runtime_measurements_sha1_staged",
        "binary_runtime_measurements_sha1_staged",
    ]


def test_unknown_banks_are_named_by_their_tpm_id() -> None:
    found = {e.name for e in entries("mainline", (Bank(0x27, 32, None), *banks("sha1")))}
    for form in ("ascii", "binary"):
        assert f"{form}_runtime_measurements_tpm_alg_27" in found
        assert f"{form}_runtime_measurements_tpm_alg_27_staged" in found


def test_views_name_form_and_bank() -> None:
    layout = Layout(banks("sha256", "sha512"))
    for entry in directory(lookup("mainline"), layout.lists):
        if entry.kind is not Kind.LIST:
            assert entry.view is None
            continue
        assert entry.view is not None
        assert entry.files is not None
        form = "ascii" if entry.view.ascii else "binary"
        bank = layout.lists[entry.view.bank].name
        suffix = "_staged" if entry.files.staged else ""
        assert entry.name == f"{form}_runtime_measurements_{bank}{suffix}"


@pytest.mark.parametrize("staging", [True, False])
def test_legacy_has_nothing_to_write(staging: bool) -> None:
    found = entries("legacy", banks(*FOUR), staging=staging)
    assert sorted(e.name for e in found) == [name for name in RECORDED if "staged" not in name]
    for entry in found:
        if entry.kind is Kind.LIST:
            assert entry.mode == 0o440
            assert entry.files is not None
            assert entry.files.grammar is None
    assert lookup("legacy").current.opening == FREE


@pytest.mark.parametrize("tpm", [FOUR, ("sha256",), ()])
def test_legacy_single_is_what_6_1_showed(tpm: tuple[str, ...]) -> None:
    found = entries("legacy-single", banks(*tpm))
    assert {e.name: (e.kind, e.mode) for e in found} == {
        "ascii_runtime_measurements": (Kind.LIST, 0o440),
        "binary_runtime_measurements": (Kind.LIST, 0o440),
        "policy": (Kind.POLICY, 0o200),
        "runtime_measurements_count": (Kind.COUNT, 0o440),
        "violations": (Kind.VIOLATIONS, 0o440),
    }
    layout = Layout(banks(*tpm))
    for entry in found[:2]:
        assert entry.view is not None
        assert layout.lists[entry.view.bank].name == "sha1"


def test_mainline_is_locked_and_wants_a_capability_of_writers() -> None:
    profile = lookup("mainline")
    assert profile.staged is not None
    for opening in (profile.current.opening, profile.staged.opening):
        assert opening == Opening(Role.READER, Role.WRITER, writing_needs_admin=True)
    assert profile.same_writer
    assert profile.reader_limit


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        *((name, "mainline") for name in ("mainline", "7.2", "7.3", "v7", "v6")),
        *((name, "legacy") for name in ("legacy", "7.1")),
        *((name, "legacy-single") for name in ("legacy-single", "6.1")),
    ],
)
def test_profiles_by_name_and_alias(name: str, profile: str) -> None:
    assert lookup(name).name == profile


def test_no_name_means_two_profiles() -> None:
    names = [name for profile in PROFILES for name in (profile.name, *profile.aliases)]
    assert len(set(names)) == len(names)


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'v99'.*mainline.*legacy"):
        lookup("v99")
    with pytest.raises(UsageError, match=r"'trim5' \(did you mean trim-v5\?\); there are: main"):
        lookup("trim5")
    with pytest.raises(UsageError, match=r"'Linux'; there are: main"):
        lookup("Linux")
