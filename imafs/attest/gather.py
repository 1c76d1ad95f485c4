# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Evidence on the attested machine: quote first, then the list, cut where the quote is.

What a quote covers is in the list by then, whatever is measured later; what came later stays in
the list, for the next time. A list that does not lead to the quote is read again a few times: a
record may be in the list and not yet in the PCR.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from imafs import __version__, disk
from imafs.attest import quote
from imafs.attest.bundle import MEMBERS, RECORDS, Bundle, Gap, Manifest
from imafs.attest.evidence import OWN, end_of
from imafs.attest.explain import explain
from imafs.attest.lanes import HASHES, extended
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.attest.verify import LOCALITIES, TPM_PCRS, Choice, Verdict, verify_parts
from imafs.attest.walking import Part, blocks
from imafs.errors import FileError, FormatError, MismatchError, UsageError
from imafs.formats.binary import detected
from imafs.lists.replay import PcrValues
from imafs.tpm.quoting import Quoted, Values

CURRENT = "binary_runtime_measurements"
STAGED = ("binary_runtime_measurements_staged", "binary_runtime_measurements_sha1_staged")
#: Seconds that somebody else may have the list open for writing.
PATIENCE = 10.0
_LOOK = 0.02
#: Quotes, and seconds between the first two of them; doubled with each.
TRIES = 5
_PAUSE = 0.1
_MOST = MEMBERS[RECORDS]

#: Makes a quote with this nonce over this selection.
Quoter = Callable[[bytes, quote.Selection], Quoted]


@dataclass(frozen=True, slots=True)
class Held:
    """The whole binary list since the boot.

    Records in front of ``since`` are left out of the bundle: the verifier knows them.
    """

    records: bytes = field(repr=False)
    since: int = 0


