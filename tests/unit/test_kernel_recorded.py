# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recorded kernels through the pure rooms: every list, every view, every PCR, every name."""

from __future__ import annotations

from functools import cache

import pytest

from imafs.errors import FormatError
from imafs.formats.binary import Record, read
from imafs.interface.profiles import Entry, Kind, directory, lookup
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View
from imafs.lists.packed import PackedList
from imafs.lists.replay import Replay
from tests.conformance.recordings import Moment, load, names
from tests.property.builders import BANKS, banks

MOMENTS = [moment for name in names() for moment in load(name).moments()]
#: Debian's 6.1 has no sha384 and sha512 for IMA.
PADDED = ("sha384", "sha512")
#: Restored records: the kernel does not count their violations (7.3.4), and of
#: after-kexec-D the list is gone.
KEXEC = "7.3.4-kexec/after-kexec"


def old(moment: Moment) -> bool:
    return moment.recording.startswith("6.1")


def layout(moment: Moment) -> Layout:
    present = [name for name in BANKS if name in moment.pcrs]
    return Layout(banks(*present, padded=PADDED if old(moment) else ()))


def entries(moment: Moment) -> list[Entry]:
    profile = lookup("legacy-single" if old(moment) else "mainline")
    staging = any(name.endswith("_staged") for name in moment.lists)
    return directory(profile, layout(moment).lists, staging=staging)


def whole(packed: PackedList, view: View) -> bytes:
    out, index = [], 0
    while (found := packed.run(view, index)) is not None:
        run, at = found
        out.append(bytes(run.data[run.offsets[at] :]))
        index += len(run.offsets) - 1 - at
    return b"".join(out)


def recorded(moment: Moment, *, staged: bool) -> list[Record]:
    suffix = "_staged" if staged else ""
    for name in ("binary_runtime_measurements_sha1", "binary_runtime_measurements"):
        data = moment.files.get(name + suffix)
        if data is not None:
            return [parsed.record for parsed in read(data, banks("sha1")[0])]
    return []


@cache
def queue(moment_number: int) -> Queue:
    moment = MOMENTS[moment_number]
    made = Queue(layout(moment))
    for rec in recorded(moment, staged=True):
        made.append(rec, loaded=True)
    if len(made.current):
        made.stage()
    for rec in recorded(moment, staged=False):
        made.append(rec, loaded=True)
    return made


kept = pytest.mark.parametrize(
    "number",
    [n for n, m in enumerate(MOMENTS) if set(m.lists) <= set(m.files)],
    ids=lambda number: str(MOMENTS[number]),
)


@kept
def test_every_view_is_the_kernels(number: int) -> None:
    moment, made = MOMENTS[number], queue(number)
    links = {e.name: e.target for e in entries(moment) if e.kind is Kind.LINK}
    shown = set()
    for entry in entries(moment):
        if entry.view is None or entry.files is None:
            continue
        packed = made.list(entry.files.staged)
        content = whole(packed, entry.view)
        assert content == moment.files[entry.name], entry.name
        assert packed.size(entry.view) == len(content)
        shown.add(entry.name)
    # No recorded list was left out.
    assert shown == {name for name in moment.lists if "count" not in name and name not in links}
    assert len(made.current) == int(moment.count)
    if not str(moment).startswith(KEXEC):
        assert made.violations == int(moment.violations)


@kept
def test_the_pcrs_replay(number: int) -> None:
    moment, made = MOMENTS[number], queue(number)
    if str(moment) == KEXEC + "-D":
        assert not made.totals.added
        return
    replay = Replay(made.layout.banks)
    if made.layout.banks:
        replay.extend(made.pending_extends(made.pending))
    assert set(moment.pcrs) == {bank.name for bank in replay.banks}
    for bank in replay.banks:
        for pcr in replay.pcrs:
            assert replay.value(bank, pcr) == moment.pcrs[bank.name][pcr], (bank.name, pcr)


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_the_directory_is_what_ls_showed(moment: Moment) -> None:
    shown = {}
    for line in moment.files["ls-la.txt"].decode().splitlines()[1:]:
        mode, rest = line.split(maxsplit=1)
        name = rest.split(maxsplit=7)[-1]
        if name not in (".", ".."):
            shown[name] = mode
    expected = {}
    for entry in entries(moment):
        kind = "l" if entry.kind is Kind.LINK else "-"
        bits = "".join(
            letter if entry.mode >> 8 - at & 1 else "-" for at, letter in enumerate("rwxrwxrwx")
        )
        target = f" -> {entry.target}" if entry.target else ""
        expected[entry.name + target] = kind + bits
    # The policy file's mode is Kconfig's, and it may be gone.
    shown.pop("policy", None)
    del expected["policy"]
    assert shown == expected


SMALL = [
    load("7.2.13").files[f"{when}.binary.{name}"] for when in ("start", "end") for name in BANKS
]


@pytest.mark.parametrize("number", range(len(SMALL)))
@pytest.mark.parametrize("named", [True, False])
def test_a_recorded_list_cut_at_every_byte(number: int, named: bool) -> None:
    data, bank = SMALL[number], banks(BANKS[number % 4])[0]
    ends = [0, *(parsed.end for parsed in read(data, bank))]
    assert ends[-1] == len(data)
    for size in range(len(data)):
        if size in ends:
            assert len(list(read(data[:size], bank))) == ends.index(size)
            continue
        with pytest.raises(FormatError) as caught:
            list(read(data[:size], bank if named else None))
        assert caught.value.record is not None
        assert caught.value.offset is not None
        if named:
            assert caught.value.record == sum(end <= size for end in ends) - 1
