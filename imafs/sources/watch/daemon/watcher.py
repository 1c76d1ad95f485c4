# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The daemon's side: what is watched, and what becomes of every use that the listener tells.

Differs from a kernel in one place: without any policy, watched files are measured as
``tcb`` says.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import is_

import trio

from imafs.emulator.emulator import Changes, Emulator
from imafs.errors import NotThereError, Refused
from imafs.host.ratelimit import Ratelimit
from imafs.kernel.policy import builtin
from imafs.kernel.policy.match import Policy
from imafs.kernel.policy.rules import Rule
from imafs.sources.watch import messages
from imafs.sources.watch.daemon.append import Recorder
from imafs.sources.watch.daemon.filesystems import Found, Surveyor
from imafs.sources.watch.daemon.listening import Gone, Listening
from imafs.text import shown

log = logging.getLogger(__name__)

#: Seconds after which an opener goes on without its measurement.
DEADLINE = 5.0
_RETRY_FIRST, _RETRY_LONGEST = 0.05, 10.0
#: A listener that lived so long has not died of its start, seconds.
_HEALTHY = 30.0
#: Seconds after a change of the table of mounts.
_SETTLE = 0.02
#: Seconds until a path that is left out is looked at again; most come back with a mount.
_AGAIN = 10.0
#: Seconds that who wants paths watched waits for a listener that is being restarted.
_START = 15.0
#: Seconds that a status waits for a listener.
_STATUS = 1.0
#: For listeners that start and end, and for looks at the table of mounts.
_THREADS = 4


