# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The archive of one life: segments of records in the kernel's own form, and their journal.

A life is the time from one reset of the PCRs to the next. Its directory has

* ``000000000000.bin``: records in the kernel's SHA-1 binary form; the name is the index of the
  first one, so that ``cat *.bin`` is the list,
* ``000000000000.idx``: the index of a full segment (:mod:`imafs.keeper.index`),
* ``journal``: which bytes of them count (:mod:`imafs.keeper.journal`).

A batch is committed when its records and then its frame are durable; before that the kernel
keeps it. A file whose sync failed is never synced again: a second try says yes to pages that
were dropped. Its batch is written anew, into another file. Blocking: called in a thread.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from imafs.errors import FormatError, StoreBrokenError
from imafs.keeper import files as files_
from imafs.keeper.book import JOURNAL, Book, told
from imafs.keeper.facts import Anchor, Clock, Frame, Gap, How, Modes, PcrValues
from imafs.keeper.files import Files, failed
from imafs.keeper.index import CHUNK, Index, Measured, Row, Table, encoded_size, measured
from imafs.keeper.journal import Seal
from imafs.keeper.ledger import Ledger

log = logging.getLogger(__name__)

#: When a segment is full. The frames bound what a start reads, where each holds a record or two.
SEGMENT_RECORDS = 1 << 16
SEGMENT_SIZE = 16 << 20
SEGMENT_FRAMES = 4096
#: Anchors and gaps of one segment: its seal, which has all of them, must fit into a line.
SEGMENT_MARKS = 32
#: Errors of a full disk: what was written before is as it was.
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records to be stored, whole ones in SHA-1 binary form, and where they come from.

    See :class:`imafs.keeper.journal.Frame`. ``measured``: of ``data``, where somebody knows it.
    """

    data: bytes
    count: int
    boot: str
    staged: int = 0
    staged_sha256: bytes = bytes(32)
    skip: int = 0
    how: How = How.STAGE
    clock: Clock | None = None
    pcrs: PcrValues = field(default_factory=dict)
    modes: Modes = field(default_factory=dict)
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Sealed:
    """A full segment: records from index ``first`` on, ``size`` bytes of them."""

    path: str
    first: int
    size: int
    table: Table


@dataclass(frozen=True, slots=True)
class Tail:
    """Of the open segment the chunks from number ``at`` on, each with its records' offsets."""

    path: str
    first: int
    size: int
    chunks: Sequence[tuple[Row, array[int]]]
    at: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """What a commit has made of the archive. ``sealed``: segments that became full; ``tail``: what
    the open one has got, None where that is nothing."""

    frame: Frame
    sealed: tuple[Sealed, ...] = ()
    tail: Tail | None = None


class _Growing:
    """The open segment."""

    __slots__ = ("descriptor", "digest", "first", "index", "name", "path", "size")

    def __init__(self, path: str, name: str, first: int, descriptor: int) -> None:
        self.path = path
        self.name = name
        self.first = first
        self.descriptor = descriptor
        self.index = Index()
        self.digest = hashlib.sha256()
        self.size = 0

    def grow(self, data: bytes, measured: Measured) -> None:
        """``data`` counts now."""
        self.index.take(measured)
        self.digest.update(data)
        self.size += len(data)

    def tail(self, record: int) -> Tail:
        """The chunks from that of a record on."""
        at = record // CHUNK
        return Tail(self.path, self.first, self.size, self.index.chunks(at), at)


def begin(files: Files, directory: str) -> Archive:
    """The archive of a new life in its directory, which is there.

    Durable but for the directory's own name. Raises :class:`DegradedError`.
    """
    try:
        files_.replace(files, directory, JOURNAL, b"")
    except OSError as error:
        raise failed(f"{directory}/{JOURNAL}", error) from None
    return recover(files, directory)


def recover(files: Files, directory: str) -> Archive:
    """The archive in ``directory``, with all that a crash left half done put in order.

    Twice is as good as once. Raises :class:`StoreBrokenError` and :class:`DegradedError`.
    """
    path = f"{directory}/{JOURNAL}"
    try:
        ledger, torn = told(files, path)
    except FileNotFoundError:
        raise StoreBrokenError(f"{path} is not there") from None
    except StoreBrokenError as error:
        raise StoreBrokenError(f"{directory}: {error}") from None
    except OSError as error:
        raise failed(path, error) from None
    if torn:
        log.warning("%s: cut %d bytes that no sync made durable", path, torn)
    archive = Archive(files, directory, ledger)
    try:
        archive.recover()
    except StoreBrokenError as error:
        raise StoreBrokenError(f"{directory}: {error}") from None
    except OSError as error:
        raise failed(directory, error) from None
    return archive


