# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The trim series: Steven Chen's ``ima_trim_log``, v1 (2 Dec 2025) to v5 (1 Apr 2026).

A write trims the first N records of the current list; reading tells how many. From v2 on
the lists and a writer of ``ima_trim_log`` share one counter, and a critical-data record
tells of each trim. v2, v3 and ``T:N`` were recorded from ports to Linux 7.3.4.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from imafs.interface.behaviour import (
    CARRIES_ONE,
    Check,
    Condition,
    Event,
    EventNumber,
    Forget,
    Rules,
)
from imafs.interface.grammar import Digits, Operation, Signed, Totalled
from imafs.interface.opens import Opening, Role
from imafs.interface.profiles.model import (
    READ_ONLY,
    READ_ONLY_FREE,
    Bug,
    Profile,
    RequestFile,
    Shown,
    Source,
)

#: Reading takes the capability too and is not counted; writing is the writer of v2 on.
_LOG_V1 = Opening(reading_needs_admin=True, writing_needs_admin=True)
_LOG = replace(_LOG_V1, writing=Role.WRITER)
_DIGITS = Digits("N, digits only: no newline, two digits at least")
_TOTAL = Totalled("T:N, T the records trimmed so far")

_FILE = RequestFile("ima_trim_log", 0o660, _DIGITS, opening=_LOG, shows=Shown.LAST_TRIM, room=11)
_FILE_TOTAL = replace(_FILE, grammar=_TOTAL, shows=Shown.TOTAL_TRIMMED, room=15)

_RULES = Rules(
    checks={Operation.DELETE_FIRST: (Check(Condition.TOO_MANY, errno.ENOENT),)},
    forget_flush=Forget.REMOVED,
)
_RULES_V2 = replace(_RULES, event=Event(b"time=%d; log trim this time=%d;", EventNumber.REMOVED))
_RULES_V3 = replace(_RULES, event=Event(b"time= %d; number= %d;", EventNumber.REMOVED))
_RULES_V4 = replace(_RULES, event=Event(b"time= %d; number= %d;", EventNumber.NEW_TOTAL))
_RULES_V5 = replace(_RULES, event=Event(b"time= %d; number= %d;", EventNumber.OLD_TOTAL))
_OPTION = "CONFIG_IMA_LOG_TRIMMING"

_CLOSE_BUG = Bug(
    "a process that drops CAP_SYS_ADMIN before it closes never gives the counter back",
    "the counter is given back",
    played=False,
)
_BUFFER_BUG = Bug(
    "the request is read from a buffer without a NUL at its end",
    "the request ends where it ends",
    played=False,
)

TRIM_V1 = Profile(
    name="trim-v1",
    summary="ima_trim_log: trims N records, or all where there are fewer; opens are not counted",
    origin="2 Dec 2025",
    current=READ_ONLY_FREE,
    requests=(replace(_FILE, opening=_LOG_V1),),
    kexec=CARRIES_ONE,
    rules=Rules(checks={}, forget=Forget.REMOVED, forget_flush=Forget.REMOVED),
    flush_htable=False,
)

TRIM_V2 = Profile(
    name="trim-v2",
    summary="ima_trim_log: trims N records; shared counter; a record tells of the trim",
    origin="10 Dec 2025",
    source=Source.PORT,
    current=READ_ONLY,
    requests=(_FILE,),
    kexec=CARRIES_ONE,
    rules=_RULES_V2,
    bugs=(_CLOSE_BUG,),
)

TRIM_V3 = Profile(
    name="trim-v3",
    summary="as trim-v2, with a newline; -N is answered with errno N",
    origin="5 Jan 2026",
    source=Source.PORT,
    current=READ_ONLY,
    requests=(replace(_FILE, grammar=Signed("N", negative_is_errno=True)),),
    kexec=CARRIES_ONE,
    rules=_RULES_V3,
    option=_OPTION,
    bugs=(
        _CLOSE_BUG,
        Bug(
            "trimmed records are freed while they are linked in the hash table: use after "
            "free, played as forgotten",
            "the hash table keeps them",
        ),
    ),
    draft_rules=replace(_RULES_V3, forget=Forget.REMOVED),
)

TRIM_V4 = Profile(
    name="trim-v4",
    summary="ima_trim_log takes T:N; the record tells the new total",
    origin="5 Feb 2026",
    source=Source.PORT,
    current=READ_ONLY,
    requests=(_FILE_TOTAL,),
    kexec=CARRIES_ONE,
    rules=_RULES_V4,
    option=_OPTION,
    bugs=(_CLOSE_BUG, _BUFFER_BUG),
)

TRIM_V5 = Profile(
    name="trim-v5",
    summary="as trim-v4; the record tells the total before the trim",
    origin="1 Apr 2026",
    source=Source.PORT,
    current=READ_ONLY,
    requests=(_FILE_TOTAL,),
    kexec=CARRIES_ONE,
    rules=_RULES_V5,
    option=_OPTION,
    bugs=(
        _CLOSE_BUG,
        _BUFFER_BUG,
        Bug(
            "with ima_flush_htable trimmed records are freed while they are linked",
            "they are unlinked first",
            played=False,
        ),
    ),
)
