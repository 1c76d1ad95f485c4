# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The operations on watched files."""

from __future__ import annotations

from imafs.control.ops import Options
from imafs.control.server import ProgressCallback
from imafs.sources.watch.daemon.watcher import Watcher

Answer = dict[str, object]


class Watching:
    """Handlers over one watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    async def watch(self, options: Options, progress: ProgressCallback) -> Answer:
        """Answered once every use of files below the paths is seen."""
        await self._watcher.watch(options.paths("paths"))
        return {"watched": self._watcher.paths}

    async def unwatch(self, options: Options, progress: ProgressCallback) -> Answer:
        """The rest stays watched."""
        await self._watcher.unwatch(options.paths("paths"))
        return {"watched": self._watcher.paths}
