# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A machine on paper with a store on a disk: the real collector is started before it, and ends."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import trio

from imafs.keeper import reading
from imafs.keeper.collector import Collector, Settings, State
from imafs.keeper.ledger import Ledger
from imafs.keeper.source import Source
from imafs.keeper.store import open_store
from imafs.lists.banks import View
from tests.keeper import made
from tests.keeper.paper import PaperKernel
from tests.support import wait_for_async

WAIT = 30.0


class Crash(Exception):
    """The keeper ends here."""


def nothing(step: str) -> None:
    """No step is of interest."""


@contextlib.asynccontextmanager
async def collecting(
    source: Source, place: Path, settings: Settings, hook: Callable[[str], None] = nothing
) -> AsyncIterator[Collector]:
    """A keeper with the store at ``place``; it need not have joined. It ends with the block."""
    store = open_store(str(place))
    collector = Collector(source, store, settings, hook)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collector.run)
            yield collector
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await collector.close()
        store.close()


class Machine:
    """A kernel on paper, and a store on a disk."""

    def __init__(self, place: Path, *, clock: bool = True, tpm: bool = True) -> None:
        self.kernel = PaperKernel(clock=clock, tpm=tpm)
        self.store = place / "store"
        self.alarms: set[str] = set()

    @contextlib.asynccontextmanager
    async def running(
        self, hook: Callable[[str], None] = nothing, **settings: float
    ) -> AsyncIterator[Collector]:
        """A keeper that need not have joined."""
        words = {"records": 1000, "age": 3600.0, "keep_free": 0.0, **settings}
        of = cast(Source, self.kernel), self.store, Settings(**words)  # type: ignore[arg-type]
        async with collecting(*of, hook) as collector:
            try:
                yield collector
            finally:
                self.alarms = set(collector.alarms)

    @contextlib.asynccontextmanager
    async def keeper(
        self, hook: Callable[[str], None] = nothing, until: State = State.IDLE
    ) -> AsyncIterator[Collector]:
        """One that has joined."""
        async with self.running(hook) as collector:
            await joins(collector, until)
            yield collector

    async def kept(self) -> str | None:
        """A keeper starts and ends; why its view is refused. What it serves is the truth."""
        async with self.keeper() as collector:
            if collector.refusal is None:
                await collector.fresh()
                await collector.flush()
            if collector.refusal is None:
                assert shown(collector) == b"".join(self.kernel.truth)
            return collector.refusal

    async def killed(self, step: str, number: int) -> None:
        """A keeper that ends at the nth of such a step, if it comes there."""
        left = itertools.count(1)

        def hook(name: str) -> None:
            if name == step and next(left) == number:
                raise Crash

        with contextlib.suppress(BaseExceptionGroup):
            async with self.keeper(hook) as collector:
                if collector.refusal is None:
                    await collector.flush()

    def complaints(self) -> list[str]:
        """What ``keep verify`` says of the newest life."""
        return list(self._newest().verify().complaints)

    @property
    def ledger(self) -> Ledger:
        """Of the newest life."""
        return self._newest().ledger

    def _newest(self) -> reading.Reading:
        return reading.Reading(str(self.store), reading.lives(str(self.store))[-1])

    @property
    def lives(self) -> int:
        return len(reading.lives(str(self.store)))


async def joins(collector: Collector, state: State = State.IDLE) -> None:
    """Waits until the keeper has joined, and is so."""

    async def so() -> bool:
        return collector.state is state and collector.joined

    await wait_for_async(so, WAIT, f"the keeper has joined, and is {state}")


def shown(collector: Collector) -> bytes:
    """The view's SHA-1 binary list."""
    assert collector.catalogue is not None
    return b"".join(made.pieces(collector.catalogue, View(False, 0)))
