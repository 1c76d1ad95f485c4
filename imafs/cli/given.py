# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Lists that follow each other, as they were given on the command line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from imafs.attest.walking import Part
from imafs.errors import FormatError
from imafs.formats.algorithms import Bank
from imafs.formats.binary import Reader, refuse_other_bank
from imafs.formats.list_file import MeasurementList, parse
from imafs.formats.templates import Order


@dataclass(slots=True)
class One:
    """A list by its name; ``found`` is what it is, None where it alone does not tell."""

    name: str
    data: bytes
    found: MeasurementList | None = None


@dataclass(slots=True)
class Given:
    """Lists of one bank, and their records' parts."""

    lists: Sequence[One]
    bank: Bank
    parts: Sequence[Part]

    @property
    def unproven(self) -> int:
        """Violations that were made again from text, which no digest proves."""
        return sum(one.found.unproven for one in self.lists if one.found is not None)

    def sizes(self) -> list[tuple[str, int]]:
        """The names of the lists and their numbers of records, as they follow each other."""
        width, out, before = self.bank.digest_size, [], 0
        for number, one in enumerate(self.lists, 1):
            # A record that is cut counts to the list in which it ends.
            parts = list(_parts(self.lists[:number]))
            count = before
            with suppress(FormatError):
                count = 0
                for part in parts:
                    for _ in Reader(part.data, width, part.order, opaque=True).walk():
                        count += 1
            out.append((one.name, count - before))
            before = count
        return out

    def placed(self, error: FormatError) -> FormatError:
        """``error`` with the list and the place in it."""
        for one in self.lists:
            try:
                if one.data:
                    deque((one.found or parse(one.data, self.bank)).records(), maxlen=0)
            except FormatError as own:
                return own.at(one.name)
        return error.at(", ".join(one.name for one in self.lists))


def given(data: Sequence[tuple[str, bytes]], named: Bank | None, fmt: str | None = None) -> Given:
    """The lists in these files, of any form. ``named`` is their bank, ``fmt`` as parse() takes it.

    Binary ones may be split anywhere. Raises :class:`FormatError` where one is malformed, is of
    another bank than the others, or has no records that could be read.
    """
    lists = [One(name, content) for name, content in data]
    refusal: FormatError | None = None
    for one in lists:
        if named is not None:
            refuse_other_bank(one.data, named, one.name)
        try:
            one.found = parse(one.data, named, fmt) if one.data else None
        except FormatError as error:  # the rest of a binary one, or malformed
            refusal = refusal or error.at(one.name)
    told = [(one.name, one.found) for one in lists if one.found is not None]
    bank = named or _one_bank(told)
    if bank is None:
        bank = _of_all(lists, refusal)
    for name, found in told:
        if found.form != "binary":  # binary ones are checked by their replay
            deque(found.records(name), maxlen=0)
    return Given(lists, bank, list(_parts(lists)))


def _of_all(lists: Sequence[One], refusal: FormatError | None) -> Bank:
    """The bank of lists none of which has a whole record. Raises ``refusal`` of the first."""
    try:
        return parse(b"".join(one.data for one in lists)).bank
    except FormatError:
        if refusal is None:
            raise
        raise refusal from None


def _one_bank(told: Sequence[tuple[str, MeasurementList]]) -> Bank | None:
    for name, found in told:
        if found.bank.name != told[0][1].bank.name:
            raise FormatError(
                f"a list of bank {found.bank.name}, but {told[0][0]} is one of "
                f"{told[0][1].bank.name}: lists that follow each other are of one bank",
                source=name,
            )
    return told[0][1].bank if told else None


def _parts(lists: Sequence[One]) -> Iterator[Part]:
    """Binary lists are joined: a record may begin in one and end in the next."""
    piece: list[One] = []
    for one in lists:
        if one.found is not None and one.found.form != "binary":
            yield from _joined(piece)
            piece = []
            yield Part(one.found.data, one.found.order)
        elif one.data:
            if one.found is not None and piece and one.found.order != _order(piece):
                yield from _joined(piece)
                piece = []
            piece.append(one)
    yield from _joined(piece)


def _joined(piece: Sequence[One]) -> Iterator[Part]:
    if piece:
        whole = piece[0].data if len(piece) == 1 else b"".join(one.data for one in piece)
        yield Part(whole, _order(piece))


def _order(piece: Sequence[One]) -> Order:
    return next((one.found.order for one in piece if one.found is not None), "little")
