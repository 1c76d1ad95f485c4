# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Patterns of faults and scenarios: refused only where no kernel would have such a file."""

from __future__ import annotations

import pytest

from imafs.control.ops import Options
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.emulator.sysfs import extras
from imafs.errors import UsageError
from imafs.interface import file_names
from imafs.interface.profiles import PROFILES, directory
from imafs.verbs.bad_days import BadDays
from tests.property.builders import banks
from tests.unit.emulator_fake import FakeDevice


@pytest.mark.parametrize(
    ("pattern", "can"),
    [
        ("*", True),
        ("*_staged", True),
        ("binary_runtime_measurements", True),  # a link's
        ("ima_trim_log", True),  # another profile's: a kexec may bring it
        ("binary_bios_measurements", True),
        ("23", True),
        ("nope*", False),
        ("24", False),
        ("ima/binary_runtime_measurements", False),
        ("", False),
    ],
)
def test_what_a_pattern_can_match(pattern: str, can: bool) -> None:
    known = file_names.names(banks("sha1", "sha256"))
    assert (file_names.unmatched(pattern, known) is None) == can
    assert (file_names.unmatched(pattern, file_names.of_any_tpm()) is None) == can


def test_every_name_of_every_profile() -> None:
    for profile in PROFILES:
        for entry in directory(profile, banks("sha256")):
            assert entry.name in file_names.names(banks("sha256"))
    assert not file_names.unmatched("*sha512*", file_names.of_any_tpm())
    assert file_names.unmatched("*sha512*", file_names.names(banks("sha256")))


def test_the_files_beside_the_directory() -> None:
    emulator = Emulator(EmulatorConfig(), FakeDevice())
    files = {extra.path for extra in extras(emulator, b"log") if extra.read is not None}
    assert {path.rpartition("/")[2] for path in files} == file_names.BESIDE


async def test_a_fault_that_could_never_hit() -> None:
    emulator = Emulator(EmulatorConfig(), FakeDevice())
    faulting = BadDays(emulator)
    options = Options(operation="open", errno="EBUSY", files="nope*")
    with pytest.raises(UsageError, match=r"fault: files: 'nope\*' matches no file"):
        await faulting.fault(options, lambda done, total: None)
    assert not emulator.trouble.faults
    await faulting.fault(Options(options, files="*_staged"), lambda done, total: None)
    assert emulator.trouble.faults
