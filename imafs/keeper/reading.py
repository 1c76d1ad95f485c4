# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A life as it lies on the disk, read by others than its keeper: checked, and exported.

Nothing is changed, no lock is taken: a running keeper appends only. Blocking.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imafs.errors import FormatError, NotThereError, StoreBrokenError
from imafs.keeper.book import JOURNAL, told
from imafs.keeper.facts import Anchor, Frame, PcrValues
from imafs.keeper.files import Disk, Files, failed
from imafs.keeper.records import RecordList, listed, replayed
from imafs.text import counted

#: The file that says which format a store is in, and the one that this imafs reads.
STORE = "store.json"
FORMAT = 1
_JSON_MAX = 1 << 20
_LIFE = re.compile(r"[0-9]{6,12}-[0-9a-zA-Z-]{1,64}")


@dataclass(frozen=True, slots=True)
class Piece:
    """Records that one line of the journal stands for, with what it says of them."""

    name: str
    first: int
    count: int
    segment: str
    offset: int
    size: int
    sha256: bytes
    pcrs: PcrValues
    #: From which of its records on a replay begins anew, and with what.
    anchors: tuple[Anchor, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. ``complaints``: one line each, none where all is well."""

    life: str
    records: int
    frames: int
    gaps: int
    complaints: tuple[str, ...]


def check_format(files: Files, store: str) -> None:
    """Whether nobody newer has written it. Raises :class:`StoreBrokenError`, and
    :class:`DegradedError`."""
    found = json_object(files, store, STORE).get("format")
    if found != FORMAT:
        raise StoreBrokenError(
            f"{store}: format {found!r}; this imafs reads format {FORMAT}: use a newer one"
        )


def json_object(files: Files, store: str, name: str) -> dict[str, Any]:
    """What a file of a store has. Raises as :func:`check_format`."""
    path = f"{store}/{name}"
    try:
        text = files.read(name, _JSON_MAX)
    except OSError as error:
        raise failed(path, error) from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreBrokenError(f"{path}: is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise StoreBrokenError(f"{path}: is no JSON object")
    return found


def lives(store: str) -> list[str]:
    """The directories of all lives, oldest first. Raises :class:`NotThereError`, and as
    :func:`check_format`."""
    place = Path(store) / "lives"
    try:
        names = [path.name for path in place.iterdir() if _LIFE.fullmatch(path.name)]
    except OSError as error:
        raise NotThereError(f"--store {store}: is no store: {error.strerror}") from None
    if (Path(store) / STORE).exists():  # else a keeper was killed before it began a life
        check_format(Disk(store), store)
    names.sort(key=lambda name: int(name.partition("-")[0]))
    return [name for name in names if _has_begun(place / name)]


def _has_begun(life: Path) -> bool:
    """False for a directory of a crash while a life was begun. One with records has lost its
    journal: no older one is the newest for that."""
    return (life / JOURNAL).exists() or any(life.glob("*.bin"))


class Reading:
    """One life. Raises :class:`StoreBrokenError`, :class:`DegradedError`."""

    def __init__(self, store: str, life: str) -> None:
        self._disk = Disk(f"{store}/lives/{life}")
        self.life = life
        try:
            with self._beside_writer(JOURNAL):
                self.ledger, _ = told(self._disk, JOURNAL)
        except FileNotFoundError:
            raise StoreBrokenError(f"{store}/lives/{life}: records without a journal") from None
        except OSError as error:
            raise failed(f"{store}/lives/{life}/{JOURNAL}", error) from None
        except StoreBrokenError as error:
            raise StoreBrokenError(f"{life}: {error}") from None

    @contextmanager
    def _beside_writer(self, path: str) -> Iterator[None]:
        """A file that a keeper may be writing: open for writing here as well, where we may.

        IMA takes root's reading of a file that somebody writes for a violation, and so is
        writing to one that somebody reads alone: a keeper reads its sealed segments.
        """
        try:
            descriptor = self._disk.open(path)
        except OSError:
            yield  # not root, or nobody can write there; what else is wrong, reading says
            return
        try:
            yield
        finally:
            self._disk.close(descriptor)

    def pieces(self) -> Iterator[Piece]:
        """In order."""
        for seal in self.ledger.seals:
            yield Piece(
                *(seal.segment, seal.first, seal.count, seal.segment, 0, seal.size),
                *(seal.sha256, seal.pcrs),
                tuple(mark for mark in seal.marks if isinstance(mark, Anchor)),
            )
        anchors: tuple[Anchor, ...] = ()
        for item in self.ledger.open:
            if isinstance(item, Anchor):
                anchors = (item,)
            elif isinstance(item, Frame):
                yield Piece(
                    *(f"frame {item.n}", item.first, item.count, item.seg, item.off, item.len),
                    *(item.sha256, item.pcrs),
                    anchors,
                )
                anchors = ()

    def bytes_of(self, piece: Piece) -> bytes:
        """Raises :class:`StoreBrokenError` where they are not those that were stored."""
        if not piece.size:
            return b""
        sealed = any(seal.segment == piece.segment for seal in self.ledger.seals)
        try:
            with nullcontext() if sealed else self._beside_writer(piece.segment):
                data = self._disk.read_at(piece.segment, piece.offset, piece.size)
        except OSError as error:
            raise StoreBrokenError(f"{self.life}/{piece.segment}: {error.strerror}") from None
        if hashlib.sha256(data).digest() != piece.sha256:
            raise StoreBrokenError(
                f"{self.life}, {piece.name}: the bytes are not those that were stored"
            )
        return data

    def verify(self) -> Verdict:
        """All bytes against the journal, and the PCRs that it has against a replay."""
        complaints = []
        values: PcrValues = {}
        known = True
        for piece in self.pieces():
            try:
                records = listed(self.bytes_of(piece))
            except (StoreBrokenError, FormatError) as error:
                # What is behind it is checked all the same, from the values that the journal has.
                complaints.append(str(error))
                values, known = piece.pcrs, bool(piece.pcrs)
                continue
            if len(records) != piece.count:
                complaints.append(f"{self.life}, {piece.name}: {len(records)} records, not those")
            if piece.pcrs and known:
                values = self._replayed(values, records, piece)
                wrong = [bank for bank, own in piece.pcrs.items() if own != values.get(bank, own)]
                if wrong:
                    banks = ", ".join(wrong)
                    complaints.append(f"{self.life}, {piece.name}: PCRs of {banks} do not follow")
            values = piece.pcrs or values
            known = bool(piece.pcrs)
        ledger = self.ledger
        return Verdict(
            self.life, ledger.end, ledger.number + 1, len(ledger.gaps), tuple(complaints)
        )

    def _replayed(self, values: PcrValues, records: RecordList, piece: Piece) -> PcrValues:
        """From its last anchor on, and with the modes of the kernels of these records."""
        at = first = piece.first
        end = first + len(records)
        for anchor in piece.anchors:
            values, at = anchor.pcrs, anchor.index
        eras = [era for era in self.ledger.eras if era.first < end]
        for number, era in enumerate(eras):
            last = eras[number + 1].first if number + 1 < len(eras) else end
            begin = max(at, era.first)
            if begin < last:
                values = replayed(values, records, era.modes, begin - first, last - first)
        return values

    def export(self, since: int) -> Iterator[bytes]:
        """The records from index ``since`` on, in the kernel's SHA-1 binary form."""
        if since > self.ledger.end:
            raise NotThereError(
                f"--since {since}: the life has {counted(self.ledger.end, 'record')}"
            )
        for piece in self.pieces():
            if piece.first + piece.count <= since:
                continue
            data = self.bytes_of(piece)
            if piece.first < since:
                records = listed(data)
                data = records.joined(since - piece.first, len(records))
            yield data
