# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A keeper that kills itself at one of its steps, in a process of its own.

Without a view: what it would show is judged by the next one. The processes are forked from one
that has all modules loaded: runs of hundreds of them last seconds.

A kill in the middle of a write leaves the first half of its bytes. (What of written bytes a power
cut leaves is the recorded-writes layer's to try.)
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from imafs.keeper import collector as collectors
from imafs.keeper import machine
from imafs.keeper.collector import Collector, Settings
from imafs.keeper.files import Disk
from imafs.keeper.source import Source
from imafs.keeper.store import open_store
from tests.support import ROOT, DeadlineError

#: The steps of a cycle, as the collector names them to its hook.
STEPS = ("stage", "staged", "commit", "committed", "delete", "deleted", "confirmed")
#: The steps of the store: it ends before the nth of such an operation on its files.
DISK = ("make_directory", "create", "write", "sync", "sync_directory", "rename", "truncate")
#: And in the middle of the nth write.
HALF = "half of a write"
#: Those that come many times.
OFTEN = ("write", "sync", HALF)
#: Those that come once in a start, if at all.
SELDOM = ("make_directory", "truncate")
WAIT = 60.0


class Victims:
    """Starts such processes, one at a time."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                bufsize=0,
            )
        self._status: int | None = None
        #: Said and not heard yet: two lines may come at once.
        self._said = b""

    def start(self, source: Path, store: Path, step: str, number: int) -> None:
        """Returns when it has had its first look, or has ended."""
        self._status = None
        self._tell([str(source), str(store), step, number])
        self._hear()

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        if self._status is None and self._says(0):
            self._hear()
        return self._status is None

    def store(self) -> None:
        """Returns when it has stored all that the kernel has, or has ended."""
        if self.alive:
            self._tell("store")
            self._hear()

    def end(self) -> int:
        """Ends it if need be; its exit status."""
        if self.alive:
            self._tell("end")
        while self._status is None:
            self._hear()
        return self._status

    def told(self) -> str:
        """What all of them have said."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """No process is left."""
        self._process.communicate(timeout=WAIT)

    def _tell(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    def _says(self, seconds: float) -> bool:
        assert self._process.stdout is not None
        if b"\n" in self._said:
            return True
        return bool(select.select([self._process.stdout.fileno()], [], [], seconds)[0])

    def _hear(self) -> None:
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            if not self._says(WAIT):
                raise DeadlineError(f"no word of a victim within {WAIT:g} s: {self.told()[-2000:]}")
            piece = os.read(self._process.stdout.fileno(), 4096)
            assert piece, self.told()
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        found = json.loads(line)
        self._status = found if isinstance(found, int) else None


def main() -> None:
    """Forks a victim for each request, and tells what becomes of it."""
    for line in sys.stdin:
        request = json.loads(line)
        if request in ("store", "end"):
            continue  # it had died just then
        below, ours = os.pipe()
        told, above = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ours)
            os.close(told)
            source, store, step, number = request
            _run(source, store, step, number, below, above)
        os.close(below)
        os.close(above)
        while True:
            ready, _, _ = select.select([told, 0], [], [])
            if told in ready:
                if not os.read(told, 100):
                    break
                print(json.dumps("done"), flush=True)
            elif json.loads(sys.stdin.readline()) == "store":
                with suppress(BrokenPipeError):  # it has died: nobody else has that end
                    os.write(ours, b".")
            else:
                os.close(ours)
                ours = -1
        if ours >= 0:
            os.close(ours)
        os.close(told)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _run(source: str, store: str, step: str, number: int, below: int, above: int) -> None:
    left = [number]

    def comes(now: str) -> bool:
        left[0] -= now == step
        return now == step and not left[0]

    def hook(now: str) -> None:
        if comes(now):
            os.kill(os.getpid(), signal.SIGKILL)

    def half(self: Disk, descriptor: int, at: int, data: bytes) -> None:
        if len(data) > 1 and comes(HALF):
            write(self, descriptor, at, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, descriptor, at, data)

    write, Disk.write = Disk.write, half  # type: ignore[method-assign]
    for name in DISK:
        setattr(Disk, name, _announced(getattr(Disk, name), name, hook))
    collectors.FRESH = WAIT  # a busy machine is no hung kernel
    # What it raises ends this process, with a traceback.
    trio.run(_keep, source, store, hook, below, above)
    os._exit(0)


def _announced(work: Callable[..., Any], name: str, hook: Callable[[str], None]) -> Any:
    def operation(self: Disk, *args: Any) -> Any:
        hook(name)
        return work(self, *args)

    return operation


async def _keep(
    source: str, store: str, hook: Callable[[str], None], below: int, above: int
) -> None:
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
        os.write(above, b".")
        while await trio.to_thread.run_sync(os.read, below, 1):
            await collector.flush()
            os.write(above, b".")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main()
