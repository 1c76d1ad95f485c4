# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Emulators for tests: one per set of mount options, booted anew for each test."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NoReturn

from imafs.cli.parser import Parser
from imafs.errors import ControlError, ImafsError, UsageError
from imafs.testing.ima import Ima
from imafs.testing.mounted import Mounted, Place, Surrounding, missing

#: Emulators that are kept mounted for the next test, each with its swtpm.
KEPT = 3

#: Arguments of the marker -> the option of ``imafs mount``.
_MARKED = {
    "profile": "--profile",
    "hash": "--hash",
    "template": "--template",
    "policy": "--policy",
}

#: Options that act when the daemon starts, and not when its kernel boots anew.
_ONCE = frozenset({"--load", "--measure", "--scenario"})


class Unavailable(Exception):
    """No emulator can be had here; the text says why and what to do."""


class Pool:
    """See the module. ``options`` are those of every emulator."""

    def __init__(self, options: Sequence[str]) -> None:
        self._options = tuple(options)
        self._kept: OrderedDict[tuple[str, ...], Ima] = OrderedDict()
        self._out: list[Ima] = []
        self._shared: list[Ima] = []
        self._surrounding: Ima | None = None
        self._problems: list[str] = []

    def take(self, chosen: Mapping[str, object], *, shared: bool = False) -> Ima:
        """A freshly booted emulator as the marker's arguments say.

        ``shared``: for many tests, so for nobody else. Raises :class:`Unavailable`,
        :class:`UsageError` for arguments that make no sense, :class:`ImafsError` where
        the emulator does not start.
        """
        for name in chosen:
            if name not in (*_MARKED, "options"):
                known = ", ".join((*_MARKED, "options"))
                raise UsageError(f"the marker ima has no argument {name!r}; it has: {known}")
        if control := os.environ.get("IMAFS_CONTROL"):
            _check(chosen)
            return self._around(control, chosen, shared=shared)
        options = (*self._options, *_options(chosen))
        kept = None if shared else self._kept.pop(options, None)
        found = kept or self._start(options)
        (self._shared if shared else self._out).append(found)
        return found

    def _start(self, options: tuple[str, ...]) -> Ima:
        reason = missing(tpm="none" not in options)
        if reason is not None:
            raise Unavailable(reason)
        return Ima(Mounted(options).start(), options)

    def _around(self, control: str, chosen: Mapping[str, object], *, shared: bool) -> Ima:
        if self._surrounding is None:
            self._surrounding = Ima(Surrounding(control), ())
        found = self._surrounding
        if self._shared or (shared and self._out):
            raise Unavailable(
                "inside imafs run there is one emulator: use ima or ima_session, not both"
            )
        if shared:
            self._shared.append(found)
        else:
            self._out.append(found)
        try:
            found.boot_anew(_text(chosen, "profile"))
            status = found.status()
            policy = status["policy"]
            told = {**status, "policy": policy["source"] if policy else None}
            for name, option in _MARKED.items():
                if name in chosen and told[name] != chosen[name]:
                    raise Unavailable(
                        f"this test wants {option} {chosen[name]}: give it to imafs run"
                    )
            if chosen.get("options"):
                raise Unavailable(f"this test wants {chosen['options']}: give it to imafs run")
        except BaseException:
            (self._shared if shared else self._out).remove(found)
            raise
        return found

    def give_back(self, found: Ima, *, passed: bool = True) -> list[str]:
        """At the end of a test: what was wrong with the emulator, and booted for the next.

        ``passed``: a test that did demands that its scenarios took place.
        """
        owned = found in self._out
        (self._out if owned else self._shared).remove(found)
        place: Place = found.place
        try:
            problems = found.complaints(passed=passed)
        except ControlError as error:
            ended = place.close()
            if found is self._surrounding:
                self._surrounding = None
            return [f"the emulator has ended or hangs: {ended or error}"]
        if found is self._surrounding:
            return problems
        if not owned or not self._keep(found):
            problem = place.close()
            problems += [problem] if problem else []
        return problems

    def _keep(self, found: Ima) -> bool:
        """Boots anew for the next test; false where it can only be thrown away."""
        if any(word.partition("=")[0] in _ONCE for word in found.options):
            return False
        try:
            found.boot_anew()
        except ImafsError:
            # A TPM that a test has broken for good, say: the next test gets another one.
            return False
        self._kept[found.options] = found
        if len(self._kept) > KEPT:
            _, oldest = self._kept.popitem(last=False)
            problem = oldest.place.close()
            self._problems += [problem] if problem else []
        return True

    def close(self) -> None:
        """Ends all. Raises :class:`ImafsError` where one did not end well."""
        for found in (*self._kept.values(), *self._out, *self._shared):
            problem = found.place.close()
            self._problems += [problem] if problem else []
        self._kept.clear()
        if self._problems:
            raise ImafsError("; ".join(self._problems))


def _check(chosen: Mapping[str, object]) -> None:
    """Raises :class:`UsageError` for options that no ``imafs mount`` would take.

    Where no mount is made, they would else look like options that this emulator lacks.
    """
    if words := _options(chosen):
        from imafs.cli import mount

        parser: ArgumentParser = _Refusing(prog="imafs")
        mount.add_parser(parser.add_subparsers())
        mount.plan(parser.parse_args(["mount", os.devnull, *words]))


class _Refusing(Parser):
    """Says what is wrong instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _text(chosen: Mapping[str, object], key: str) -> str | None:
    value = chosen.get(key)
    return None if value is None else str(value)


def _options(chosen: Mapping[str, object]) -> list[str]:
    words: list[str] = []
    for name, option in _MARKED.items():
        if chosen.get(name) is not None:
            words += [option, str(chosen[name])]
    more = chosen.get("options", ())
    if not isinstance(more, list | tuple) or not all(isinstance(word, str) for word in more):
        raise UsageError("the marker ima: options is a list of strings")
    return [*words, *more]
