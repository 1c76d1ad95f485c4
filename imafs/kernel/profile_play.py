# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Requests of a profile, played on a queue of a few records."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from imafs.errors import Refused
from imafs.formats.algorithms import SHA256
from imafs.formats.binary import Record
from imafs.formats.fields import Measurement
from imafs.formats.templates import TEMPLATES
from imafs.interface.grammar import Grammar, Operation, Request, parse
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


def grammars(profile: Profile) -> list[Grammar]:
    """Those of the files that take requests, staged files behind the originals."""
    files: list[ListFiles | RequestFile] = [profile.current, *profile.requests]
    if profile.staged is not None:
        files.insert(1, profile.staged)
    return [file.grammar for file in files if file.grammar is not None]


def taking(profile: Profile, request: Request) -> Grammar | None:
    """The first grammar that has words for ``request``."""
    return next((g for g in grammars(profile) if g.spell(request) is not None), None)


def of_number(profile: Profile) -> Grammar | None:
    """The first grammar that takes a plain number."""
    return next((g for g in grammars(profile) if g.counted is not None), None)


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

    def write(self, grammar: Grammar | None, request: Request, *, position: int = 0) -> str:
        """The answer to the write; :data:`NOTHING` where there is no such request."""
        words = None if grammar is None else grammar.spell(request, self.queue.trimmed)
        if grammar is None or words is None:
            return NOTHING
        return self.carry_out(grammar, words, position)

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
        return self._whole(Operation.STAGE)

    def delete(self) -> str:
        return self._whole(Operation.DELETE_STAGED)

    def _whole(self, operation: Operation) -> str:
        request = Request(operation)
        return self.write(taking(self._profile, request), request)

    def number(self, number: int, *, position: int = 0) -> str:
        """A plain number, whatever it means."""
        grammar = of_number(self._profile)
        if grammar is None or grammar.counted is None:
            return NOTHING
        return self.write(grammar, Request(grammar.counted, number), position=position)

    def bytes(self, data: bytes) -> str:
        """Any bytes, where numbers go."""
        grammar = of_number(self._profile)
        return NOTHING if grammar is None else self.carry_out(grammar, data, 0)

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
