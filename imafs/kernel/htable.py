# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The hash table of digests already seen (``ima_htable``, Linux 7.3 ima_queue.c).

The kernel keeps every digest for ever, deleted records included, so that no record
is measured twice. A set of a million digests would take 114 MB and stall 36 ms in one
resize (measured); this table is open addressing over packed entries: 4 bytes per
slot beside the digest itself, moving to another table a few entries per insertion.

An entry is the whole digest and the PCR: a truncated digest would one day drop a
record. Slots hold entry number + 1; 0 is free. A removed entry keeps its slot and place,
so that the entries probed behind it are found, and equals nothing any more; a move leaves
it behind.
"""

from __future__ import annotations

from array import array

_CHUNK = 4096
#: Entries moved per insertion: the new table is full long after the move ends. Divides a chunk.
_MOVE = 16
_SMALLEST = 1024
#: In the place of a removed entry's PCR: PCRs are below 24.
_GONE = b"\xff"


def _slots(number: int) -> array[int]:
    return array("I", bytes(4 * number))


class _Table:
    """Packed entries of ``entry`` bytes, numbered from 1, and the slots that lead to them."""

    def __init__(self, entry: int, slots: int) -> None:
        self._entry = entry
        self._chunks: list[bytes | bytearray] = []
        self._tail = bytearray()
        self.slots = _slots(slots)
        self.count = 0

    def append(self, entry: bytes) -> int:
        """The number of a new entry, which has no slot yet."""
        self._tail += entry
        if len(self._tail) == _CHUNK * self._entry:
            self._chunks.append(bytes(self._tail))
            self._tail = bytearray()
        self.count += 1
        return self.count

    def get(self, number: int) -> bytes:
        """An entry; b"" where it was taken with its chunk."""
        chunk, at = divmod(number - 1, _CHUNK)
        at *= self._entry
        if chunk < len(self._chunks):
            return bytes(self._chunks[chunk][at : at + self._entry])
        return bytes(self._tail[at : at + self._entry])

    def put(self, number: int, entry: bytes) -> None:
        """Another one in its place."""
        chunk, at = divmod(number - 1, _CHUNK)
        at *= self._entry
        if chunk == len(self._chunks):
            self._tail[at : at + self._entry] = entry
            return
        held = self._chunks[chunk]
        whole = held if isinstance(held, bytearray) else bytearray(held)
        whole[at : at + self._entry] = entry
        self._chunks[chunk] = whole

    def take(self, first: int, last: int) -> list[bytes]:
        """The entries ``first`` + 1 to ``last`` of one chunk, which is freed with its last one."""
        chunk, at = divmod(first, _CHUNK)
        size = self._entry
        held = self._chunks[chunk] if chunk < len(self._chunks) else self._tail
        data = bytes(held[at * size : (at + last - first) * size])
        if not last % _CHUNK:
            self._chunks[chunk] = b""
        return [data[start : start + size] for start in range(0, len(data), size)]

    def find(self, key: int, entry: bytes) -> int:
        """The number of an entry, 0 where it is not there."""
        mask = len(self.slots) - 1
        at = key & mask
        while True:
            number = self.slots[at]
            if not number or self.get(number) == entry:
                return number
            at = (at + 1) & mask


class HashTable:
    """Set of (digest, PCR); ``width`` is the digest's size in bytes."""

    def __init__(self, width: int) -> None:
        self._entry = width + 1
        self._table = _Table(self._entry, _SMALLEST)
        # Of the entries in it; those that a move has to come to are not.
        self._removed = 0
        self._live = 0
        self._old: _Table | None = None
        self._moved = 0

    def __len__(self) -> int:
        return self._live

    @property
    def held(self) -> int:
        """Entries that take room: those that were removed as well, until a move."""
        left = 0 if self._old is None else self._old.count - self._moved
        return self._table.count + left

    def __contains__(self, key: tuple[bytes, int]) -> bool:
        digest, pcr = key
        return self._find(digest + bytes((pcr,))) is not None

    def add(self, digest: bytes, pcr: int) -> bool:
        """Inserts; False where the digest was there for this PCR."""
        entry = digest + bytes((pcr,))
        if self._find(entry) is not None:
            return False
        self._insert(entry)
        self._live += 1
        self._move()
        return True

    def discard(self, digest: bytes, pcr: int) -> None:
        """Removes an entry (``hlist_del_rcu``) if it is there."""
        found = self._find(digest + bytes((pcr,)))
        if found is not None:
            table, number = found
            table.put(number, digest + _GONE)
            self._live -= 1
            self._removed += table is self._table

    def _find(self, entry: bytes) -> tuple[_Table, int] | None:
        key = hash(entry)
        number = self._table.find(key, entry)
        if number:
            return self._table, number
        if self._old is not None:
            number = self._old.find(key, entry)
            # What has moved counts where it is now: there it may be removed.
            if number > self._moved:
                return self._old, number
        return None

    def _insert(self, entry: bytes) -> None:
        self._place(self._table.slots, hash(entry), self._table.append(entry))

    @staticmethod
    def _place(slots: array[int], key: int, number: int) -> None:
        mask = len(slots) - 1
        at = key & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = number

    def _move(self) -> None:
        """A step to another table where this one is too full, or mostly of removed entries."""
        if self._old is None:
            full = 3 * self._table.count >= 2 * len(self._table.slots)
            if not full and self._removed <= max(self._live, _SMALLEST):
                return
            self._old, self._moved = self._table, 0
            self._table, self._removed = _Table(self._entry, self._wanted()), 0
        old = self._old
        end = min(self._moved + _MOVE, old.count)
        for entry in old.take(self._moved, end):
            if entry[-1:] != _GONE:
                self._insert(entry)
        self._moved = end
        if end == old.count:
            self._old = None

    def _wanted(self) -> int:
        """Slots that are half full at most when the move that begins now has ended."""
        insertions = self._table.count // _MOVE + 1
        slots = _SMALLEST
        while slots < 2 * (self._live + insertions):
            slots *= 2
        return slots
