# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that somebody else changes, or ends the kernel, while they are judged."""

from __future__ import annotations

import errno
import hashlib
import os
from functools import partial
from pathlib import Path

import pytest
import trio

from imafs import disk
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.errors import Refused
from imafs.kernel.policy import language
from imafs.kernel.policy.match import Access, Policy
from imafs.sources import file_attributes, measure_file
from imafs.sources.measure_file import Judge, read_policy, root_read
from tests.unit.emulator_fake import FakeDevice, booted

CONFIG = EmulatorConfig(boot_aggregate=False)
RULES = b"measure func=CRITICAL_DATA\n"


def policy(*lines: bytes) -> Policy:
    rules = (language.parse(line + b"\n") for line in lines)
    return Policy(tuple(rule for rule in rules if rule is not None))


@pytest.fixture
def swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is another one, of another owner, as soon as it was opened once."""
    file, other = tmp_path / "rules", tmp_path / "other"
    file.write_bytes(RULES)
    other.write_bytes(b"something else\n")
    real = os.open

    def swapping(path: str | bytes, flags: int, mode: int = 0o777) -> int:
        descriptor = real(path, flags, mode)
        if os.fsdecode(path) == str(file) and other.exists():
            other.replace(file)
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    return file


def digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def test_the_file_that_is_judged_is_the_one_that_is_measured(swapped: Path) -> None:
    """Its digest must be of the file whose facts were looked at."""
    inode = swapped.stat().st_ino
    seen = []

    def access(found: file_attributes.Facts) -> Access:
        seen.append(found)
        return root_read(found)

    judged = Judge(policy(b"measure func=FILE_CHECK"), CONFIG).use(str(swapped), access)
    assert judged.measurement is not None
    assert judged.measurement.digest == digest_of(RULES)
    assert len(seen) == 1
    assert swapped.stat().st_ino != inode


async def test_the_rules_that_are_loaded_are_the_ones_that_are_measured(swapped: Path) -> None:
    async with booted(FakeDevice(), CONFIG) as emulator:
        emulator.kernel.policy_file.active = policy(b"measure func=POLICY_CHECK")
        assert await read_policy(emulator, os.fsencode(swapped)) == RULES
        shown = b"".join(emulator.queue.ascii_list())
    assert digest_of(RULES).hex().encode() + b" " + os.fsencode(swapped) + b"\n" in shown
    assert shown.count(b"\n") == 1


def test_a_policy_file_that_grows_is_measured_as_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel hashes the buffer that it parses."""
    file = tmp_path / "rules"
    file.write_bytes(RULES)
    of_descriptor = file_attributes.of_descriptor

    def growing(descriptor: int) -> file_attributes.Facts:
        with file.open("ab") as more:
            more.write(RULES)
        return of_descriptor(descriptor)

    monkeypatch.setattr(file_attributes, "of_descriptor", growing)
    judge = Judge(policy(b"measure func=POLICY_CHECK"), CONFIG)
    content, judged = judge.policy_file(os.fsencode(file))
    assert content == RULES
    assert judged.measurement is not None
    assert judged.measurement.digest == digest_of(RULES)
    assert judged.measurement.name == os.fsencode(file)


def test_a_policy_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rules"
    file.write_bytes(RULES)
    monkeypatch.setattr(measure_file, "MOST_POLICY", len(RULES) - 1)
    with pytest.raises(Refused, match="is larger than") as caught:
        Judge(None, CONFIG).policy_file(os.fsencode(file))
    assert caught.value.errno == errno.EFBIG


async def test_a_kernel_that_ends_while_its_policy_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it gets into the list of the next one."""
    file = tmp_path / "rules"
    file.write_bytes(RULES)
    async with booted(FakeDevice(), CONFIG) as emulator:
        emulator.kernel.policy_file.active = policy(b"measure func=POLICY_CHECK")
        monkeypatch.setattr(disk, "content", partial(_ending, emulator))
        with pytest.raises(Refused) as caught:
            await read_policy(emulator, os.fsencode(file))
        assert caught.value.errno == errno.ENODEV
        assert emulator.queue.totals.added == 0


def _ending(emulator: Emulator, descriptor: int, most: int, going_on: object) -> bytes:
    trio.from_thread.run(emulator.reset)
    return os.read(descriptor, most)
