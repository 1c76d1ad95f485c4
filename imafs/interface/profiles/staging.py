# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The staging series: Linux 7.2 and 7.3, and Roberto Sassu's drafts before it.

From "Add support for staging measurements for deletion" (9 Dec 2025) to v7 (5 Jun 2026),
which was merged; v6 is the same interface.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from imafs.interface.behaviour import (
    CARRIES_AT_LOAD,
    CARRIES_ONE,
    Check,
    Condition,
    Counted,
    Forget,
    Rules,
    staged_checks,
)
from imafs.interface.grammar import Operation, Staging
from imafs.interface.kstrtox import LONG_MAX, ULONG_MAX
from imafs.interface.profiles.model import (
    LINK,
    ORIGINAL,
    READ_ONLY,
    READ_ONLY_FREE,
    READ_ONLY_SINGLE,
    Bug,
    ListFiles,
    Profile,
    Source,
)

STAGE, DELETE_STAGED, DELETE_FIRST = (
    Operation.STAGE,
    Operation.DELETE_STAGED,
    Operation.DELETE_FIRST,
)
_EMPTY = Check(Condition.EMPTY, errno.ENOENT)
_TOO_MANY = Check(Condition.TOO_MANY, errno.ENOENT)
_STAGED = Check(Condition.STAGED, errno.EEXIST)
_NOTHING_STAGED = Check(Condition.NOTHING_STAGED, errno.ENOENT)

_WRITABLE = ListFiles(staged=False, name=ORIGINAL, mode=0o660, grammar=None, link=LINK)
_STAGED_FILES = ListFiles(
    staged=True, name=ORIGINAL + "_staged", mode=0o660, grammar=None, link=LINK + "_staged"
)

MAINLINE = Profile(
    name="mainline",
    aliases=("7.2", "7.3", "v7", "v6"),
    summary="Linux 7.2 on: A and D on _staged, N on the original files",
    origin="Jun 2026, merged",
    source=Source.RECORDED,
    # With CONFIG_IMA_STAGING=n too the originals are writable (observed on Debian's 7.3.4).
    current=replace(
        _WRITABLE,
        grammar=Staging("N", position=True, number=DELETE_FIRST),
    ),
    staged=replace(
        _STAGED_FILES,
        grammar=Staging("A, D", position=True, letters=((b"A", STAGE), (b"D", DELETE_STAGED))),
    ),
    same_writer=True,
    reader_limit=True,
    policy_release="7.3",
    option="CONFIG_IMA_STAGING",
)

#: After the copy for kexec only what was copied may not be deleted any more.
_V5_CHECKS = {
    STAGE: staged_checks(),
    DELETE_STAGED: (_NOTHING_STAGED, Check(Condition.STAGED_COPIED, errno.ESTALE)),
    DELETE_FIRST: (_EMPTY, _TOO_MANY, Check(Condition.CURRENT_COPIED, errno.ESTALE)),
}

V5 = Profile(
    name="v5",
    summary="A and N on the original files, D on _staged",
    origin="29 Apr 2026",
    source=Source.PORT,
    current=replace(
        _WRITABLE, grammar=Staging("A, N", letters=((b"A", STAGE),), number=DELETE_FIRST)
    ),
    staged=replace(_STAGED_FILES, grammar=Staging("D", letters=((b"D", DELETE_STAGED),))),
    rules=Rules(checks=_V5_CHECKS),
    option="CONFIG_IMA_STAGING",
    option_default=True,
)

V4 = Profile(
    name="v4",
    summary="A, D and N on _staged; N stages, deletes N and puts the rest back in one step",
    origin="26 Mar 2026",
    current=READ_ONLY,
    staged=replace(
        _STAGED_FILES,
        grammar=Staging(
            "A, D, N", letters=((b"A", STAGE), (b"D", DELETE_STAGED)), number=DELETE_FIRST
        ),
    ),
    rules=Rules(
        checks={
            STAGE: staged_checks(),
            DELETE_STAGED: (_NOTHING_STAGED, Check(Condition.STAGED_COPIED, errno.ESTALE)),
            DELETE_FIRST: (_STAGED, _EMPTY, _TOO_MANY),
        }
    ),
    option="CONFIG_IMA_STAGING",
    option_default=True,
)

_V3_RULES = Rules(
    checks={
        STAGE: staged_checks(),
        DELETE_STAGED: (_NOTHING_STAGED, Check(Condition.TOO_MANY_STAGED, errno.ENOENT)),
    }
)

