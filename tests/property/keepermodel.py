# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A machine with a keeper, in miniature: random walks through everything that may happen to both.

The kernel, the TPM, the disk and the collector are models; what is decided is decided by the real
:func:`imafs.keeper.join.plan`. Every record has a serial number that nobody in the walk may look
at: by it the walk knows what was lost, also of records that are equal byte by byte.

After each step the invariants of the keeper are checked (:class:`Broken` names the one that does
not hold). A walk that ends without it is explained: each view was the truth, or it was refused
where records were lost or where nobody could know that none were.
"""

from __future__ import annotations

import copy
import errno
import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from imafs.keeper import facts, join
from imafs.keeper.facts import How, Mode, PcrValues

DECIDING = 10
OTHER = 11
_HASHES: Mapping[str, Callable[[bytes], bytes]] = {
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}
_SIZES = {"sha1": 20, "sha256": 32}


#: After these the keeper takes an anchor, and nothing is missing.
_ANCHORED = (facts.Found.DIVERGED, facts.Found.PCR_RESET)


class Broken(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        self.invariant = invariant
        super().__init__(f"{invariant}: {what}")


class Crash(Exception):
    """The keeper's process ends here."""


class DiskError(Exception):
    """A write or a sync failed: nothing of it may be relied on."""


@dataclass(frozen=True, slots=True)
class Rec:
    """A record; ``serial`` is not part of its bytes.

    Two with one ``history`` are the same to everybody: a machine that was restored did what it
    had done before.
    """

    name: str
    pcr: int
    serial: int
    #: A hash over this reset's records that go to the PCR that decides, up to this one.
    history: bytes = b""

    @property
    def violation(self) -> bool:
        return self.name.startswith("V")

    @property
    def extended(self) -> tuple[int, str]:
        """What a PCR sees of it: violations are all alike."""
        return self.pcr, "V" if self.violation else self.name

    def data(self) -> bytes:
        return _data(self.pcr, self.name)

    def digest(self, bank: str, mode: Mode) -> bytes:
        return _digest(self.pcr, self.name, bank, mode)


@functools.cache
def _data(pcr: int, name: str) -> bytes:
    return f"{pcr} {name}\n".encode()


@functools.cache
def _digest(pcr: int, name: str, bank: str, mode: Mode) -> bytes:
    if name.startswith("V"):
        return b"\xff" * _SIZES[bank]
    if bank == "sha1" or mode is Mode.REAL:
        return _HASHES[bank](_data(pcr, name))
    return _HASHES["sha1"](_data(pcr, name)).ljust(_SIZES[bank], b"\0")


