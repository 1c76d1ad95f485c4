# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A kexec and the measurement list: segment, critical data, records that get across.

Mirrors Linux 7.3 ima_kexec.c and ``get_binary_runtime_size`` (ima_queue.c:134-145). The
segment is measured at load and never grows: a list that has become longer than it by the
time of execute is cut, as in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from imafs.formats import kexec_buffer
from imafs.formats.binary import Reader, Record
from imafs.formats.templates import BY_FORMAT, TEMPLATES
from imafs.lists.banks import Hasher, Layout, View
from imafs.lists.packed import PackedList
from imafs.lists.segments import ViewCache

PAGE = 4096
#: Room for records added between load and execute where the configuration names none.
EXTRA = PAGE // 2
#: The label of both critical data records.
LABEL = "ima_kexec"
LOAD, EXECUTE = b"kexec_load", b"kexec_execute"
#: The record of ``ima_kexec_cmdline``.
CMDLINE = b"kexec-cmdline"
#: Surplus of template ima: two lengths and a NUL.
_IMA = 9
_LONG = kexec_buffer.TEMPLATE_NAME_END


@dataclass(frozen=True, slots=True)
class Image:
    """A loaded kernel: the bytes of its segment.

    Where the list is copied at load: ``lists`` as they were then, and how many records there
    had been since that kernel's start.
    """

    segment_size: int
    lists: tuple[PackedList, ...] | None = None
    records: int = 0


@dataclass(frozen=True, slots=True)
class Crossing:
    """A list at a kexec: of ``records``, the first ``carried`` reach the next kernel.

    ``why`` says what stopped the others; None where none was.
    """

    records: int
    carried: int
    why: str | None = None

    @property
    def lost(self) -> int:
        """Records that are in PCRs and in no list any more."""
        return self.records - self.carried


