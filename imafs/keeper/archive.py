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

from imafs.errors import FormatError, StoreBrokenError
from imafs.keeper import files as files_
from imafs.keeper.book import JOURNAL, Book, told
from imafs.keeper.facts import Anchor, Clock, Frame, Gap, How, Modes, PcrValues
from imafs.keeper.files import BadPlaceError, CutError, Files, failed
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
#: Bytes of the ASCII line of a record that is lost.
_LINE = 100
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
        while self._recover_open():
            pass
        self.sealed = [self._sealed(seal) for seal in self.ledger.seals]
        # Anew, whatever it is: lines that were read may lie in memory alone, and of a file
        # whose sync has failed once no later sync tells that.
        self._book.rewrite(self.ledger)
        for seal, why in self._found:
            if self._gap_of(seal) is None:
                self._book.tell(Gap(seal.first, why, missing=seal.count))
        self._remove_strangers()

    def _sealed(self, seal: Seal) -> Sealed:
        path = self._at(seal.segment)
        why = self._wrong(seal)
        table = None if why == _OTHERS else self._table(seal, whole=why is None)
        if table is None:
            why = why or _OTHERS
            self.lost[path] = f"{path}: {why}"
            table = _guessed(seal.count, seal.size)[0]
        if why is not None:
            self._found.append((seal, f"{seal.segment}: {why}"))
            self.damaged.append(f"{path}: {why}")
        return Sealed(path, seal.first, seal.size, table)

    def _gap_of(self, seal: Seal) -> Gap | None:
        """That all records of a segment are lost, as an earlier start has written it down."""
        mine = (seal.first, seal.count)
        return next((gap for gap in self.ledger.gaps if (gap.index, gap.missing) == mine), None)

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
        if self._gap_of(seal) is None or self._has(path, 0, seal.size, seal.sha256):
            return None
        return _OTHERS

    def _has(self, path: str, at: int, size: int, sha256: bytes) -> bool:
        """Whether so many bytes of a file are those that were stored. Raises OSError."""
        try:
            data = self._files.read_at(path, at, size)
        except (CutError, BadPlaceError, FileNotFoundError):
            return False
        return hashlib.sha256(data).digest() == sha256

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

    def _recover_open(self) -> bool:
        """The open segment, as far as its frames count. True where bytes of it were lost, and are a
        segment by themselves now: what is behind them is to be looked at."""
        name = self.ledger.segment
        if name is None:
            return False
        path = self._at(name)
        try:
            size = self._files.size(path)
        except FileNotFoundError:
            size = 0
        growing = _Growing(path, name, self.ledger.sealed, -1)
        for frame in [frame for frame in self.ledger.frames if frame.len]:
            if not self._has(path, frame.off, frame.len, frame.sha256):
                if frame is not self.ledger.last or self.ledger.confirmed:
                    self._set_apart(path, growing, frame)
                    return True
                self._drop_lost(frame)
                break
            part = self._files.read_at(path, frame.off, frame.len)
            growing.grow(part, _measured(name, part))
        if growing.size:
            growing.descriptor = self._files.open(path)
            self._open = growing
            if growing.size < size:
                self._files.truncate(growing.descriptor, growing.size)
                self._files.sync(growing.descriptor)
        return False

    def _set_apart(self, path: str, good: _Growing, hurt: Frame) -> None:
        """The bytes of ``hurt``, and maybe of frames behind it, are not those that were stored, and
        the kernel has the records no more.

        They become a segment of their own, which has a gap; so do the records before and behind
        them, which go on to be checked. All of that is in one new journal. Raises OSError.
        """
        frames = [frame for frame in self.ledger.frames if frame.len]
        at = frames.index(hurt)
        run = [hurt]
        for frame in frames[at + 1 :]:
            if self._has(path, frame.off, frame.len, frame.sha256):
                break
            run.append(frame)
        rest = frames[at + len(run) :]
        count, size = sum(frame.count for frame in run), sum(frame.len for frame in run)
        # Of more than one frame nobody knows what all the bytes were; of one they may come back.
        sha256 = hurt.sha256 if len(run) == 1 else _joined(run)
        numbers = f"frame {hurt.n}" if len(run) == 1 else f"frames {hurt.n} to {run[-1].n}"
        log.error("%s: %s: %s", path, numbers, _OTHERS)
        index_sha256 = hashlib.sha256(_guessed(count, size)[1]).digest()
        gap = Gap(hurt.first, f"{hurt.first:012d}.bin ({numbers}): {_OTHERS}", missing=count)
        ledger = Ledger()
        for seal in self.ledger.seals:
            ledger.add(seal)
        for item in [*self.ledger.open, None]:
            if item is hurt and good.size:
                own = self._write_index(good.name, good.index)[1]
                ledger.add(ledger.sealing(good.digest.digest(), own))
            if item is (rest[0] if rest else None):
                ledger.add(gap)
                ledger.add(ledger.sealing(sha256, index_sha256))
            if isinstance(item, Frame):
                segment = ledger.segment or f"{ledger.end:012d}.bin"
                ledger.add(replace(item, seg=segment, off=ledger.offset))
            elif item is not None:
                ledger.add(item)
        if good.size:
            self._copy(path, f"{hurt.first:012d}.bin", run)
        self._copy(path, f"{hurt.first + count:012d}.bin", rest)
        self._files.sync_directory(self.directory)
        self._book.rewrite(ledger)
        self._cut(path, good.size or size)

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

    def _copy(self, path: str, name: str, frames: Sequence[Frame]) -> None:
        """What there is of the bytes of some frames, in a new file, durably but for its name."""
        if not frames:
            return
        place = self._at(name)
        try:
            descriptor = self._files.create(place)
        except FileExistsError:  # of a crash: nothing counts it
            self._files.remove(place)
            descriptor = self._files.create(place)
        try:
            for frame in frames:
                with suppress(CutError, BadPlaceError, FileNotFoundError):
                    data = self._files.read_at(path, frame.off, frame.len)
                    self._files.write(descriptor, frame.off - frames[0].off, data)
            self._files.sync(descriptor)
        finally:
            self._files.close(descriptor)

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


def _guessed(count: int, size: int) -> tuple[Table, bytes]:
    """An index of records of which nobody knows where they were, and its file."""
    ends = array("Q", [size * (at + 1) // count for at in range(count)])
    index = Index()
    index.take(Measured(ends, array("Q", [_LINE]) * count, bytes(count)))
    data = index.encode()
    return Table.decode(data, count, size), data


def _measured(name: str, data: bytes) -> Measured:
    try:
        return measured(data)
    except FormatError as error:
        raise StoreBrokenError(f"{name}: {error}") from None
