# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``ima_hash=``, ``ima_template=`` and ``ima_template_fmt=`` as Linux 7.2.13 took them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imafs.errors import FormatError
from imafs.kernel import commandline

#: One boot each: the command line, what the kernel said, and its first record.
BOOTS = [
    json.loads(line)
    for line in Path("tests/data/commandline-7.2.13.jsonl").read_text().splitlines()
]


def words(cmdline: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (word.partition("=") for word in cmdline.split())]


@pytest.mark.parametrize("boot", BOOTS, ids=[boot["cmdline"] for boot in BOOTS])
def test_as_a_kernel_took_it(boot: dict[str, str | list[str]]) -> None:
    cmdline, record = boot["cmdline"], boot["record"]
    assert isinstance(cmdline, str)
    assert isinstance(record, str)
    if boot["unknown"]:
        with pytest.raises(FormatError):
            commandline.settle(words(cmdline))
        return
    found = commandline.settle(words(cmdline))
    template, digest = record.split()[2:4]
    assert found.template.label == template
    assert found.algorithm.name == boot["allocated"]
    name, colon, _ = digest.partition(":")
    assert (name == found.algorithm.name) if colon else (len(digest) == 40)
    # The last line of a kernel without a fitting ima_hash= is about its default.
    assert len(found.said) == len(boot["said"])
    for line, kernels in zip(found.said, boot["said"], strict=True):
        assert line.startswith(kernels)
