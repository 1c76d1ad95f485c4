# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Whether IMA measures the view: what a policy says of FUSE files."""

from __future__ import annotations

import pytest

from imafs.keeper.source import measures_view

_TCB = """dont_measure fsmagic=0x9fa0
measure func=MMAP_CHECK mask=MAY_EXEC
measure func=BPRM_CHECK mask=MAY_EXEC
measure func=FILE_CHECK mask=^MAY_READ euid=0
measure func=FILE_CHECK mask=^MAY_READ uid=0
"""
_RULE = "dont_measure func=FILE_CHECK fsname=fuse fs_subtype=imafs\n"


@pytest.mark.parametrize(
    ("policy", "answer"),
    [
        (_TCB, "yes"),
        (_RULE + _TCB, "no"),
        (_TCB + _RULE, "yes"),
        ("dont_measure fsmagic=0x65735546\n" + _TCB, "no"),
        ("dont_measure fsname=fuse fs_subtype=other\n" + _TCB, "yes"),
        ("dont_measure func=FILE_CHECK fsname=fuse uid=1000\n" + _TCB, "yes"),
        ("measure func=BPRM_CHECK\nappraise func=FILE_CHECK\n", "no"),
        ("measure func=FILE_CHECK fsname=ext4\n", "no"),
        ("measure\n", "yes"),
        ("", "unknown"),
    ],
)
def test_first_rule_on_fuse_files_decides(policy: str, answer: str) -> None:
    assert measures_view(policy) == answer
