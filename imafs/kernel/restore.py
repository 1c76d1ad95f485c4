# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the next kernel makes of a record whose custom format is a built-in template's.

Source: Linux 7.3 ima_template.c (``lookup_template_desc`` finds a template by its format too):
such a record is restored as one of the built-in template and prints its name. ``d|n`` becomes
``ima``, whose template digests are other ones (7.3.4: recorded).
"""

from __future__ import annotations

from dataclasses import replace

from imafs.formats.binary import Reader, Record
from imafs.formats.templates import BY_FORMAT
from imafs.kernel import kexec
from imafs.lists.banks import Hasher, Layout, View
from imafs.lists.packed import PackedList
from imafs.lists.segments import ViewCache


def renamed(records: PackedList, view: View, layout: Layout, cache: ViewCache) -> PackedList:
    """``records`` with the names of built-in templates; itself where there are none to give.

    ``view`` is the SHA-1 binary form.
    """
    custom = {kexec.label(records, view, index) for index, _ in records.odd()}
    if not any(label in BY_FORMAT for label in custom):
        return records
    hasher, found = Hasher(layout), PackedList(layout, cache)
    for piece in records.pieces(view):
        for parsed in Reader(piece, 20):
            record = _restored(parsed.record)
            surplus = kexec.surplus(record.template.label)
            found.append(record, hasher.digests(record), surplus)
    return found


def _restored(record: Record) -> Record:
    own = record.template
    template = BY_FORMAT.get(own.label)
    if template is None:
        return record
    return replace(record, template=template, data=template.join(own.split(record.data)))
