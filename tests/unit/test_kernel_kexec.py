# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Formats that equal a built-in template's, after a kexec, as Linux restored them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from imafs.formats.algorithms import SHA256, bank_named
from imafs.formats.binary import Reader
from imafs.kernel import kexec
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View

CASES = [
    json.loads(line) for line in Path("tests/data/kexec-formats.jsonl").read_text().splitlines()
]


def queue() -> Queue:
    return Queue(Layout((bank_named("sha1"), bank_named("sha256")), SHA256))


@pytest.mark.parametrize("case", CASES, ids=[case["cmdline"] for case in CASES])
def test_a_restored_record_is_named_as_a_kernel_names_it(case: dict[str, str]) -> None:
    before, after = (base64.b64decode(case[name]) for name in ("before", "after"))
    old, new = queue(), queue()
    for parsed in Reader(before, 20):
        old.append(parsed.record)
    number = len(old.current)
    new.take_over(old, [old.current], number)
    view = new.sha1_view
    ours = b"".join(new.current.pieces(view))
    assert len(new.current) == number > 2
    assert ours == after[: len(ours)]
    records = [parsed.record for parsed in Reader(ours, 20)]
    assert new.full.size == sum(map(kexec.runtime_size, records))
    ascii_view = View(True, view.bank)
    lines = b"".join(new.current.pieces(ascii_view)).splitlines()
    assert {line.split()[2].decode() for line in lines} == {records[0].template.label}
