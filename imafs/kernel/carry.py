# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A queue's lists at a kexec, by the functions of :mod:`imafs.kernel.kexec`."""

from __future__ import annotations

from imafs.formats.binary import Record
from imafs.interface.behaviour import KexecRules
from imafs.kernel import kexec
from imafs.kernel.kexec import Crossing, Image
from imafs.kernel.queue import Queue
from imafs.lists.packed import PackedList


def carried(queue: Queue, rules: KexecRules, image: Image | None = None) -> list[PackedList]:
    """The lists that are carried, in order (ima_kexec.c:107-125): of now, or of the load."""
    if image is not None and image.lists is not None:
        return list(image.lists)
    return [queue.staged, queue.current] if rules.staged else [queue.current]


def image(queue: Queue, rules: KexecRules, extra: int) -> Image:
    """The image of a load: it reserves a segment now, and copies lists where this kernel does."""
    size = kexec.segment_size(runtime_size(queue), headers=rules.headers, extra=extra)
    if not rules.at_load:
        return Image(size)
    copies = tuple(one.copy() for one in carried(queue, rules))
    return Image(size, copies, queue.full.records)


def runtime_size(queue: Queue) -> int:
    """Bytes of both lists as the kernel counts them (BINARY and BINARY_STAGED)."""
    return sum(kexec.counted(one, queue.sha1_view) for one in (queue.staged, queue.current))


def crossing(queue: Queue, image: Image, rules: KexecRules, more: Record | None = None) -> Crossing:
    """The crossing of this moment, or once ``more`` is in the current list too."""
    lists = carried(queue, rules, image)
    later = 0 if more is None else 1
    if image.lists is not None:
        found = kexec.crossing(lists, queue.sha1_view, image.segment_size)
        left = queue.full.records + later - image.records
        reason = "this kernel copies its list at load"
    else:
        found = kexec.crossing(lists, queue.sha1_view, image.segment_size, more)
        left = len(queue.staged) + len(queue.current) + later - found.records
        reason = "this kernel does not carry staged records"
    if not left:
        return found
    why = "; ".join(filter(None, (found.why, reason)))
    return Crossing(found.records + left, found.carried, why)


def buffer(queue: Queue, rules: KexecRules, image: Image | None) -> tuple[bytes, int]:
    """The kexec buffer of this moment, cut at the segment's end, and its records."""
    segment = None if image is None else image.segment_size
    return kexec.buffer(carried(queue, rules, image), queue.sha1_view, segment)
