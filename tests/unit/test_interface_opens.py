# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One writer thread or many readers, over the whole directory (Linux 7.3 ima_fs.c:244-336)."""

from __future__ import annotations

import errno
import random
import sys

import pytest

from imafs.errors import Refused
from imafs.interface.opens import COUNTED, FREE, Accounting, Holder, Opening, Role


def refused(accounting: Accounting, tid: int, *, write: bool) -> int:
    with pytest.raises(Refused) as caught:
        accounting.open(tid, write=write)
    return caught.value.errno


def test_many_readers() -> None:
    accounting = Accounting()
    holders = [accounting.open(tid, write=False) for tid in (1, 1, 2, 0)]
    assert refused(accounting, 1, write=True) == errno.EBUSY
    for holder in holders[:-1]:
        accounting.release(holder)
        assert refused(accounting, 1, write=True) == errno.EBUSY
    accounting.release(holders[-1])
    accounting.open(1, write=True)


class Tid(int):
    """Counts how often anybody is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Tid.compared += 1
        return super().__eq__(other)

    __hash__ = int.__hash__


def test_the_last_of_many_readers_is_found_at_once() -> None:
    """A process of 10,000 open lists ended: half a minute in which nobody else was served."""
    accounting = Accounting()
    holders = [accounting.open(Tid(number), write=False) for number in range(1, 501)]
    for holder in reversed(holders):
        accounting.release(holder)
    assert Tid.compared <= 500
    accounting.open(1, write=True)


def test_one_writer_keeps_everybody_out_itself_included() -> None:
    accounting = Accounting()
    writer = accounting.open(7, write=True)
    assert refused(accounting, 8, write=True) == errno.EBUSY
    assert refused(accounting, 8, write=False) == errno.EBUSY
    # The writer's own O_RDONLY: EBUSY (recorded: "open g ... r -> EBUSY").
    assert refused(accounting, 7, write=False) == errno.EBUSY
    accounting.release(writer)
    accounting.open(8, write=False)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_writers_thread_opens_further_writers(order: tuple[int, ...]) -> None:
    accounting = Accounting()
    holders = [accounting.open(7, write=True) for _ in range(3)]
    for number in order:
        assert refused(accounting, 8, write=True) == errno.EBUSY
        assert refused(accounting, 7, write=False) == errno.EBUSY
        accounting.release(holders[number])
    accounting.open(8, write=True)


def test_another_thread_is_another_writer() -> None:
    accounting = Accounting()
    accounting.open(7, write=True)
    assert refused(accounting, 70, write=True) == errno.EBUSY


def test_threads_that_cannot_be_seen_are_never_the_same() -> None:
    # Thread id 0: a caller outside the daemon's pid namespace (measured).
    accounting = Accounting()
    accounting.open(0, write=True)
    assert refused(accounting, 0, write=True) == errno.EBUSY


def test_a_foreign_last_close_does_not_upset_the_counter() -> None:
    # The kernel's counter goes wrong when another task drops the last reference of a
    # second writer (observed); per handle it cannot.
    accounting = Accounting()
    first = accounting.open(7, write=True)
    second = accounting.open(7, write=True)
    accounting.release(second)
    assert refused(accounting, 8, write=False) == errno.EBUSY
    accounting.release(first)
    reader = accounting.open(8, write=False)
    accounting.release(reader)
    accounting.open(9, write=True)


def test_too_many_readers() -> None:
    accounting = Accounting(readers_max=2)
    holders = [accounting.open(1, write=False) for _ in range(2)]
    assert refused(accounting, 1, write=False) == errno.ENFILE
    assert refused(accounting, 1, write=True) == errno.EBUSY
    accounting.release(holders[0])
    accounting.open(1, write=False)


def test_the_kernels_limit_is_long_max() -> None:
    assert Accounting()._readers_max == sys.maxsize == (1 << 63) - 1


def test_the_holder_is_named() -> None:
    accounting = Accounting()
    accounting.open(4711, write=True)
    with pytest.raises(Refused, match="4711"):
        accounting.open(1, write=False)


def test_against_the_kernels_counter() -> None:
    # users > 0: readers; 0: free; -1: one writer thread, extra_writes more of its files.
    choose = random.Random(1)
    accounting = Accounting(readers_max=4)
    users, writer, extra = 0, None, 0
    held: list[Holder] = []
    for _ in range(20000):
        tid, write = choose.randrange(1, 4), choose.random() < 0.5
        if held and choose.random() < 0.5:
            holder = held.pop(choose.randrange(len(held)))
            accounting.release(holder)
            if holder.write and extra:
                extra -= 1
            elif holder.write:
                users, writer = users + 1, None
            else:
                users -= 1
            continue
        code = 0
        if not write and users == 4:
            code = errno.ENFILE
        elif write and writer == tid:
            extra += 1
        elif (write and users) or (not write and users < 0):
            code = errno.EBUSY
        elif write:
            users, writer = users - 1, tid
        else:
            users += 1
        if code:
            assert refused(accounting, tid, write=write) == code
        else:
            held.append(accounting.open(tid, write=write))


def test_before_7_2_the_writers_thread_gets_ebusy_and_nobody_enfile() -> None:
    # Recorded of v5 and the trim series: w2 EBUSY.
    accounting = Accounting(None, same_writer=False)
    writer = accounting.open(7, write=True)
    assert refused(accounting, 7, write=True) == errno.EBUSY
    accounting.release(writer)
    for _ in range(9):
        accounting.open(1, write=False)


def test_openings_are_data() -> None:
    trim_log = Opening(None, Role.WRITER, reading_needs_admin=True, writing_needs_admin=True)
    assert trim_log.role(write=False) is None
    assert trim_log.role(write=True) is Role.WRITER
    assert trim_log.needs_admin(write=False)
    assert COUNTED.role(write=False) is Role.READER
    assert (COUNTED.needs_admin(write=False), COUNTED.needs_admin(write=True)) == (False, True)
    assert FREE.role(write=True) is None
