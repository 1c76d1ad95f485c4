# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A verifier: bundles in, verdicts out, with a state per machine on the disk.

Many bundles are judged in processes, a few at a time: memory is bounded by the largest bundle
times the processes, however many there are.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from imafs import disk
from imafs.attest import bundle as bundles
from imafs.attest import evidence, signatures, signed, state
from imafs.attest.judgement import Demand, Found, Judgement
from imafs.attest.kinds import Kind
from imafs.errors import FileError, FormatError, UsageError
from imafs.text import shown

#: Bundles that wait for each process: enough that none is idle.
_WAITING = 4
#: Of a bundle that is too large for where memory is limited.
_NO_ROOM = Judgement(
    Kind.MALFORMED, "does not fit into memory, of which it takes three times its size"
)


#: Of one whose process was killed, also when it was the only one.
_KILLED = Judgement(
    Kind.UNJUDGED,
    "the process that judged it was killed, twice: for want of memory? It takes three times the "
    "bundle's size. Nothing was learnt, and the state stays",
)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A verdict, and the state (and its file) against which it was made."""

    verdict: Judgement
    file: Path | None = None
    known: state.State | None = None


@dataclass(frozen=True, slots=True)
class Verifier:
    """``place`` is the state's file, or a directory with a file per machine; None: no state.

    ``new`` begins a state where there is none, or anew. ``nonces`` are those of single bundles.
    """

    demand: Demand
    place: Path | None = None
    new: bool = False
    nonces: dict[str, bytes] = field(default_factory=dict)

    def check(self, path: str) -> Judgement:
        """The verdict on a bundle's file; the state is on the disk when it returns.

        Raises :class:`ImafsError` where the file or the state cannot be read or written.
        """
        return self._look(path, saves=True).verdict

    def judge(self, data: bytes, nonce: bytes | None = None) -> Judgement:
        """As :meth:`check`, of the bytes of a bundle."""
        return self._judge(data, nonce, saves=True).verdict

    def _look(self, path: str, *, saves: bool) -> _Outcome:
        # What is too large ends no other machine's verdict.
        try:
            try:
                data = disk.read_whole(path, bundles.MOST)
            except UsageError as error:
                return _Outcome(Judgement(Kind.MALFORMED, shown(error)))
            return self._judge(data, self.nonces.get(path), saves=saves)
        except MemoryError:
            return _Outcome(_NO_ROOM)

    def _judge(self, data: bytes, nonce: bytes | None, *, saves: bool) -> _Outcome:
        """``saves``: the state is on the disk behind it; else :meth:`_settled` is to follow."""
        demand = self.demand if nonce is None else replace(self.demand, nonce=nonce)
        if self.place is None:
            return _Outcome(evidence.judge_bundle(data, demand))
        try:
            bundle = bundles.decode(data)
            key = self._key(bundle, demand)
        except FormatError as error:
            return _Outcome(Judgement(Kind.MALFORMED, shown(error)))
        except Found as verdict:
            return _Outcome(Judgement(verdict.kind, shown(verdict.said)))
        file = state.place(self.place, key)
        state.guard(file)
        lost = Judgement(
            Kind.STALE,
            f"there is no state {file}: give --new at a machine's first time. Was it there "
            "before, it is lost, and with it what was known of this machine",
            key=key,
        )
        if not self.new and not os.path.lexists(file):
            return _Outcome(lost)
        with _locked(file) if saves else nullcontext():
            known = state.load(file)
            if known is None and not self.new:
                return _Outcome(lost)
            found = evidence.check(bundle, demand, None if self.new else known)
            if saves and found.state is not None:
                state.save(file, found.state)
            return _Outcome(found, file, known)

    def _settled(self, path: str, found: _Outcome) -> Judgement:
        """A verdict of another process, with its state on the disk."""
        if found.file is None or found.verdict.state is None:
            return found.verdict
        with _locked(found.file):
            if state.load(found.file) == found.known:
                state.save(found.file, found.verdict.state)
                return found.verdict
        # Another verifier has judged a bundle of this machine meanwhile.
        return self.check(path)

    def _key(self, bundle: bundles.Bundle, demand: Demand) -> str:
        """The machine whose state is asked: of the key that did sign, and is trusted.

        Nobody else's bundle leaves a file among the states. Raises :class:`Found`.
        """
        key = signed.signed(bundle, demand).key
        if self.new or demand.keys or demand.anchors:
            signed.trusted(bundle, key, demand, None)
        return key.fingerprint

    def check_all(self, paths: Sequence[str], jobs: int) -> Iterator[tuple[str, Judgement]]:
        """Every verdict in the order of ``paths``. Raises as :meth:`check`.

        A process that is killed (for want of memory, say) takes nothing along: states are saved
        here, with the verdict. Nobody says whose bundle it had, so that those which were under way
        are judged again, each alone.
        """
        if jobs < 2 or len(paths) < 2:
            yield from ((path, self.check(path)) for path in paths)
            return
        rest = deque(paths)
        while rest:
            try:
                yield from self._in_processes(rest, jobs)
            except BrokenProcessPool:
                for _ in range(min(len(rest), jobs * _WAITING)):
                    yield self._alone(rest)

    def _in_processes(self, rest: deque[str], jobs: int) -> Iterator[tuple[str, Judgement]]:
        """Takes from ``rest`` what has a verdict. Raises :class:`BrokenProcessPool`."""
        waiting: deque[tuple[str | None, Future[_Outcome]]] = deque()
        with self._pool(jobs) as pool:
            try:
                for path in tuple(rest):
                    machine = None if self.place is None else _machine(path)
                    while len(waiting) >= jobs * _WAITING or (
                        # In the order in which they were given: the older one is no rollback.
                        self.place is not None and any(of == machine for of, _ in waiting)
                    ):
                        yield self._next(rest, waiting.popleft()[1])
                    waiting.append((machine, pool.submit(_work, path)))
                while waiting:
                    yield self._next(rest, waiting.popleft()[1])
            finally:
                for _, future in waiting:
                    future.cancel()

    def _alone(self, rest: deque[str]) -> tuple[str, Judgement]:
        """One bundle in a process of its own: it may end this one."""
        with self._pool(1) as pool:
            try:
                return self._next(rest, pool.submit(_work, rest[0]))
            except BrokenProcessPool:
                return rest.popleft(), _KILLED

    def _next(self, rest: deque[str], future: Future[_Outcome]) -> tuple[str, Judgement]:
        found = future.result()
        return rest[0], self._settled(rest.popleft(), found)

    def _pool(self, jobs: int) -> ProcessPoolExecutor:
        # Forked: nothing is imported again, and there is no other thread yet.
        return ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _begin, (self,))


def _machine(path: str) -> str | None:
    """Whose bundle it is by its own word, which decides nothing but the order; None where it has
    none: all of these follow each other."""
    try:
        with disk.opened(path) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            key = bundles.key_of(os.pread(descriptor, bundles.KEY_WITHIN, 0))
        return None if key is None else signatures.read_key(key, bundles.KEY).fingerprint
    except (OSError, FormatError):
        return None


#: Of a process of the pool: inherited, not sent, for keys of cryptography cannot be.
_verifier: Verifier | None = None


def _begin(verifier: Verifier) -> None:
    global _verifier
    _verifier = verifier
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who gave --jobs is told, once


def _work(path: str) -> _Outcome:
    assert _verifier is not None
    return _verifier._look(path, saves=False)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Nobody else judges a bundle of this machine meanwhile. Raises :class:`FileError`."""
    name = file.with_name(f"{file.name}{state.LOCK}")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise FileError(str(name), error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
