# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A keeper under test, down to its process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from imafs.host import mounts
from tests.mount.daemon import IMAFS, STOP, Daemon, imafs, read_to_end
from tests.support import ROOT, DeadlineError, ExpectedLogs, kill_group, run, wait_for

#: Seconds until a keeper has had its first look and its view answers.
START = 60.0
_COMPLAINT = re.compile(r"WARNING|ERROR|Traceback|Exception|Error\b")


class Keeper:
    """``imafs keep`` in the foreground, of one emulator."""

    def __init__(
        self,
        daemon: Daemon,
        options: list[str | os.PathLike[str]],
        *,
        of: Keeper | None,
        env: Mapping[str, str] | None,
        source: Path,
        cover: bool,
        name: str,
        store: Path | None,
    ) -> None:
        base = daemon.place.base
        self.store: Path = of.store if of is not None else store or base / f"{name}store"
        self.view: Path = of.view if of is not None else base / f"{name}view"
        self.cover = cover
        if cover:
            self.view = source
        elif of is None:
            self.view.mkdir(exist_ok=True)
        self.logs = ExpectedLogs()
        self.logs.allow("suspended: measuring has ended")
        self._log = base / f"keeper-{len(list(base.glob('keeper-*')))}.log"
        words: list[str | os.PathLike[str]] = [*IMAFS, "keep"]
        words += ["--source", source, "--store", self.store]
        where: list[str | os.PathLike[str]] = ["--cover"] if cover else ["--mount", self.view]
        with self._log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*words, *where, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=None if env is None else {**os.environ, **env},
                cwd=ROOT,
                start_new_session=True,
            )

    def start(self) -> Keeper:
        """Waits for the line that says ready."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        readable, _, _ = select.select([descriptor], [], [], START)
        if not readable:
            raise DeadlineError(f"no line within {START:g} s: {self.log()}")
        line = os.read(descriptor, 4096).decode()
        assert line.startswith("imafs: keeping "), (line, self.log())
        return self

    def log(self) -> str:
        """Everything on stderr so far."""
        return self._log.read_text(errors="replace")

    def read(self, name: str) -> bytes:
        """The whole of a file of the view."""
        descriptor = os.open(self.view / name, os.O_RDONLY)
        try:
            return read_to_end(descriptor)
        finally:
            os.close(descriptor)

    def status(self) -> dict[str, Any]:
        """What ``imafs keep status --json`` says."""
        text = imafs("keep", "status", "--json", "--store", self.store).stdout
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    def until(
        self,
        what: str,
        wanted: Callable[[dict[str, Any]], object] | None = None,
        *,
        deadline: float = START,
        **values: object,
    ) -> dict[str, Any]:
        """The first status in which all of ``values`` are so, and ``wanted`` holds.

        It is to be judged whole: a later one may be another, since the keeper goes on.
        """
        last: dict[str, Any] = {}

        def look() -> dict[str, Any] | None:
            nonlocal last
            last = self.status()
            fits = all(last[key] == value for key, value in values.items())
            return last if fits and (wanted is None or wanted(last)) else None

        try:
            found = wait_for(look, deadline, what)
        except DeadlineError as error:
            raise DeadlineError(f"{error}\n{last}\n{self.log()}") from None
        assert found is not None
        return found

    def flush(self) -> None:
        """Everything is stored. That it is deleted comes behind it: :meth:`emptied`."""
        imafs("keep", "flush", "--store", self.store)

    def emptied(self, kernel: Daemon) -> dict[str, Any]:
        """A status behind the flush and the deletion of all that the kernel has; no record
        arrives meanwhile."""
        self.flush()

        def empty() -> bool:
            records = kernel.group("records")
            return bool(records["current"] == records["staged"] == 0)

        wait_for(empty, START, "the kernel's list is empty")
        return self.until("the deletion is noted", state="idle")

    def terminate(self) -> None:
        """SIGTERM: it ends in order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP) == 0, self.log()

    def stop(self) -> None:
        """The same, and its view is gone."""
        self.terminate()
        assert not os.listdir(self.view)

    def kill(self) -> None:
        """kill -9: its view stays behind."""
        self.process.kill()
        self.process.wait(STOP)

    def close(self) -> None:
        """Ends it if need be and looks at its log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP)
        hung = self.process.poll() is None
        if hung:
            kill_group(self.process)
            self.process.wait(STOP)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if not self.cover or ((top := mounts.top(str(self.view))) is not None and top.kept):
            run(["umount", "--lazy", self.view], check=False)
        assert not hung, f"the keeper did not end on SIGTERM: {self.log()}"
        lines = [line for line in self.log().split("\n") if _COMPLAINT.search(line)]
        complaints = self.logs.complaints(lines)
        assert not complaints, "log of the keeper:\n" + "\n".join(complaints) + "\n" + self.log()


class Keepers:
    """Starts keepers; everything that it started ends with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(
        self,
        daemon: Daemon,
        *options: str | os.PathLike[str],
        of: Keeper | None = None,
        records: int | None = None,
        env: Mapping[str, str] | None = None,
        allow: str | None = None,
        source: Path | None = None,
        cover: bool = False,
        ready: bool = True,
        name: str = "",
        store: Path | None = None,
    ) -> Keeper:
        """A keeper that has had its first look; ``of``: with the store and view of another.

        ``source``: not the mount itself, but a directory in it; ``ready``: not waited for;
        ``name``: with a store and a view of its own, beside another; ``store``: a place for it.
        """
        words = list(options)
        if records is not None:
            config = Path(daemon.place.base) / "keeper.toml"
            config.write_text(f"[stage]\nrecords = {records}\n")
            words += ["--config", config]
        where = daemon.dir if source is None else source
        keeper = Keeper(
            *(daemon, words),
            of=of,
            env=env,
            source=where,
            cover=cover,
            name=name,
            store=store,
        )
        if allow is not None:
            keeper.logs.allow(allow)
        self._stack.callback(keeper.close)
        return keeper.start() if ready else keeper


@pytest.fixture
def keepers() -> Iterator[Keepers]:
    """Starts keepers of emulators."""
    with ExitStack() as stack:
        yield Keepers(stack)