class Archive:
    """One life, open for writing; see :func:`begin` and :func:`recover`."""

    def __init__(self, files: Files, directory: str, ledger: Ledger) -> None:
        self._files = files
        self.directory = directory
        self._book = Book(files, directory, ledger)
        self.sealed: list[Sealed] = []
        self._open: _Growing | None = None

    @property
    def ledger(self) -> Ledger:
        """What the journal says."""
        return self._book.ledger

    @property
    def end(self) -> int:
        """Records that are stored."""
        return self.ledger.end

    @property
    def tail(self) -> Tail | None:
        """What is stored of the open segment, as of now."""
        return None if self._open is None else self._open.tail(0)

    def _at(self, name: str) -> str:
        return f"{self.directory}/{name}"

    # Recovery

    def recover(self) -> None:
        """Cuts what does not count, takes up the rest. Raises OSError too."""
        self.sealed = [self._sealed(seal) for seal in self.ledger.seals]
        self._recover_open()
        # Anew, whatever it is: lines that were read may lie in memory alone, and of a file
        # whose sync has failed once no later sync tells that.
        self._book.rewrite(self.ledger)
        self._remove_strangers()

    def _sealed(self, seal: Seal) -> Sealed:
        path = self._at(seal.segment)
        try:
            size = self._files.size(path)
        except FileNotFoundError:
            raise StoreBrokenError(f"{seal.segment} is not there") from None
        if size < seal.size:
            raise StoreBrokenError(f"{seal.segment} is shorter than its records")
        return Sealed(path, seal.first, seal.size, self._table(seal))

    def _table(self, seal: Seal) -> Table:
        path = self._at(index_name(seal.segment))
        try:
            return self._read_table(path, seal)
        except FileNotFoundError:
            log.warning("%s: is not there: made anew", path)
        except OSError as error:
            log.warning("%s: %s: made anew", path, error.strerror)
        except FormatError as error:
            log.warning("%s: %s: made anew", path, error)
        return self._made_table(seal)

    def _read_table(self, path: str, seal: Seal) -> Table:
        size = self._files.size(path)
        data = self._files.read_at(path, 0, size) if size == encoded_size(seal.count) else b""
        if hashlib.sha256(data).digest() != seal.index_sha256:
            raise FormatError("is not the index that its segment had")
        return Table.decode(data, seal.count, seal.size)

    def _made_table(self, seal: Seal) -> Table:
        data = self._files.read_at(self._at(seal.segment), 0, seal.size)
        if hashlib.sha256(data).digest() != seal.sha256:
            raise StoreBrokenError(f"{seal.segment}: its bytes are not those that were stored")
        index = Index()
        index.take(_measured(seal.segment, data))
        if len(index) != seal.count:
            raise StoreBrokenError(f"{seal.segment}: {len(index)} records, not those of its seal")
        return self._write_index(seal.segment, index)[0]

    def _write_index(self, segment: str, index: Index) -> tuple[Table, bytes]:
        """The file of an index, durably; and its SHA-256."""
        data = index.encode()
        files_.replace(self._files, self.directory, index_name(segment), data)
        return Table.decode(data, len(index), index.offsets[-1]), hashlib.sha256(data).digest()

    def _recover_open(self) -> None:
        """The open segment, as far as its frames count."""
        name = self.ledger.segment
        if name is None:
            return
        path = self._at(name)
        try:
            size = self._files.size(path)
        except FileNotFoundError:
            size = 0
        growing = _Growing(path, name, self.ledger.sealed, -1)
        for frame in [frame for frame in self.ledger.frames if frame.len]:
            least = min(size, frame.off + frame.len)
            part = self._files.read_at(path, frame.off, max(0, least - frame.off)) if size else b""
            if hashlib.sha256(part).digest() != frame.sha256:
                self._drop_lost(frame)
                break
            growing.grow(part, _measured(name, part))
        if growing.size:
            growing.descriptor = self._files.open(path)
            self._open = growing
            if growing.size < size:
                self._files.truncate(growing.descriptor, growing.size)
                self._files.sync(growing.descriptor)

    def _drop_lost(self, frame: Frame) -> None:
        """The bytes of ``frame`` are not those that were stored.

        Right only for the last one, if the kernel was not told to delete its records: then it
        has them still, and where it was told all the same, the PCRs say so.
        """
        if frame is not self.ledger.last or self.ledger.confirmed:
            raise StoreBrokenError(
                f"{frame.seg}: the bytes of frame {frame.n} are not those that were stored"
            )
        log.warning(
            "%s: frame %d has lost its bytes: taken as never stored", self.directory, frame.n
        )
        self._book.ledger = self.ledger.without(frame)

    def _remove_strangers(self) -> None:
        """Files of a crash: segments that no frame names, and halves of others."""
        known = {seal.segment for seal in self.ledger.seals} | {self.ledger.segment}
        for name in self._files.names(self.directory):
            if (name.endswith(".bin") and name not in known) or name.endswith(".new"):
                log.info("%s: removed, nothing counts it", self._at(name))
                self._files.remove(self._at(name))

    # Storing

    def commit(self, batch: Batch) -> Stored:
        """Stores a batch: it may be deleted in the kernel behind this. ``batch.count`` may be 0.

        Raises :class:`DegradedError`, with nothing changed, where it is not durable, and
        :class:`FormatError` where its bytes are not so many records.
        """
        found = batch.measured or measured(batch.data)
        if len(found.ends) != batch.count:
            raise FormatError(f"{len(found.ends)} records where {batch.count} were said")
        before = len(self.sealed)
        try:
            self._seal_full()
            if batch.data:
                self._write(batch.data)
            frame = self._frame(batch)
            self._book.tell(frame)
        except OSError as error:
            raise failed(self.directory, error) from None
        tail = None
        if batch.data:
            growing = self._open
            assert growing is not None
            had = len(growing.index)
            growing.grow(batch.data, found)
            tail = growing.tail(had)
        return Stored(frame, tuple(self.sealed[before:]), tail)

    def _frame(self, batch: Batch) -> Frame:
        ledger = self.ledger
        return Frame(
            n=ledger.number + 1,
            first=ledger.end,
            count=batch.count,
            seg=ledger.segment or f"{ledger.end:012d}.bin",
            off=ledger.offset,
            len=len(batch.data),
            sha256=hashlib.sha256(batch.data).digest(),
            prev=bytes.fromhex(self._book.head),
            boot=batch.boot,
            g_count=batch.staged,
            g_sha256=batch.staged_sha256,
            skip=batch.skip,
            how=batch.how,
            clock=batch.clock,
            pcrs=batch.pcrs,
            modes=batch.modes,
        )

    def confirm(self, *, sync: bool = False) -> None:
        """The kernel has deleted what the last frame holds. Durable with the next commit, or
        at once with ``sync``. Raises :class:`DegradedError`."""
        last = self.ledger.last
        if last is None or self.ledger.confirmed:
            return
        try:
            self._book.tell(last.n, sync=sync)
        except OSError as error:
            raise failed(self._at(JOURNAL), error) from None

    def mark(self, mark: Anchor | Gap) -> None:
        """An anchor or a gap, durable behind this. Raises :class:`DegradedError`."""
        try:
            self._book.tell(mark)
        except OSError as error:
            raise failed(self._at(JOURNAL), error) from None

    def close(self) -> None:
        """Lets go of the files."""
        self._book.close()
        if self._open is not None:
            self._files.close(self._open.descriptor)
            self._open = None

    # Segments

    def _write(self, data: bytes) -> None:
        """``data`` behind what counts of the open segment, durably."""
        for last in (False, True):
            growing = self._open or self._new_segment()
            try:
                self._files.write(growing.descriptor, growing.size, data)
                self._files.sync(growing.descriptor)
            except OSError as error:
                if error.errno in _FULL:
                    raise
                self._poisoned(growing, error)
                if last:
                    raise
            else:
                return

    def _poisoned(self, growing: _Growing, error: OSError) -> None:
        """The segment takes no more; what counts of it was durable before."""
        log.error("%s: %s: no more is written to it", growing.path, error.strerror)
        if growing.size:
            self._seal()
        else:
            self._open = None
            self._files.close(growing.descriptor)

    def _new_segment(self) -> _Growing:
        name = f"{self.ledger.end:012d}.bin"
        path = self._at(name)
        try:
            descriptor = self._files.create(path)
        except FileExistsError:  # nothing counts it: no frame begins there
            self._files.remove(path)
            descriptor = self._files.create(path)
        try:
            self._files.sync(descriptor)
            self._files.sync_directory(self.directory)
        except OSError:
            self._files.close(descriptor)
            raise
        self._open = _Growing(path, name, self.ledger.end, descriptor)
        return self._open

    def _seal_full(self) -> None:
        growing = self._open
        if growing is not None and (
            len(growing.index) >= SEGMENT_RECORDS
            or growing.size >= SEGMENT_SIZE
            or (growing.size and len(self.ledger.frames) >= SEGMENT_FRAMES)
            or (growing.size and self.ledger.marks >= SEGMENT_MARKS)
        ):
            self._seal()

    def _seal(self) -> None:
        """Ends the open segment: its index, and a journal that folds its frames."""
        growing = self._open
        assert growing is not None
        table, sha256 = self._write_index(growing.name, growing.index)
        ledger = self.ledger.copy()
        ledger.add(ledger.sealing(growing.digest.digest(), sha256))
        self._book.rewrite(ledger)
        self._open = None
        self._files.close(growing.descriptor)
        self.sealed.append(Sealed(growing.path, growing.first, growing.size, table))


def index_name(segment: str) -> str:
    """The file that has the index of a segment's."""
    return segment.removesuffix(".bin") + ".idx"


def _measured(name: str, data: bytes) -> Measured:
    try:
        return measured(data)
    except FormatError as error:
        raise StoreBrokenError(f"{name}: {error}") from None
