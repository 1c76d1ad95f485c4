# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What is marked when points come, go, share a file system, or cannot be marked any more."""

from __future__ import annotations

import errno

import pytest

from imafs.sources.watch import messages
from imafs.sources.watch.child.marks import Marks


class Kernel:
    """Marks of whole file systems; ``on`` tells which one a path leads to, None: nowhere."""

    def __init__(self) -> None:
        self.on: dict[bytes, str | None] = {b"/a": "x", b"/b": "x", b"/c": "y", b"/f": "fuse"}
        self.refused: dict[str, int] = {"proc": errno.EINVAL}
        self.marked: set[str] = set()
        self.touched: list[bytes] = []
        #: What happens while something is unmarked.
        self.meanwhile: dict[bytes, str] = {}

    def _at(self, path: bytes) -> str | None:
        self.touched.append(path)
        return self.on.get(path)

    def mark(self, path: bytes) -> None:
        system = self._at(path)
        if system is None:
            raise FileNotFoundError(errno.ENOENT, "gone", path)
        if system in self.refused:
            raise OSError(self.refused[system], "refused", path)
        self.marked.add(system)

    def unmark(self, path: bytes) -> None:
        system = self._at(path)
        if system is not None:
            self.marked.discard(system)
        self.on.update(self.meanwhile)


class Watched:
    """Both groups, and what is asked of them; FUSE takes no mark of the second one."""

    def __init__(self) -> None:
        self.opens, self.moves = Kernel(), Kernel()
        self.moves.refused["fuse"] = errno.ENODEV
        self._marks = Marks(self.opens, self.moves)

    def change(
        self, *points: bytes, required: tuple[bytes, ...] = (), silent: tuple[bytes, ...] = ()
    ) -> tuple[int, dict[bytes, int]]:
        self.opens.touched.clear()
        message = messages.Watch(1, points, points, (), silent=silent, required=required)
        return self._marks.change(message)


@pytest.fixture
def watched() -> Watched:
    """``/a`` and ``/b``, on one file system, and ``/c`` on another."""
    made = Watched()
    assert made.change(b"/a", b"/b", b"/c", required=(b"/a", b"/b", b"/c")) == (0, {})
    assert made.opens.marked == {"x", "y"}
    return made


def test_one_of_two_goes(watched: Watched) -> None:
    assert watched.change(b"/b") == (0, {})
    assert watched.opens.marked == {"x"}


def test_fuse_below(watched: Watched) -> None:
    """The first mark of the two is taken back."""
    assert watched.change(b"/a", b"/b", b"/c", b"/f") == (0, {b"/f": errno.ENODEV})
    assert watched.opens.marked == {"x", "y"}


def test_covered_meanwhile(watched: Watched) -> None:
    watched.opens.meanwhile = {b"/b": "proc"}
    assert watched.change(b"/b", b"/c") == (0, {})
    # The table of mounts has changed: it is all told again.
    watched.opens.meanwhile = {}
    assert watched.change(b"/b", b"/c") == (0, {b"/b": errno.EINVAL})
    assert watched.opens.marked == {"y"}


def test_a_required_one_is_refused(watched: Watched) -> None:
    watched.opens.on[b"/d"] = watched.moves.on[b"/d"] = "z"
    asked = (b"/d", b"/f")
    answer = watched.change(b"/a", b"/b", b"/c", *asked, required=asked)
    assert answer == (errno.ENODEV, {b"/f": errno.ENODEV})
    assert watched.opens.marked == {"x", "y"}


def test_another_is_refused_while_a_marked_one_is_covered(watched: Watched) -> None:
    """The way back must not stumble over what was marked before."""
    watched.opens.on[b"/a"] = "proc"
    answer = watched.change(b"/a", b"/b", b"/c", b"/f", required=(b"/f",))
    assert answer == (errno.ENODEV, {b"/f": errno.ENODEV})
    assert watched.opens.marked == {"x", "y"}


def test_a_marked_one_is_covered_and_uncovered(watched: Watched) -> None:
    for system, code in (("proc", errno.EINVAL), ("fuse", errno.ENODEV)):
        watched.opens.on[b"/a"] = watched.moves.on[b"/a"] = system
        assert watched.change(b"/a", b"/c") == (0, {b"/a": code})
        assert "y" in watched.opens.marked
        assert "fuse" not in watched.opens.marked
        watched.opens.on[b"/a"] = watched.moves.on[b"/a"] = "x"
        assert watched.change(b"/a", b"/c") == (0, {})
        assert watched.opens.marked == {"x", "y"}


def test_one_that_is_gone(watched: Watched) -> None:
    watched.opens.on[b"/c"] = None
    assert watched.change(b"/a") == (0, {})
    assert watched.opens.marked >= {"x"}


def test_a_silent_one_is_not_touched(watched: Watched) -> None:
    """To look for its file system could keep the listener from answering."""
    assert watched.change(b"/a", b"/b", silent=(b"/c",)) == (0, {})
    assert b"/c" not in watched.opens.touched
    assert watched.opens.marked == {"x", "y"}
    assert watched.change(b"/a", b"/f", silent=(b"/c",), required=(b"/f",))[0]
    assert b"/c" not in watched.opens.touched
    assert watched.opens.marked == {"x", "y"}
    # When it answers again it is known that it is marked.
    assert watched.change(b"/a", b"/b") == (0, {})
    assert watched.opens.marked == {"x"}