def segment_size(lists: int, *, headers: int = 2, extra: int = EXTRA) -> int:
    """``kexec_segment_size`` in bytes for lists of ``lists`` bytes in all (ima_kexec.c:172-187)."""
    return -(-(lists + headers * kexec_buffer.HEADER_SIZE + extra) // PAGE) * PAGE


def event(segment: int, runtime: int, records: int) -> bytes:
    """The buffer of the critical data records (``ima_measure_kexec_event``).

    ``runtime`` bytes and ``records`` since this kernel's start, deleted ones included.
    """
    return (
        f"kexec_segment_size={segment};"
        f"ima_binary_runtime_size={runtime + kexec_buffer.HEADER_SIZE};"
        f"ima_runtime_measurements_count={records};"
    ).encode()


def surplus(label: str) -> int:
    """Bytes that ``get_binary_runtime_size`` counts for a record beside those it has.

    Template ``ima`` is counted with lengths and a NUL that it is written without; a
    custom format has an empty name there, and is written with its whole text.
    """
    if label == "ima":
        return _IMA
    return 0 if label in TEMPLATES else -len(label)


def runtime_size(record: Record) -> int:
    """``get_binary_runtime_size`` of a record."""
    return _size(record) + surplus(record.template.label)


def _size(record: Record) -> int:
    """Bytes of a record in SHA-1 binary form."""
    length = 0 if record.template.is_ima else 4
    return 28 + len(record.template.label) + length + len(record.data)


def loaded_image(records: Sequence[Record]) -> Image | None:
    """The image that a recorded list says was loaded when it was recorded, if any.

    Its last ``kexec_load``, unless a kernel was started behind that.
    """
    for record in reversed(records):
        if record.template.label != "ima-buf":
            if b"boot_aggregate" in record.data and _name(record) == b"boot_aggregate":
                return None
            continue
        _, name, text = record.template.split(record.data)
        if name.rstrip(b"\0") == EXECUTE:
            return None
        if name.rstrip(b"\0") == LOAD:
            digits = text.removeprefix(b"kexec_segment_size=").partition(b";")[0]
            return Image(int(digits)) if digits.isdigit() else None
    return None


def _name(record: Record) -> bytes:
    parts = zip(record.template.fields, record.template.split(record.data), strict=True)
    return next((part for field, part in parts if field.name in ("n", "n-ng")), b"").rstrip(b"\0")


def crossing(
    lists: Sequence[PackedList], view: View, segment: int, more: Record | None = None
) -> Crossing:
    """The part of ``lists`` (staged, current) that reaches the next kernel in ``segment`` bytes.

    ``view`` is the SHA-1 binary form; ``more`` is a record that will be added before. Looks at
    records of no built-in template alone.
    """
    total = sum(map(len, lists))
    carried, _ = _fitting(lists, view, segment)
    if more is not None:
        room = segment - kexec_buffer.HEADER_SIZE - sum(records.size(view) for records in lists)
        carried += carried == total and _size(more) <= room
        total += 1
    why = None
    if carried < total:
        why = f"the segment of {segment} bytes, made at load, is full"
    number = 0
    for records in lists:
        ends = (at for at, bytes_ in records.odd() if _ends(bytes_))
        end = next(ends, None)
        if end is not None and number + end < carried:
            carried = number + end
            why = f"record {carried} is of template {label(records, view, end)}: not restored"
            break
        number += len(records)
    else:
        if more is not None and carried == total and _ends(surplus(more.template.label)):
            carried -= 1
            why = f"record {carried} is of template {more.template.label}: not restored"
    return Crossing(total, carried, why)


def _ends(surplus: int) -> bool:
    """Whether a record of this surplus is one at which the next kernel stops restoring."""
    # A name that is too long is one that a kernel counts as empty, a custom format's.
    return surplus == _IMA or -surplus >= _LONG


def _fitting(lists: Sequence[PackedList], view: View, segment: int) -> tuple[int, int]:
    """Records that fit whole into a segment, and bytes of the next one that do."""
    room = segment - kexec_buffer.HEADER_SIZE
    fitting = 0
    for records in lists:
        if records.size(view) > room:
            number, inside = records.locate(view, room)
            return fitting + number, inside
        room -= records.size(view)
        fitting += len(records)
    return fitting, 0


def label(records: PackedList, view: View, index: int) -> str:
    found = records.run(view, index)
    assert found is not None
    run, at = found
    start = run.offsets[at] + 28
    length = int.from_bytes(run.data[start - 4 : start], "little")
    return bytes(run.data[start : start + length]).decode("latin-1")


def counted(records: PackedList, view: View) -> int:
    """``ima_get_binary_runtime_size`` of a list, without its header."""
    return records.size(view) + records.surplus


def buffer(lists: Sequence[PackedList], view: View, segment: int | None) -> tuple[bytes, int]:
    """The buffer of ``lists``, cut at ``segment`` bytes as the kernel cuts; and its records.

    The kernel starts a record while there is a byte left, counts it, and writes what fits
    (``ima_dump_measurement``).
    """
    whole = b"".join(piece for records in lists for piece in records.pieces(view))
    count = sum(map(len, lists))
    if segment is not None and len(whole) > segment - kexec_buffer.HEADER_SIZE:
        room = segment - kexec_buffer.HEADER_SIZE
        fitting, inside = _fitting(lists, view, segment)
        count = fitting + (inside > 0)
        whole = whole[:room]
    return kexec_buffer.encode(whole, count), count


def renamed(records: PackedList, view: View, layout: Layout, cache: ViewCache) -> PackedList:
    """``records`` as the next kernel restores them; itself where none changes.

    ``lookup_template_desc`` (ima_template.c) finds a template by its format too: a record whose
    custom format is a built-in template's is restored as one of that template and prints its
    name. ``d|n`` becomes ``ima``, whose template digests are other ones (7.3.4: recorded).
    ``view`` is the SHA-1 binary form.
    """
    odd = {label(records, view, index) for index, _ in records.odd()}
    if odd.isdisjoint(BY_FORMAT):
        return records
    hasher, found = Hasher(layout), PackedList(layout, cache)
    for piece in records.pieces(view):
        for parsed in Reader(piece, 20):
            record = _restored(parsed.record)
            found.append(record, hasher.digests(record), surplus(record.template.label))
    return found


def _restored(record: Record) -> Record:
    own = record.template
    template = BY_FORMAT.get(own.label)
    if template is None:
        return record
    return replace(record, template=template, data=template.join(own.split(record.data)))
