# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values as a replay of packed extend entries gives them.

An entry is a u32 PCR (little endian) and one digest per bank, in the banks' order
(:class:`imafs.lists.banks.Hasher`). TCG TPM 2.0 Part 1, 17.2:
``new = H(old || digest)``, in the bank's own hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from imafs.formats.algorithms import Bank

#: PCRs that locality 0, the kernel's, may extend (TCG PC Client Platform TPM Profile, 4.6). IMA
#: takes rules with pcr=0 to 63 all the same, and the TPM refuses the extends of the others.
EXTENDABLE = frozenset({*range(17), 23})

#: bank name -> PCR -> value
PcrValues = Mapping[str, Mapping[int, bytes]]


class Replay:
    """Running PCR values of every bank. Banks that this machine cannot hash stay out, and so do
    entries whose PCR no TPM lets IMA extend."""

    def __init__(self, banks: Sequence[Bank], base: PcrValues | None = None) -> None:
        self._size = 4 + sum(bank.digest_size for bank in banks)
        self._plan = []
        at = 4
        for bank in banks:
            algorithm = bank.algorithm
            if algorithm is not None and algorithm.available:
                self._plan.append((bank, algorithm.constructor(), at, at + bank.digest_size))
            at += bank.digest_size
        self._base = base or {}
        self._values: dict[tuple[str, int], bytes] = {}

    def copy(self) -> Replay:
        """Another one that goes on from here by itself."""
        other = Replay((), self._base)
        other._size, other._plan, other._values = self._size, self._plan, dict(self._values)
        return other

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The banks that are replayed."""
        return tuple(bank for bank, *_ in self._plan)

    @property
    def pcrs(self) -> set[int]:
        """The PCRs that any entry went to."""
        return {pcr for _, pcr in self._values}

    def adopted(self, bank: Bank, pcr: int) -> bool:
        """Whether the PCR begins with a value that no record explains."""
        return any(self._base.get(bank.name, {}).get(pcr, b""))

    def value(self, bank: Bank, pcr: int) -> bytes:
        """The value now; the base's or zeros where nothing was extended."""
        known = self._values.get((bank.name, pcr))
        if known is None:
            known = self._base.get(bank.name, {}).get(pcr, bytes(bank.digest_size))
        return known

    def extend(self, packed: bytes | memoryview) -> None:
        """Takes whole packed entries, in order."""
        view = memoryview(packed)
        for start in range(0, len(view), self._size):
            self._one(view[start : start + self._size])

    def _one(self, entry: memoryview) -> None:
        pcr = int.from_bytes(entry[:4], "little")
        if pcr not in EXTENDABLE:
            return
        for bank, make, begin, end in self._plan:
            self._values[bank.name, pcr] = make(
                self.value(bank, pcr) + bytes(entry[begin:end])
            ).digest()

    def equals(self, actual: PcrValues) -> bool:
        """Whether every replayed bank has these values in every PCR that was used."""
        return not self.differences(actual)

    def differences(self, actual: PcrValues) -> list[tuple[str, int]]:
        """(bank, PCR) of every PCR of ``actual`` that is not what the replay gives."""
        return [
            (bank.name, pcr)
            for bank in self.banks
            for pcr, value in sorted(actual.get(bank.name, {}).items())
            if value != self.value(bank, pcr)
        ]

    def advance(self, packed: bytes, actual: PcrValues) -> int | None:
        """Extends entry by entry until ``actual`` is reached: how many it took.

        None, and nothing changed, where no prefix of ``packed`` leads there.
        """
        before = dict(self._values)
        entries = len(packed) // self._size
        view = memoryview(packed)
        for done in range(entries + 1):
            if self.equals(actual):
                return done
            if done < entries:
                self._one(view[done * self._size : (done + 1) * self._size])
        self._values = before
        return None

    def places(self, packed: bytes, actual: PcrValues) -> dict[str, int | None]:
        """The answers of :meth:`advance` for each bank alone; changes nothing."""
        found: dict[str, int | None] = {}
        for row in self._plan:
            alone = Replay((), self._base)
            alone._size, alone._plan, alone._values = self._size, [row], dict(self._values)
            name = row[0].name
            found[name] = alone.advance(packed, {name: actual.get(name, {})})
        return found
