# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The verdict on a bundle: does a TPM that is trusted say that these are the records?

Pure: a bundle, what is demanded, and the verifier's own state go in; a judgement and the next
state come out. Nothing that the attested machine claims decides anything: its manifest may only
be refused for what it says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from imafs.attest import bundle as bundles
from imafs.attest import firmware, quote, signed
from imafs.attest.excludes import OutOfTimeError
from imafs.attest.explain import BOOT, boots, explain
from imafs.attest.judgement import Demand, Found, Judgement
from imafs.attest.kinds import Kind
from imafs.attest.lanes import HASHES
from imafs.attest.reference import Files, judge
from imafs.attest.state import REMEMBERED, State
from imafs.attest.verify import FIRMWARE, LOCALITIES, Choice, Value, Verdict, verify_parts
from imafs.attest.walking import Part, blocks, proven, proven_name, record
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, HashAlgorithm, list_bank
from imafs.formats.binary import Reader
from imafs.lists.replay import PcrValues
from imafs.text import shown

OWN = list_bank(SHA1)


def judge_bundle(data: bytes, demand: Demand, state: State | None = None) -> Judgement:
    """The verdict on the bytes of a bundle. Raises nothing for whatever they are."""
    try:
        found = bundles.decode(data)
    except FormatError as error:
        return Judgement(Kind.MALFORMED, shown(error))
    return check(found, demand, state)


def check(found: bundles.Bundle, demand: Demand, state: State | None = None) -> Judgement:
    """The verdict on a bundle. ``state`` is what the verifier knows of the machine."""
    case = _Case(found, demand, state)
    try:
        return case.judgement()
    except Found as verdict:
        return replace(case.so_far, kind=verdict.kind, said=shown(verdict.said))
    except FormatError as error:
        return replace(case.so_far, kind=Kind.MALFORMED, said=shown(error))


