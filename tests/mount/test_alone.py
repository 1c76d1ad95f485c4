# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A test's own mount namespace is without the emulators of others, whatever they are called."""

from __future__ import annotations

import pytest

from tests.mount.daemon import ALONE, ALONE_BUT, Daemon
from tests.mount.fixtures import Starter
from tests.support import run

pytestmark = [pytest.mark.mount, pytest.mark.root]
_LEFT = "grep --fixed-strings ' - fuse.imafs ' /proc/self/mountinfo || true"


def named(start: Starter, name: str) -> Daemon:
    place = start.place()
    place.dir = place.base / name
    place.dir.mkdir()
    return start("--tpm", "none", place=place)


def left(script: str, keep: Daemon) -> str:
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", f"{script}\n{_LEFT}"]
    return run(words, env={"KEEP": str(keep.place.base)}).stdout


def test_nobody_else_is_seen(start: Starter) -> None:
    """Names that a shell would not take, a dead mount, and one below that nobody can name."""
    kept = named(start, "new\nline")
    for name in ("a blank", "it's", r"b\x20s"):
        named(start, name)
    dead = start("--tpm", "none")
    run(["mount", "--bind", kept.path("violations"), dead.path("violations")])
    dead.kill()
    assert left(ALONE, kept) == ""
    (line,) = left(ALONE_BUT, kept).splitlines()
    assert r"/new\012line" in line