class Watcher:
    """Keeps a listener alive while anything is watched; :meth:`run` must be running.

    ``leave`` is the emulator's mountpoint, ``excused`` are processes that must never wait
    for the daemon (itself and its swtpm), each with when it began.
    """

    def __init__(
        self,
        emulator: Emulator,
        changes: Changes,
        *,
        leave: str,
        excused: Sequence[tuple[int, int]],
        deadline: float = DEADLINE,
    ) -> None:
        self._emulator = emulator
        self._excused = tuple(excused)
        self._deadline = deadline
        self._paths: tuple[bytes, ...] = ()
        self._changing = trio.Lock()
        self._number = 0
        # What the listener was last told of.
        self._policy = self._judging
        self._kernel = emulator.kernel
        # A listener is wanted; it is there; its life, which may be cancelled.
        self._wanted = trio.Event()
        self._ready = trio.Event()
        self._listening: Listening | None = None
        self._life = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        # The listener is to be told again what is concerned; what it was told last.
        self._look = trio.Event()
        # Other users of threads may have files on a file system that is dead.
        self._threads = trio.CapacityLimiter(_THREADS)
        self._surveyor = Surveyor(os.fsencode(leave), self._mounted, self._threads)
        self._found: Found | None = None
        # Points that are not watched, paths among them, and why.
        self._left_out: dict[bytes, str] = {}
        self._restarts = 0
        self._last: str | None = None
        self._before = messages.Counters()
        self._recorder = Recorder(emulator, deadline)
        self._seldom = Ratelimit(log)
        changes.hear(self._changed)

    # What people ask for

    async def watch(self, paths: Iterable[str]) -> None:
        """Watches more paths. Raises :class:`Refused`, with nothing changed.

        A path that is watched already is looked at again: mounts below it may be new.
        """
        found = [await self._surveyor.resolve(path) for path in paths]
        async with self._changing:
            wanted = tuple(dict.fromkeys((*self._paths, *found)))
            self._wanted.set()
            try:
                await self._tell(await self._listener(), wanted, required=found)
            except (Refused, trio.Cancelled):
                # A caller that gave up waiting does not know whether the listener took them.
                if self._paths:
                    self._look.set()
                else:
                    self._rest()
                raise
            if not self._paths and self._emulator.kernel.policy is None:
                log.info("no policy is active: watched files are measured as tcb says")
            self._paths = wanted

    async def unwatch(self, paths: Iterable[str]) -> None:
        """Watches paths no more. Raises :class:`NotThereError` for one that is not.

        A listener that is being restarted is not waited for: the next one starts with the rest.
        """
        names = [(path, await self._known(path)) for path in paths]
        async with self._changing:
            left = list(self._paths)
            for path, name in names:
                if name not in left:
                    raise NotThereError(f"{path} is not watched")
                left.remove(name)
            self._paths = tuple(left)
            if not left:
                self._rest()
            elif self._listening is not None and self._ready.is_set():
                try:
                    await self._tell(self._listening, self._paths)
                except Refused as refused:
                    log.info("after unwatch: %s", refused)
                    self._look.set()
                except trio.Cancelled:
                    self._look.set()
                    raise

    async def _known(self, path: str) -> bytes:
        """The watched path that is meant; its file system may not answer any more."""
        name = os.fsencode(os.path.abspath(path))
        return name if name in self._paths else await self._surveyor.real(path)

    @property
    def paths(self) -> list[str]:
        """The watched paths, with symbolic links resolved."""
        return [os.fsdecode(path) for path in self._paths]

    async def status(self) -> dict[str, object]:
        """The group of ``imafs ctl status``."""
        listening = self._listening
        # One that was started anew is of no use before it has marked what is watched.
        answering = (
            listening is not None and self._ready.is_set() and await listening.report(_STATUS)
        )
        now = listening.counters if listening is not None else messages.Counters()
        counts = {name: getattr(now, name) + getattr(self._before, name) for name in _SUMMED}
        return {
            "paths": self.paths,
            "policy": "tcb" if self._emulator.kernel.policy is None else "active",
            "listener": now.pid if answering else None,
            "left_out": [self._left_out[path] for path in self._paths if path in self._left_out],
            "restarts": self._restarts,
            **self._recorder.counts,
            **counts,
            "trouble": now.trouble or self._before.trouble or self._recorder.refused or self._last,
            "ignoring": now.ignoring,
        }

    # A listener's life

    async def run(self) -> None:
        """Until cancelled."""
        retry = _RETRY_FIRST
        while True:
            await self._wanted.wait()
            began = trio.current_time()
            how = await self._live()
            if how is None or not self._wanted.is_set():
                continue
            if not self._paths:
                # The first one: the caller who asked for it is told.
                self._last = how
                self._ready.set()
                self._wanted = trio.Event()
                continue
            self._restarts += 1
            if trio.current_time() - began > _HEALTHY:
                retry = _RETRY_FIRST
            if how != self._last:
                log.error("the listener of watched files has ended (%s): it is restarted", how)
            self._last = how
            await trio.sleep(retry)
            retry = min(2 * retry, _RETRY_LONGEST)

    async def _live(self) -> str | None:
        """One listener from its start to its end; how it ended, None: not wanted any more."""
        how = None
        self._found = None
        try:
            listening = await trio.to_thread.run_sync(
                Listening,
                self._deadline,
                self._recorder.take,
                self._mounted,
                self._threads,
                limiter=self._threads,
            )
        except OSError as error:
            return f"it cannot be started: {error.strerror}"
        try:
            with trio.CancelScope() as self._life:
                if not self._wanted.is_set():
                    return None
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(listening.run)
                    nursery.start_soon(self._look_again, listening)
                    await self._greet(listening)
                    await trio.sleep_forever()
        except* Gone as group:
            how = str(group.exceptions[0])
        finally:
            self._listening, self._nursery = None, None
            # Who waits goes on waiting, for the next one.
            if self._ready.is_set():
                self._ready = trio.Event()
            self._before = _sum(self._before, listening.counters)
            await listening.end()
        return how

    def _mounted(self) -> None:
        self._look.set()

    async def _look_again(self, listening: Listening) -> None:
        """Marks file systems that were mounted below a path, and paths that are back."""
        while True:
            with trio.move_on_after(_AGAIN) as waiting:
                await self._look.wait()
            self._recorder.flush()
            asked = not waiting.cancelled_caught
            if asked:
                # Many mounts in a row are one reason.
                await trio.sleep(_SETTLE)
                self._look = trio.Event()
            elif not any(path in self._left_out for path in self._paths):
                continue
            async with self._changing:
                if self._listening is listening and self._paths:
                    try:
                        await self._tell(listening, self._paths, again=asked)
                    except Refused as refused:
                        # Its end is told elsewhere, and the next one looks for itself.
                        self._seldom.say("mounts", logging.INFO, "after a mount: %s", refused)

    async def _greet(self, listening: Listening) -> None:
        self._kernel = self._emulator.kernel
        self._send_rules(listening)
        # From here on it is told of changes, and its questions are answered.
        self._listening = listening
        told: tuple[bytes, ...] = ()
        # Who unwatches a path does not wait for this.
        while self._paths != told:
            told = self._paths
            try:
                await self._tell(listening, told)
            except Refused as refused:
                raise Gone(str(refused)) from None
        if told:
            log.info("the listener of watched files is back")
        self._ready.set()

    async def _listener(self) -> Listening:
        try:
            with trio.fail_after(_START):
                await self._ready.wait()
        except trio.TooSlowError:
            what = f"the listener of watched files is not there: {self._last}"
            raise Refused(errno.ETIMEDOUT, what) from None
        if self._listening is None:
            self._ready = trio.Event()
            raise Refused(errno.EIO, f"the listener of watched files: {self._last}")
        return self._listening

    def _rest(self) -> None:
        self._left_out = {}
        self._wanted = trio.Event()
        self._life.cancel()

    async def _tell(
        self,
        listening: Listening,
        paths: tuple[bytes, ...],
        *,
        required: Sequence[bytes] = (),
        again: bool = True,
    ) -> None:
        """Has these paths watched, and no other. What cannot be watched is left out, unless it
        is ``required``: then :class:`Refused`. ``again`` False: only if anything has changed."""
        found = await self._surveyor.survey(paths, self._found)
        if not again and found == self._found:
            return
        for point in required:
            if point in found.left_out:
                raise found.left_out[point]
        self._number += 1
        message = messages.Watch(
            self._number,
            paths,
            found.points,
            found.file_systems,
            found.files,
            found.silent,
            tuple(required),
        )
        refused = await listening.watch(message)
        self._found = found
        self._note(paths, found.left_out | refused)

    def _note(self, paths: tuple[bytes, ...], left_out: Mapping[bytes, Refused]) -> None:
        """Logs what is new in what is left out: anybody mounts below a path of ours, and again."""
        for point, refused in left_out.items():
            if self._left_out.get(point) != str(refused):
                # Below a path there is more that cannot be watched; where nothing is, there
                # is nothing to open.
                quiet = point not in paths or refused.errno in (errno.ENOENT, errno.ENOTDIR)
                level = logging.INFO if quiet else logging.WARNING
                self._seldom.say(self._kind(point, paths), level, "not watched: %s", refused)
        for path in paths:
            if path in self._left_out and path not in left_out:
                line, name = "%s is watched again", os.fsdecode(path)
                self._seldom.say(self._kind(path, paths), logging.INFO, line, name)
        self._left_out = {point: str(refused) for point, refused in left_out.items()}

    def _kind(self, point: bytes, paths: tuple[bytes, ...]) -> str:
        """Of log lines: each watched path is one of its own, so that no other one silences it."""
        return shown(point) if point in paths else "mounts that are not watched"

    def _changed(self) -> None:
        """Another policy, or another boot: told before anybody else's next open."""
        listening = self._listening
        if listening is None:
            return
        if self._kernel is not self._emulator.kernel:
            self._kernel = self._emulator.kernel
            listening.send(messages.Forget())
        if self._policy is not self._judging:
            self._send_rules(listening, self._policy)

    def _send_rules(self, listening: Listening, known: Policy | None = None) -> None:
        emulator = self._emulator
        config, self._policy = emulator.kernel.config, self._judging
        rules = self._policy.rules
        templates = [config.template, *(rule.template for rule in rules)]
        want_sha1 = any(template is not None and template.has("d") for template in templates)
        own = emulator.kernel.policy_file.config.words.template_fmt
        fmt = "" if own is None else own.format
        settings = messages.Settings(config.algorithm.name, want_sha1, self._excused, fmt)
        listening.send(settings)
        # A boot script may append rule by rule: what the listener has is not told again.
        more = known is not None and _begins(rules, known.rules)
        # As they are parsed to the same again: what a kernel prints is shortened.
        new = rules[len(known.rules) :] if known is not None and more else rules
        listening.send(messages.Rules(Policy(new).source(), more))

    @property
    def _judging(self) -> Policy:
        emulator = self._emulator
        return emulator.kernel.policy or _tcb(emulator.kernel.policy_file.config.release)


def _begins(rules: Sequence[Rule], known: Sequence[Rule]) -> bool:
    """Whether the very objects ``known`` are the first ones of ``rules``."""
    return len(known) <= len(rules) and all(map(is_, rules, known))


@cache
def _tcb(release: builtin.Release) -> Policy:
    return Policy(builtin.rules(["tcb"], release))


#: What adds up over the lives of listeners.
_SUMMED = (
    "events",
    "watched",
    "hashed",
    "late",
    "unasked",
    "lost",
    "hidden",
    "overflows",
    "errors",
    "unmeasured",
)


def _sum(one: messages.Counters, other: messages.Counters) -> messages.Counters:
    summed = {name: getattr(one, name) + getattr(other, name) for name in _SUMMED}
    return replace(other, **summed)
