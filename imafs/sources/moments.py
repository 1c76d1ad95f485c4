# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The moments of a recording: each has lists and the PCRs that were read with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from imafs import disk
from imafs.errors import FileError, FormatError
from imafs.sources import unpack
from imafs.sources.recording import CURRENT

#: The PCRs of a moment, beside its lists.
PCRS = "pcrs.txt"
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Moment:
    """``name`` is its directory in the archive (``.``: the recording was unpacked)."""

    name: str
    pcrs: bytes


def of(path: str) -> Sequence[Moment]:
    """Every moment of which the PCRs were kept, in the recording's order; none of another file.

    ``path`` is an archive, or the directory of one moment. Raises :class:`FileError`, and
    :class:`FormatError` for a broken archive.
    """
    try:
        with disk.opened(path) as descriptor:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                return _unpacked(path)
            if stat.S_ISREG(mode) and unpack.is_packed(descriptor):
                with unpack.opened(descriptor) as packed:
                    return _packed(packed)
    except FormatError as error:
        raise error.at(path) from None
    except OSError as error:
        raise FileError(path, error) from None
    return ()


def _unpacked(directory: str) -> Sequence[Moment]:
    try:
        with disk.opened(os.path.join(directory, PCRS)) as descriptor:
            return (Moment(".", disk.content(descriptor, _MOST)),)
    except FileNotFoundError:
        return ()


def _packed(packed: unpack.Archive) -> Sequence[Moment]:
    if packed.entries is None:
        return ()
    places = {PurePath(entry.name): number for number, entry in enumerate(packed.entries)}
    found = {
        place.parent: places[place.with_name(PCRS)]
        for place in places
        if place.name == CURRENT and place.with_name(PCRS) in places
    }
    contents = packed.read(list(found.values()), _MOST * max(len(found), 1))
    return [Moment(str(name), pcrs) for name, pcrs in zip(found, contents, strict=True)]
