# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Fixtures for tests through a real mount."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.errors import ImafsError
from imafs.testing.mounted import Home
from tests.mount.daemon import Daemon
from tests.support import ROOT


class Starter:
    """Starts daemons; everything that it started ends with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def place(self) -> Home:
        """A new place to mount on."""
        place = Home()
        self._stack.callback(place.close)
        return place

    def launch(
        self,
        *options: str | os.PathLike[str],
        place: Home | None = None,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        control: bool = True,
    ) -> Daemon:
        """A daemon that may not become ready."""
        where = place or self.place()
        daemon = Daemon(*options, place=where, prefix=prefix, env=env, cwd=cwd, control=control)
        self._stack.callback(daemon.close)
        return daemon

    def __call__(
        self,
        *options: str | os.PathLike[str],
        place: Home | None = None,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        control: bool = True,
    ) -> Daemon:
        """A daemon whose mount answers."""
        launched = self.launch(
            *options, place=place, prefix=prefix, env=env, cwd=cwd, control=control
        )
        return launched.start()

    def refused(
        self,
        *options: str | os.PathLike[str],
        place: Home | None = None,
        prefix: Sequence[str] = (),
    ) -> tuple[int, str]:
        """A start that must fail before anything is mounted: exit status and stderr."""
        daemon = self.launch(*options, place=place, prefix=prefix)
        daemon.logs.allow("")
        assert daemon.process.stdout is not None
        status = daemon.wait()
        assert daemon.process.stdout.read() == b"", "it announced a mount all the same"
        return status, daemon.log()


@pytest.fixture
def start() -> Iterator[Starter]:
    """Starts daemons with options of the test's choice."""
    with ExitStack() as stack:
        yield Starter(stack)


@pytest.fixture
def daemon(start: Starter) -> Daemon:
    """A daemon with default options: mainline, ima-ng, a swtpm of its own."""
    return start()


class Kept:
    """One daemon with default options, mounted once and booted anew for each test."""

    def __init__(self) -> None:
        self._daemon: Daemon | None = None

    def take(self) -> Daemon:
        """It, or a new one where the last test has ended it or broken it for good."""
        if self._daemon is None:
            self._daemon = Daemon().start()
        return self._daemon

    def give_back(self, daemon: Daemon) -> None:
        """At the end of a test; complains of its log."""
        try:
            if daemon.process.poll() is None:
                daemon.boot_anew()
                return
        except ImafsError:
            pass  # it goes: the next test gets another one
        self.close()

    def close(self) -> None:
        """Ends it."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.close()


@pytest.fixture(scope="session")
def kept() -> Iterator[Kept]:
    """The daemon that tests of several modules share, one after the other."""
    found = Kept()
    yield found
    found.close()


@pytest.fixture(name="daemon")
def booted(kept: Kept) -> Iterator[Daemon]:
    """As ``daemon``, booted anew instead of mounted anew: for modules that import this one."""
    taken = kept.take()
    yield taken
    kept.give_back(taken)
