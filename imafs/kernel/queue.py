# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The measurement queue: current list, staged list, hash table, extend queue.

Mirrors Linux 7.2/7.3 ima_queue.c. Every method is one critical section, like a
section under ``ima_extend_list_mutex``. A record enters the list and the extend
queue in one step, so the order of extends is the order of the list; who talks to a
TPM takes entries from the extend queue and confirms them.

Differs from the kernel, which holds its mutex over the extend: here records may be
in the list before they are in the PCR (``pending``).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from imafs.errors import Refused
from imafs.formats.binary import Record
from imafs.kernel.htable import HashTable
from imafs.kernel.layout import Hasher, Layout, View
from imafs.kernel.packed import PackedList, Segment, ViewCache

#: Default bound of the cache of rendered views, bytes.
CACHE = 64 << 20
#: Default bound of the extend queue, records: some 10 s of a software TPM.
PENDING = 1 << 18


@dataclass(slots=True)
class Totals:
    """Counts since the emulated boot, in records."""

    added: int = 0
    deleted: int = 0
    duplicates: int = 0
    extended: int = 0


class Queue:
    """See the module. ``flush_htable`` and ``disable_htable`` are the kernel's
    ``ima_flush_htable`` and ``CONFIG_IMA_DISABLE_HTABLE``."""

    def __init__(
        self,
        layout: Layout,
        *,
        flush_htable: bool = False,
        disable_htable: bool = False,
        cache: int = CACHE,
        pending_limit: int = PENDING,
    ) -> None:
        self.layout = layout
        self._pending_limit = pending_limit
        # Without a table there is nothing to flush (ima_queue.c:27-37).
        self.flush_htable = flush_htable and not disable_htable
        self._hasher = Hasher(layout)
        self._cache = ViewCache(layout, cache)
        self.current = PackedList(layout, self._cache)
        self.staged = PackedList(layout, self._cache)
        self._seen = None if disable_htable else HashTable(layout.default.digest_size)
        self.suspended = False
        self.violations = 0
        self.totals = Totals()
        self._extends = bytearray()
        self._garbage: list[PackedList | Segment | HashTable] = []
        self.generation = 0

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
        if not loaded and self.pending >= self._pending_limit:
            raise Refused(
                errno.ENOBUFS,
                f"{self.pending} records wait for the TPM and the extend queue is full: "
                "see imafs ctl status",
            )
        digests = self._hasher.digests(record)
        if (
            not record.violation
            and self._seen is not None
            and not self._seen.add(digests.default, record.pcr)
            and not loaded
        ):
            self.totals.duplicates += 1
            raise Refused(errno.EEXIST, "the record is in the hash table (a duplicate)")
        self.current.append(record, digests)
        if self.layout.banks:
            self._extends += self._hasher.extend_entry(record, digests)
        else:
            self.totals.extended += 1
        self.totals.added += 1
        self.generation += 1
        return self.totals.added

    # Requests of user space, checks in the kernel's order (ima_queue.c:311-468)

    def stage(self) -> None:
        """``A``. Raises :class:`Refused`: EEXIST, ENOENT, EACCES."""
        if len(self.staged):
            raise Refused(errno.EEXIST, "a list is staged already")
        if not len(self.current):
            raise Refused(errno.ENOENT, "the current list is empty")
        if self.suspended:
            raise Refused(errno.EACCES, "measurements are suspended")
        self.current.seal()
        self.staged = self.current
        self.current = PackedList(self.layout, self._cache)
        self.generation += 1

    def delete_staged(self) -> int:
        """``D``: the number of records deleted. Raises :class:`Refused`: ENOENT, ESTALE.

        With ``ima_flush_htable`` the whole table is forgotten, records that are
        still in the current list included (observed on 7.3.4; the document says not).
        """
        number = len(self.staged)
        if not number:
            raise Refused(errno.ENOENT, "nothing is staged")
        if self.suspended:
            raise Refused(errno.ESTALE, "measurements are suspended")
        # The list as it is: even its index of segments takes time to free.
        self._garbage.append(self.staged)
        self.staged = PackedList(self.layout, self._cache)
        self._deleted(number)
        if self.flush_htable and self._seen is not None:
            self._garbage.append(self._seen)
            self._seen = HashTable(self.layout.default.digest_size)
        return number

    def delete_first(self, number: int) -> None:
        """``N`` on the current list, all or nothing. Raises :class:`Refused`: ENOENT, ESTALE."""
        if number > len(self.current) or not len(self.current):
            raise Refused(errno.ENOENT, f"the current list has {len(self.current)} records")
        if self.suspended:
            raise Refused(errno.ESTALE, "measurements are suspended")
        self._garbage.extend(self.current.drop(number))
        self._deleted(number)

    def _deleted(self, number: int) -> None:
        self.totals.deleted += number
        self.generation += 1

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
        return bool(self._garbage)

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

    def list(self, staged: bool) -> PackedList:
        """The staged or the current list."""
        return self.staged if staged else self.current

    def newest(self) -> bytes | None:
        """The newest record in SHA-1 binary form, from either list."""
        view = View(False, next(i for i, b in enumerate(self.layout.lists) if b.name == "sha1"))
        return self.current.newest(view) or self.staged.newest(view)
