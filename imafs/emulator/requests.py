# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What user space asks through the files: parsed, carried out, told of."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.export_files import Exporter
from imafs.errors import Refused
from imafs.interface.behaviour import Event, EventNumber
from imafs.interface.grammar import Grammar, Operation, Request, parse
from imafs.interface.profiles import RequestFile, Shown
from imafs.kernel.queue import Queue


class Requests:
    """Carries requests out on one queue; all synchronous.

    ``measure`` adds critical data (label, name, text) where the policy wants it; a failure
    is its own affair. ``pcrs`` gives the PCRs that records go to.
    """

    def __init__(
        self,
        queue: Queue,
        config: EmulatorConfig,
        measure: Callable[[str, bytes, bytes], object],
        pcrs: Callable[[], Sequence[int]],
    ) -> None:
        self._queue = queue
        self._measure = measure
        self._pcrs = pcrs
        export, root = config.profile.export, config.export_root
        self._exporter = None
        if export is not None and root is not None:
            self._exporter = Exporter(queue, export, root, config.export_limit)

    def write(self, grammar: Grammar, data: bytes, position: int) -> int:
        """A write to a file with this grammar: the bytes taken. Raises :class:`Refused`."""
        queue = self._queue
        trimmed = queue.trimmed
        flush = queue.flush_htable
        request = parse(grammar, data, position, flush_htable=flush, trimmed=trimmed)
        answer = self.carry_out(request)
        # A kernel may return more than was written; FUSE would turn that into EIO.
        return len(data) if answer is None else min(answer, len(data))

    def carry_out(self, request: Request) -> int | None:
        """Does what the request says. What the write returns, None: its bytes."""
        return _OPERATIONS[request.operation](self, request)

    def _stage(self, request: Request) -> None:
        self._queue.stage(request.number)

    def _delete_staged(self, request: Request) -> None:
        self._queue.delete_staged(request.number)

    def _delete_first(self, request: Request) -> int | None:
        queue = self._queue
        before, length = queue.trimmed, len(queue.current)
        deleted = queue.delete_first(request.number)
        event = queue.rules.event
        if deleted and event is not None:
            self._tell(event, before, deleted)
        if not queue.rules.off_by_one or request.number is None:
            return None
        # The draft returns its loop's counter.
        return request.number + 2 if length > request.number + 1 else length

    def _delete_matching(self, request: Request) -> None:
        self._queue.delete_matching(request.values, self._pcrs())

    def _export(self, request: Request) -> None:
        if self._exporter is None:
            raise Refused(errno.EACCES, "there is no --export-root")
        self._exporter.request(request.path)

    def grown(self) -> None:
        """A record was added."""
        if self._exporter is not None:
            self._exporter.grown()

    def _tell(self, event: Event, before: int, deleted: int) -> None:
        """Measures the critical data that tells of a trim."""
        numbers = {
            EventNumber.REMOVED: deleted,
            EventNumber.NEW_TOTAL: before + deleted,
            EventNumber.OLD_TOTAL: before,
        }
        text = event.form % (time.time_ns(), numbers[event.number])
        self._measure(event.label, event.name, text)

    def shown(self, file: RequestFile) -> bytes:
        """The text of a request file. Raises :class:`Refused` (EINVAL): no read method."""
        if file.shows is None:
            raise Refused(errno.EINVAL, "the file has no read method")
        # scnprintf into the kernel's buffer: a long number loses its newline.
        return _TEXTS[file.shows](self._queue, self._pcrs())[: file.room - 1]


def _pcr_values(queue: Queue, pcrs: Sequence[int]) -> bytes:
    points = queue.start_points
    return b"".join(
        b"pcr%02d:%s:%s" % (pcr, bank.encode(), points.value(bank, pcr))
        for bank in points.banks
        for pcr in sorted(pcrs)
    )


def _pcr_text(queue: Queue, pcrs: Sequence[int]) -> bytes:
    points = queue.start_points
    return b"".join(
        b"pcr%02d:%s:%s\n" % (pcr, bank.encode(), points.value(bank, pcr).hex().encode())
        for bank in points.banks
        for pcr in pcrs
    )


_TEXTS: dict[Shown, Callable[[Queue, Sequence[int]], bytes]] = {
    Shown.LAST_TRIM: lambda queue, _: b"%d\n" % queue.last_trim,
    Shown.TOTAL_TRIMMED: lambda queue, _: b"%d\n" % queue.trimmed,
    Shown.PCRS: _pcr_values,
    Shown.PCRS_ASCII: _pcr_text,
}

_OPERATIONS: dict[Operation, Callable[[Requests, Request], int | None]] = {
    Operation.STAGE: Requests._stage,
    Operation.DELETE_STAGED: Requests._delete_staged,
    Operation.DELETE_FIRST: Requests._delete_first,
    Operation.DELETE_MATCHING: Requests._delete_matching,
    Operation.EXPORT: Requests._export,
}