#: Gives the list that leads to a quote, whose clock tells the boot.
Source = Callable[[quote.Clock], Held]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the verifier asked for. ``pcrs`` None: those that records went to.

    ``padded`` banks hold zero-padded SHA-1.
    """

    nonce: bytes
    banks: Sequence[str] = ("sha256",)
    pcrs: Sequence[int] | None = None
    padded: tuple[str, ...] = ()
    pcr: int = DEFAULT_PCR


@dataclass(frozen=True, slots=True)
class Kept:
    """What a keeper says of a life; of a kernel's own list nothing is known.

    ``diverged`` and ``resets`` are records where the PCR is not what the list gives, and where it
    began anew.
    """

    life: str | None = None
    boot_ids: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    diverged: tuple[int, ...] = ()
    resets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Beside:
    """What goes into the bundle as it is."""

    certificates: bytes | None = field(default=None, repr=False)
    firmware: bytes | None = field(default=None, repr=False)


_NOTHING = Beside()


def gather(
    asked: Asked,
    quoter: Quoter,
    read: Source,
    *,
    beside: Beside = _NOTHING,
    kept: Callable[[], Kept] = Kept,
    pause: Callable[[float], None] = time.sleep,
) -> Bundle:
    """The bundle of now. ``read`` gives the list behind each quote, ``kept`` what its keeper says
    of it, asked when it was read.

    Raises :class:`MismatchError` where no part of the list leads to the quote,
    :class:`TpmError`, and what ``read`` raises.
    """
    pcrs = tuple(asked.pcrs or (asked.pcr,))
    failures = 0
    while True:
        selection = quote.selection_of(dict.fromkeys(asked.banks, pcrs))
        answer = quoter(asked.nonce, selection)
        said = quote.parse_quote(answer.message)
        found = _Found(asked, selection, answer, said, read(said.clock))
        if asked.pcrs is None and not found.used <= set(pcrs):
            pcrs = tuple(sorted({*pcrs, *found.used}))
            continue
        place = found.place()
        if place is not None:
            return found.bundle(place, beside, kept())
        failures += 1
        if failures == TRIES:
            raise MismatchError(found.why(kept()))
        pause(_PAUSE * 2 ** (failures - 1))


class _Found:
    """One quote and the list that was read after it."""

    def __init__(
        self,
        asked: Asked,
        selection: quote.Selection,
        answer: Quoted,
        said: quote.Quote,
        held: Held,
    ) -> None:
        self._asked = asked
        self._selection = selection
        self._answer = answer
        shape = detected(held.records)
        if shape.bank.name != OWN.name:
            raise FormatError(f"the list is of bank {shape.bank.name}, not {OWN.name}")
        self._part = Part(held.records, shape.order)
        self._first = held.since
        self._quote = said
        self._algorithm = quote.parse_signature(answer.signature).algorithm
        self._values: PcrValues = {}
        self._padded = asked.padded
        self._records = 0

    @property
    def used(self) -> set[int]:
        """The PCRs that records went to and that a kernel can extend."""
        found: set[int] = set()
        for block in blocks([self._part], OWN.digest_size, fields=False):
            found.update(block.pcrs)
        return {n for n in found if n < TPM_PCRS and n not in LOCALITIES}

    def _verdict(self, values: PcrValues, part: Part | None = None) -> Verdict:
        choice = Choice(self._padded, self._asked.pcr)
        return verify_parts([part or self._part], OWN, values, choice)

    def _reached(self, values: PcrValues) -> int | None:
        """The number of records that lead to these values, also where banks are padded."""
        self._values = values
        verdict = self._verdict(values)
        self._records = verdict.records
        if verdict.matched is None and verdict.padded:
            self._padded = (*self._padded, *verdict.padded)
            verdict = self._verdict(values)
        return verdict.matched

    def place(self) -> int | None:
        """The number of records that lead to the quote; None where none do."""
        before = self._selected(self._answer.before)
        after = self._selected(self._answer.after)
        for selected in (before, after):
            if selected.digest(self._algorithm) == self._quote.digest:
                return self._reached(selected.by_bank())
        # Records were extended while the TPM signed: its values lie between the two.
        begin = self._reached(before.by_bank())
        return None if begin is None else self._from(begin)

    def _selected(self, values: Values) -> quote.Selected:
        places = [(bank, pcr) for bank, pcrs in self._selection for pcr in pcrs]
        return quote.Selected(self._selection, tuple(values[place] for place in places))

    def _from(self, begin: int) -> int | None:
        """The first place behind ``begin`` whose PCRs have the digest that was quoted."""
        rest = Part(self._part.data[end_of(self._part, begin) :], self._part.order)
        now = {bank: dict(row) for bank, row in self._values.items()}
        padded = Choice(self._padded).is_padded
        steps = {bank: extended([rest], OWN, bank, padded(bank)) for bank in now}
        for number, rows in enumerate(zip(*steps.values(), strict=True), begin + 1):
            for bank, (pcr, digest) in zip(steps, rows, strict=True):
                if pcr in now[bank]:
                    now[bank][pcr] = HASHES[bank].digest(now[bank][pcr] + digest)
            if quote.selected(self._selection, now).digest(self._algorithm) == self._quote.digest:
                self._values = now
                return number
        return None

    def bundle(self, place: int, beside: Beside, kept: Kept) -> Bundle:
        """The records up to there, and all that belongs to them."""
        first = self._first
        if first > place:
            raise UsageError(f"--since {first}: the list has {place} records up to the quote")
        begin, end = end_of(self._part, first), end_of(self._part, place)
        manifest = Manifest(
            imafs=__version__,
            first=first,
            count=place - first,
            excess=self._records - place,
            clock=self._quote.clock,
            start=self._start(begin) if first else {},
            end=self._values,
            order=self._part.order,
            padded=self._padded,
            life=kept.life,
            boot_ids=kept.boot_ids,
            gaps=kept.gaps,
            diverged=kept.diverged,
        )
        values = quote.selected(self._selection, self._values)
        return Bundle(
            records=self._part.data[begin:end],
            message=self._answer.message,
            signature=self._answer.signature,
            pcrs=quote.encode_pcrs(values),
            key=self._answer.public,
            certificates=beside.certificates,
            firmware=beside.firmware,
            manifest=manifest,
        )

    def _start(self, begin: int) -> PcrValues:
        """PCRs in front of the first record that is given."""
        head = Part(self._part.data[:begin], self._part.order)
        out: dict[str, dict[int, bytes]] = {}
        for found in self._verdict(self._values, head).findings:
            if found.actual:
                out.setdefault(found.bank, {})[found.pcr] = found.replayed
        return out

    def why(self, kept: Kept) -> str:
        """What can have happened to a list that leads nowhere."""
        if kept.gaps:
            return (
                f"records are missing behind record {kept.gaps[-1].after} of this life (the keeper "
                "says so): no list leads to the PCRs before the next reboot"
            )
        if kept.diverged:
            return (
                f"the PCR diverged at record {kept.diverged[-1]} of this life (the keeper says "
                "so): an extend failed, or somebody else extended it. The list is whole, and "
                "leads to no quote before the next reboot"
            )
        if kept.resets:
            return (
                f"the PCR began anew behind record {kept.resets[-1]} of this life (the keeper says "
                "so), as after hibernation: no list leads to a quote before the next reboot"
            )
        verdict = self._verdict(self._values)
        choice = Choice(self._padded, self._asked.pcr)
        names = [("the list", verdict.records)]
        told = explain([self._part], names, OWN, self._values, verdict, choice)
        what = told.said if told is not None else "no part of the list leads to the quoted PCRs"
        return (
            f"{what}. After {TRIES} tries this is no lag of the list behind the PCR: records were "
            "deleted by somebody who must give them too (a gap), an extend failed (the kernel's "
            "log tells), or somebody else extended the PCR"
        )


def read_directory(directory: Path) -> bytes:
    """The whole list of an IMA directory: what is staged, then what is current.

    Both are open before one is read: a writer is kept out, so that no record is read twice or
    not at all. Raises :class:`FileError`.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return _read_both(directory)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise FileError(error.filename or str(directory), error) from None
        time.sleep(_LOOK)


def _read_both(directory: Path) -> bytes:
    with ExitStack() as stack:
        current = stack.enter_context(disk.opened(str(directory / CURRENT)))
        staged = None
        for name in STAGED:
            if (directory / name).exists():
                staged = stack.enter_context(disk.opened(str(directory / name)))
                break
        head = b"" if staged is None else disk.content(staged, _MOST)
        return head + disk.content(current, _MOST - len(head))


def boot_id() -> tuple[str, ...]:
    """The running kernel's, which a manifest names; nothing where /proc has none."""
    try:
        return (Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip(),)
    except (OSError, ValueError):
        return ()
