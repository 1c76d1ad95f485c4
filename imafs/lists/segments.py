# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The segments that packed lists are made of, and their rendered views.

A segment holds its SHA-1 binary form itself (the file that nearly every client reads is
a slice of it), the digests of the other banks back to back, and record offsets. The
other views are rendered per segment on demand into a bounded cache, which an open
tail only extends.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import count, pairwise
from typing import NamedTuple

from imafs.formats.algorithms import Bank
from imafs.formats.binary import Record, header
from imafs.formats.views import Buffer, padded_digests, record_text, render_ascii, render_binary
from imafs.lists.banks import Digests, Layout, View

_serials = count()


class Run(NamedTuple):
    """Rendered records of one segment: ``data[offsets[i]:offsets[i + 1]]`` is record i.

    ``sealed``: neither ever changes, so ``data`` can be sliced without a copy.
    """

    data: Buffer
    offsets: array[int]
    sealed: bool


class Segment:
    """Some thousand records at most; appended to while it is the tail of a list.

    ``sealed``: nothing is appended any more, and ``data`` and ``digests`` may be anything that
    is sliced as bytes are.
    """

    __slots__ = (
        "data", "digests", "longest", "longest_text", "odd", "offsets", "sealed", "serial",
        "surpluses", "text_size",
    )  # fmt: skip

    def __init__(self, layout: Layout) -> None:
        self.serial = next(_serials)
        self.sealed = False
        self.data: Buffer = bytearray()
        self.offsets = array("I", (0,))
        self.digests: list[Buffer] = [bytearray() for _ in layout.stored]
        self.text_size = 0
        self.longest = 0
        self.longest_text = 0
        # Records whose size a kernel counts otherwise than it is, and by how many bytes.
        self.odd = array("I")
        self.surpluses = array("i")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(
        cls,
        layout: Layout,
        data: Buffer,
        offsets: array[int],
        digests: Sequence[Buffer],
        texts: Sequence[int],
    ) -> Segment:
        """A sealed segment of records that are there already.

        ``texts`` are the end positions of its records as SHA-1 text, 0 in front.
        """
        segment = cls(layout)
        segment.sealed = True
        segment.data, segment.offsets, segment.digests = data, offsets, list(digests)
        segment.text_size = texts[-1] - texts[0]
        segment.longest = max((b - a for a, b in pairwise(offsets)), default=0)
        segment.longest_text = max((b - a for a, b in pairwise(texts)), default=0)
        return segment

    def append(self, record: Record, digests: Digests, surplus: int) -> None:
        """Adds one record (only while the segment is a list's tail)."""
        if surplus:
            self.odd.append(len(self))
            self.surpluses.append(surplus)
        data = self.data
        assert isinstance(data, bytearray)
        data += header(record.pcr, digests.sha1, record.template, record.data)
        data += record.data
        for kept, digest in zip(self.digests, digests.stored, strict=True):
            assert isinstance(kept, bytearray)
            kept += digest
        size = len(data) - self.offsets[-1]
        self.offsets.append(len(data))
        # "%2d " and 40 hex digits stand in front of what record_text gives.
        text = 43 + (record.pcr > 99) + len(record_text(record.template, record.data))
        self.text_size += text
        self.longest = max(self.longest, size)
        self.longest_text = max(self.longest_text, text)

    def seal(self) -> None:
        """Gives back what the growing buffers over-allocated; no append after it."""
        self.sealed = True
        self.data = bytes(self.data)
        self.digests = [bytes(kept) for kept in self.digests]
        self.offsets = array("I", self.offsets)


class ViewCache:
    """Rendered segments, least recently used first out, at most ``limit`` bytes."""

    def __init__(self, layout: Layout, limit: int) -> None:
        self._stored_at = {algorithm.name: at for at, algorithm in enumerate(layout.stored)}
        self._lists = layout.lists
        self._limit = limit
        self._runs: OrderedDict[tuple[int, View], Run] = OrderedDict()
        self.size = 0

    def run(self, segment: Segment, view: View) -> Run:
        """The records of ``segment`` in ``view``."""
        bank = self._lists[view.bank]
        if not view.ascii and bank.digest_size == 20:
            return Run(segment.data, segment.offsets, segment.sealed)
        key = (segment.serial, view)
        held = self._runs.get(key)
        if held is None:
            held = Run(bytearray(), array("I", (0,)), sealed=False)
            self._runs[key] = held
        else:
            self._runs.move_to_end(key)
        data, ends, _ = held
        done = len(ends) - 1
        if done < len(segment):
            before = _cost(held)
            assert isinstance(data, bytearray)
            self._render(segment, view, bank, done, data, ends)
            if segment.sealed:
                held = self._runs[key] = Run(bytes(data), ends, sealed=True)
            self.size += _cost(held) - (before if done else 0)
            self._shrink()
        return held

    def _render(
        self, segment: Segment, view: View, bank: Bank, done: int, data: bytearray, ends: array[int]
    ) -> None:
        width = bank.digest_size
        offsets = segment.offsets[done:]
        stored = self._stored_at.get(bank.name, -1) if not bank.is_padded else -1
        if stored >= 0:
            digests: Buffer = segment.digests[stored][done * width :]
        else:
            digests = padded_digests(segment.data, offsets, width)
        render = render_ascii if view.ascii else render_binary
        text, positions = render(segment.data, offsets, digests, width)
        base = len(data)
        data += text
        ends.extend([base + position for position in positions])

    def _shrink(self) -> None:
        # The newest entry stays, whatever its size: somebody is reading it.
        while self.size > self._limit and len(self._runs) > 1:
            _, held = self._runs.popitem(last=False)
            self.size -= _cost(held)

    def forget(self, segment: Segment) -> None:
        """Drops every view of a segment that is going away."""
        for ascii_ in (False, True):
            for bank in range(len(self._lists)):
                held = self._runs.pop((segment.serial, View(ascii_, bank)), None)
                if held is not None:
                    self.size -= _cost(held)


def _cost(held: Run) -> int:
    return len(held.data) + 4 * len(held.offsets)
