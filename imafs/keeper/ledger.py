# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the lines of a journal add up to, and whether each of them may follow. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from imafs.errors import StoreBrokenError
from imafs.keeper.facts import (
    BEGAN_ANEW,
    BEHIND_A_GAP,
    CONFIRMED,
    Anchor,
    Frame,
    Gap,
    PcrValues,
)
from imafs.keeper.journal import GENESIS, Body, Era, Item, Seal, body_of, hashed, item_of, line

#: Bytes of a batch at most: a staged list and the one behind it, both as long as the keeper reads.
#: What a frame stands for is read whole, and a segment takes no more once it is full.
BATCH_MAX = 1 << 29


class Ledger:
    """What a journal's lines add up to. What a seal stands for is folded into it."""

    def __init__(self) -> None:
        self.seals: list[Seal] = []
        self.anchors: list[Anchor] = []
        self.gaps: list[Gap] = []
        self.eras: list[Era] = []
        #: Of the open segment, which no seal stands for.
        self.frames: list[Frame] = []
        #: The last frame that has a batch: not one that only tells of another kernel.
        self.last: Frame | None = None
        #: Number of the last frame whose batch is deleted; -1: none.
        self.done = -1
        #: Number of the last frame; -1: there is none.
        self.number = -1
        self.end = 0
        self.pcrs: PcrValues = {}
        #: The open segment; None where the next record begins a new one.
        self.segment: str | None = None
        #: Bytes of the open segment that count; anchors and gaps since the last seal.
        self.offset = self.marks = 0
        self._open: list[Frame | Anchor | Gap | int] = []  # since the last seal, in order

    @property
    def open(self) -> Sequence[Frame | Anchor | Gap | int]:
        """The lines that no seal stands for, in order."""
        return self._open

    @property
    def confirmed(self) -> bool:
        """Whether the kernel is known to have deleted what the last frame holds."""
        return self.last is None or self.done >= self.last.n

    @property
    def deleted(self) -> int:
        """Records of the life that the kernel is known to have no more: those up to the last batch,
        and of that where it is confirmed."""
        last = self.last
        return self.end if last is None or self.confirmed else last.first - last.skip

    @property
    def diverged(self) -> list[Anchor]:
        """Behind which records the PCRs are not what the list gives, though none is missing."""
        usual = (CONFIRMED, BEHIND_A_GAP, BEGAN_ANEW)
        return [anchor for anchor in self.anchors if anchor.why not in usual]

    @property
    def resets(self) -> list[Anchor]:
        """Behind which records the PCR began anew."""
        return [anchor for anchor in self.anchors if anchor.why == BEGAN_ANEW]

    @property
    def unconfirmed(self) -> int:
        """How many leading records no PCR confirms: those up to the last anchor behind a gap, a
        divergence or a reset."""
        places = [anchor.index for anchor in self.anchors if anchor.why != CONFIRMED]
        return max(places, default=0)

    @property
    def sealed(self) -> int:
        """Records in sealed segments."""
        return self.seals[-1].end if self.seals else 0

    def copy(self) -> Ledger:
        """Another one that goes on from here by itself."""
        twin = Ledger()
        twin.seals, twin.anchors, twin.gaps = self.seals[:], self.anchors[:], self.gaps[:]
        twin.eras, twin.frames, twin.last = self.eras[:], self.frames[:], self.last
        twin.done, twin.number = self.done, self.number
        twin.end, twin.pcrs = self.end, self.pcrs
        twin.segment, twin.offset, twin.marks = self.segment, self.offset, self.marks
        twin._open = self._open[:]
        return twin

    def without(self, frame: Frame) -> Ledger:
        """As it was before ``frame``, one of the open segment."""
        twin = Ledger()
        for item in (*self.seals, *self._open[: self._open.index(frame)]):
            twin.add(item)
        return twin

    def read(self, bodies: Iterable[Body]) -> None:
        """All lines of a journal. Raises :class:`StoreBrokenError`."""
        for body in bodies:
            self.add(item_of(body))

    def add(self, item: Item) -> None:
        """A line more. Raises :class:`StoreBrokenError` where it does not follow."""
        match item:
            case Frame():
                self._frame(item)
            case Anchor() | Gap():
                self._mark(item)
            case Seal():
                self._seal(item)
            case number:
                self._done(number)

    def _frame(self, frame: Frame) -> None:
        expected = self.segment or f"{self.end:012d}.bin"
        if (frame.n, frame.first, frame.seg, frame.off) != (
            *(self.number + 1, self.end, expected, self.offset),
        ):
            raise StoreBrokenError(f"journal: frame {frame.n} does not follow frame {self.number}")
        if (frame.count == 0) != (frame.len == 0) or not frame.count <= frame.len <= BATCH_MAX:
            raise StoreBrokenError(
                f"journal: frame {frame.n}: {frame.count} records in {frame.len} bytes"
            )
        self.frames.append(frame)
        self._open.append(frame)
        self.number = frame.n
        if frame.g_count or frame.count:
            self.last = frame
        if frame.count:
            self.segment = frame.seg
        self.offset += frame.len
        self.end += frame.count
        self.pcrs = frame.pcrs
        self._era(Era(frame.first, frame.boot, frame.modes))

    def _era(self, era: Era) -> None:
        before = self.eras[-1] if self.eras else None
        if before is None or (before.boot, before.modes) != (era.boot, era.modes):
            self.eras.append(era)

    def _done(self, number: int) -> None:
        if self.last is None or number != self.last.n:
            raise StoreBrokenError(f"journal: done {number} behind frame {self.number}")
        self.done = number
        self._open.append(number)

    def _mark(self, mark: Anchor | Gap) -> None:
        # An anchor may lie ahead: up to there the kernel has the records. A gap may lie before what
        # is stored: damaged records, or those of a list that was never shown to be whole.
        if isinstance(mark, Anchor) and mark.index < self.end:
            raise StoreBrokenError(f"journal: an anchor at {mark.index} behind record {self.end}")
        self._open.append(mark)
        self.marks += 1
        self._marked(mark)

    def _marked(self, mark: Anchor | Gap) -> None:
        match mark:
            case Anchor():
                self.anchors.append(mark)
                self.pcrs = mark.pcrs  # what follows goes on from these
            case Gap():
                self.gaps.append(mark)

    def sealing(self, sha256: bytes, index_sha256: bytes) -> Seal:
        """The seal of the open segment as it is."""
        first = self.sealed
        assert self.segment is not None
        return Seal(
            *(self.segment, first, self.end - first, self.offset, sha256, index_sha256),
            self.number + 1,
            tuple(era for era in self.eras if era.first >= first),
            tuple(item for item in self._open if isinstance(item, Anchor | Gap)),
            self.pcrs,
            self.last,
            self.confirmed,
        )

    def _seal(self, seal: Seal) -> None:
        if self._open:
            if seal != self.sealing(seal.sha256, seal.index_sha256):
                raise StoreBrokenError(f"journal: the seal of {seal.segment} is not of its frames")
        else:
            self._folded(seal)
        if self.seals:
            # The newest one alone needs the frame that a restart asks for.
            self.seals[-1] = replace(self.seals[-1], last=None)
        self.seals.append(seal)
        self.frames.clear()
        self._open.clear()
        self.segment, self.offset, self.marks = None, 0, 0

    def _folded(self, seal: Seal) -> None:
        if seal.first != self.end or seal.segment != f"{seal.first:012d}.bin" or not seal.count:
            raise StoreBrokenError(f"journal: {seal.segment} does not follow record {self.end}")
        if not seal.count <= seal.size <= 2 * BATCH_MAX:
            raise StoreBrokenError(
                f"journal: {seal.segment}: {seal.count} records in {seal.size} bytes"
            )
        last = seal.last
        if last is not None and not (last.n < seal.frames and last.first + last.count <= seal.end):
            raise StoreBrokenError(f"journal: the seal of {seal.segment} speaks of another frame")
        for era in seal.eras:
            self._era(era)
        for mark in seal.marks:
            self._marked(mark)
        self.end, self.pcrs, self.last = seal.end, seal.pcrs, last
        self.number = seal.frames - 1
        self.done = self.number if seal.done or last is None else last.n - 1

    def written(self) -> tuple[bytes, str]:
        """A journal of this ledger, whose earlier lines are folded into their seals.

        And the hash of its last line."""
        pieces, head = [], GENESIS
        for item in (*self.seals, *self._open):
            text = line(body_of(item), head)
            pieces.append(text)
            head = hashed(text)
        return b"".join(pieces), head
