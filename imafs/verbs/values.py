# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Options of a request, as its handler takes them: :mod:`imafs.control.ops` has checked them."""

from __future__ import annotations

import os
from collections.abc import Mapping

Options = Mapping[str, object]
Answer = dict[str, object]


def text(options: Options, key: str, default: str | None = None) -> str:
    """A string; ``default`` for one that may be left out."""
    value = options.get(key, default)
    assert isinstance(value, str)
    return value


def raw(value: str) -> bytes:
    """The bytes that a name or a text came from."""
    return os.fsencode(value)


def number(options: Options, key: str) -> int | None:
    """An integer, None where it is left out."""
    value = options.get(key)
    assert value is None or isinstance(value, int)
    return value