class Listed:
    """:class:`facts.Records` over a list of :class:`Rec`; counts what is asked of it."""

    def __init__(self, recs: Sequence[Rec]) -> None:
        self.recs = recs
        self.extended = 0

    def __len__(self) -> int:
        return len(self.recs)

    def record(self, at: int) -> bytes:
        assert 0 <= at < len(self.recs)
        return self.recs[at].data()

    def sha256(self, first: int, last: int) -> bytes:
        assert 0 <= first <= last <= len(self.recs)
        return hashlib.sha256(b"".join(rec.data() for rec in self.recs[first:last])).digest()

    def extends(self, bank: str, mode: Mode, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        assert 0 <= first <= last <= len(self.recs)
        for rec in self.recs[first:last]:
            self.extended += 1
            yield rec.pcr, rec.digest(bank, mode)

    def is_boot_aggregate(self, at: int) -> bool:
        return self.recs[at].name == "boot_aggregate"


@dataclass
class Setting:
    """What may happen in a walk."""

    banks: tuple[str, ...] = ("sha1", "sha256")
    tpm: bool = True
    #: The TPM's clock is known; sysfs does not show it.
    clock: bool = True
    flush: bool = False
    staging: bool = True
    #: Others stage, delete and trim while the keeper is not there.
    foreign: bool = False
    #: Extends fail, and others extend.
    diverging: bool = False
    #: Records of a PCR that does not decide.
    several: bool = False
    #: Others extend that PCR too.
    shared: bool = False
    hibernation: bool = False
    #: The machine hibernates by a shutdown (``shutdown`` in /sys/power/disk): the TPM counts a
    #: reset. By the firmware (``platform``) it counts a restart.
    shuts_down: bool = False
    rollback: bool = False
    kexec: bool = True
    cuts: bool = True
    modes: bool = False
    disk: bool = False
    trimmed_first: bool = False
    reboots: bool = True
    #: Nobody tells whether the kernel flushes its hash table, as of an emulator.
    untold: bool = False
    #: Records come in half of all looks, and the keeper reads those, too.
    arriving: bool = False


class Kernel:
    """Linux 7.2 and its TPM: two lists, a hash table, PCRs, and a record that lags."""

    def __init__(self, rng: random.Random, setting: Setting) -> None:
        self.rng, self.setting = rng, setting
        self.serials = self.boots = 0
        self.clock = facts.Clock(0, 0, 0, 0)
        self.power_on()

    def power_on(self) -> None:
        """A reboot: the PCRs begin anew, and so does the list."""
        self.pcrs = {
            bank: {pcr: bytes(_SIZES[bank]) for pcr in (DECIDING, OTHER)}
            for bank in self.setting.banks
        }
        self.clock = replace(self.clock, reset=self.clock.reset + self.rng.randrange(1, 3))
        self.truth: list[Rec] = []
        self.history = str(self.serials).encode()  # of this reset alone
        self.unseen: set[int] = set()  # serials of records whose extend failed
        self.staged: list[Rec] = []
        self.current: list[Rec] = []
        self.reset_at = -1  # the serial of the first record since a hibernation
        self.restored = False  # from a snapshot: nobody can tell when the clock has caught up
        self.disturbed = False  # the PCRs are not those of the truth
        self.new_kernel()

    def new_kernel(self) -> None:
        self.seen: set[bytes] = set()
        self.suspended = False
        self.late: Rec | None = None
        self.boots += 1
        self.boot = f"boot-{self.boots}"
        self.flush = self.setting.flush
        self.staging = self.setting.staging
        padded = self.setting.modes and self.rng.random() < 0.5
        self.modes = {
            bank: Mode.PADDED if padded and bank != "sha1" else Mode.REAL
            for bank in self.setting.banks
        }
        self.add("boot_aggregate", DECIDING)

    # --- measuring ----------------------------------------------------------------------------

    def add(self, name: str, pcr: int, *, fails: bool = False, lags: bool = False) -> None:
        """A record is appended, and extended now, with the next one, or never."""
        if self.suspended:
            return
        rec = Rec(name, pcr, self.serials)
        history = self.history
        if pcr == DECIDING:
            history = hashlib.sha256(history + rec.data()).digest()
        rec = replace(rec, history=hashlib.sha256(history + rec.data()).digest())
        if not rec.violation and rec.data() in self.seen:
            return
        self.settle()
        self.serials += 1
        self.history = history
        self.seen.add(rec.data())
        self.current.append(rec)
        self.truth.append(rec)
        if fails:
            self.disturbed = True
            self.unseen.add(rec.serial)
        elif lags:
            self.late = rec
        else:
            self.extend(rec.pcr, {bank: rec.digest(bank, self.modes[bank]) for bank in self.pcrs})

    def settle(self) -> None:
        """What the mutex does: whoever had it has extended, too."""
        if self.late is not None:
            rec, self.late = self.late, None
            self.extend(rec.pcr, {bank: rec.digest(bank, self.modes[bank]) for bank in self.pcrs})

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        for bank, digest in digests.items():
            self.pcrs[bank][pcr] = _HASHES[bank](self.pcrs[bank][pcr] + digest)

    # --- requests -----------------------------------------------------------------------------

    def stage(self) -> int:
        self.settle()
        if self.staged:
            return errno.EEXIST
        if not self.current:
            return errno.ENOENT
        if self.suspended:
            return errno.EACCES
        self.staged, self.current = self.current, []
        return 0

    def delete_staged(self) -> int:
        self.settle()
        if not self.staged:
            return errno.ENOENT
        if self.suspended:
            return errno.ESTALE
        self.staged = []
        if self.flush:
            self.seen = set()
        # The lists are unlinked whether or not a new table could be had.
        return errno.ENOMEM if self.flush and self.rng.random() < 0.05 else 0

    def delete_first(self, count: int) -> int:
        self.settle()
        if self.flush or not count:
            return errno.EINVAL
        if count > len(self.current):
            return errno.ENOENT
        if self.suspended:
            return errno.ESTALE
        self.current = self.current[count:]
        return 0

    # --- ends and beginnings ------------------------------------------------------------------

    def kexec(self, cut: int | None) -> None:
        """Another kernel on the same TPM; of the list come the first ``cut`` records (or all)."""
        self.settle()
        carried = [*self.staged, *self.current]
        self.staged, self.current = [], carried[:cut]
        self.new_kernel()

    def hibernate(self) -> None:
        """The machine's memory comes back, the PCRs do not."""
        self.settle()
        for bank in self.pcrs:
            for pcr in self.pcrs[bank]:
                self.pcrs[bank][pcr] = bytes(_SIZES[bank])
        reset, restart = self.clock.reset, self.clock.restart + 1
        if self.setting.shuts_down:
            reset, restart = reset + 1, 0
        self.clock = replace(self.clock, reset=reset, restart=restart)
        self.disturbed = True
        self.reset_at = self.serials

    def snapshot(self) -> dict[str, object]:
        self.settle()
        kept = {
            k: v for k, v in vars(self).items() if k not in ("rng", "setting", "serials", "boots")
        }
        return copy.deepcopy(kept)

    def restore(self, snapshot: dict[str, object]) -> None:
        vars(self).update(copy.deepcopy(snapshot))


@dataclass
class Life:
    """A life on the disk: what is durable of it, and what is not yet."""

    about: facts.LifeFacts
    records: list[Rec] = field(default_factory=list)
    frames: list[facts.Frame] = field(default_factory=list)
    seals: list[facts.Seal] = field(default_factory=list)
    anchors: list[facts.Anchor] = field(default_factory=list)
    #: How many frames there were before each anchor.
    anchored: list[int] = field(default_factory=list)
    gaps: list[facts.Gap] = field(default_factory=list)
    #: Of the last done line: as it is read, and as it is known to be on the medium.
    unsynced: int = -1
    synced: int = -1
    #: Frames that the walk has looked at.
    checked: int = 0
    torn: bool = False


class Disk:
    """The store: lives, and the archive's part of carrying out a plan."""

    def __init__(self, rng: random.Random, setting: Setting) -> None:
        self.rng, self.setting = rng, setting
        self.lives: list[Life] = []

    def lose_cache(self) -> None:
        """The machine stops: a done line that nothing synced may be gone."""
        if self.lives and self.rng.random() < 0.5:
            self.lives[-1].unsynced = self.lives[-1].synced

    @property
    def torn(self) -> bool:
        """Whether the journal ends in a line that does not count."""
        return bool(self.lives) and self.lives[-1].torn

    def cut(self) -> None:
        """Recovery cuts it."""
        self.lives[-1].torn = False

    def read(self) -> facts.StoreFacts:
        if not self.lives:
            return facts.StoreFacts()
        life = self.lives[-1]
        # A seal folds the frames before it, but for the last one that has a batch.
        frames = life.frames
        if life.seals:
            frames = [f for f in frames if f.first + f.count > life.seals[-1].index]
            batches = [f for f in life.frames if f.g_count]
            if batches and not any(f.g_count for f in frames):
                frames = [batches[-1], *life.frames[batches[-1].n + 1 :]]
        return facts.StoreFacts(
            life=life.about,
            records=Listed(list(life.records)),
            frames=tuple(frames),
            seals=tuple(life.seals),
            anchors=tuple(life.anchors),
            gaps=tuple(life.gaps),
            done=life.unsynced,
        )

    def open(self, kernel: Kernel, clock: facts.Clock | None, whole: bool) -> None:
        number = len(self.lives)
        banks = dict(kernel.modes)
        self.lives.append(Life(facts.LifeFacts(number, kernel.boot, banks, "little", clock, whole)))

    def fork(self, action: facts.ForkLife, kernel: Kernel) -> None:
        index, clock = action.index, action.clock
        old, store = self.lives[-1], self.read()
        kept = [f for f in old.frames if f.first + f.count <= index]
        life = facts.LifeFacts(
            len(self.lives),
            kernel.boot,
            dict(kernel.modes),
            "little",
            clock,
            forked=(old.about.number, index),
            whole=old.about.whole,
        )
        new = Life(life, old.records[:index])
        # What is forked within a frame is written as frames of the new life.
        new.anchors = [a for a in old.anchors if action.takes(a, store)]
        new.anchored = [0] * len(new.anchors)
        new.gaps = [g for g in old.gaps if action.takes(g, store)]
        at = 0
        for frame in [*kept, *[f for f in old.frames if f.first < index < f.first + f.count]]:
            end = min(index, frame.first + frame.count)
            cut = Listed(new.records[at:end])
            new.frames.append(
                replace(
                    frame,
                    n=len(new.frames),
                    first=at,
                    count=end - at,
                    g_count=end - at,
                    skip=0,
                    g_sha256=cut.sha256(0, len(cut)),
                    sha256=cut.sha256(0, len(cut)),
                    pcrs=extended(before(new, at), cut.recs, frame.modes),
                    boot=kernel.boot,
                )
            )
            at = end
        new.checked = len(new.frames)
        new.unsynced = new.synced = len(new.frames) - 1
        self.lives.append(new)

    def commit(
        self,
        kernel: Kernel,
        recs: Sequence[Rec],
        batch: Sequence[Rec],
        how: How,
        clock: facts.Clock | None,
        modes: Mapping[str, Mode],
    ) -> None:
        """One frame, durable; what fails leaves bytes behind the last one."""
        life = self.lives[-1]
        if life.torn:
            raise Broken("I6", "a frame behind bytes that were not cut")
        if self.setting.disk and self.rng.random() < 0.1:
            life.torn = self.rng.random() < 0.7
            raise DiskError
        life.synced = life.unsynced
        first = len(life.records)
        life.records += recs
        whole, part = Listed(batch), Listed(recs)
        last = life.frames[-1] if life.frames else None
        frame = facts.Frame(
            n=len(life.frames),
            first=first,
            count=len(recs),
            seg="0",
            off=0,
            len=0,
            sha256=part.sha256(0, len(part)),
            prev=hashlib.sha256(repr(last).encode()).digest(),
            boot=kernel.boot,
            g_count=len(batch),
            g_sha256=whole.sha256(0, len(whole)),
            skip=len(batch) - len(recs),
            how=how,
            clock=clock,
            pcrs=self.after(life, recs, modes),
            modes=dict(modes),
        )
        life.frames.append(frame)
        if self.rng.random() < 0.1:
            life.seals.append(facts.Seal(first + len(recs), b"", frame.pcrs))

    def after(self, life: Life, recs: Sequence[Rec], modes: Mapping[str, Mode]) -> PcrValues:
        """The PCRs at the end of a new frame, as the archive goes on from the frame before."""
        values = before(life, len(life.records) - len(recs))
        return extended(values, recs, modes)


def before(life: Life, index: int) -> PcrValues:
    """The PCRs behind so many records, as an anchor or the last frame has them."""
    if life.anchors and life.anchors[-1].index == index:
        return life.anchors[-1].pcrs
    return life.frames[-1].pcrs if life.frames else {}


def in_place(truth: Sequence[Rec], stored: Sequence[Rec]) -> set[int]:
    """Serials of true records for which equal ones are stored at their places: of another boot,
    or another past, that made the same ones."""
    pairs = zip(truth, stored, strict=False)
    return {rec.serial for rec, own in pairs if rec.data() == own.data()}


def extended(values: PcrValues, recs: Sequence[Rec], modes: Mapping[str, Mode]) -> PcrValues:
    """``values`` after the extends of records, of which several kernels may have had a part.

    The keeper knows the mode of its own kernel alone: a list that came through a kexec into a
    kernel of another mode is replayed as that kernel would (the walk does not check it then).
    """
    found = {
        bank: {pcr: values.get(bank, {}).get(pcr, bytes(_SIZES[bank])) for pcr in (DECIDING, OTHER)}
        for bank in modes
    }
    for rec in recs:
        for bank, mode in modes.items():
            found[bank][rec.pcr] = _HASHES[bank](found[bank][rec.pcr] + rec.digest(bank, mode))
    return found


@dataclass
class Keeper:
    """The collector in miniature: it looks, asks for a plan, and carries it out step by step."""

    kernel: Kernel
    disk: Disk
    rng: random.Random
    counts: Counter[str]
    #: Raises :class:`Crash` now and then.
    step: Callable[[], None]
    #: What happens beside a look: records may come.
    beside: Callable[[], None]
    #: What must hold of a plan before it is carried out.
    check_plan: Callable[[facts.StoreFacts, facts.KernelFacts, facts.Plan], None]
    #: What must hold of the view, where what the keeper knows ends before the walk looks.
    check_view: Callable[[facts.Plan], None]
    known: int | None = None
    suspended: str | None = None
    plan: facts.Plan | None = None
    alarms: set[facts.Kind] = field(default_factory=set)
    #: K and the life's records as of the last plan, for the view.
    seen: list[Rec] = field(default_factory=list)
    at_end: bool = False
    #: Serials of records that nobody can tell from stored ones.
    forgotten: set[int] = field(default_factory=set)

    @property
    def live(self) -> bool:
        """Whether the one descriptor is open, and what it knows holds."""
        return self.known is not None

    def found(self) -> facts.Found | None:
        """What the plan that is being carried out says; None once the process has ended."""
        return None if self.plan is None else self.plan.found

    def end(self) -> None:
        """The process is gone, or forgets all it knew."""
        self.known = self.plan = None
        self.alarms = set()

    def look(self, *, stage: bool, part: bool = False) -> tuple[facts.KernelFacts, facts.TpmFacts]:
        """Read K, a barrier, count, PCRs, count: as keeper.md 3 has it."""
        kernel = self.kernel
        part = part and not kernel.staged and not kernel.flush
        stage = stage and kernel.staging and not part
        if self.suspended is not None and self.suspended != kernel.boot:
            self.suspended = None
        if stage:
            self.barrier()
        k = [*kernel.staged, *kernel.current]
        self.beside()
        while stage and self.barrier() == 0:
            k = [*kernel.staged, *kernel.current]  # what was staged now was not read
            self.beside()
        if part:
            k = k[: self.rng.randrange(1, len(k) + 1)] if k else k
        # An A took the mutex. N walks the list without it (ima_queue_delete_partial): where nothing
        # can be staged the keeper looks at the PCRs until they stay as they are.
        late = kernel.setting.arriving and not stage and not part and kernel.late is not None
        if not late:
            kernel.settle()
        before = len(kernel.current) + len(kernel.staged)
        pcrs = {}
        for bank in kernel.pcrs:
            pcrs[bank] = dict(kernel.pcrs[bank])
            if kernel.setting.arriving:
                self.beside()  # sysfs shows one value at a time
        self.beside()
        after = len(kernel.current) + len(kernel.staged)
        pinned = not part and before == after == len(k) and not late
        extended = None
        if kernel.setting.arriving and not part and not pinned:
            extended = len(k) if stage else max(0, len(k) - 1)
            k = [*kernel.staged, *kernel.current]
        self.seen = k
        found = facts.KernelFacts(
            boot=kernel.boot,
            modes=dict(kernel.modes),
            records=Listed(k),
            staged=len(kernel.staged) if kernel.staging and not part else None,
            pinned=pinned,
            extended=extended,
            part=part,
            suspended=errno.EACCES if self.suspended is not None else None,
            known=self.known,
            flush=None if kernel.setting.untold else kernel.flush,
        )
        return found, facts.TpmFacts(pcrs if kernel.setting.tpm else None, self.clock())

    def clock(self) -> facts.Clock | None:
        setting = self.kernel.setting
        return self.kernel.clock if setting.tpm and setting.clock else None

    def barrier(self) -> int:
        """A. Whatever it answers, all that was appended before is extended."""
        pending = self.unconfirmed()
        if not self.kernel.setting.tpm and pending and self.known is None:
            return errno.EEXIST  # without PCRs no A while the last frame is unconfirmed
        answer = self.kernel.stage()
        if answer == 0:
            self.check_stage(len(pending))
        if answer == errno.EACCES:
            self.suspended = self.kernel.boot
        return answer

    def unconfirmed(self) -> list[facts.Frame]:
        """Batches that may be in the kernel. One counts with the next, if that was cut from a
        list that began with what was left of it."""
        life = self.disk.lives[-1] if self.disk.lives else None
        frames = [] if life is None else life.frames
        found = [f for f in frames if f.g_count and life is not None and f.n > life.unsynced]
        later = [*[frame.skip for frame in found[1:]], 0]
        return [f for f, skip in zip(found, later, strict=False) if not skip]

    def check_stage(self, pending: int) -> None:
        if pending > 1:
            raise Broken("I5", f"{pending} unconfirmed frames when A is sent")

    def turn(self) -> None:
        """One look, one plan, all its actions."""
        # Of the head alone nobody knows which kernel's records it has: no other modes there.
        part = (
            self.rng.random() < 0.1
            and not self.kernel.setting.modes
            and (not self.disk.lives or self.live)
        )
        kernel, tpm = self.look(stage=self.rng.random() < 0.9, part=part)
        self.step()
        store = self.disk.read()
        self.plan = join.plan(store, kernel, tpm)
        if self.rng.random() < 0.1:
            self.check_again(store, kernel, tpm)
        self.check_plan(store, kernel, self.plan)
        self.counts[f"found {self.plan.found}"] += 1
        self.at_end = kernel.pinned
        if kernel.extended is not None and self.plan.skip is not None:
            self.counts["decided while records arrive"] += 1
        k, self.known = self.seen, self.plan.skip
        try:
            if self.disk.torn:
                self.step()
                self.disk.cut()
            for action in self.plan.actions:
                self.step()
                self.act(action, k)
        except DiskError:
            self.counts["disk error"] += 1
            self.end()
            return
        if self.found() in _ANCHORED:
            self.kernel.disturbed = False  # an anchor explains the PCRs from here on

    def check_again(self, *asked: object) -> None:
        """The same facts, the same plan."""
        store, kernel, tpm = asked
        assert isinstance(store, facts.StoreFacts)
        assert isinstance(kernel, facts.KernelFacts)
        assert isinstance(tpm, facts.TpmFacts)
        if join.plan(store, kernel, tpm) != self.plan:
            raise Broken("I8", "another plan of the same facts")

    def act(self, action: facts.Action, k: list[Rec]) -> None:
        """One action; each is as durable as the archive makes it."""
        kernel, disk = self.kernel, self.disk
        match action:
            case facts.OpenLife(_, clock, whole):
                untold = not kernel.setting.tpm and not self.unconfirmed()
                if untold and k and k[0].name == "boot_aggregate":
                    # Nobody can tell a kexec, with all that was stored deleted, from a reboot.
                    kernel.truth = [rec for rec in kernel.truth if rec.serial >= k[0].serial]
                disk.open(kernel, clock, whole)
                if whole:
                    self.begins(k)
            case facts.ForkLife():
                disk.fork(action, kernel)
                self.is_since_reset([*disk.lives[-1].records, *k])
            case facts.RecordBoot():
                disk.commit(kernel, (), (), How.JOIN, self.clock(), kernel.modes)
            case facts.RecordGap(gap):
                disk.lives[-1].gaps.append(gap)
            case facts.TakeAnchor(anchor):
                if anchor.index != len(disk.lives[-1].records):
                    raise Broken("I10", "an anchor that is no stored end")
                if anchor.why == "confirmed from zero" and kernel.reset_at >= 0:
                    # A first start on a list that was trimmed, whose PCRs began anew behind that.
                    since = [rec for rec in kernel.truth if rec.serial >= kernel.reset_at]
                    shown = [*disk.lives[-1].records, *k[self.known or 0 :]]
                    if since and [r.serial for r in since] == [r.serial for r in shown]:
                        kernel.truth = since
                disk.lives[-1].anchors.append(anchor)
                disk.lives[-1].anchored.append(len(disk.lives[-1].frames))
            case facts.MarkDone(n):
                life = disk.lives[-1]
                life.unsynced = max(life.unsynced, life.frames[-1].n if n is None else n)
                if not kernel.setting.tpm:
                    life.synced = life.unsynced  # before the next A
            case facts.Store(place, count, batch, how, modes):
                disk.commit(kernel, k[place : place + count], k[:batch], how, self.clock(), modes)
                self.known = max(self.known or 0, place + count)
            case facts.DeleteStaged():
                self.delete(kernel.staged, kernel.delete_staged)
            case facts.DeleteFirst(count):
                self.delete(kernel.current[:count], lambda: kernel.delete_first(count))
            case facts.Alarm(kind, _):
                self.alarms.add(kind)
            case facts.WaitForKernel():
                if self.plan is not None and self.plan.found is facts.Found.SUSPENDED:
                    # The view goes on until the next kernel; then all is asked anew.
                    self.check_view(self.plan)
                    self.known = None

    def begins(self, shown: Sequence[Rec]) -> None:
        """A life that is whole from a reset of the PCRs on shows these: the truth begins there."""
        kernel = self.kernel
        if not shown or kernel.reset_at < 0 or self.is_since_reset(shown):
            # That may be records from before the reset, where a cut carry left them in the place of
            # others that are equal byte by byte.
            return
        first = shown[0].serial
        between = [
            rec
            for rec in kernel.truth
            if kernel.reset_at <= rec.serial < first and rec.pcr == DECIDING
            if rec.serial not in kernel.unseen
        ]
        if kernel.reset_at <= first and not between:
            # This is the reset, and a kexec followed.
            kernel.truth = [rec for rec in kernel.truth if rec.serial >= first]
            kernel.disturbed = False

    def is_since_reset(self, shown: Sequence[Rec]) -> bool:
        """Whether what a life shows is all since the PCRs began anew: then it is the truth."""
        kernel = self.kernel
        since = [rec for rec in kernel.truth if rec.serial >= kernel.reset_at]
        alike = [r.extended for r in since if r.pcr == DECIDING] == [
            r.extended for r in shown if r.pcr == DECIDING
        ]
        if kernel.reset_at < 0 or not alike:
            return False
        kernel.truth = since
        kernel.disturbed = False
        return True

    def delete(self, recs: Sequence[Rec], request: Callable[[], int]) -> None:
        """D or N. ENOMEM of D means deleted, too."""
        kernel, recs = self.kernel, list(recs)
        answer = request()
        if answer in (0, errno.ENOMEM):
            life = self.disk.lives[-1]
            self.forget_unseen(recs, life.records)
            stored = {rec.serial for rec in life.records}
            told = {rec.history for rec in life.records}
            lost = [rec for rec in recs if rec.serial not in stored and rec.history not in told]
            lost = [rec for rec in lost if rec.serial not in self.forgotten]
            same = in_place(kernel.truth, life.records)
            lost = [rec for rec in lost if rec.serial not in same]
            if kernel.setting.tpm and lost:
                raise Broken("I4", f"deleted and not stored: {[rec.name for rec in lost]}")
            self.known = (self.known or 0) - len(recs)
            self.seen = self.seen[len(recs) :]
        else:
            self.suspended = self.kernel.boot if answer in (errno.ESTALE, errno.EACCES) else None
            if self.suspended is not None and self.plan is not None:
                self.check_view(self.plan)
            self.end()
            raise DiskError

    def forget_unseen(self, recs: Sequence[Rec], records: Sequence[Rec]) -> None:
        """Of records that are taken for stored ones: the PCR never saw one like them, and their
        bytes are those of one that is stored. Nobody can tell them apart."""
        kernel = self.kernel
        if not recs or not kernel.unseen:
            return
        stored = {rec.serial for rec in records}
        told = {rec.history for rec in records}
        equal = {rec.data() for rec in records}
        unseen = {rec.extended for rec in kernel.truth if rec.serial in kernel.unseen}
        for rec in recs:
            known = rec.serial in stored or rec.history in told or rec not in kernel.truth
            if not known and rec.extended in unseen and rec.data() in equal:
                kernel.truth.remove(rec)
                self.forgotten.add(rec.serial)
                self.counts["not to be told from a stored one"] += 1
                self.take_its_place(rec, records)

    def take_its_place(self, rec: Rec, records: Sequence[Rec]) -> None:
        """A record that was extended is taken for a stored one that was not, and is equal byte by
        byte: to everybody the stored one was extended, and the other is the one that never was."""
        unseen = self.kernel.unseen
        stands = [own for own in records if own.serial in unseen and own.data() == rec.data()]
        if rec.serial not in unseen and stands:
            unseen.remove(stands[-1].serial)
            unseen.add(rec.serial)
            self.counts["an extend that failed is taken for that of an equal record"] += 1


def setting(seed: int) -> Setting:
    """The setting of a walk: every pair of troubles comes up somewhere."""
    rng = random.Random(seed * 7919 + 1)

    def happens(chance: float) -> bool:
        return rng.random() < chance

    tpm = happens(0.9)
    several, diverging = happens(0.3), tpm and happens(0.25)
    banks = rng.choice([("sha1", "sha256"), ("sha1", "sha256"), ("sha256",), ("sha1",)])
    return Setting(
        banks=banks,
        tpm=tpm,
        flush=happens(0.4),
        staging=happens(0.75),
        foreign=tpm and happens(0.4),
        diverging=diverging,
        several=several,
        shared=several and happens(0.3),
        # A kernel whose only bank is sha1, and zero, may have no TPM at all.
        hibernation=tpm and len(banks) == 2 and happens(0.3),
        # Of a restored machine whose extends had failed nobody can tell what was stored before.
        rollback=tpm and happens(0.15) and not diverging,
        cuts=happens(0.6),
        modes=happens(0.25),
        disk=happens(0.3),
        trimmed_first=tpm and happens(0.1),
    )


class Walk:
    """One random walk: events, and the checks after each."""

    def __init__(self, seed: int, setting: Setting, steps: int = 80) -> None:
        self.rng = random.Random(seed)
        self.setting, self.steps = setting, steps
        self.counts: Counter[str] = Counter()
        self.kernel = Kernel(self.rng, setting)
        self.disk = Disk(self.rng, setting)
        self.crashing = True
        checks = self.check_plan, self.check_view
        self.keeper = Keeper(
            self.kernel, self.disk, self.rng, self.counts, self.step, self.beside, *checks
        )
        self.snapshot: dict[str, object] | None = None
        #: Serials that others deleted, or a carry lost: the keeper cannot help it.
        self.excused: set[int] = set()
        #: What was served last, and of which life.
        self.served: tuple[int, list[tuple[int, str]]] = (-1, [])
        self.names = ["a", "b", "c", "d"]

    # --- what happens -------------------------------------------------------------------------

    def step(self) -> None:
        if self.crashing and self.rng.random() < 0.06:
            raise Crash

    def beside(self) -> None:
        if self.rng.random() < (0.5 if self.setting.arriving else 0.12):
            self.measure()

    def measure(self) -> None:
        rng = self.rng
        name = rng.choice([*self.names, f"e{rng.randrange(50)}", "V", "V2"])
        pcr = OTHER if self.setting.several and rng.random() < 0.3 else DECIDING
        fails = self.setting.diverging and rng.random() < 0.1
        self.kernel.add(name, pcr, fails=fails, lags=rng.random() < 0.2)

    def run(self) -> Counter[str]:
        """All steps. Raises :class:`Broken`."""
        if self.setting.trimmed_first:
            for _ in range(self.rng.randrange(1, 6)):
                self.measure()
            self.foreign()
        for _ in range(self.steps):
            self.event()
            self.check()
        # Whatever happened: an undisturbed turn or two find the end, and the second does nothing.
        self.crashing = False
        self.settle()
        return self.counts

    def event(self) -> None:
        rng, setting = self.rng, self.setting
        self.kernel.clock = replace(self.kernel.clock, clock=self.kernel.clock.clock + 1)
        x = rng.random()
        if x < 0.5:
            self.measure()
        elif x < 0.8:
            self.turn()
        elif x < 0.84:
            self.counts["killed"] += 1
            self.keeper.end()
        elif x < 0.90 and setting.kexec:
            self.kexec()
        elif x < 0.92 and setting.reboots:
            self.counts["reboot"] += 1
            self.keeper.end()
            self.disk.lose_cache()
            self.served = -1, []
            self.snapshot = None  # a life before this one: its store is not looked at
            self.kernel.power_on()
        elif x < 0.95 and setting.foreign and not self.keeper.live:
            self.foreign()
        elif x < 0.96 and setting.hibernation:
            self.counts["hibernation"] += 1
            self.kernel.hibernate()
            if rng.random() < 0.5:
                self.keeper.end()
        elif x < 0.98 and setting.rollback:
            self.roll()
        elif setting.diverging or setting.shared:
            self.extend_from_outside()

    def turn(self) -> None:
        try:
            self.keeper.turn()
        except Crash:
            self.counts["crash"] += 1
            self.keeper.end()

    def kexec(self) -> None:
        """Measuring ends, the keeper may notice, another kernel begins."""
        rng = self.rng
        self.counts["kexec"] += 1
        self.kernel.settle()
        self.kernel.suspended = rng.random() < 0.5
        if self.kernel.suspended and rng.random() < 0.5:
            self.turn()
        if rng.random() < 0.8:
            self.keeper.end()
        total = len(self.kernel.staged) + len(self.kernel.current)
        cut = rng.randrange(total + 1) if self.setting.cuts and rng.random() < 0.4 else None
        self.counts["cut"] += cut is not None
        self.keeper.end()
        self.disk.lose_cache()
        with self.excusing():
            self.kernel.kexec(cut)
        if not self.setting.tpm and len(self.kernel.current) == 1:
            self.kernel.truth = list(self.kernel.current)  # nobody can tell it from a reboot

    @contextmanager
    def excusing(self) -> Iterator[None]:
        """What leaves the kernel here does so without the keeper."""
        before = {rec.serial for rec in [*self.kernel.staged, *self.kernel.current]}
        yield
        after = {rec.serial for rec in [*self.kernel.staged, *self.kernel.current]}
        self.excused |= before - after

    def foreign(self) -> None:
        with self.excusing():
            self.trim()

    def trim(self) -> None:
        """Another stages, deletes, or trims."""
        y = self.rng.random()
        self.counts["foreign"] += 1
        if y < 0.4 and self.setting.staging:
            self.kernel.stage()
        elif y < 0.7 and self.setting.staging:
            self.kernel.delete_staged()
        elif self.kernel.current:
            self.kernel.delete_first(self.rng.randrange(1, len(self.kernel.current) + 1))

    def extend_from_outside(self) -> None:
        self.kernel.settle()
        pcr = OTHER if self.setting.shared else DECIDING
        banks = [bank for bank in self.setting.banks if self.rng.random() < 0.7]
        self.counts["foreign extend"] += 1
        self.kernel.extend(pcr, {bank: b"\x11" * _SIZES[bank] for bank in banks})
        if pcr == DECIDING and banks:
            self.kernel.disturbed = True

    def roll(self) -> None:
        if self.snapshot is None or self.rng.random() < 0.4:
            self.snapshot = self.kernel.snapshot()
            return
        self.counts["rolled back"] += 1
        self.keeper.end()
        self.kernel.restore(self.snapshot)
        life = self.life
        if life is not None and life.about.whole and life.about.forked is None:
            # It may have begun since the snapshot, or before it.
            self.keeper.begins([*life.records, *self.kernel.staged, *self.kernel.current])
        self.served = -1, []
        self.kernel.restored = True

    # --- what must hold -----------------------------------------------------------------------

    @property
    def life(self) -> Life | None:
        return self.disk.lives[-1] if self.disk.lives else None

    def gone(self) -> list[Rec]:
        """Records since the reset that neither the store has nor the kernel."""
        kernel = self.kernel
        recs = [*kernel.staged, *kernel.current]
        for life in self.disk.lives:
            recs += life.records
        serials = {rec.serial for rec in recs}
        return [rec for rec in kernel.truth if rec.serial not in serials]

    def lost(self) -> list[Rec]:
        """Those of them that are to be missed: the others are to everybody like stored ones."""
        gone = self.gone()
        if not gone:
            return []
        stored = [rec for life in self.disk.lives for rec in life.records]
        histories = {rec.history for rec in stored}
        same = in_place(self.kernel.truth, [] if self.life is None else self.life.records)
        return [rec for rec in gone if rec.serial not in same and rec.history not in histories]

    def check(self) -> None:
        life = self.life
        if life is not None:
            self.check_frames(life)
        if self.keeper.live and self.keeper.plan is not None:
            self.check_view(self.keeper.plan)

    def check_frames(self, life: Life) -> None:
        end = 0
        for number, frame in enumerate(life.frames):
            if (frame.n, frame.first) != (number, end):
                raise Broken("I6", f"frame {frame.n} at {frame.first} follows {end}")
            end += frame.count
        if end != len(life.records):
            raise Broken("I6", "records without a frame")
        if len(life.frames) == life.checked or not life.frames:
            return
        life.checked = len(life.frames)
        last = life.frames[-1]
        pairs = zip(life.anchors, life.anchored, strict=True)
        anchors = [anchor for anchor, before in pairs if before <= last.n]
        values = anchors[-1].pcrs if anchors else {}
        for frame in life.frames:
            if not anchors or frame.first >= anchors[-1].index:
                recs = life.records[frame.first : frame.first + frame.count]
                values = extended(values, recs, frame.modes)
        if last.pcrs != values:
            raise Broken("I10", f"frame {last.n} has other PCRs than the replay")

    def check_view(self, plan: facts.Plan) -> None:
        """The view is the truth, or it is refused where it must be or may be."""
        life, kernel = self.life, self.kernel
        if life is None or self.keeper.known is None:
            return
        for rec in [rec for rec in self.lost() if rec.serial in kernel.unseen]:
            kernel.truth.remove(rec)  # no PCR tells of it: nobody can miss it
            self.counts["lost and never extended"] += 1
        k = [*kernel.staged, *kernel.current]
        self.keeper.forget_unseen(k[: self.keeper.known], life.records)
        lost = self.lost()
        gone = [rec.name for rec in lost if rec.serial not in self.excused]
        if gone and self.setting.tpm:
            raise Broken("I1", f"neither stored nor in the kernel: {gone}")
        if plan.refuse is None and (self.setting.tpm or not self.gone()):
            view, truth = self.view(life), kernel.truth
            # Records that no PCR that decides has seen may go unnoticed.
            raw = [
                rec.extended
                for rec in view
                if rec.pcr == DECIDING and rec.serial not in kernel.unseen
            ]
            if self.stands_for_another(view):
                self.counts["a violation that failed stands for one that is lost"] += 1
                self.served = -1, []
                return
            if self.served[0] == life.about.number and raw[: len(self.served[1])] != self.served[1]:
                raise Broken("I3", f"{raw} does not go on {self.served[1]}")
            if [rec.data() for rec in view] != [rec.data() for rec in truth]:
                self.check_likeness(view, truth)
            self.served = life.about.number, raw
            self.counts["served"] += 1
        else:
            self.counts["refused"] += 1

    def stands_for_another(self, view: Sequence[Rec]) -> bool:
        """Whether a violation whose extend failed is shown, and another one is gone that was
        extended: the PCRs are as if it had been the other way round."""
        shown = {rec.serial for rec in view}
        unseen = [rec for rec in view if rec.violation and rec.serial in self.kernel.unseen]
        gone = [rec for rec in self.gone() if rec.serial in self.excused and rec.violation]
        return bool(unseen) and any(rec.serial not in shown for rec in gone)

    def check_plan(
        self, store: facts.StoreFacts, kernel: facts.KernelFacts, plan: facts.Plan
    ) -> None:
        """A refusal has a reason: records are lost, or nobody can know whether any are. And behind
        a gap nothing is stored again that is there for certain."""
        self.check_twice(store, kernel, plan)
        if plan.refuse is None or plan.found is facts.Found.UNDECIDED:
            return
        if plan.found is facts.Found.SUSPENDED and plan.skip is None:
            return  # there is no life that it goes on, and none may be begun
        before = bool(store.gaps) and plan.found is not facts.Found.NEW_LIFE
        held = kernel.known is not None and store.life is not None and store.life.whole
        unknowable = not self.setting.tpm or (self.kernel.disturbed and not held)
        unknowable |= self.kernel.restored
        begun = store.life is not None and (store.life.whole or bool(store.anchors))
        waits = not begun and not plan.verified
        if not self.gone() and not before and not unknowable and not waits:
            raise Broken("I7", f"refused, and nothing is missing: {plan}")

    def check_twice(
        self, store: facts.StoreFacts, kernel: facts.KernelFacts, plan: facts.Plan
    ) -> None:
        """A batch that stands at the head of the kernel's list, and has a record that comes once
        under this kernel, is stored already."""
        batch = store.last
        lives = any(isinstance(action, facts.OpenLife) for action in plan.actions)
        if plan.found is not facts.Found.GAP or batch is None or lives or kernel.flush is not False:
            return
        assert isinstance(store.records, Listed)
        assert isinstance(kernel.records, Listed)
        recs = kernel.records.recs
        head = recs[: batch.g_count]
        starts = [at for at, rec in enumerate(recs) if rec.name == "boot_aggregate"]
        own = [rec for rec in head[max(starts, default=-1) + 1 :] if not rec.violation]
        stored = {rec.serial for rec in store.records.recs[batch.first :]}
        stands = len(head) == batch.g_count == batch.count and {r.serial for r in head} == stored
        if stands and own and batch.boot == kernel.boot and (plan.skip or 0) < batch.g_count:
            raise Broken("I3", f"{[rec.name for rec in head]} would be stored twice")
        self.counts["a gap behind a batch that is there"] += stands

    def view(self, life: Life) -> list[Rec]:
        """What agents are shown: all that is stored, and what the kernel has more."""
        kernel = self.kernel
        return [*life.records, *[*kernel.staged, *kernel.current][self.keeper.known :]]

    def check_likeness(self, view: Sequence[Rec], truth: Sequence[Rec]) -> None:
        """A view that is not the truth must be one that no PCR that decides can tell from it."""
        alike = [[rec.extended for rec in recs if rec.pcr == DECIDING] for recs in (view, truth)]
        if alike[0] != alike[1]:
            raise Broken("I2", f"{[r.name for r in view]} is served for {[r.name for r in truth]}")
        if any(rec.pcr == OTHER for rec in truth):
            self.counts["wrong, in a PCR that does not decide"] += 1
        else:
            self.counts["wrong, in the name of a violation"] += 1

    def settle(self) -> None:
        """The end: turns without a crash come to rest, and a further one changes nothing."""
        self.setting.disk = False
        for _ in range(6):
            self.turn()
            self.check()
