# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The ready scenarios, and scenario files by path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from imafs import disk
from imafs.errors import FormatError, UsageError, nearest
from imafs.scenarios.script import Scenario, Validate, parse

_SUFFIX = ".toml"
#: Bytes of a scenario file, and characters of a line: the TOML parser keeps every beginning of a
#: dotted key, so one key of 40,000 dots takes it 1.5 GB (Python 3.11: measured).
_MOST, _LONGEST_LINE = 1 << 16, 1024


def names() -> list[str]:
    """Names of the ready ones, in order."""
    place = resources.files("imafs.scenarios") / "ready"
    return sorted(
        entry.name.removesuffix(_SUFFIX)
        for entry in place.iterdir()
        if entry.name.endswith(_SUFFIX)
    )


def text_of(name: str) -> str:
    """The file of a ready scenario. Raises :class:`UsageError` that lists them all."""
    known = names()
    if name not in known:
        raise UsageError(
            f"no ready scenario is called {name!r}{nearest(name, known)}; "
            f"there are: {', '.join(known)} (a file has a / in its name, or ends in .toml)"
        )
    return (resources.files("imafs.scenarios") / "ready" / (name + _SUFFIX)).read_text("utf-8")


def ready(name: str, validate: Validate) -> Scenario:
    """A ready scenario by its name."""
    return parse(text_of(name), name, validate)


def from_file(path: str, validate: Validate) -> Scenario:
    """The scenario in a file. Raises :class:`FileError` and :class:`FormatError`."""
    text = disk.read_whole(path, _MOST).decode("utf-8", "replace")
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > _LONGEST_LINE:
            what = f"line {number}: longer than {_LONGEST_LINE} characters"
            raise FormatError(what, source=path)
    return parse(text, Path(path).name.removesuffix(_SUFFIX), validate, source=path)


def request(word: str) -> dict[str, str]:
    """What people call a scenario, as options of the operation ``scenario``.

    A path where it looks like one, made absolute, else the name of a ready one.
    """
    if "/" in word or word.endswith(_SUFFIX):
        # Not resolved: ".." after a symbolic link is for the open to resolve.
        return {"file": str(Path(word).absolute())}
    return {"name": word}


def find(word: str, validate: Validate) -> Scenario:
    """The scenario of :func:`request`, read by ourselves."""
    return ready(word, validate) if "name" in request(word) else from_file(word, validate)
