# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Kernels that stage otherwise, or not at all, as the keeper's source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imafs.interface.profiles.table import PROFILES
from tests.keeper.process import Keepers
from tests.keeper.test_keep import lists
from tests.mount.daemon import BINARY, COUNT, imafs, read_to_end
from tests.mount.fixtures import Starter
from tests.support import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
WAIT = 60.0
#: Profiles whose records the keeper deletes.
_KEPT = {"mainline", "v5"}


@pytest.mark.parametrize(
    "options",
    [
        ("--profile", "v5"),
        ("--profile", "v5", "--layout", "ima"),
        ("--no-staging",),
    ],
    ids=" ".join,
)
def test_list_is_kept_by_numbers(
    start: Starter, keepers: Keepers, options: tuple[str, ...]
) -> None:
    """v5 opens one file at a time, and a kernel without CONFIG_IMA_STAGING has no other."""
    banks = ("--banks", "sha1,sha256,sha384")
    kernel, untrimmed = start(*banks, *options), start(*banks)
    keeper = keepers(kernel, records=20)
    for _ in range(4):
        for daemon in (kernel, untrimmed):
            daemon.generate(37)
            daemon.call("violation", name="/etc/shadow")
        assert lists(keeper.view) == lists(untrimmed.dir)
    wait_for(lambda: kernel.count() < 20, WAIT, "the kernel's list is short")
    keeper.kill()
    kernel.generate(3)
    again = keepers(kernel, of=keeper)
    assert again.read(COUNT) == b"156\n"
    assert again.status()["alarms"] == {}


@pytest.mark.parametrize(
    "options",
    [
        ("--banks", "sha1,sha256", "--flush-htable"),
        ("--banks", "sha1,sha256", "--disable-htable"),
        ("--banks", "sha256"),
        ("--banks", "sha1,sha256", "--template", "ima"),
        ("--banks", "sha1,sha256,sha384,sha512", "--padded-banks", "sha384,sha512"),
        ("--banks", "sha1,sha256", "--pcr", "12", "--template", "ima-sig", "--hash", "sha512"),
    ],
    ids=" ".join,
)
def test_view_of_a_kernel_with_options_is_the_untrimmed_list(
    start: Starter, keepers: Keepers, options: tuple[str, ...]
) -> None:
    """Byte for byte, all banks and forms, over kill -9; the PCRs confirm it."""
    kernel, untrimmed = start(*options), start(*options)
    keeper = keepers(kernel, records=20)
    for number in range(3):
        for daemon in (kernel, untrimmed):
            daemon.generate(23)
            daemon.call("violation", name="/etc/shadow")
        assert shown(keeper.view) == shown(untrimmed.dir)
        if number == 0:
            # Nothing is left of which a start could read how banks are extended.
            keeper.emptied(kernel)
            keeper.kill()
            keeper = keepers(kernel, of=keeper)
    status = keeper.emptied(kernel)
    assert (status["alarms"], status["life"], status["view"]) == ({}, 1, "served")
    assert "as they were stored" in imafs("keep", "verify", "--store", keeper.store).stdout


def shown(directory: Path) -> dict[str, bytes]:
    """Every list file, in all banks and forms."""
    names = [p.name for p in directory.glob("*_measurements*") if "staged" not in p.name]
    found = {}
    for name in sorted(names):
        descriptor = os.open(directory / name, os.O_RDONLY)
        try:
            found[name] = read_to_end(descriptor)
        finally:
            os.close(descriptor)
    assert len(found) > 4
    return found


def test_records_that_others_staged_on_v5_are_waited_for(start: Starter, keepers: Keepers) -> None:
    """Whoever holds the list cannot see them there."""
    kernel = start("--banks", "sha1", "--profile", "v5")
    kernel.generate(4)
    with open(kernel.dir / "binary_runtime_measurements_sha1", "r+b", buffering=0) as file:
        file.write(b"A\n")
    keeper = keepers(kernel, ready=False)
    keeper.logs.allow("records are staged|gap")
    wait_for(lambda: "records are staged" in keeper.log(), WAIT, "the keeper says so")
    kernel.generate(1)
    with open(kernel.dir / "binary_runtime_measurements_sha1_staged", "r+b", buffering=0) as file:
        file.write(b"D\n")
    keeper.start()
    assert keeper.status()["view"] == "refused"


@pytest.mark.parametrize(
    "profile", [profile.name for profile in PROFILES if profile.name not in _KEPT]
)
def test_kernel_that_deletes_otherwise_is_refused_in_one_line(
    start: Starter, profile: str, tmp_path: Path
) -> None:
    root = ("--export-root", tmp_path) if profile.startswith("export") else ()
    kernel = start("--banks", "sha1", "--profile", profile, *root)
    store = kernel.place.base / "store"
    words: list[str | os.PathLike[str]] = ["keep", "--source", kernel.dir, "--store", store]
    result = imafs(*words, check=False)
    assert result.returncode == 2, result.stderr
    assert "Linux 7.2 or newer is needed" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("profile", ["legacy", "legacy-single"])
def test_kernel_that_deletes_nothing_and_back(
    start: Starter, keepers: Keepers, profile: str
) -> None:
    """A kexec into an older one: its records stay with it, and are shown where it has a list that
    the keeper reads; the next kernel that deletes brings them along, and all of it is stored."""
    kernel = start("--banks", "sha1")
    keeper = keepers(kernel, allow="degraded|suspended|joining|gets EIO|deletes no records")
    kernel.generate(10)
    keeper.flush()
    before = keeper.read(BINARY)
    kernel.call("kexec_load")
    kernel.call("kexec_execute", profile=profile)
    kernel.generate(5)
    wanted = "degraded" if profile == "legacy" else "suspended"
    keeper.until(
        "the keeper says so",
        lambda status: "Linux 7.2 or newer" in str(status["why"]),
        state=wanted,
        deadline=2 * WAIT,
    )
    if profile == "legacy":
        during = keeper.read(BINARY)
        assert during.startswith(before)
        assert keeper.read(COUNT) == b"%d\n" % (12 + kernel.count() - 1)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            keeper.read(BINARY)
        # Nobody knows what of that list is stored.
        result = imafs("keep", "flush", "--store", keeper.store, check=False)
        assert result.returncode == 11
    kernel.call("kexec_load")
    kernel.call("kexec_execute", profile="mainline")
    keeper.until("the next kernel is kept", state="idle", deadline=2 * WAIT)
    status = keeper.emptied(kernel)
    assert keeper.read(BINARY).startswith(before)
    assert (status["view"], status["life"]) == ("served", 1)
    assert set(status["alarms"]) <= {"healed"}
