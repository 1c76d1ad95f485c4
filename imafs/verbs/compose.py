# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""All operations of a daemon, each with its handler: composed once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from imafs.control.ops import Operation, Options
from imafs.control.server import Handler, ProgressCallback
from imafs.emulator.emulator import Emulator
from imafs.emulator.status import status
from imafs.scenarios.runner import Director
from imafs.sources.watch.daemon.watcher import Watcher
from imafs.verbs import table
from imafs.verbs.bad_days import BadDays
from imafs.verbs.measuring import Measuring, Watching
from imafs.verbs.restart import Restarting

#: Parts of the status that others know, by key.
Parts = Mapping[str, Callable[[], Awaitable[object]]]


class Verbs:
    """The handlers over one emulator; ``director`` carries out scenarios with the same ones.

    ``stop`` ends the daemon, ``about`` names its mount.
    """

    def __init__(
        self,
        emulator: Emulator,
        watcher: Watcher,
        stop: Callable[[], object],
        about: Mapping[str, object],
        parts: Parts,
    ) -> None:
        # Bulk operations give turns away in between; what would change the queue's
        # rules under them (suspend, kexec, reboot) waits, so that a list is loaded whole.
        bulk = trio.Lock()
        measuring = Measuring(emulator, bulk)
        self.director = Director(
            emulator.trouble,
            table.TABLE,
            lambda: self.handlers,
            lambda: emulator.queue.totals.added,
        )
        told: Parts = {"scenario": self.director.status, "watch": watcher.status, **parts}
        self.handlers = _composed(
            (table.MEASURING, measuring),
            (table.WATCHING, Watching(watcher)),
            (table.RESTART, Restarting(emulator, bulk, measuring.booted)),
            (table.BAD_DAYS, BadDays(emulator)),
            (table.SCENARIO, self.director),
            (table.DAEMON, _Daemon(emulator, stop, about, told)),
        )


def _composed(*modules: tuple[Sequence[Operation], object]) -> dict[str, Handler]:
    """By operation: the method of its name."""
    return {
        operation.name: getattr(module, operation.name)
        for operations, module in modules
        for operation in operations
    }


class _Daemon:
    """What concerns the daemon as a whole."""

    def __init__(
        self,
        emulator: Emulator,
        stop: Callable[[], object],
        about: Mapping[str, object],
        parts: Parts,
    ) -> None:
        self._emulator = emulator
        self._stop = stop
        self._about = about
        self._parts = parts

    async def status(self, options: Options, progress: ProgressCallback) -> dict[str, object]:
        """Everything that ``imafs ctl status`` shows."""
        told = await status(self._emulator)
        parts = {key: await part() for key, part in self._parts.items()}
        return {**self._about, **told, **parts}

    async def stop(self, options: Options, progress: ProgressCallback) -> dict[str, object]:
        """Ends the daemon once this is answered."""
        self._stop()
        return {}
