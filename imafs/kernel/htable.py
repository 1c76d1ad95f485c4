# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The hash table of digests already seen (``ima_htable``, Linux 7.3 ima_queue.c).

The kernel keeps every digest for ever, deleted records included, so that no record
is measured twice. A set of a million digests would take 114 MB and stall 36 ms in one
resize (measured); this table is open addressing over packed entries: 4 bytes per
slot beside the digest itself, growing a few slots per insertion.

An entry is the whole digest and the PCR: a truncated digest would one day drop a
record. Slots hold entry number + 1; 0 is free. A removed entry keeps its slot and place,
so that the entries probed behind it are found, and equals nothing any more.
"""

from __future__ import annotations

from array import array

_CHUNK = 4096
#: Slots moved per insertion while growing: the new table is full long after the move ends.
_MOVE = 16
_SMALLEST = 1024
#: In the place of a removed entry's PCR: PCRs are below 24.
_GONE = b"\xff"


def _slots(number: int) -> array[int]:
    return array("I", bytes(4 * number))


class HashTable:
    """Set of (digest, PCR); ``width`` is the digest's size in bytes."""

    def __init__(self, width: int) -> None:
        self._entry = width + 1
        self._chunks: list[bytes | bytearray] = []
        self._tail = bytearray()
        self._count = 0
        self._removed = 0
        self._table = _slots(_SMALLEST)
        self._old: array[int] | None = None
        self._moved = 0

    def __len__(self) -> int:
        return self._count - self._removed

    def __contains__(self, key: tuple[bytes, int]) -> bool:
        digest, pcr = key
        return self._find(digest + bytes((pcr,))) > 0

    def add(self, digest: bytes, pcr: int) -> bool:
        """Inserts; False where the digest was there for this PCR."""
        entry = digest + bytes((pcr,))
        if self._find(entry):
            return False
        self._tail += entry
        if len(self._tail) == _CHUNK * self._entry:
            self._chunks.append(bytes(self._tail))
            self._tail = bytearray()
        self._count += 1
        self._place(self._table, hash(entry), self._count)
        self._grow()
        return True

    def discard(self, digest: bytes, pcr: int) -> None:
        """Removes an entry (``hlist_del_rcu``) if it is there."""
        number = self._find(digest + bytes((pcr,)))
        if number:
            self._put(number - 1, digest + _GONE)
            self._removed += 1

    def _find(self, entry: bytes) -> int:
        """The number of an entry, from 1; 0 where it is not there."""
        key = hash(entry)
        number = self._probe(self._table, key, entry)
        if not number and self._old is not None:
            number = self._probe(self._old, key, entry)
        return number

    def _probe(self, table: array[int], key: int, entry: bytes) -> int:
        mask = len(table) - 1
        at = key & mask
        while True:
            number = table[at]
            if not number or self._get(number - 1) == entry:
                return number
            at = (at + 1) & mask

    def _put(self, number: int, entry: bytes) -> None:
        chunk, at = divmod(number, _CHUNK)
        at *= self._entry
        if chunk == len(self._chunks):
            self._tail[at : at + self._entry] = entry
            return
        held = self._chunks[chunk]
        whole = held if isinstance(held, bytearray) else bytearray(held)
        whole[at : at + self._entry] = entry
        self._chunks[chunk] = whole

    def _get(self, number: int) -> bytes:
        chunk, at = divmod(number, _CHUNK)
        at *= self._entry
        if chunk < len(self._chunks):
            return bytes(self._chunks[chunk][at : at + self._entry])
        return bytes(self._tail[at : at + self._entry])

    @staticmethod
    def _place(table: array[int], key: int, number: int) -> None:
        mask = len(table) - 1
        at = key & mask
        while table[at]:
            at = (at + 1) & mask
        table[at] = number

    def _grow(self) -> None:
        if self._old is None:
            if 3 * self._count < 2 * len(self._table):
                return
            self._old = self._table
            self._moved = 0
            self._table = _slots(2 * len(self._table))
        old, table = self._old, self._table
        end = min(self._moved + _MOVE, len(old))
        for at in range(self._moved, end):
            number = old[at]
            if number:
                self._place(table, hash(self._get(number - 1)), number)
        self._moved = end
        if end == len(old):
            self._old = None
