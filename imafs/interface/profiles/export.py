# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Janne Karhunen's export and flush (Dec 2019 to Aug 2020), and trimming by PCR values.

Nothing of these was recorded from a running kernel.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from imafs.interface.behaviour import CARRIES_AT_LOAD, CARRIES_ONE, Check, Condition, Forget, Rules
from imafs.interface.grammar import Operation, PathName, PcrSet, Signed
from imafs.interface.opens import FREE, Opening
from imafs.interface.profiles.model import (
    READ_ONLY_FREE,
    READ_ONLY_SINGLE,
    Bug,
    Export,
    Profile,
    RequestFile,
    Shown,
)

#: No open method: the capability is asked at the write.
_AT_WRITE = Opening(write_takes_admin=True)
_LIST_NAME = RequestFile("list_name", 0o200, PathName("/path"), opening=_AT_WRITE)
#: What is removed leaves the hash table too, always.
_RULES = Rules(checks={}, forget=Forget.REMOVED, forget_flush=Forget.REMOVED)

_PARTIAL = Bug(
    "a failure leaves a part of the list in the target file",
    "the target file is as it was",
    played=False,
)
_STUCK = Bug(
    "after one short write every later export fails", "every export is tried", played=False
)

EXPORT_2020 = Profile(
    name="export-2020",
    summary="list_name: each path written gets the whole ASCII list, which is freed",
    origin="8 Jan 2020, v2",
    current=READ_ONLY_SINGLE,
    requests=(_LIST_NAME,),
    rules=_RULES,
    flush_htable=False,
    kexec=CARRIES_AT_LOAD,
    export=Export(mode=0o600),
    bugs=(_PARTIAL,),
)

EXPORT_2019 = Profile(
    name="export-2019",
    summary="as export-2020, once there are more than 2000 records; then by itself too",
    origin="20 Dec 2019, v1",
    current=READ_ONLY_SINGLE,
    requests=(_LIST_NAME,),
    rules=_RULES,
    flush_htable=False,
    kexec=CARRIES_AT_LOAD,
    export=Export(mode=0o400, limit=2000, automatic=True, failure=errno.EPERM),
    bugs=(_PARTIAL, _STUCK),
)

EXPORT_RFC = Profile(
    name="export-rfc",
    summary="as export-2019, more than 5000 records; the first path stays, the file is new",
    origin="18 Dec 2019, RFC",
    current=READ_ONLY_SINGLE,
    requests=(replace(_LIST_NAME, mode=0o600),),
    rules=_RULES,
    flush_htable=False,
    kexec=CARRIES_AT_LOAD,
    export=Export(
        mode=0o400,
        limit=5000,
        automatic=True,
        exclusive=True,
        name_once=True,
        failure=errno.EPERM,
    ),
    bugs=(_PARTIAL, _STUCK),
)

_FLUSH_RULES = replace(
    _RULES, checks={Operation.DELETE_FIRST: (Check(Condition.TOO_MANY, errno.EINVAL),)}
)

FLUSH_2020 = Profile(
    name="flush-2020",
    summary="flush_measurements: deletes the first N records",
    origin="26 Aug 2020",
    current=READ_ONLY_SINGLE,
    requests=(
        RequestFile(
            "flush_measurements",
            0o200,
            Signed("N", shortest=1, longest=31, position=True, base=0, strip=True),
            opening=_AT_WRITE,
        ),
    ),
    rules=_FLUSH_RULES,
    flush_htable=False,
    kexec=CARRIES_AT_LOAD,
    bugs=(
        Bug(
            "N+1 records are deleted, and the write returns the loop's counter",
            "N are, and it returns the bytes",
        ),
        Bug("a negative N deletes nothing and returns 1", "EINVAL", played=False),
    ),
    draft_rules=replace(_FLUSH_RULES, off_by_one=True),
)

#: configfs' own directory: in the mount, beside the IMA directory of --layout securityfs.
_CONFIGFS = "config/ima"

PCRS_2025 = Profile(
    name="pcrs-2025",
    summary="config/ima/pcrs: deletes the records that lead to the PCR values written",
    origin="19 Nov 2025",
    current=READ_ONLY_FREE,
    requests=(
        RequestFile(
            "pcrs",
            0o644,
            PcrSet("pcrNN:ALG:DIGEST of every PCR, raw digests"),
            opening=FREE,
            shows=Shown.PCRS,
            directory=_CONFIGFS,
            needs_tpm=True,
        ),
        RequestFile(
            "pcrs_ascii",
            0o444,
            None,
            opening=FREE,
            shows=Shown.PCRS_ASCII,
            directory=_CONFIGFS,
            needs_tpm=True,
        ),
    ),
    rules=_RULES,
    flush_htable=False,
    kexec=CARRIES_ONE,
    option="CONFIG_IMA_PCRS",
)