V3 = Profile(
    name="v3",
    summary="A, D and N on _staged; N deletes the first N staged, the rest goes back",
    origin="11 Mar 2026",
    current=READ_ONLY,
    staged=replace(
        _STAGED_FILES,
        grammar=Staging(
            "A, D, N",
            letters=((b"A", STAGE), (b"D", DELETE_STAGED)),
            number=DELETE_STAGED,
            largest=ULONG_MAX - 1,
        ),
    ),
    rules=_V3_RULES,
    bugs=(
        Bug(
            "records measured between A and the deletion are counted twice after it",
            "runtime_measurements_count is the length of the current list",
        ),
    ),
    draft_rules=replace(_V3_RULES, double_count=True),
    # One size counts both lists.
    kexec=CARRIES_ONE,
)

#: Staging in the first drafts takes records out of the hash table, if ima_flush_htable.
_RFC_RULES = Rules(
    checks={
        STAGE: staged_checks(_TOO_MANY),
        DELETE_STAGED: (_NOTHING_STAGED,),
        DELETE_FIRST: (_STAGED, _EMPTY, _TOO_MANY),
    },
    forget_flush=Forget.REMOVED,
)
_RFC_FILES = ListFiles(
    staged=True,
    name="{form}_runtime_measurements_staged_{bank}",
    mode=0o660,
    grammar=None,
    link=LINK + "_staged",
    empty=errno.ENOENT,
)

#: The staged list is forgotten.
_CURRENT_ONLY = replace(CARRIES_ONE, staged=False)

RFC_V2 = Profile(
    name="rfc-v2",
    summary="A, D, N (stage N) and -N (trim N) on _staged_ALG",
    origin="12 Dec 2025",
    current=READ_ONLY,
    staged=replace(
        _RFC_FILES,
        grammar=Staging(
            "A, D, N, -N",
            letters=((b"A", STAGE), (b"D", DELETE_STAGED)),
            number=STAGE,
            minus=DELETE_FIRST,
            base=0,
            number_with_flush=True,
            largest=LONG_MAX,
            too_large=errno.EINVAL,
            everything=LONG_MAX,
        ),
    ),
    rules=_RFC_RULES,
    kexec=CARRIES_ONE,
    bugs=(
        Bug(
            "D sets the size of current and staged list together to 0: a kexec segment too small",
            "the segment fits",
            played=False,
        ),
    ),
)

RFC_V1 = Profile(
    name="rfc-v1",
    summary="A, D and N (stage N) on _staged_ALG",
    origin="9 Dec 2025",
    current=READ_ONLY,
    staged=replace(
        _RFC_FILES,
        grammar=Staging(
            "A, D, N",
            letters=((b"A", STAGE), (b"D", DELETE_STAGED)),
            number=STAGE,
            base=0,
            number_with_flush=True,
            zero=True,
            everything=ULONG_MAX,
            newline=False,
        ),
    ),
    rules=replace(
        _RFC_RULES,
        checks={
            STAGE: staged_checks(_TOO_MANY, Check(Condition.NONE_ASKED, errno.ENOENT)),
            DELETE_STAGED: (_NOTHING_STAGED,),
        },
    ),
    kexec=_CURRENT_ONLY,
    bugs=(
        Bug(
            "a number without a newline is read from an uninitialised buffer",
            "the number ends where the request ends",
            played=False,
        ),
    ),
)

SNAP = Profile(
    name="snap",
    summary="0 takes a snapshot, 1 deletes it, on _snap_ALG",
    origin="Nov 2025, prototype",
    current=READ_ONLY,
    staged=replace(
        _RFC_FILES,
        name="{form}_runtime_measurements_snap_{bank}",
        link=LINK + "_snap",
        grammar=Staging("0, 1", longest=2, letters=((b"0", STAGE), (b"1", DELETE_STAGED))),
    ),
    rules=Rules(
        checks={STAGE: staged_checks(), DELETE_STAGED: (_NOTHING_STAGED,)},
        forget_flush=Forget.REMOVED,
        counted=Counted.SINCE_BOOT,
    ),
    kexec=_CURRENT_ONLY,
)

LEGACY = Profile(
    name="legacy",
    aliases=("7.1",),
    summary="before 7.2: nothing can be written, opens are not counted",
    origin="Linux 7.1",
    source=Source.RECORDED,
    current=READ_ONLY_FREE,
    flush_htable=False,
    kexec=CARRIES_ONE,
)

LEGACY_SINGLE = Profile(
    name="legacy-single",
    aliases=("6.1",),
    summary="before 6.10: as legacy, one SHA-1 file per form and no links",
    origin="Linux 6.1",
    source=Source.RECORDED,
    current=READ_ONLY_SINGLE,
    policy_mode=0o200,
    flush_htable=False,
    kexec=CARRIES_AT_LOAD,
)
