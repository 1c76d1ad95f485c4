# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The ends of lists: ``tail -n K``, ``head -n -K`` and tac, quiet and while lists grow."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from imafs.verbs.client import ControlClient
from tests.mount.daemon import ASCII, Daemon
from tests.mount.fixtures import Starter
from tests.support import may_take

pytestmark = [pytest.mark.mount, pytest.mark.root]

#: Some of all that nights try: around what a page holds, and the ends.
SAMPLE = (1, 24, 25, 26, 52, 103, 500)


def output(*words: str) -> list[bytes]:
    done = subprocess.run(words, capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    return done.stdout.splitlines(keepends=True)


@contextmanager
def growing(daemon: Daemon, grows: bool) -> Iterator[None]:
    """Meanwhile records are added, if ``grows``."""
    over = threading.Event()

    def add() -> None:
        with ControlClient(daemon.control) as client:
            for _ in range(3000):
                if over.is_set():
                    return
                client.call("generate", {"count": 3}, deadline=30)

    thread = threading.Thread(target=add)
    if grows:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if grows:
            thread.join(60)


class Reading:
    """One list and what programs may say of it: of any length from before to after."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.path = str(daemon.path(ASCII))
        self.wrong: list[str] = []

    def lines(self) -> list[bytes]:
        return self._daemon.read(ASCII).splitlines(keepends=True)

    def ask(self, words: tuple[str, ...], count: int) -> None:
        """Run a program, and remember where no list explains what it said."""
        least = len(self.lines())
        said = output(*words, self.path)
        lines = self.lines()
        length = self._length(words[0], said, lines, count)
        if not least <= length <= len(lines) or said != _right(words[0], lines[:length], count):
            self.wrong.append(f"{' '.join(words)}: {len(said)} lines of {least} to {len(lines)}")

    @staticmethod
    def _length(program: str, said: list[bytes], lines: list[bytes], count: int) -> int:
        """Of which list the answer can be: each line is there once."""
        if program == "tail":
            return lines.index(said[-1]) + 1 if said and said[-1] in lines else -1
        return len(said) + (count if program == "head" else 0)


def _right(program: str, lines: list[bytes], count: int) -> list[bytes]:
    if program == "tac":
        return lines[::-1]
    return lines[-count:] if program == "tail" else lines[:-count]


@pytest.mark.parametrize("grows", [False, True], ids=["quiet", "growing"])
@pytest.mark.parametrize("records", [1200, 10_000])
@pytest.mark.parametrize(
    "counts", [SAMPLE, pytest.param(range(1, 501), marks=pytest.mark.nightly)], ids=["some", "all"]
)
def test_the_last_lines(start: Starter, counts: tuple[int, ...], records: int, grows: bool) -> None:
    may_take(300 + 3 * len(counts))
    daemon = start("--tpm", "none")
    daemon.generate(records)
    reading = Reading(daemon)
    with growing(daemon, grows):
        for number, count in enumerate(counts):
            reading.ask(("tail", "-n", str(count)), count)
            reading.ask(("head", "-n", f"-{count}"), count)
            if not number % 10:
                reading.ask(("tac",), count)
    assert not reading.wrong, "\n".join(reading.wrong[:20])


def test_the_judge_takes_no_other_lines() -> None:
    lines = [b"a\n", b"b\n", b"c\n"]
    assert _right("tail", lines, 2) == [b"b\n", b"c\n"]
    assert _right("head", lines, 2) == [b"a\n"]
    assert _right("tac", lines, 2) == [b"c\n", b"b\n", b"a\n"]
