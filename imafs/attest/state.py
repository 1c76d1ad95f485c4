# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a verifier knows of one machine: up to which record its list was verified, and the PCRs.

The state is the verifier's alone. It is on the disk before a verdict is told, so that none is
told twice; a file that is missing or damaged is said, never taken for a machine's first time.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imafs import disk
from imafs.attest.quote import Clock
from imafs.errors import FileError, FormatError, UsageError
from imafs.formats.algorithms import ALGORITHMS
from imafs.host import ownership
from imafs.lists.replay import PcrValues

FORMAT = "imafs-verifier-state"
VERSION = 1
#: Quotes that are remembered, by SHA-256 of their messages.
REMEMBERED = 64
#: Behind a state's name: who holds that judges a bundle of its machine.
LOCK = ".lock"
_MOST = 64 << 10
_DIGEST = re.compile("[0-9a-f]{64}")
_SIZES = {a.name: a.digest_size for a in ALGORITHMS}


@dataclass(frozen=True, slots=True)
class State:
    """``index`` records since the boot are verified and lead to ``pcrs``.

    ``key`` is the fingerprint of the machine's attestation key, ``clock`` that of the last
    quote, ``quotes`` the last ones that were accepted, ``sequence`` the number of all of them.
    """

    key: str
    clock: Clock
    index: int
    pcrs: PcrValues
    quotes: tuple[str, ...] = ()
    sequence: int = 1
    violations: int = 0
    boots: int = 0

    def encode(self) -> bytes:
        """JSON."""
        clock = self.clock
        value = {
            "format": FORMAT,
            "version": VERSION,
            "key": self.key,
            "clock": clock.clock,
            "reset_count": clock.reset_count,
            "restart_count": clock.restart_count,
            "safe": clock.safe,
            "index": self.index,
            "violations": self.violations,
            "boots": self.boots,
            "sequence": self.sequence,
            "pcrs": {
                bank: {str(pcr): value.hex() for pcr, value in sorted(row.items())}
                for bank, row in self.pcrs.items()
            },
            "quotes": list(self.quotes[-REMEMBERED:]),
        }
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def decode(data: bytes, source: str) -> State:
    """Raises :class:`FormatError` for anything but a state of this version."""
    try:
        row = json.loads(data)
        if not isinstance(row, dict) or row.get("format") != FORMAT:
            raise FormatError("is no verifier's state", source=source)
        if row.get("version") != VERSION:
            raise FormatError("is a state of another version of imafs", source=source)
        return _state(row)
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
        raise FormatError(f"is a damaged state: {type(error).__name__}", source=source) from None


def _state(row: Mapping[str, Any]) -> State:
    numbers = {
        key: row[key]
        for key in (
            *("clock", "reset_count", "restart_count", "index", "violations", "boots"),
            "sequence",
        )
    }
    if any(type(number) is not int or not 0 <= number < 1 << 64 for number in numbers.values()):
        raise ValueError("a number")
    digests = (row["key"], *row["quotes"])
    if not all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in digests):
        raise ValueError("a digest")
    pcrs = {
        bank: {int(pcr): bytes.fromhex(digits) for pcr, digits in values.items()}
        for bank, values in row["pcrs"].items()
    }
    for bank, values in pcrs.items():
        size = _SIZES[bank]
        if any(len(value) != size for value in values.values()):
            raise ValueError("a PCR")
    if type(row["safe"]) is not bool:
        raise ValueError("safe")
    return State(
        row["key"],
        Clock(row["clock"], row["reset_count"], row["restart_count"], row["safe"]),
        row["index"],
        pcrs,
        tuple(row["quotes"]),
        row["sequence"],
        row["violations"],
        row["boots"],
    )


def load(path: Path) -> State | None:
    """The state of a file; None where there is none. Raises :class:`ImafsError`."""
    if not os.path.lexists(path):
        return None
    return decode(disk.read_whole(str(path), _MOST), str(path))


def save(path: Path, state: State) -> None:
    """On the disk when it returns: the file, its name, or the old one. Raises FileError."""
    try:
        with disk.replacing(str(path), 0o600) as descriptor:
            disk.fill(descriptor, [state.encode()])
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise FileError(str(path), error) from None


def guard(path: Path) -> None:
    """Whether nobody else can put another state there, or hold its lock for ever, and it is the
    only one: a name that is replaced leaves an older state behind its others.

    Raises :class:`UsageError`, :class:`FileError`.
    """
    try:
        with ownership.parent(path) as (directory, name):
            for each in (name, name + LOCK.encode()):
                ownership.check_replaceable(directory, each)
            _check_alone(path, directory, name)
    except ownership.ForeignError as error:
        raise ownership.ForeignError(f"--state {path}: {error}") from None
    except OSError as error:
        raise FileError(str(path), error, option="--state") from None


def _check_alone(path: Path, directory: int, name: bytes) -> None:
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(info.st_mode):
        raise UsageError(f"--state {path}: is a symbolic link: name the file that it leads to")
    if info.st_nlink > 1:
        raise UsageError(f"--state {path}: has another name elsewhere (a hard link): copy it")


def place(given: Path, key: str) -> Path:
    """The file of a machine: ``given``, or the one of its key in that directory.

    Raises :class:`FileError` where the file's directory is not there.
    """
    if given.is_dir():
        return given / f"{key}.json"
    if not given.parent.is_dir():
        missing = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise FileError(str(given.parent), missing, option="--state")
    return given
