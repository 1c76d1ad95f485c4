# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A file of rules that is long: who else is served meanwhile, and who ends it."""

from __future__ import annotations

import errno
import logging
import threading

import pytest
import trio

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.emulator.policy_writer import PolicyWriter
from imafs.errors import Refused
from imafs.formats.algorithms import SHA256
from imafs.interface.profiles import lookup
from imafs.kernel.policy import policy_file
from imafs.kernel.policy.language import Words, parse
from imafs.kernel.policy.match import Policy
from imafs.kernel.policy.rules import Rule
from imafs.tpm import NoTpm
from tests.unit.emulator_fake import DEADLINE


class Slow:
    """A parser that stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.go_on, self.late = threading.Event(), threading.Event(), False
        self._parse = parse
        monkeypatch.setattr(policy_file, "parse", self)

    def __call__(
        self,
        line: bytes,
        words: Words,
        *,
        custom: bool = False,
        audited: list[str] | None = None,
    ) -> Rule | None:
        self.inside.set()
        self.late |= not self.go_on.wait(DEADLINE)
        return self._parse(line, words, custom=custom, audited=audited)

    async def reached(self) -> None:
        with trio.fail_after(DEADLINE):
            while not self.inside.is_set():
                await trio.lowlevel.checkpoint()


async def emulator_with(content: bytes) -> Emulator:
    """One that finds ``content`` below every path."""

    async def read(emulator: Emulator, path: bytes) -> bytes:
        return content

    emulator = Emulator(EmulatorConfig(algorithm=SHA256), NoTpm(), read_policy=read)
    await emulator.start()
    return emulator


async def test_everybody_goes_on_while_a_file_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = await emulator_with(b"# c\nmeasure fowner=1\n")
    slow = Slow(monkeypatch)
    writer = PolicyWriter(emulator)
    written: list[int] = []

    async def write() -> None:
        written.append(await writer.write(b"/p\n", 0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await slow.reached()
        assert written == []
        slow.go_on.set()
    assert not slow.late
    assert written == [3]
    writer.close()
    assert emulator.kernel.policy_file.text() == b"measure fowner=1 \n"


async def test_the_kernel_may_be_gone_once_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = await emulator_with(b"measure\n")
    slow = Slow(monkeypatch)
    writer = PolicyWriter(emulator)
    codes: list[int] = []

    async def write() -> None:
        with pytest.raises(Refused) as caught:
            await writer.write(b"/p\n", 0)
        codes.append(caught.value.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await slow.reached()
        emulator.kernel = emulator.kernel.after_reset(lookup("mainline"))
        slow.go_on.set()
    assert codes == [errno.ENODEV]


async def test_a_bad_line_makes_the_session_invalid() -> None:
    emulator = await emulator_with(b"measure\nmeasure fsmagic=0x10000000000000000\n")
    writer = PolicyWriter(emulator)
    await writer.write(b"measure fowner=1\n", 0)
    with pytest.raises(Refused) as caught:
        await writer.write(b"/p\n", 0)
    assert caught.value.errno == errno.ERANGE
    writer.close()
    assert emulator.kernel.policy is None


async def load(emulator: Emulator, *rules: bytes) -> None:
    """Write rules and close, as ``echo RULE > policy`` does."""
    writer = PolicyWriter(emulator)
    for rule in rules:
        await writer.write(rule + b"\n", 0)
    writer.close()


def dead(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines about rules without effect since the last look."""
    lines = [line for line in caplog.messages if "no effect" in line or "nor have" in line]
    caplog.clear()
    return lines


async def test_a_rule_without_effect_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not again with every rule that is written behind it."""
    caplog.set_level(logging.INFO)
    emulator = await emulator_with(b"")
    for number in range(1, 201):
        await load(emulator, b"dont_measure obj_type=example_%d_t" % number)
        [line] = dead(caplog)
        assert line.startswith(f"policy rule {number} (dont_measure obj_type=example_{number}_t)")
    await load(emulator, b"measure")
    assert dead(caplog) == []


async def test_rules_without_effect_of_one_close(caplog: pytest.LogCaptureFixture) -> None:
    """A long policy takes a few lines of the log, however many of its rules do nothing."""
    caplog.set_level(logging.INFO)
    emulator = await emulator_with(b"")
    await load(emulator, b"measure", *(b"hash fowner=%d" % number for number in range(997)))
    lines = dead(caplog)
    assert len(lines) == 21
    assert lines[-1] == "nor have 977 of the rules behind it"
    assert sum("rule 2 " in line for line in lines) == 1


async def test_the_first_custom_policy_names_all_its_rules(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It replaces the rules of the boot, and so do its numbers theirs."""
    caplog.set_level(logging.INFO)
    config = EmulatorConfig(algorithm=SHA256, policy=Policy((parse_one(b"hash"),)))
    emulator = Emulator(config, NoTpm())
    await emulator.start()
    await load(emulator, b"measure", b"hash fowner=1")
    [line] = dead(caplog)
    assert line.startswith("policy rule 2 (hash fowner=1)")


def parse_one(line: bytes) -> Rule:
    rule = parse(line)
    assert rule is not None
    return rule
