# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Position against both file positions: the kernel's, and FUSE's, which writes move.

FUSE moves ``f_pos`` by what it read or wrote and sends it as the offset; the IMA files
of a kernel never move it on a write. lseek reaches no daemon. Outside of what can be
told apart (and outside of this test): pread and lseek to exactly the offset that the
daemon takes for the next sequential one after a write, SEEK_CUR after a write, and
O_APPEND, whose offsets are file sizes, after lseek.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imafs.fuse.position import Position


@dataclass
class File:
    """One descriptor: both positions, and the daemon's Position between them."""

    size: int
    append: bool = False
    fuse: int = 0
    kernel: int = 0
    #: Where FUSE stood after the last operation that came from an unmoved descriptor.
    expected_next: int = 0
    sought: bool = False

    def __post_init__(self) -> None:
        self.position = Position()

    def read(self, size: int) -> None:
        real = self.position.at_read(self.fuse)
        assert real == self.kernel
        count = max(0, min(size, self.size - real))
        self.position.after_read(self.fuse, real, count)
        self.fuse += count
        self.kernel += count
        self._followed()

    def write(self, size: int, *, refused: bool) -> None:
        offset = self.size if self.append else self.fuse
        real = self.position.at_write(offset, append=self.append)
        assert real == self.kernel
        if refused:  # neither side moves
            return
        self.position.after_write(offset, real, size)
        self.fuse = offset + size
        self.sought = False
        self._followed()

    def lseek(self, to: int) -> None:
        self.fuse = self.kernel = to
        self.sought = True

    def _followed(self) -> None:
        if not self.sought:
            self.expected_next = self.fuse

    @property
    def skewed(self) -> bool:
        return self.fuse != self.kernel


steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.one_of(st.integers(1, 5), st.integers(1, 200))),
        st.tuples(st.just("write"), st.integers(2, 21)),
        st.tuples(st.just("refused"), st.integers(0, 30)),
        st.tuples(st.just("lseek"), st.one_of(st.just(0), st.integers(0, 40))),
    ),
    max_size=30,
)


@given(steps, st.integers(0, 120))
def test_reads_happen_where_a_kernel_would_read(steps: list[tuple[str, int]], size: int) -> None:
    file = File(size)
    written = False
    for what, number in steps:
        if what == "read":
            file.read(number)
        elif what == "lseek":
            # Not where the daemon expects the next sequential offset.
            assume(not written or number != file.expected_next)
            file.lseek(number)
        else:
            file.write(number, refused=what == "refused")
            written = written or what == "write"


@given(steps, st.integers(0, 120))
def test_with_o_append(steps: list[tuple[str, int]], size: int) -> None:
    file = File(size, append=True)
    for what, number in steps:
        if what == "read":
            file.read(number)
        elif what != "lseek":
            file.write(number, refused=what == "refused")


def test_stage_and_read_on_one_descriptor() -> None:
    # exec 3<>staged; echo A >&3; cat <&3; echo D >&3 (measured)
    file = File(100)
    file.write(2, refused=False)
    file.read(60)
    file.read(60)
    assert file.kernel == 100
    file.write(2, refused=False)
    file.read(10)


def test_rewinding_reads_from_the_beginning_whatever_was_written() -> None:
    file = File(100)
    file.write(2, refused=False)
    file.lseek(0)
    for _ in range(10):  # passes through 2, which FUSE believes to be the beginning
        file.read(1)
    assert file.kernel == 10


def test_a_write_after_reading() -> None:
    file = File(100)
    file.read(20)
    file.write(2, refused=False)
    assert file.skewed
    file.read(7)
    assert file.kernel == 27


@pytest.mark.parametrize("size", [0, 1])
def test_end_of_file(size: int) -> None:
    file = File(size)
    file.write(2, refused=False)
    for _ in range(3):
        file.read(10)
    file.size = 10  # growth while a reader is at the end
    file.read(10)
    assert file.kernel == 10


def test_two_handles_have_positions_of_their_own() -> None:
    one, other = File(100), File(100)
    one.write(2, refused=False)
    other.read(10)
    one.read(10)
    other.read(10)
    assert (one.kernel, other.kernel) == (10, 20)
