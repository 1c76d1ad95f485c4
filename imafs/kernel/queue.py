# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The measurement queue: current list, staged list, hash table, extend queue.

Mirrors Linux 7.2/7.3 ima_queue.c, and the drafts by their :class:`imafs.interface.behaviour.Rules`.
Every method is one critical section, like a
section under ``ima_extend_list_mutex``. A record enters the list and the extend
queue in one step, so the order of extends is the order of the list; who talks to a
TPM takes entries from the extend queue and confirms them.

Differs from the kernel, which holds its mutex over the extend: here records may be
in the list before they are in the PCR (``pending``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imafs.errors import Refused
from imafs.formats.binary import Reader, Record
from imafs.interface.behaviour import MAINLINE, Condition, Counted, Forget, Rules
from imafs.interface.grammar import Operation, PcrValue
from imafs.kernel import kexec
from imafs.kernel.htable import HashTable
from imafs.kernel.pcr_trim import StartPoints
from imafs.lists.banks import Hasher, Layout, View
from imafs.lists.packed import PackedList
from imafs.lists.segments import Segment, ViewCache

#: Default bound of the cache of rendered views, bytes.
CACHE = 64 << 20
#: Default bound of the extend queue, records: some 10 s of a software TPM.
PENDING = 1 << 18


@dataclass(slots=True)
class Totals:
    """Counts since the emulated boot, in records; a kexec is no boot."""

    added: int = 0
    deleted: int = 0
    duplicates: int = 0
    extended: int = 0
    #: Of a tampered list that was loaded as it is: records whose template digest is wrong.
    unsound: int = 0


@dataclass(slots=True)
class Full:
    """BINARY_FULL: records and their bytes since this kernel's start, deleted ones too."""

    records: int = 0
    size: int = 0

    def add(self, record: Record) -> None:
        """One record more (``ima_update_binary_runtime_size``)."""
        self.records += 1
        self.size += kexec.runtime_size(record)


class Queue:
    """See the module. ``flush_htable`` and ``disable_htable`` are the kernel's
    ``ima_flush_htable`` and ``CONFIG_IMA_DISABLE_HTABLE``."""

    def __init__(
        self,
        layout: Layout,
        rules: Rules = MAINLINE,
        *,
        flush_htable: bool = False,
        disable_htable: bool = False,
        cache: int = CACHE,
        pending_limit: int = PENDING,
    ) -> None:
        self.layout = layout
        self.rules = rules
        self._pending_limit = pending_limit
        # Without a table there is nothing to flush (ima_queue.c:27-37).
        self.flush_htable = flush_htable and not disable_htable
        self._hasher = Hasher(layout)
        self._cache = ViewCache(layout, cache)
        self.current = PackedList(layout, self._cache)
        self.staged = PackedList(layout, self._cache)
        self._seen = None if disable_htable else HashTable(layout.default.digest_size)
        self._forget = rules.forget_flush if self.flush_htable else rules.forget
        self._suspended = False
        self._copied = (False, False)
        self._counted_twice = 0
        # Records at the head of the current list that are not in the table: restored ones.
        self._unhashed = 0
        self.violations = 0
        self.totals = Totals()
        # Deleted from the current list: since this kernel's start, and at once lately.
        self.trimmed = 0
        self.last_trim = 0
        self.full = Full()
        self._extends = bytearray()
        self._garbage: list[PackedList | Segment | HashTable] = []
        self.generation = 0
        self.start_points = StartPoints(layout)

    # Adding

    def append(self, record: Record, *, loaded: bool = False) -> int:
        """``ima_add_template_entry``: the record's number since boot (from 1).

        ``loaded`` records are taken even when they are duplicates or many: a recorded
        list is what a kernel had. Raises :class:`Refused`: ENODEV while suspended, EEXIST
        for a duplicate (never for a violation), ENOBUFS where the TPM is so far behind that
        the extend queue is full (a kernel would wait; its callers cannot be told).
        """
        if record.violation:
            # Counted before anything can fail (ima_api.c:149).
            self.violations += 1
        if self.suspended:
            raise Refused(errno.ENODEV, "measurements are suspended")
        digests = self._hasher.digests(record)
        seen, key = None if record.violation else self._seen, (digests.default, record.pcr)
        full = not loaded and self.pending >= self._pending_limit
        # A duplicate is one whether there is room for another record or not.
        if full and (seen is None or key not in seen):
            raise Refused(
                errno.ENOBUFS,
                f"{self.pending} records wait for the TPM and the extend queue is full: "
                "see imafs ctl status",
            )
        if seen is not None and not seen.add(*key) and not loaded:
            self.totals.duplicates += 1
            raise Refused(errno.EEXIST, "the record is in the hash table (a duplicate)")
        self.current.append(record, digests, kexec.surplus(record.template.label))
        self.full.add(record)
        if self.layout.banks:
            self._extends += self._hasher.extend_entry(record, digests)
        else:
            self.totals.extended += 1
        self.totals.added += 1
        self.totals.unsound += record.claimed is not None
        self.generation += 1
        return self.totals.added

    # Requests of user space (ima_queue.c:311-468)

    def stage(self, number: int | None = None) -> None:
        """``A``, or only the first ``number``. Raises :class:`Refused`: EEXIST, ENOENT, EACCES."""
        self._check(Operation.STAGE, number)
        number = len(self.current) if number is None else number
        self._unlink(number)
        if number < len(self.current):
            self.staged = self.current.split(number)
        else:
            self.current.seal()
            self.staged = self.current
            self.current = PackedList(self.layout, self._cache)
        self._counted_twice = 0
        self.generation += 1

    def delete_staged(self, number: int | None = None) -> int:
        """``D``: the number of records deleted. Raises :class:`Refused`: ENOENT, ESTALE.

        With a ``number`` the first ones only; the others go back to the head of the current
        list. With ``ima_flush_htable`` the whole table is forgotten, records that are
        still in the current list included (observed on 7.3.4; the document says not).
        """
        self._check(Operation.DELETE_STAGED, number)
        self._counted_twice += len(self.current) if self.rules.double_count else 0
        deleted = len(self.staged) if number is None else number
        if deleted == len(self.staged):
            # The list as it is: even its index of segments takes time to free.
            self._garbage.append(self.staged)
        else:
            self._garbage.extend(self.staged.drop(deleted))
            self.staged.join(self.current)
            self.current = self.staged
        self.staged = PackedList(self.layout, self._cache)
        self._deleted(deleted)
        if self._forget is Forget.TABLE:
            self._forget_all()
        return deleted

    def delete_first(self, number: int | None) -> int:
        """``N`` on the current list: the number deleted. Raises :class:`Refused`: ENOENT, ESTALE.

        All or nothing by the checks of every version but one (trim v1 trims what is there).
        """
        self._check(Operation.DELETE_FIRST, number)
        wanted = len(self.current) if number is None else number
        deleted = min(wanted + self.rules.off_by_one, len(self.current))
        self._unlink(deleted)
        if deleted:
            self._garbage.extend(self.current.drop(deleted))
        self._deleted(deleted)
        self.trimmed += deleted
        self.last_trim = deleted
        return deleted

    def delete_matching(self, wanted: Sequence[PcrValue], configured: Sequence[int]) -> int:
        """Deletes the shortest prefix that leads the PCRs to ``wanted``; the number deleted.

        None is no error. Raises :class:`Refused`: EINVAL, see :class:`StartPoints`.
        """
        number = self.start_points.prefix(self.current, wanted, configured)
        if number:
            self.start_points.advance(self.current, number)
            self.delete_first(number)
        return number

    def _check(self, operation: Operation, number: int | None) -> None:
        for condition, code in self.rules.checks.get(operation, ()):
            if self._holds(condition, number):
                raise Refused(code, condition.value)

    def _holds(self, condition: Condition, number: int | None) -> bool:
        match condition:
            case Condition.STAGED:
                return len(self.staged) > 0
            case Condition.NOTHING_STAGED:
                return not len(self.staged)
            case Condition.EMPTY:
                return not len(self.current)
            case Condition.TOO_MANY:
                return number is not None and number > len(self.current)
            case Condition.TOO_MANY_STAGED:
                return number is not None and number > len(self.staged)
            case Condition.NONE_ASKED:
                return number == 0
            case Condition.SUSPENDED:
                return self._suspended
            case Condition.CURRENT_COPIED:
                return self._copied[0]
            case Condition.STAGED_COPIED:
                return self._copied[1]

    @property
    def suspended(self) -> bool:
        """Between the reboot notifier and the next kernel: no records, requests by the rules."""
        return self._suspended

    @suspended.setter
    def suspended(self, value: bool) -> None:
        self._suspended = value
        if not value:
            self._copied = (False, False)

    def note_copy(self) -> None:
        """The lists were copied for the next kernel (``ima_dump_measurement_list``).

        Some drafts remember which were not empty then, and take no offence at the suspension.
        """
        self._copied = (len(self.current) > 0, len(self.staged) > 0)

    def _unlink(self, number: int) -> None:
        """Forgets the first ``number`` records of the current list, where the rules say so."""
        known = min(number, self._unhashed)
        self._unhashed -= known
        if self._forget is not Forget.REMOVED or self._seen is None:
            return
        if number >= len(self.current):
            # What left before was forgotten then: nothing else is in the table.
            self._forget_all()
            return
        for digest, pcr in self._keys(known, number):
            self._seen.discard(digest, pcr)

    def _keys(self, at: int, number: int) -> Iterator[tuple[bytes, int]]:
        """Digest and PCR in the hash table of the current list's records ``at`` to ``number``."""
        own = self._default_view
        view, width = own or (self.sha1_view, 20)
        while at < number:
            found = self.current.run(view, at)
            assert found is not None
            run, first = found
            last = min(len(run.offsets) - 1, first + number - at)
            data = bytes(run.data[run.offsets[first] : run.offsets[last]])
            at += last - first
            if own is None:
                for parsed in Reader(data, 20):
                    if not parsed.record.violation:
                        yield self._hasher.digests(parsed.record).default, parsed.record.pcr
                continue
            base = run.offsets[first]
            for start in run.offsets[first:last]:
                digest = data[start - base + 4 : start - base + 4 + width]
                if any(digest):
                    yield digest, int.from_bytes(data[start - base : start - base + 4], "little")

    @property
    def _default_view(self) -> tuple[View, int] | None:
        """The binary list that shows the table's digests, and their width, if there is one."""
        default = self.layout.default
        for number, bank in enumerate(self.layout.lists):
            if bank.algorithm is default and not bank.is_padded:
                return View(False, number), default.digest_size
        return None

    def _forget_all(self) -> None:
        if self._seen is not None:
            self._garbage.append(self._seen)
            self._seen = HashTable(self.layout.default.digest_size)

    def _deleted(self, number: int) -> None:
        self.totals.deleted += number
        self.generation += 1

    @property
    def has_garbage(self) -> bool:
        """Whether there is something to :meth:`collect`."""
        return bool(self._garbage)

    def collect(self, most: int = 4) -> bool:
        """Frees at most ``most`` deleted segments; True while more are left.

        Deleting is O(1) for readers and writers; freeing is done in slices between
        requests because it holds the interpreter (measured: 21 ms for 180 MB).
        """
        for _ in range(most):
            if not self._garbage:
                break
            gone = self._garbage.pop()
            if isinstance(gone, PackedList):
                segment = gone.shrink()
                if segment is None:
                    continue
                self._garbage.append(gone)
                self._cache.forget(segment)
            elif isinstance(gone, Segment):
                self._cache.forget(gone)
        return self.has_garbage

    # Kexec

    def take_over(self, old: Queue, lists: Sequence[PackedList], number: int) -> None:
        """Restores the first ``number`` records of ``lists``, which are ``old``'s; for a new queue.

        As ``ima_restore_measurement_list``: into the current list, without the hash table
        and without counting violations (Linux 7.3.4). The TPM was not reset, so what was to be
        extended still is, in order, and the totals since boot go on. ``old`` is at its end:
        its segments are used here, or freed from here in slices (:meth:`inherit`).
        """
        joined = PackedList.joined(self.layout, self._cache, lists, number)
        self.current = kexec.renamed(joined, self.sha1_view, self.layout, self._cache)
        self._unhashed = number
        self.full = Full(len(self.current), kexec.counted(self.current, self.sha1_view))
        self.totals = old.totals
        self._extends = old._extends
        old._extends = bytearray()
        self.inherit(old, lists)
        self.generation = old.generation + 1

    def inherit(self, old: Queue, lists: Sequence[PackedList] = ()) -> None:
        """Whatever ``old``, at its end, and ``lists`` of it held and is not in use here: it is
        freed from here, in slices. Nobody asks ``old`` any more."""
        used = {segment.serial for segment in self.current.segments}
        held = [s for one in (old.staged, old.current, *lists) for s in one.segments]
        self._garbage += {s.serial: s for s in held if s.serial not in used}.values()
        self._garbage += [*old._garbage, *([old._seen] if old._seen is not None else [])]
        old._garbage, old._seen = [], None

    # The extend queue

    @property
    def pending(self) -> int:
        """Records that are in a list and not yet known to be in a PCR."""
        return len(self._extends) // self.layout.entry_size

    def pending_extends(self, most: int) -> bytes:
        """The oldest packed extend entries, at most ``most`` of them."""
        return bytes(self._extends[: most * self.layout.entry_size])

    def confirm_extends(self, number: int) -> None:
        """The oldest ``number`` entries are in the PCRs."""
        del self._extends[: number * self.layout.entry_size]
        self.totals.extended += number

    # Looking

    @property
    def count(self) -> int:
        """``runtime_measurements_count``."""
        if self.rules.counted is Counted.SINCE_BOOT:
            return self.full.records
        return len(self.current) + self._counted_twice

    def ascii_list(self) -> Iterator[bytes]:
        """The current list as its SHA-1 ASCII file shows it, in pieces."""
        return self.current.pieces(self.sha1_view._replace(ascii=True))

    @property
    def sha1_view(self) -> View:
        """The SHA-1 binary form."""
        return View(False, next(i for i, b in enumerate(self.layout.lists) if b.name == "sha1"))

    def list(self, staged: bool) -> PackedList:
        """The staged or the current list."""
        return self.staged if staged else self.current

    def newest(self) -> bytes | None:
        """The newest record in SHA-1 binary form, from either list."""
        view = self.sha1_view
        return self.current.newest(view) or self.staged.newest(view)
