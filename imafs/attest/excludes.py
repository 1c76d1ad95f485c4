# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Patterns of paths that may be anything, tried within a bound.

They are Python's regular expressions, matched from a path's beginning on, for Keylime takes them
so: another engine would exclude other files. Python's engine goes back over what it has tried, and
a pattern such as ``(a+)+$`` over a path of its author's enemy goes on for years; no other thread
can stop it. So they are tried in a process of its own, which has so much processor time. What that
does not suffice for is no match and no mismatch: :class:`OutOfTimeError`.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, NoReturn

from imafs.errors import FormatError, ImafsError
from imafs.host import programs

#: Seconds of processor time for the paths of one list, and those that each path adds: a hundred
#: patterns that stop at the first characters take 20 microseconds.
SECONDS = 4.0
PER_PATH = 0.0001
#: Paths that are handed over at once.
_SOME = 10_000
#: A path is shorter (PATH_MAX).
_PATH_MAX = 4096


class OutOfTimeError(Exception):
    """Whether ``path`` is excluded is not known: ``pattern`` did not come to an end."""

    def __init__(self, pattern: str, path: bytes) -> None:
        self.pattern = pattern
        self.path = path
        super().__init__(pattern, path)


def compiled(text: object, source: str) -> re.Pattern[str]:
    """A pattern. Raises :class:`FormatError`."""
    if not isinstance(text, str):
        raise FormatError("an exclude is no text", source=source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read otherwise
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise FormatError(f"exclude {text[:80]!r}: {error}", source=source) from None


@dataclass(slots=True, weakref_slot=True)
class Excludes:
    """Patterns, and the process that tries them: begun when it is needed, and once."""

    patterns: tuple[re.Pattern[str], ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _owner: int = field(default=0, init=False, repr=False)
    _busy: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def matched(self, paths: Iterable[bytes]) -> set[bytes]:
        """The paths that a pattern matches from their beginning on.

        None that is longer than a path can be. Raises :class:`OutOfTimeError`.
        """
        found: set[bytes] = set()
        if not self.patterns:
            return found
        allowance = SECONDS
        with self._busy:
            rest = (path for path in paths if len(path) < _PATH_MAX)
            while some := list(islice(rest, _SOME)):
                allowance += PER_PATH * len(some)
                places, spent = self._ask(some, allowance)
                found.update(some[place] for place in places)
                allowance -= spent
        return found

    def _ask(self, paths: Sequence[bytes], allowance: float) -> tuple[list[int], float]:
        """The places of those that match, and the time that they took."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        texts = [path.decode("utf-8", "surrogateescape") for path in paths]
        answer: dict[str, Any] = {}
        try:
            with suppress(BrokenPipeError):
                _send(process.stdin, {"paths": texts, "seconds": allowance})
                answer = json.loads(process.stdout.readline() or b"{}")
        finally:
            if not answer:  # whatever ended this: the next question gets no old answer
                process.kill()
        if not answer:
            raise ImafsError("the process that tries the patterns of --reference was killed")
        if "slow" in answer:
            raise OutOfTimeError(self.patterns[answer["slow"]].pattern, paths[answer["at"]])
        return answer["matched"], answer["spent"]

    def _running(self) -> subprocess.Popen[bytes]:
        # Of a process that was forked it is the parent's, whose answers are the parent's too.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                programs.python(__name__),
                env=programs.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            weakref.finalize(self, _end, self._process, self._owner)
            assert self._process.stdin is not None
            _send(self._process.stdin, [pattern.pattern for pattern in self.patterns])
        return self._process


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        with suppress(BrokenPipeError), process:  # what it was not told any more
            pass


def _send(file: BinaryIO | Any, value: object) -> None:
    # ASCII, with a surrogate for each byte that is no UTF-8.
    file.write(json.dumps(value).encode("ascii") + b"\n")
    file.flush()


# The process


class _SlowError(Exception):
    pass


def _slow(number: int, frame: object) -> NoReturn:
    raise _SlowError


def _try(patterns: Sequence[re.Pattern[str]], paths: Sequence[str], seconds: float) -> object:
    """The answer to one question. The engine looks for signals as it goes."""
    at = 0, 0
    matched: list[int] = []
    begun = _spent()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        for place, path in enumerate(paths):
            for number, pattern in enumerate(patterns):
                at = number, place
                if pattern.match(path):
                    matched.append(place)
                    break
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        return {"matched": matched, "spent": _spent() - begun}
    except _SlowError:
        return {"slow": at[0], "at": at[1]}


def _spent() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def _questions(file: BinaryIO) -> Iterator[Any]:
    return map(json.loads, iter(file.readline, b""))


def main() -> None:
    """Answers questions until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who asks ends, and with him this
    signal.signal(signal.SIGVTALRM, _slow)
    questions = _questions(sys.stdin.buffer)
    patterns = [compiled(text, "") for text in next(questions, [])]
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    for question in questions:
        seconds = max(question["seconds"], 0.001)
        # The kernel's own bound, for what looks for no signals.
        end = math.ceil(sum(os.times()[:2]) + 2 * seconds + 1)
        if most == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_CPU, (end, most))
        _send(sys.stdout.buffer, _try(patterns, question["paths"], seconds))


if __name__ == "__main__":
    main()
