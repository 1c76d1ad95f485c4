# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The operations on watched files."""

from __future__ import annotations

from imafs.control.server import Handler, ProgressCallback
from imafs.sources.watch.daemon.watcher import Watcher
from imafs.verbs.values import Answer, Options


class WatchVerbs:
    """Handlers over one watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def handlers(self) -> dict[str, Handler]:
        """The table that the server is given."""
        return {"watch": self.watch, "unwatch": self.unwatch}

    async def watch(self, options: Options, progress: ProgressCallback) -> Answer:
        """Answered once every use of files below the paths is seen."""
        await self._watcher.watch(_paths(options))
        return {"watched": self._watcher.paths}

    async def unwatch(self, options: Options, progress: ProgressCallback) -> Answer:
        """The rest stays watched."""
        await self._watcher.unwatch(_paths(options))
        return {"watched": self._watcher.paths}


def _paths(options: Options) -> list[str]:
    paths = options["paths"]
    assert isinstance(paths, list)
    return paths