class _Case:
    def __init__(self, found: bundles.Bundle, demand: Demand, state: State | None) -> None:
        self._bundle = found
        self._manifest = found.manifest
        self._demand = demand
        self._state = state
        self._first = 0 if found.manifest is None else found.manifest.first
        self._part = Part(found.records)
        if found.manifest is not None:
            self._part = Part(found.records, found.manifest.order)
        self._begun: PcrValues = {}
        self._quoted: PcrValues = {}
        self._log: firmware.Log | None = None
        self.so_far = Judgement(Kind.MALFORMED, "", first=self._first)

    def judgement(self) -> Judgement:
        """Everything in order: what is cheap and tells most comes first."""
        bundle, demand, state = self._bundle, self._demand, self._state
        found = signed.signed(bundle, demand)
        said = found.quote
        self.so_far = replace(self.so_far, key=found.key.fingerprint, clock=said.clock)
        signed.trusted(bundle, found.key, demand, state)
        signed.fresh(said, demand, state)
        values = signed.values(bundle, found, demand)
        signed.consistent(bundle, said, values, demand)
        rebooted = signed.rebooted(said.clock, state)
        if state is not None and not rebooted:
            _as_before(values, state)
        verdict = self._replayed(values, rebooted)
        self._exact(verdict)
        self._proven(verdict, values)
        self._booted(values)
        return self._accepted(said, verdict, rebooted)

    # The life of the machine

    def _starts(self, rebooted: bool) -> PcrValues:
        """The values in front of the first record: zeros, or the state's own."""
        state, first = self._state, self._first
        if first == 0:
            return {}
        if state is None:
            raise Found(
                Kind.STALE,
                f"the bundle begins with record {first}, and nothing is known of those before: "
                "was the state lost? Ask for the whole list (--since 0)",
            )
        if rebooted:
            raise Found(
                Kind.HEAD,
                f"the machine was rebooted, and the bundle begins with record {first}: ask for "
                "the whole list (--since 0)",
            )
        if first > state.index:
            raise Found(
                Kind.STALE,
                f"the bundle begins with record {first}, and the state knows {state.index}: it is "
                f"an older one. Ask for --since {state.index}, or find the newer state",
            )
        if first < state.index:
            raise Found(
                Kind.START,
                f"the bundle begins with record {first}, and the state knows the PCRs after "
                f"{state.index} only: ask for --since {state.index}, or the whole list",
            )
        claimed = {} if self._manifest is None else self._manifest.start
        for bank, row in claimed.items():
            for pcr, value in row.items():
                own = state.pcrs.get(bank)
                if own is not None and own.get(pcr, bytes(len(value))) != value:
                    raise Found(
                        Kind.START,
                        f"{bank}:{pcr} in front of record {first} is not the value that was "
                        "verified: it is another history, or made up",
                    )
        return state.pcrs

    # The records

    def _choice(self, starts: PcrValues) -> Choice:
        banks = None if not starts else tuple(starts)
        return Choice(tuple(self._demand.padded), self._demand.pcr, None, banks, starts)

    def _replay(self, part: Part, targets: PcrValues, starts: PcrValues) -> Verdict:
        try:
            verdict = verify_parts([part], OWN, targets, self._choice(starts))
        except FormatError as error:
            raise error.at(bundles.RECORDS) from None
        if verdict.matched is None and _same(starts, targets, self._demand.pcr):
            return replace(verdict, matched=0)  # all records came behind the quote
        return verdict

    def _replayed(self, values: PcrValues, rebooted: bool) -> Verdict:
        """The replay up to the quote. Raises where it leads elsewhere, and says why."""
        starts = self._starts(rebooted)
        if starts and not any(bank in starts for bank in values):
            known, quoted = ", ".join(starts), ", ".join(values)
            raise Found(
                Kind.START,
                f"the state has PCRs of {known}, the quote of {quoted}: ask for the same banks, "
                "or the whole list",
            )
        self._begun = starts
        verdict = self._replay(self._part, values, starts)
        self.so_far = replace(self.so_far, violations=verdict.violations)
        continued = self._first == 0 and self._state is not None and not rebooted
        if verdict.matched is None:
            self._not_reached(verdict, values, starts, continued)
        if continued:
            self._goes_on(verdict)
        return verdict

    def _not_reached(
        self, verdict: Verdict, values: PcrValues, starts: PcrValues, continued: bool
    ) -> NoReturn:
        if any(f.value is Value.PADDED for f in verdict.findings):
            raise signed.padded(list(verdict.padded))
        state = self._state
        if continued and state is not None:
            again = self._replay(self._part, values, state.pcrs)
            if again.matched:  # 0: the quote is the one that was verified, and nothing leads to it
                raise Found(
                    Kind.HEAD,
                    f"the first {state.index} records are missing, which were verified before: "
                    "they were deleted, and whoever keeps them must give them too. (The rest "
                    f"leads on from there: as --since {state.index} it would be accepted)",
                )
        if self._first == 0 and verdict.records and not self._begins_with_boot():
            raise Found(
                Kind.HEAD,
                "the list does not begin with boot_aggregate: records at its head were deleted. "
                "Put what was kept of them in front",
            )
        if self._manifest is not None and self._manifest.gaps:
            places = ", ".join(str(gap.after) for gap in self._manifest.gaps[:10])
            raise Found(
                Kind.HEAD,
                f"the machine's keeper says that records are missing behind record {places}: no "
                "list can lead to the quote before the next reboot",
            )
        whole = [(bundles.RECORDS, verdict.records)]
        why = explain([self._part], whole, OWN, values, verdict, self._choice(starts))
        raise Found(
            Kind.MISMATCH,
            why.said
            if why is not None
            else "no part of the records leads to the quote: some are missing or changed, "
            "somebody else extended the PCR, or an extend failed (imafs verify tells more)",
        )

    def _begins_with_boot(self) -> bool:
        return proven_name(record([self._part], OWN.digest_size, 0).record) == BOOT

    def _goes_on(self, verdict: Verdict) -> None:
        """Raises where the whole list is not a continuation of what was verified."""
        state = self._state
        assert state is not None
        assert verdict.matched is not None
        again = (
            "the list leads to the quote from its beginning, but not by way of what was verified: "
            "the PCRs were reset without a reboot (hibernation), or a virtual machine was set "
            "back. Look at it; --new begins anew"
        )
        if verdict.matched < state.index:
            raise Found(
                Kind.RESET, f"{verdict.matched} records where {state.index} were verified: {again}"
            )
        end = end_of(self._part, state.index)
        head = Part(self._part.data[:end], self._part.order)
        before = verify_parts([head], OWN, state.pcrs, self._choice({}))
        if before.matched != state.index:
            raise Found(Kind.RESET, again)

    def _exact(self, verdict: Verdict) -> None:
        assert verdict.matched is not None
        if not verdict.matched and not self._first:
            raise Found(
                Kind.UNPROVEN,
                "nothing was measured since the boot, not even boot_aggregate: IMA is off",
            )
        manifest, behind = self._manifest, verdict.records - verdict.matched
        self.so_far = replace(self.so_far, records=verdict.matched, excess=behind)
        if manifest is None:
            return
        if manifest.count != verdict.records:
            raise Found(
                Kind.MANIFEST,
                f"{verdict.records} records where the manifest says {manifest.count}",
            )
        if behind:
            raise Found(
                Kind.UNPROVEN,
                f"{behind} records stand behind the quote, where the manifest says none: nothing "
                "confirms them",
            )

    def _proven(self, verdict: Verdict, values: PcrValues) -> None:
        agree = tuple(
            (f.bank, f.pcr)
            for f in verdict.findings
            if f.value is Value.MATCHES and f.bank in values
        )
        self.so_far = replace(self.so_far, proven=agree)
        covered = {pcr for _, pcr in agree}
        bare = sorted({f.pcr for f in verdict.findings if f.records} - covered)
        if bare:
            numbers = ", ".join(map(str, bare))
            raise Found(
                Kind.UNPROVEN,
                f"records went to PCR {numbers}, of which the quote says nothing: ask for these "
                f"PCRs too (--pcrs {','.join(map(str, sorted({*covered, *bare})))})",
            )

        self._explained({f.pcr for f in verdict.findings if f.records}, values)

    def _explained(self, used: set[int], values: PcrValues) -> None:
        """Raises where a quoted PCR that only a kernel extends moved without any record: all of
        its records may have been left out."""
        for bank, row in values.items():
            begun = self._begun.get(bank, {})
            for pcr, value in row.items():
                others = pcr in used or pcr in FIRMWARE or pcr in LOCALITIES
                if not others and value != begun.get(pcr, bytes(len(value))):
                    raise Found(
                        Kind.UNPROVEN,
                        f"{bank}:{pcr} was extended, and no record went there: records are missing,"
                        " or somebody else extends it and it should not be quoted",
                    )

    def _booted(self, values: PcrValues) -> None:
        """Raises where boot_aggregate is not what the PCRs of the firmware give."""
        self._quoted = values
        if self._bundle.firmware is not None:
            try:
                self._log = firmware.read(self._bundle.firmware)
            except FormatError as error:
                raise error.at(bundles.FIRMWARE) from None
        if self._first or not self._part.data or not self._begins_with_boot():
            return
        first = record([self._part], OWN.digest_size, 0).record
        quoted, logged = self._aggregates(proven(first)[0])
        found = quoted if quoted is not firmware.Boot.UNKNOWN else logged
        self.so_far = replace(self.so_far, boot=found)
        for kind, what in ((quoted, "the quoted PCRs 0 to 9"), (logged, "the firmware's log")):
            if kind is firmware.Boot.DIFFERS:
                raise Found(Kind.BOOT, f"boot_aggregate is not the hash over {what}")

    def _aggregates(self, field: bytes) -> tuple[firmware.Boot, firmware.Boot]:
        """What the quoted PCRs and the firmware's log say of a boot_aggregate."""
        quoted = logged = firmware.Boot.UNKNOWN
        if (aggregate := _aggregate(field)) is not None:
            quoted = firmware.boot_aggregate(*aggregate, self._quoted)
            if self._log is not None:
                logged = firmware.boot_aggregate(*aggregate, self._log.pcrs, complete=True)
        return quoted, logged

    def _is_boot(self, field: bytes) -> bool:
        """Whether it is shown that this is the digest of a boot_aggregate.

        Zeros show nothing: so is a file that could not be read (``ima_collect_measurement``), and a
        kernel without a TPM, whose boot_aggregate has them, extends none.
        """
        return firmware.Boot.MATCHES in self._aggregates(field)

    # The verdict

    def _accepted(self, said: quote.Quote, verdict: Verdict, rebooted: bool) -> Judgement:
        matched = verdict.matched
        assert matched is not None
        state, part = self._state, self._part
        if matched < verdict.records:
            part = Part(part.data[: end_of(part, matched)], part.order)
        later = self._later_boots(part)
        files = self._files(part)
        kind, words = self._kind(rebooted, later, verdict, files)
        so_far = replace(
            self.so_far,
            boots=len(later),
            files=files,
            notes=tuple(self._notes(verdict)),
            state=self._next(said, verdict, part, rebooted, len(later)),
        )
        first = self._first
        count = f"records {first} to {first + matched - 1}" if matched else "no records"
        behind = f", {so_far.excess} behind it" if so_far.excess else ""
        known = "" if state is None or first else f" ({state.index} known)"
        return replace(
            so_far, kind=kind, said=f"{count}{known if not rebooted else ''}{behind}{words}"
        )

    def _files(self, part: Part) -> Files | None:
        """What the records are to the reference. Raises where one of its patterns does not end."""
        known = self._demand.reference
        if known is None:
            return None
        try:
            return judge(known, [part], OWN, self._is_boot, begins=self._first == 0)
        except OutOfTimeError as error:
            raise Found(
                Kind.REFERENCE,
                f"the exclude {shown(error.pattern, 80)} of --reference comes to no end over "
                f"{shown(error.path, 80)}, so that the files are not judged, and the state stays: "
                "write it without a repetition inside of one (it is a regular expression), and "
                "ask the machine again",
            ) from None

    def _later_boots(self, part: Part) -> list[int]:
        """Numbers (of the bundle) of boot_aggregates behind a life's first record."""
        if part.data.count(BOOT) <= (0 if self._first else 1):
            return []
        return [n for n in boots([part], OWN.digest_size) if n + self._first > 0]

    def _kind(
        self, rebooted: bool, later: list[int], verdict: Verdict, files: Files | None
    ) -> tuple[Kind, str]:
        state = self._state
        if files is not None and not files.clean:
            return Kind.FILES, (
                f": {len(files.unknown)} files are unknown to the reference, "
                f"{len(files.changed)} are changed"
            )
        if self._demand.no_violations and verdict.violations:
            return Kind.VIOLATIONS, f": {verdict.violations} violations"
        if rebooted:
            return Kind.REBOOT, ": the machine was rebooted, its list begins anew"
        if state is not None and any(n + self._first >= state.index for n in later):
            return Kind.KEXEC, ": another kernel was started by kexec, which kept the list"
        return Kind.OK, ""

    def _notes(self, verdict: Verdict) -> list[str]:
        found = []
        if verdict.violations:
            found.append(
                f"{verdict.violations} violations: files that changed while they were measured; "
                "no digest proves their names"
            )
        strong = {pcr for bank, pcr in self.so_far.proven if bank != SHA1.name}
        weak = sorted({pcr for _, pcr in self.so_far.proven} - strong)
        if weak:
            which = f" of PCR {', '.join(map(str, weak))}" if strong else ""
            found.append(f"only SHA-1 confirms the records{which}: quote a bank of SHA-256 too")
        if self._manifest is not None and self._manifest.diverged:
            found.append(
                f"the machine says that PCRs diverged at {list(self._manifest.diverged)[:10]}"
            )
        return found

    def _next(
        self, said: quote.Quote, verdict: Verdict, part: Part, rebooted: bool, later: int
    ) -> State:
        state, key = self._state, self.so_far.key
        assert key is not None
        assert verdict.matched is not None
        if verdict.matched < verdict.records:
            targets: dict[str, dict[int, bytes]] = {}
            for f in verdict.findings:
                targets.setdefault(f.bank, {})[f.pcr] = f.actual
            starts = {} if self._first == 0 or state is None else state.pcrs
            verdict = verify_parts([part], OWN, targets, self._choice(starts))
        pcrs: dict[str, dict[int, bytes]] = {}
        if self._first and state is not None:
            pcrs = {b: dict(row) for b, row in state.pcrs.items() if b in dict(self.so_far.proven)}
        for f in verdict.findings:
            if (f.bank, f.pcr) in self.so_far.proven:
                pcrs.setdefault(f.bank, {})[f.pcr] = f.replayed
        goes_on = state is not None and not rebooted and self._first > 0
        earlier = () if state is None else state.quotes
        return State(
            key=key,
            clock=said.clock,
            index=self._first + self.so_far.records,
            pcrs=pcrs,
            quotes=(*earlier, signed.fingerprint(said))[-REMEMBERED:],
            sequence=1 if state is None else state.sequence + 1,
            violations=verdict.violations + (state.violations if goes_on and state else 0),
            boots=later + (state.boots if goes_on and state else 0),
        )


