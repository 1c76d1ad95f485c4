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
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from imafs import disk
from imafs.attest import bundle as bundles
from imafs.attest import evidence, signatures, signed, state
from imafs.attest.judgement import Demand, Found, Judgement
from imafs.attest.kinds import Kind
from imafs.errors import FileError, FormatError, ImafsError, UsageError
from imafs.text import shown

#: Bundles that wait for each process: enough that none is idle.
_WAITING = 4
#: Of a bundle that is too large for where memory is limited.
_NO_ROOM = Judgement(
    Kind.MALFORMED, "does not fit into memory, of which it takes three times its size"
)


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
        # What is too large ends no other machine's verdict.
        try:
            try:
                data = disk.read_whole(path, bundles.MOST)
            except UsageError as error:
                return Judgement(Kind.MALFORMED, shown(error))
            return self.judge(data, self.nonces.get(path))
        except MemoryError:
            return _NO_ROOM

    def judge(self, data: bytes, nonce: bytes | None = None) -> Judgement:
        """As :meth:`check`, of the bytes of a bundle."""
        demand = self.demand if nonce is None else replace(self.demand, nonce=nonce)
        if self.place is None:
            return evidence.judge_bundle(data, demand)
        try:
            bundle = bundles.decode(data)
            key = self._key(bundle, demand)
        except FormatError as error:
            return Judgement(Kind.MALFORMED, shown(error))
        except Found as verdict:
            return Judgement(verdict.kind, shown(verdict.said))
        file = state.place(self.place, key)
        state.guard(file)
        lost = Judgement(
            Kind.STALE,
            f"there is no state {file}: give --new at a machine's first time. Was it there "
            "before, it is lost, and with it what was known of this machine",
            key=key,
        )
        if not self.new and not os.path.lexists(file):
            return lost
        with _locked(file):
            known = state.load(file)
            if known is None and not self.new:
                return lost
            found = evidence.check(bundle, demand, None if self.new else known)
            if found.state is not None:
                state.save(file, found.state)
            return found

    def _key(self, bundle: bundles.Bundle, demand: Demand) -> str:
        """The machine whose state is asked: of the key that did sign, and is trusted.

        Nobody else's bundle leaves a file among the states. Raises :class:`Found`.
        """
        key = signed.signed(bundle, demand).key
        if self.new or demand.keys or demand.anchors:
            signed.trusted(bundle, key, demand, None)
        return key.fingerprint

    def check_all(self, paths: Sequence[str], jobs: int) -> Iterator[tuple[str, Judgement]]:
        """Every verdict in the order of ``paths``. Raises as :meth:`check`."""
        if jobs < 2 or len(paths) < 2:
            yield from ((path, self.check(path)) for path in paths)
            return
        # Forked: nothing is imported again, and there is no other thread yet.
        context = multiprocessing.get_context("fork")
        waiting: deque[tuple[str, Future[Judgement]]] = deque()
        last: dict[str | None, Future[Judgement]] = {}
        rest = iter(paths)
        with ProcessPoolExecutor(jobs, context, _begin, (self,)) as pool:
            try:
                for path in rest:
                    machine = None if self.place is None else _machine(path)
                    if self.place is not None and machine in last:
                        # In the order in which they were given: the older one is no rollback.
                        wait([last[machine]])
                    waiting.append((path, pool.submit(_work, path)))
                    last[machine] = waiting[-1][1]
                    # What is judged already keeps nobody waiting, nor its verdict in memory.
                    last = {key: future for key, future in last.items() if not future.done()}
                    if len(waiting) >= jobs * _WAITING:
                        yield _next(waiting)
                while waiting:
                    yield _next(waiting)
            except BrokenProcessPool:
                raise ImafsError(
                    "a process that checked bundles was killed: for want of memory? Give fewer "
                    "--jobs"
                ) from None
            finally:
                for _, future in waiting:
                    future.cancel()


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


def _work(path: str) -> Judgement:
    assert _verifier is not None
    return _verifier.check(path)


def _next(waiting: deque[tuple[str, Future[Judgement]]]) -> tuple[str, Judgement]:
    path, future = waiting.popleft()
    return path, future.result()


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
