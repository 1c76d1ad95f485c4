# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""keeper.toml: what an administrator may set. Unknown keys are refused, with their line.

::

    [stage]
    records = 1000        # stage when the kernel has so many
    age = "60s"           # or when the oldest of them is so old
    on_read = true        # and whenever somebody reads the view
    mode = "auto"         # A and D where there are _staged files, else N

    [store]
    path = "/var/lib/imafs/keeper"
    segment = "16MiB"
    keep_free = "5%"      # of the file system; below that nothing is staged
    disk_full_action = "suspend"

    [view]
    group = "tss"
    on_gap = "refuse"     # or "serve"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imafs import disk
from imafs.errors import UsageError, nearest
from imafs.text import shown

_MOST = 1 << 20
#: Characters of a value in a message.
_LONGEST = 80
_AGE = re.compile(r"(\d{1,9})(ms|s|min|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_PERCENT = re.compile(r"(\d{1,2}(?:\.\d+)?)%")


@dataclass(frozen=True, slots=True)
class Config:
    """See the module; the values here are those of a missing file."""

    records: int = 1000
    age: float = 60.0
    on_read: bool = True
    path: str | None = None
    keep_free: float = 0.05
    group: str | None = None
    on_gap: str = "refuse"


def _records(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 20_000:
        raise ValueError("is no number from 1 to 20000")
    return value


def _age(value: object) -> float:
    found = _AGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('is no time such as "60s", "500ms", "5min", "1h"')
    return int(found[1]) * _SECONDS[found[2]]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _path(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("is no absolute path")
    return value


def _percent(value: object) -> float:
    found = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('is no share such as "5%"')
    return float(found[1]) / 100


def _name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError("is no name of a group")
    return value


def _only(word: str) -> Callable[[object], str]:
    """A key that has one value, so that files which name it go on to mean what they say."""

    def check(value: object) -> str:
        if value != word:
            raise ValueError(f'is not "{word}", all that there is')
        return word

    return check


def _on_gap(value: object) -> str:
    if value not in ("refuse", "serve"):
        raise ValueError('is neither "refuse" nor "serve"')
    return str(value)


_KEYS: dict[str, dict[str, Callable[[object], Any]]] = {
    "stage": {"records": _records, "age": _age, "on_read": _flag, "mode": _only("auto")},
    "store": {
        **{"path": _path, "keep_free": _percent},
        **{"segment": _only("16MiB"), "disk_full_action": _only("suspend")},
    },
    "view": {"group": _name, "on_gap": _on_gap},
}
#: Keys of one value.
_FIXED = ("mode", "segment", "disk_full_action")


def read(path: str) -> Config:
    """The file at ``path``. Raises :class:`UsageError` and :class:`FileError`."""
    data = disk.read_whole(path, _MOST)
    try:
        text = data.decode()
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits too
        raise UsageError(f"{path}: {error}") from None
    values: dict[str, Any] = {}
    for table, content in tables.items():
        keys = _KEYS.get(table)
        if keys is None or not isinstance(content, dict):
            home = next((name for name, own in _KEYS.items() if table in own), None)
            hint = nearest(table, _KEYS) if home is None else f" (it belongs under [{home}])"
            what = f"unknown table or key {table!r}{hint}"
            raise UsageError(f"{path}, line {_line(text, None, table)}: {what}")
        for key, value in content.items():
            where = f"{path}, line {_line(text, table, key)}"
            if key not in keys:
                raise UsageError(f"{where}: unknown key {key!r}{nearest(key, keys)}")
            try:
                found = keys[key](value)
                if key not in _FIXED:
                    values[key] = found
            except ValueError as error:
                raise UsageError(f"{where}: {key} = {_told(value)} {error}") from None
    return Config(**values)


def _told(value: object) -> str:
    try:
        return shown(repr(value), _LONGEST)
    except ValueError:  # a number of too many digits for Python
        return "a number"


def _line(text: str, table: str | None, key: str) -> int:
    """The line on which a key stands, or a table begins; the first one where it is hidden."""
    wanted = re.compile(rf"\s*(?:\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*(?:[]=.])")
    inside = table is None
    for number, line in enumerate(text.split("\n"), 1):
        if table is not None and re.match(rf"\s*\[+\s*[\"']?{re.escape(table)}\b", line):
            inside = True
            continue
        if inside and wanted.match(line):
            return number
    return 1
