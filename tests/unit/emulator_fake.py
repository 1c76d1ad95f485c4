# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A TPM made of hashlib that records what it is given, and fails or hangs when told to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import inf

import trio

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.formats.algorithms import bank_for, by_name
from imafs.tpm import ExtendError, ExtendRefused, PcrValues
from tests.property.reference import WIDTHS, Rec, extend, u32

#: How long a test waits for what must happen, seconds.
DEADLINE = 60.0


def zeros(*names: str) -> PcrValues:
    """PCRs as after a boot."""
    return {name: dict.fromkeys(range(24), bytes(WIDTHS[name])) for name in names}


def entry(rec: Rec, *names: str) -> bytes:
    """The packed extend entry of a record, by hand."""
    if rec.violation:
        return u32(rec.pcr) + b"".join(b"\xff" * WIDTHS[name] for name in names)
    return u32(rec.pcr) + b"".join(rec.digest(name) for name in names)


class FakeDevice:
    """The Device protocol. ``entries`` are all that ever arrived, ``batches`` their numbers."""

    kind = "fake"
    tcti: str | None = "fake:"

    def __init__(self, *names: str) -> None:
        self.names = names or ("sha1", "sha256")
        self.banks = tuple(bank_for(by_name(name)) for name in self.names)
        self.entry_size = 4 + sum(WIDTHS[name] for name in self.names)
        self.pcrs = zeros(*self.names)
        self.entries: list[bytes] = []
        self.batches: list[int] = []
        self.calls: list[str] = []
        #: For the next extends: entries to take, and whether the answer of one more is lost.
        self.failures: deque[tuple[int, bool]] = deque()
        #: Whether a command that hung is still carried out once the TPM answers again.
        self.late = True
        #: PCRs whose extends the TPM answers with an error.
        self.refuses: set[int] = set()
        #: Entries per second, as far as the length of a call is bounded.
        self.pace = inf
        self._turns = threading.Condition()
        self._hangs = False
        self._next = self._served = 0
        self._connection = 0

    def hang(self) -> None:
        """From now on no command is answered."""
        with self._turns:
            self._hangs = True

    def answer(self) -> None:
        """Commands are answered again, in the order in which they came."""
        with self._turns:
            self._hangs = False
            self._turns.notify_all()

    def go_on(self) -> None:
        self.answer()

    @contextmanager
    def _command(self, name: str) -> Iterator[bool]:
        """One at a time, like a TPM; false where its caller has given up meanwhile."""
        self.calls.append(name)
        with self._turns:
            mine, connection = self._next, self._connection
            self._next += 1
            self._turns.wait_for(lambda: not self._hangs and self._served == mine, 2 * DEADLINE)
            try:
                yield connection == self._connection
            finally:
                self._served += 1
                self._turns.notify_all()

    def extend_one(self, packed: bytes) -> None:
        """One entry into the PCRs."""
        pcr, at = int.from_bytes(packed[:4], "little"), 4
        for name in self.names:
            digest = packed[at : at + WIDTHS[name]]
            self.pcrs[name][pcr] = extend(self.pcrs[name][pcr], digest, name)
            at += WIDTHS[name]
        self.entries.append(packed)

    def extend(self, packed: bytes | memoryview, *, longest: float = inf) -> int:
        data, size = bytes(packed), self.entry_size
        if len(data) % size:
            raise ValueError("no whole number of entries")
        entries = [data[at : at + size] for at in range(0, len(data), size)]
        with self._command("extend") as wanted:
            if not wanted:  # at most one command of an abandoned call is carried out
                entries = entries[: int(self.late)]
            elif self.failures:
                done, lost = self.failures.popleft()
                for one in entries[: done + lost]:
                    self.extend_one(one)
                raise ExtendError("the TPM is ill", done=done, uncertain=True)
            else:
                # As slow as a TPM that extends ``pace`` entries in a second.
                entries = entries[: int(max(1, min(self.pace * longest, len(entries))))]
                self.batches.append(len(entries))
            for done, one in enumerate(entries):
                if int.from_bytes(one[:4], "little") in self.refuses:
                    raise ExtendRefused("TPM_RC_LOCALITY (0x907)", done=done)
                self.extend_one(one)
        return len(entries)

    def read_pcrs(self, pcrs: Sequence[int]) -> PcrValues:
        with self._command("read"):
            return {name: {pcr: self.pcrs[name][pcr] for pcr in pcrs} for name in self.names}

    def reset(self) -> None:
        with self._command("reset"):
            self.pcrs = zeros(*self.names)
            self.entries.clear()

    def reconnect(self) -> None:
        with self._turns:
            self.calls.append("reconnect")
            self._connection += 1

    def close(self) -> None:
        self.calls.append("close")

    def environment(self) -> dict[str, str]:
        return {"TPM2TOOLS_TCTI": "fake:"}


@asynccontextmanager
async def running(emulator: Emulator) -> AsyncIterator[Emulator]:
    """The emulator's tasks beside the test's body; within DEADLINE."""
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(emulator.run)
            try:
                yield emulator
            finally:
                device = emulator.device
                assert isinstance(device, FakeDevice)
                device.answer()  # no thread stays behind
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def booted(
    device: FakeDevice, config: EmulatorConfig | None = None
) -> AsyncIterator[Emulator]:
    """A started emulator without boot_aggregate (unless ``config`` says so), running."""
    emulator = Emulator(config or EmulatorConfig(boot_aggregate=False), device)
    await emulator.start()
    async with running(emulator):
        yield emulator


async def until(condition: Callable[[], object]) -> None:
    """Lets other tasks run until ``condition()`` is true."""
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.001)
