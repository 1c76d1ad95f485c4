# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A keeper that kills itself at one of its steps: ``victim.py SOURCE STORE STEP NUMBER``.

Without a view: what it would show is judged by the next one. It prints a line when it has had
its first look, and ends when its input does.
"""

from __future__ import annotations

import os
import signal
import sys

import trio

from imafs.errors import ImafsError
from imafs.keeper import machine
from imafs.keeper.collector import Collector, Settings
from imafs.keeper.source import Source
from imafs.keeper.store import open_store

#: The steps of a cycle, as the collector names them to its hook.
STEPS = ("stage", "staged", "commit", "committed", "delete", "deleted", "confirmed")


async def main(source: str, store: str, step: str, number: int) -> None:
    left = [number]

    def hook(now: str) -> None:
        if now == step:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    of = machine.machine(source)
    place = machine.place(of, None)
    collector = Collector(
        Source(place, machine.pcrs(None, of)),
        open_store(store),
        Settings(records=10, age=3600.0, volatile=None),
        hook,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await collector.looked()
        print("looked", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    except* ImafsError as group:
        print(group.exceptions, file=sys.stderr)
        sys.exit(3)