def _as_before(values: PcrValues, state: State) -> None:
    """Raises where records went to a PCR of which the quote says nothing any more: those that
    followed may have been left out."""
    known = {pcr for row in state.pcrs.values() for pcr in row}
    lacking = sorted(known - {pcr for row in values.values() for pcr in row})
    if lacking:
        numbers = ", ".join(map(str, lacking))
        raise Found(
            Kind.UNPROVEN,
            f"records went to PCR {numbers} before, and the quote says nothing of it: ask for it "
            f"too (--pcrs {','.join(map(str, sorted(known)))})",
        )


def end_of(part: Part, count: int) -> int:
    """The byte behind so many records of a sound list. Raises :class:`FormatError` where there
    are fewer."""
    before = number = 0
    if not count:
        return 0
    for block in blocks([part], OWN.digest_size, fields=False):
        if block.first + len(block.pcrs) >= count:
            walk = Reader(part.data, OWN.digest_size, part.order, opaque=True).walk(before)
            for *_, end in walk:
                number += 1
                if block.first + number == count:
                    return end
        before = block.end
    raise FormatError(f"there are fewer than {count} records")


def _same(starts: PcrValues, targets: PcrValues, pcr: int) -> bool:
    """Whether a quote has the values from which a replay begins: no record came before it."""
    banks = [bank for bank in targets if bank in starts and pcr in targets[bank]]
    return bool(banks) and all(
        starts[bank].get(number, bytes(len(value))) == value
        for bank in banks
        for number, value in targets[bank].items()
        if number in starts[bank] or number == pcr
    )


def _aggregate(data: bytes) -> tuple[HashAlgorithm, bytes] | None:
    """Algorithm and digest of a d-ng field; None where this machine cannot hash so."""
    prefix, colon, digest = data.partition(b":\0")
    name = prefix.rpartition(b":")[2].decode("latin-1") if colon else SHA1.name
    algorithm = HASHES.get(name)
    if algorithm is None or len(digest if colon else data) != algorithm.digest_size:
        return None
    return algorithm, digest if colon else data
