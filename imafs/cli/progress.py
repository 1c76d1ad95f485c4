# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A progress bar on a terminal; nothing anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_WIDTH = 40


@contextmanager
def bar(stream: TextIO) -> Iterator[Callable[[int, int], None]]:
    """Inside, call ``show(done, total)``; the line is left at the end."""
    shown = False

    def show(done: int, total: int) -> None:
        nonlocal shown
        if not stream.isatty():
            return
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        full = round(share * _WIDTH)
        stream.write(f"\r[{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%} {done}/{total}")
        stream.flush()
        shown = True

    try:
        yield show
    finally:
        if shown:
            stream.write("\n")
            stream.flush()
