# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Trimming by PCR values: the start points of the current list, and the prefix that leads on.

Mirrors the ``pcrs`` file of November 2025 ("Log trimming by PCR values"): the kernel keeps
the values that the PCRs had before the first record of its list, replays from there until
the given values are reached, and removes what it replayed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence

from imafs.errors import Refused
from imafs.formats.algorithms import Bank
from imafs.interface.grammar import PcrValue
from imafs.lists.banks import Layout, View
from imafs.lists.packed import PackedList


def _views(layout: Layout) -> dict[str, tuple[Bank, View]]:
    """The banks that can be replayed, by name: the TPM's of a known algorithm."""
    return {
        bank.name: (bank, View(False, at))
        for at, bank in enumerate(layout.lists)
        if bank in layout.banks and bank.algorithm is not None and bank.algorithm.available
    }


def _extended(
    records: PackedList, views: Mapping[str, tuple[Bank, View]]
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Per record its PCR and what each bank was extended with."""
    at = 0
    while at < len(records):
        runs = {}
        for name, (bank, view) in views.items():
            found = records.run(view, at)
            assert found is not None
            runs[name] = (found[0], found[1], bank.digest_size)
        run, first, _ = next(iter(runs.values()))
        for number in range(first, len(run.offsets) - 1):
            start = run.offsets[number]
            pcr = int.from_bytes(run.data[start : start + 4], "little")
            digests = {}
            for name, (held, _, width) in runs.items():
                start = held.offsets[number] + 4
                digest = bytes(held.data[start : start + width])
                # A violation shows zeros and extends ones.
                digests[name] = digest if any(digest) else b"\xff" * width
            yield pcr, digests
            at += 1


class StartPoints:
    """PCR values before the first record of a list; zero until records are removed."""

    def __init__(self, layout: Layout) -> None:
        self._views = _views(layout)
        self._values: dict[tuple[str, int], bytes] = {}

    @property
    def banks(self) -> Sequence[str]:
        """Names of the banks, in the TPM's order."""
        return tuple(self._views)

    def value(self, bank: str, pcr: int) -> bytes:
        """The start point of a PCR in a bank."""
        return self._values.get((bank, pcr), bytes(self._views[bank][0].digest_size))

    def prefix(
        self, records: PackedList, wanted: Sequence[PcrValue], configured: Sequence[int]
    ) -> int:
        """How many records lead from the start points to ``wanted``: the fewest, 0 for none.

        Raises :class:`Refused` (EINVAL): not every configured PCR is there exactly once, a
        record is of another PCR, or one that has its value gets a record before the others
        have theirs.
        """
        if sorted(value.pcr for value in wanted) != sorted(configured):
            raise Refused(errno.EINVAL, f"the PCRs are not {sorted(configured)}, each once")
        if any(value.algorithm not in self._views for value in wanted):
            return 0
        goal = {value.pcr: value for value in wanted}
        state = {value.pcr: self.value(value.algorithm, value.pcr) for value in wanted}
        missing = {pcr for pcr, value in goal.items() if state[pcr] != value.value}
        views = {v.algorithm: self._views[v.algorithm] for v in wanted}
        for number, (pcr, digests) in enumerate(_extended(records, views)):
            if not missing:
                return number
            if pcr not in goal:
                raise Refused(errno.EINVAL, f"record {number} is of PCR {pcr}")
            if pcr not in missing:
                raise Refused(errno.EINVAL, f"PCR {pcr} has its value before the others have")
            name = goal[pcr].algorithm
            state[pcr] = self._extend(name, state[pcr] + digests[name])
            if state[pcr] == goal[pcr].value:
                missing.discard(pcr)
        return 0 if missing else len(records)

    def advance(self, records: PackedList, number: int) -> None:
        """The first ``number`` records are about to be removed."""
        for done, (pcr, digests) in enumerate(_extended(records, self._views)):
            if done == number:
                return
            for name, digest in digests.items():
                self._values[name, pcr] = self._extend(name, self.value(name, pcr) + digest)

    def _extend(self, name: str, data: bytes) -> bytes:
        algorithm = self._views[name][0].algorithm
        assert algorithm is not None
        digest: bytes = algorithm.constructor()(data).digest()
        return digest
