# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which hooks of IMA an open or an execve passes."""

from __future__ import annotations

import os

import pytest

from imafs.sources.watch.child.hooks import executed, is_elf, opened, writes
from imafs.sources.watch.child.task import Way

MMAP = ("MMAP_CHECK", 1)


@pytest.mark.parametrize(
    ("flags", "mask"),
    [
        (os.O_RDONLY, 4),
        (os.O_WRONLY, 2),
        (os.O_RDWR, 6),
        (os.O_RDONLY | os.O_TRUNC, 6),
        (os.O_WRONLY | os.O_APPEND, 10),
        (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 2),
        (os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 4),
        (os.O_ACCMODE, 6),  # 3: neither read nor written, but both are checked
        (None, 4),  # the call does not tell
    ],
)
def test_masks(flags: int | None, mask: int) -> None:
    assert opened(Way(flags), created=False, elf=False) == (("FILE_CHECK", mask),)


def test_created_has_no_mask() -> None:
    way = Way(os.O_RDWR | os.O_CREAT)
    assert opened(way, created=True, elf=False) == (("FILE_CHECK", 0),)
    assert opened(way, created=False, elf=False) == (("FILE_CHECK", 6),)


def test_elf() -> None:
    assert opened(Way(os.O_RDONLY), created=False, elf=True) == (("FILE_CHECK", 4), MMAP)
    assert opened(Way(os.O_WRONLY), created=False, elf=True) == (("FILE_CHECK", 2),)
    assert is_elf(b"\x7fELF")
    assert not is_elf(b"\x7fEL")
    assert not is_elf(b"#!/bin/sh")


def test_executed() -> None:
    script = (("BPRM_CHECK", 1), ("CREDS_CHECK", 1))
    assert executed(elf=False) == script
    assert executed(elf=True) == (*script, MMAP)


@pytest.mark.parametrize(
    ("flags", "answer"),
    [(os.O_RDONLY | os.O_TRUNC, False), (os.O_WRONLY, True), (os.O_RDWR, True), (None, False)],
)
def test_writes(flags: int | None, answer: bool) -> None:
    assert writes(Way(flags)) is answer
