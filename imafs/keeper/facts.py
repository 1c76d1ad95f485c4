# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the keeper knows of its store, of the kernel and of the TPM, and what it may do.

Plain values without behaviour. The archive fills :class:`StoreFacts`, the collector
:class:`KernelFacts` and :class:`TpmFacts`; :func:`imafs.keeper.join.plan` answers with actions,
which the archive and the collector carry out in order.

Words: an *index* counts records of one life from 0. K is the kernel's list as it was read: the
staged records, then the current ones; a *place* counts records of K from 0.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

#: bank name -> PCR -> value
PcrValues = Mapping[str, Mapping[int, bytes]]


class Mode(enum.StrEnum):
    """What IMA extends a bank with (ima_crypto.c): a property of a kernel and its TPM."""

    #: The template data's digest in the bank's own hash.
    REAL = "real"
    #: The SHA-1 digest and zeros: the kernel has no such hash.
    PADDED = "padded"


Modes = Mapping[str, Mode]


class How(enum.StrEnum):
    """How the records of a frame were had."""

    #: Staged with A, deleted with D.
    STAGE = "A"
    #: Read from the current list, deleted with N.
    PARTIAL = "N"
    #: Found at a join: another staged them, or this keeper before it ended.
    JOIN = "join"


class Records(Protocol):
    """Records that stand somewhere in order: mapped segments, or bytes read from the kernel.

    Numbers are places in this sequence, from 0. Ranges are half open.
    """

    def __len__(self) -> int:
        """How many."""

    def record(self, at: int) -> bytes:
        """The bytes of one record in the kernel's SHA-1 binary form."""

    def sha256(self, first: int, last: int) -> bytes:
        """SHA-256 over the bytes of a range in that form."""

    def extends(self, bank: str, mode: Mode, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """(PCR, digest) of each record of a range, as IMA extends the bank with it.

        The digest of a violation is 0xff throughout, in every mode.
        """

    def is_boot_aggregate(self, at: int) -> bool:
        """Whether the record is the one that IMA makes at the start of each kernel."""


@dataclass(frozen=True, slots=True)
class Clock:
    """TPM2_ReadClock's answer. Counters name what happened; the PCR decides what did."""

    #: Milliseconds since the TPM was started.
    time: int
    #: Milliseconds that the TPM has run in its life; back after a power cut.
    clock: int
    #: TPM resets, and restarts (S3 and hibernation) since the last reset.
    reset: int
    restart: int
    #: Whether ``clock`` never went back.
    safe: bool = True


@dataclass(frozen=True, slots=True)
class Frame:
    """One committed batch: a line of the journal. Source of all fields: that line."""

    #: Number of the frame in its life, from 0, without holes.
    n: int
    #: Index of its first record, and how many; no record: it says that another kernel runs.
    first: int
    count: int
    #: File name of the segment, offset and length of the records in it, in bytes.
    seg: str
    off: int
    len: int
    #: SHA-256 of the records' bytes.
    sha256: bytes
    #: SHA-256 of the line before.
    prev: bytes
    #: boot_id of the kernel that had them.
    boot: str
    #: The whole batch that is deleted once this is durable (K[:g_count]): the staged list, or
    #: the N records; its SHA-256 in the kernel's SHA-1 binary form.
    g_count: int
    g_sha256: bytes
    #: Leading records of that batch that were stored before: count == g_count - skip.
    skip: int
    how: How
    #: None without a TPM, or where it did not answer.
    clock: Clock | None
    #: Replayed from the last anchor to the frame's end (not measured).
    pcrs: PcrValues
    #: Modes in which its records were extended: by the kernel ``boot``, or by one before a kexec.
    modes: Modes


#: Why an anchor is taken; of one behind a divergence: in what the PCRs differ.
CONFIRMED = "confirmed from zero"
BEHIND_A_GAP = "a gap"
BEGAN_ANEW = "the PCR began anew"


@dataclass(frozen=True, slots=True)
class Anchor:
    """PCRs that were measured behind a barrier: replays begin at the last one.

    ``index`` is a stored end: a join stores all of K before it takes one.
    """

    index: int
    pcrs: PcrValues
    #: Why replay could not go on from before.
    why: str
    #: None without a TPM's clock.
    clock: Clock | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Records may be missing behind ``index`` records of the life."""

    index: int
    why: str
    #: How many, where that is known.
    missing: int | None = None
    #: Up to which index PCRs confirmed the list, if ever, and when (seconds since 1970): a keeper
    #: that was started since does not know that.
    verified: int | None = None
    verified_at: float | None = None


@dataclass(frozen=True, slots=True)
class Seal:
    """A checkpoint: a line that closes a segment and folds its frames."""

    #: Index behind the segment's last record.
    index: int
    #: SHA-256 over the chain of frame lines, up to here.
    chain: bytes
    pcrs: PcrValues


@dataclass(frozen=True, slots=True)
class LifeFacts:
    """life.json: from one PCR reset to the next, kexecs included."""

    number: int
    #: boot_id of its first kernel.
    boot: str
    #: Banks that can be compared, and their modes under the first kernel.
    modes: Modes
    #: Of the list's numbers: ``little`` or ``big``.
    byteorder: str
    #: Of the TPM when the life was opened; None without one.
    clock: Clock | None
    #: Whether the list led from zero to the PCRs when the life was opened. False: not known then
    #: (a long first list is drained, the TPM was away); an anchor says when it is.
    whole: bool = True
    #: PCRs that decide: zero at the reset, and extended by IMA alone. By default boot_aggregate's.
    deciding: tuple[int, ...] = (10,)
    #: The life and the index from which it was forked.
    forked: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The newest life, recovered: what no frame counts is cut, and what is lost has its gap."""

    #: None: there is no life yet.
    life: LifeFacts | None = None
    #: Every record of the life, whatever confirms it.
    records: Records | None = None
    #: Frames behind the last seal, oldest first, and before them the last one that has a batch,
    #: if that was folded.
    frames: Sequence[Frame] = ()
    seals: Sequence[Seal] = ()
    anchors: Sequence[Anchor] = ()
    gaps: Sequence[Gap] = ()
    #: Number of the last frame whose batch is known to be deleted; -1: none.
    done: int = -1
    #: Whether some of the records are lost, and others stand in their place: bytes tell nothing.
    damaged: bool = False

    @property
    def begun(self) -> bool:
        """Whether the life was once shown to be whole from its reset on, or has an anchor."""
        return self.life is not None and (self.life.whole or bool(self.anchors))

    @property
    def end(self) -> int:
        """Index behind the last stored record."""
        return len(self.records) if self.records is not None else 0

    @property
    def last(self) -> Frame | None:
        """The last frame that has a batch: not one that only says that another kernel runs."""
        return next((frame for frame in reversed(self.frames) if frame.g_count), None)

    @property
    def boot(self) -> str | None:
        """boot_id of the last commit, else that of the life's first kernel."""
        if self.frames:
            return self.frames[-1].boot
        return self.life.boot if self.life is not None else None

    @property
    def pending(self) -> Frame | None:
        """The last frame, while it is not known that its batch was deleted."""
        frame = self.last
        return frame if frame is not None and frame.n > self.done else None


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """K and what was seen around reading it: from the IMA directory and /proc."""

    #: /proc/sys/kernel/random/boot_id, and the modes of the banks under this kernel.
    boot: str
    modes: Modes
    #: K: the first ``staged`` records are staged, the others current.
    records: Records
    #: None: this kernel has no ``_staged`` files; N is the way.
    staged: int | None = 0
    #: Whether the end of K is exact: A (or N) was answered after K was read and before the PCRs
    #: were, and the count was the same before and after.
    pinned: bool = True
    #: Where its end is not exact: so many records of K were extended for certain when the PCRs were
    #: read; those behind them came before or after that. None: not known.
    extended: int | None = None
    #: Whether K is the head of the list only: a long first list is drained by N. Never pinned.
    part: bool = False
    #: EACCES, ESTALE or ENODEV of an A, D or N under this boot_id: measuring has ended, a kexec
    #: or a halt follows.
    suspended: int | None = None
    #: Leading records of K that are stored, as this process knows without a break since it
    #: committed them (the one descriptor was open all the time); None: a start, an error.
    known: int | None = None
    #: ima_flush_htable: N is EINVAL, records may come twice. None: not known.
    flush: bool | None = None

    @property
    def current(self) -> int:
        """How many records of K are not staged."""
        return len(self.records) - (self.staged or 0)


@dataclass(frozen=True, slots=True)
class TpmFacts:
    """PCRs read behind the barrier, in every active bank: all that records use."""

    #: None: no TPM, or PCRs cannot be read.
    pcrs: PcrValues | None = None
    clock: Clock | None = None


# --- what may be done -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenLife:
    """Begin a new life: its directory and life.json are durable before anything follows."""

    boot: str
    clock: Clock | None
    whole: bool


@dataclass(frozen=True, slots=True)
class ForkLife:
    """Begin a new life with the first ``index`` records of this one and its first ``anchors``;
    keep this one too."""

    index: int
    boot: str
    clock: Clock | None
    anchors: int = 0

    def takes(self, mark: Anchor | Gap, store: StoreFacts) -> bool:
        """Whether a mark of this life is one of the new life as well. Of what comes behind the
        fork there is none: the PCRs lead on from there without it."""
        kept = store.anchors[: self.anchors]
        if isinstance(mark, Anchor):
            return mark in kept
        return mark.index < self.index or any(anchor.index >= mark.index for anchor in kept)


@dataclass(frozen=True, slots=True)
class RecordBoot:
    """Commit an empty frame: another kernel of the same life runs."""

    boot: str
    modes: Modes


@dataclass(frozen=True, slots=True)
class RecordGap:
    """Write down that continuity cannot be shown behind ``gap.index``."""

    gap: Gap


@dataclass(frozen=True, slots=True)
class TakeAnchor:
    """Write an anchor down, durable before the next D."""

    anchor: Anchor


@dataclass(frozen=True, slots=True)
class MarkDone:
    """The batch of frame ``n`` is deleted; None: that of the :class:`Store` before."""

    n: int | None


@dataclass(frozen=True, slots=True)
class Store:
    """Commit K[place : place + count] as one frame, whose batch is K[:batch].

    The ``place`` leading records were stored before: the frame's ``skip``. Where an anchor is
    to follow, the batch is all of K, and D deletes its staged part.
    """

    place: int
    count: int
    batch: int
    how: How
    #: Modes in which these records were extended, for the frame and its PCRs.
    modes: Modes


@dataclass(frozen=True, slots=True)
class DeleteStaged:
    """Write D. All that is staged is committed."""

    count: int


@dataclass(frozen=True, slots=True)
class DeleteFirst:
    """Write N: the first ``count`` current records. All of them are committed."""

    count: int


@dataclass(frozen=True, slots=True)
class WaitForKernel:
    """No A, no D, no N: look again when boot_id, the count or the staged list has changed."""

    why: str


class Kind(enum.StrEnum):
    """Kinds of alarms; the words stand in the status and in the journal of the system."""

    GAP = "gap"
    #: The PCR is not what the list gives, though no record is missing.
    PCR_DIVERGED = "pcr_diverged"
    #: The PCR began anew inside the life: hibernation.
    PCR_RESET = "pcr_reset"
    ROLLED_BACK = "rolled_back"
    #: Records of the kernel's own list were lost at a kexec; all of them are stored.
    HEALED = "healed"
    SUSPENDED = "suspended"
    UNDECIDED = "undecided"
    #: Nothing but the store's own word says that the list is whole.
    UNVERIFIED = "unverified"
    DAMAGED = "damaged"
    #: A PCR that does not decide is not what the list gives.
    OTHER_PCR = "other_pcr"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Tell an administrator, once."""

    kind: Kind
    text: str


def gap_alarm(index: int, why: str) -> Alarm:
    """Records may be missing behind so many."""
    return Alarm(Kind.GAP, f"records may be missing behind record {index}: {why}")


def diverged_alarm(why: str) -> Alarm:
    """``why``: in what the PCRs differ."""
    text = f"the PCRs are not what the list gives, but no record is missing: {why}"
    return Alarm(Kind.PCR_DIVERGED, text)


def reset_alarm() -> Alarm:
    """Hibernation."""
    text = "the PCRs began anew inside the list: no quote covers all of it until a reboot"
    return Alarm(Kind.PCR_RESET, text)


#: Alarms of what a life went through: they hold until the next one.
OF_LIFE = (
    *(Kind.GAP, Kind.PCR_DIVERGED, Kind.PCR_RESET, Kind.ROLLED_BACK),
    *(Kind.HEALED, Kind.DAMAGED),
)
#: Those of a look that could not decide, and those that PCRs end which confirm the list.
OF_LOOK = (Kind.UNDECIDED, Kind.SUSPENDED)
UNCONFIRMED = (Kind.UNVERIFIED, Kind.OTHER_PCR)


OfStore = OpenLife | ForkLife | RecordBoot | RecordGap | TakeAnchor | MarkDone
OfKernel = Store | DeleteStaged | DeleteFirst | WaitForKernel
Action = OfStore | OfKernel | Alarm


class Found(enum.StrEnum):
    """What the join found."""

    #: S ++ K[skip:] leads to the PCRs, or the store's own word says so (not ``verified``).
    SAME_LIFE = "same life"
    #: K leads there from zero.
    NEW_LIFE = "new life"
    #: Whole, but the PCR began anew inside.
    PCR_RESET = "pcr reset"
    #: Another past of this life goes on: a virtual machine was restored.
    ROLLED_BACK = "rolled back"
    #: Whole, but the PCR is another.
    DIVERGED = "pcr diverged"
    GAP = "gap"
    #: Several places fit, or the end of K was not exact: ask again.
    UNDECIDED = "undecided"
    #: Measuring has ended for this kernel.
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer of a join: do ``actions`` in order, then serve S ++ K[skip:], or refuse.

    ``skip`` is of K as it was read, before any action. None: not known, nothing may be stored
    or deleted.
    """

    found: Found
    skip: int | None
    actions: tuple[Action, ...] = ()
    #: Why the view is refused (EIO); None: it is the truth.
    refuse: str | None = None
    #: Whether PCRs confirmed it.
    verified: bool = False
    #: Records at the end of K that came after the PCRs were read: these confirm none of them.
    later: int = 0
