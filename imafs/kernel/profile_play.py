# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Requests of a profile, played on a queue of a few records."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imafs.errors import Refused
from imafs.formats.algorithms import SHA256
from imafs.formats.binary import Record
from imafs.formats.fields import Measurement
from imafs.formats.templates import TEMPLATES
from imafs.interface.grammar import Digits, Grammar, Operation, Request, Staging, Totalled, parse
from imafs.interface.profiles.model import ListFiles, Profile, RequestFile
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout

#: What there is to say where a profile has no such request.
NOTHING = "-"
#: Records that a play begins with.
RECORDS = 5


def _record(number: int) -> Record:
    name = b"/%d" % number
    template = TEMPLATES["ima-ng"]
    return Record(10, template, template.build(Measurement(name, SHA256, SHA256.digest(name))))


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a request is written, and how its bytes are made from N and the total T."""

    grammar: Grammar
    form: Callable[[int, int], bytes]


def _fixed(grammar: Grammar, data: bytes) -> Slot:
    return Slot(grammar, lambda n, t: data)


def writable(profile: Profile) -> list[ListFiles | RequestFile]:
    files: list[ListFiles | RequestFile] = [profile.current, *profile.requests]
    if profile.staged is not None:
        files.insert(1, profile.staged)
    return [file for file in files if file.grammar is not None]


def letter_of(profile: Profile, operation: Operation) -> Slot | None:
    for file in writable(profile):
        if isinstance(file.grammar, Staging):
            for letter, does in file.grammar.letters:
                if does is operation:
                    return _fixed(file.grammar, letter + b"\n")
    return None


def number_of(profile: Profile) -> Slot | None:
    for file in writable(profile):
        grammar = file.grammar
        if isinstance(grammar, Staging) and grammar.number is not None:
            return Slot(grammar, lambda n, t: b"%d\n" % n)
        if isinstance(grammar, Digits):
            return Slot(grammar, lambda n, t: b"%02d" % n)
        if isinstance(grammar, Totalled):
            return Slot(grammar, lambda n, t: b"%d:%d\n" % (t, n))
        if grammar is not None and not isinstance(grammar, Staging) and grammar.text == "N":
            return Slot(grammar, lambda n, t: b"%d\n" % n)
    return None


class Play:
    """A queue of a few records under a profile's rules."""

    def __init__(self, profile: Profile, records: int = RECORDS, *, flush: bool = False) -> None:
        self._profile = profile
        flush = flush and profile.flush_htable
        self.queue = Queue(Layout(()), profile.rules, flush_htable=flush)
        self._next = 0
        for _ in range(records):
            self.add()

    def add(self) -> None:
        self.queue.append(_record(self._next))
        self._next += 1

    def write(self, slot: Slot | None, number: int = 0, *, position: int = 0) -> str:
        """What the write is answered with; :data:`NOTHING` where there is no such request."""
        if slot is None:
            return NOTHING
        queue = self.queue
        data = slot.form(number, queue.trimmed)
        return self.carry_out(slot.grammar, data, position)

    def carry_out(self, grammar: Grammar, data: bytes, position: int) -> str:
        queue = self.queue
        try:
            request = parse(
                grammar,
                data,
                position,
                flush_htable=queue.flush_htable,
                trimmed=queue.trimmed,
            )
            _DO[request.operation](queue, request)
        except Refused as refused:
            return errno.errorcode[refused.errno]
        return "ok"

    def stage(self) -> str:
        return self.write(letter_of(self._profile, Operation.STAGE))

    def delete(self) -> str:
        return self.write(letter_of(self._profile, Operation.DELETE_STAGED))

    def number(self, number: int) -> str:
        return self.write(number_of(self._profile), number)

    def bytes(self, data: bytes, position: int = 0) -> str:
        slot = number_of(self._profile)
        return NOTHING if slot is None else self.carry_out(slot.grammar, data, position)

    def again(self) -> str:
        """Whether the first record can be measured again."""
        try:
            self.queue.append(_record(0))
        except Refused:
            return "kept"
        return "forgotten"


_DO: Mapping[Operation, Callable[[Queue, Request], object]] = {
    Operation.STAGE: lambda queue, request: queue.stage(request.number),
    Operation.DELETE_STAGED: lambda queue, request: queue.delete_staged(request.number),
    Operation.DELETE_FIRST: lambda queue, request: queue.delete_first(request.number),
}
