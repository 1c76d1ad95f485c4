# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Uses that should have been measured and were not: all are counted, few are told.

Anybody may cause as many of them as he likes; the log must neither keep silent nor fill up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from imafs.errors import ImafsError
from imafs.text import shown

#: Seconds between two lines for the same reason and user.
PAUSE = 10.0
#: Reasons and users that are told apart within that time.
MOST = 8
_FURTHER = "further reasons"


@dataclass(slots=True)
class _Reason:
    count: int = 0
    name: bytes = b""
    told: float = float("-inf")


class Missed:
    """``tell(count, name, why, uid)``: so many uses, the last one of ``name``; uid -1: unknown,
    or of several users."""

    def __init__(self, tell: Callable[[int, bytes, str, int], None]) -> None:
        self._tell = tell
        self._reasons: dict[tuple[str, int], _Reason] = {}
        #: Of all reasons, ever.
        self.total = 0

    def note(self, name: bytes, why: str, uid: int = -1) -> None:
        """One use; told by the next :meth:`flush` unless that reason was told just before."""
        self.total += 1
        key = (why, uid)
        if key not in self._reasons and len(self._reasons) >= MOST:
            key = (_FURTHER, -1)
        reason = self._reasons.setdefault(key, _Reason())
        reason.count += 1
        reason.name = name

    def flush(self) -> None:
        """Tells what is due."""
        if not self._reasons:
            return
        now = time.monotonic()
        for (why, uid), reason in list(self._reasons.items()):
            if now < reason.told + PAUSE:
                continue
            if not reason.count:
                del self._reasons[why, uid]
                continue
            count, reason.count, reason.told = reason.count, 0, now
            self._tell(count, reason.name, why, uid)


def line(count: int, name: bytes, why: str, uid: int) -> str:
    """The line in the log."""
    user = "" if uid < 0 else f", used by uid {uid}"
    what = shown(name) if count == 1 else f"{count} uses of files, the last one of {shown(name)}"
    return f"not measured: {what}{user}: {shown(why)}"


def reason(error: BaseException) -> str:
    """Why, of an error: few different ones, as they are told apart."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return f"{error}"[:200] if isinstance(error, ImafsError) else repr(error)[:200]
