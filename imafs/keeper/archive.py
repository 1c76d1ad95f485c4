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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from imafs.errors import FormatError, StoreBrokenError
from imafs.keeper import files as files_
from imafs.keeper.book import JOURNAL, Book, told
from imafs.keeper.facts import Anchor, Clock, Frame, Gap, How, Modes, PcrValues
from imafs.keeper.files import BadPlaceError, CutError, Files, failed
from imafs.keeper.index import CHUNK, Index, Measured, Row, Table, encoded_size, guessed, measured
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
#: Errors of a disk that does not give what it has: all others may be over in a moment.
_MEDIUM = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO)
_OTHERS = "the bytes are not those that were stored"


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
        #: Stored records that a start has found to be lost; where and why.
        self.damaged: list[str] = []
        #: Paths of segments of which no byte is to be believed, and why.
        self.lost: dict[str, str] = {}
        self._open: _Growing | None = None
        self._found: list[tuple[Seal, str]] = []
        self._told: set[tuple[int, int | None]] = set()  # gaps that are in the journal

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
        self._recover_open()
        self._told = {(gap.index, gap.missing) for gap in self.ledger.gaps}
        self.sealed = [self._sealed(seal) for seal in self.ledger.seals]
        # Anew, whatever it is: lines that were read may lie in memory alone, and of a file
        # whose sync has failed once no later sync tells that.
        self._book.rewrite(self.ledger)
        for seal, why in self._found:
            if not self._is_told(seal):
                self._book.tell(Gap(seal.first, why, missing=seal.count))
        self._remove_strangers()

    def _sealed(self, seal: Seal) -> Sealed:
        path = self._at(seal.segment)
        why = self._wrong(seal)
        table = self._table(seal, whole=why is None)
        if table is None:
            why = why or _OTHERS
            table = guessed(seal.count, seal.size)[0]
        if why is not None:
            # Of a part of it nobody can say that it is what was stored.
            self.lost[path] = f"{path}: {why}"
            self._found.append((seal, f"{seal.segment}: {why}"))
            self.damaged.append(f"{path}: {why}")
        return Sealed(path, seal.first, seal.size, table)

    def _is_told(self, seal: Seal) -> bool:
        """Whether an earlier start has written down that all records of a segment are lost."""
        return (seal.first, seal.count) in self._told

    def _wrong(self, seal: Seal) -> str | None:
        """Why not all records of a segment are there. Their bytes are read only where some were
        lost before: somebody may have put them back."""
        path = self._at(seal.segment)
        try:
            size = self._files.size(path)
        except FileNotFoundError:
            return "is not there"
        if size < seal.size:
            return f"somebody cut it: {seal.size} bytes were there"
        if not self._is_told(seal) or self._has(path, 0, seal.size, seal.sha256):
            return None
        return _OTHERS

    def _has(self, path: str, at: int, size: int, sha256: bytes) -> bool:
        """Whether so many bytes of a file are those that were stored. Raises OSError."""
        data = self._there(path, at, size)
        return data is not None and hashlib.sha256(data).digest() == sha256

    def _there(self, path: str, at: int, size: int) -> bytes | None:
        """So many bytes of a file; None where they are not there, or the disk does not give them.

        What may be over in a moment is no loss: it is asked again, or raised (OSError).
        """
        for last in (False, True):
            try:
                return self._files.read_at(path, at, size)
            except (CutError, FileNotFoundError):
                return None
            except BadPlaceError as error:
                if error.errno not in _MEDIUM:
                    raise
                if last:
                    return None
        raise AssertionError

    def _table(self, seal: Seal, *, whole: bool) -> Table | None:
        """None: neither its file nor the segment tells, which is not ``whole`` or is another."""
        path = self._at(index_name(seal.segment))
        try:
            return self._read_table(path, seal)
        except FileNotFoundError:
            why = "is not there"
        except OSError as error:
            why = error.strerror or "cannot be read"
        except FormatError as error:
            why = str(error)
        if not whole or not self._has(self._at(seal.segment), 0, seal.size, seal.sha256):
            return None
        log.warning("%s: %s: made anew", path, why)
        return self._made_table(seal)

    def _read_table(self, path: str, seal: Seal) -> Table:
        size = self._files.size(path)
        data = self._files.read_at(path, 0, size) if size == encoded_size(seal.count) else b""
        if hashlib.sha256(data).digest() != seal.index_sha256:
            raise FormatError("is not the index that its segment had")
        return Table.decode(data, seal.count, seal.size)

    def _made_table(self, seal: Seal) -> Table:
        data = self._files.read_at(self._at(seal.segment), 0, seal.size)
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
        self._check_open()
        name = self.ledger.segment
        if name is None:
            return
        path = self._at(name)
        growing = self._grown(path, [frame for frame in self.ledger.frames if frame.len])
        growing.descriptor = self._files.open(path)
        self._open = growing
        if growing.size < self._files.size(path):
            self._files.truncate(growing.descriptor, growing.size)
            self._files.sync(growing.descriptor)

    def _check_open(self) -> None:
        """Its frames whose bytes are not those that were stored count no more, or are segments of
        their own."""
        name = self.ledger.segment
        if name is None:
            return
        path = self._at(name)
        frames = [frame for frame in self.ledger.frames if frame.len]
        hurt = [f for f in frames if not self._has(path, f.off, f.len, f.sha256)]
        # A frame of the last batch may be followed by others of it: the kernel has them all.
        again = next((frame for frame in hurt if frame.first >= self.ledger.deleted), None)
        if again is not None:
            self._drop_lost(again)
            hurt = hurt[: hurt.index(again)]
        if hurt:
            self._set_apart(path, {frame.n for frame in hurt})

    def _grown(self, path: str, frames: Sequence[Frame]) -> _Growing:
        """A segment of frames whose bytes are right, as they stand in a file; without a descriptor.
        Raises OSError."""
        name = f"{frames[0].first:012d}.bin"
        growing = _Growing(self._at(name), name, frames[0].first, -1)
        for frame in frames:
            data = self._files.read_at(path, frame.off, frame.len)
            growing.grow(data, _measured(name, data))
        return growing

    def _set_apart(self, path: str, hurt: set[int]) -> None:
        """The bytes of the ``hurt`` frames are not those that were stored, and the kernel has the
        records no more.

        Each run of them becomes a segment of its own, which has a gap; so does each run of others.
        All of that is in one new journal, and every byte is copied once. Raises OSError.
        """
        frames = [frame for frame in self.ledger.frames if frame.len]
        runs = [list(run) for _, run in groupby(frames, key=lambda frame: frame.n in hurt)]
        copied = [self._copy(path, run) for run in runs[1:]]
        ledger = Ledger()
        for seal in self.ledger.seals:
            ledger.add(seal)
        begins = {behind[0].n: run for run, behind in pairwise(runs)}
        for item in self.ledger.open:
            if not isinstance(item, Frame):
                ledger.add(item)
                continue
            if (run := begins.get(item.n)) is not None:
                self._seal_run(ledger, path, run, lost=run[0].n in hurt)
            segment = ledger.segment or f"{ledger.end:012d}.bin"
            ledger.add(replace(item, seg=segment, off=ledger.offset))
        if runs[-1][0].n in hurt:
            self._seal_run(ledger, path, runs[-1], lost=True)
        self._files.sync_directory(self.directory)
        self._book.rewrite(ledger)
        if all(copied):  # what is not may come back: it stays where it was
            self._cut(path, sum(frame.len for frame in runs[0]))

    def _seal_run(self, ledger: Ledger, path: str, run: Sequence[Frame], *, lost: bool) -> None:
        """The frames that were added last are a segment; with a gap where they are ``lost``."""
        if not lost:
            grown = self._grown(path, run)
            ledger.add(
                ledger.sealing(grown.digest.digest(), self._write_index(grown.name, grown.index)[1])
            )
            return
        first, count = run[0].first, sum(frame.count for frame in run)
        numbers = f"frame {run[0].n}" if len(run) == 1 else f"frames {run[0].n} to {run[-1].n}"
        log.error("%s: %s: %s", path, numbers, _OTHERS)
        ledger.add(Gap(first, f"{first:012d}.bin ({numbers}): {_OTHERS}", missing=count))
        # Of more than one frame nobody knows what all the bytes were; of one they may come back.
        sha256 = run[0].sha256 if len(run) == 1 else _joined(run)
        index = guessed(count, sum(frame.len for frame in run))[1]
        ledger.add(ledger.sealing(sha256, hashlib.sha256(index).digest()))

    def _cut(self, path: str, size: int) -> None:
        """What is behind so many bytes of a file is in another one."""
        with suppress(FileNotFoundError):
            if self._files.size(path) > size:
                descriptor = self._files.open(path)
                try:
                    self._files.truncate(descriptor, size)
                    self._files.sync(descriptor)
                finally:
                    self._files.close(descriptor)

    def _copy(self, path: str, run: Sequence[Frame]) -> bool:
        """The bytes of some frames in a file of their own, durably but for its name. False: not
        all that may be there were to be had."""
        place = self._at(f"{run[0].first:012d}.bin")
        try:
            descriptor = self._files.create(place)
        except FileExistsError:  # of a crash: nothing counts it
            self._files.remove(place)
            descriptor = self._files.create(place)
        whole = True
        try:
            for frame in run:
                data = self._there(path, frame.off, frame.len)
                if data is None:
                    whole = False
                else:
                    self._files.write(descriptor, frame.off - run[0].off, data)
            self._files.sync(descriptor)
        finally:
            self._files.close(descriptor)
        return whole

    def _drop_lost(self, frame: Frame) -> None:
        """The bytes of the last frame are not those that were stored, and nothing says that the
        kernel was told to delete its records: it has them still, or the PCRs tell."""
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


def _joined(frames: Sequence[Frame]) -> bytes:
    """A hash that no bytes of so many frames have."""
    return hashlib.sha256(b"".join(frame.sha256 for frame in frames)).digest()


def _measured(name: str, data: bytes) -> Measured:
    try:
        return measured(data)
    except FormatError as error:
        raise StoreBrokenError(f"{name}: {error}") from None
