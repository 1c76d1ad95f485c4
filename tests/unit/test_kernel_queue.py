# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The queue: the kernel's order of checks, its hash table's rules, its counts."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from imafs.errors import Refused
from imafs.formats.algorithms import by_name
from imafs.interface.behaviour import MAINLINE
from imafs.interface.profiles import lookup
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout, View
from imafs.lists.packed import PackedList
from tests.property.builders import banks, record
from tests.property.reference import Rec, binary_list, ng, u32, violation

BINARY = View(False, 0)
A, B, C = ng(10, b"/a"), ng(10, b"/b"), ng(10, b"/c")


def queue(*recs: Rec, **options: bool) -> Queue:
    made = Queue(Layout(banks("sha1", "sha256")), MAINLINE, **options)
    for rec in recs:
        made.append(record(rec))
    return made


def code(call: Callable[[], object]) -> int:
    """0, or the errno of the refusal."""
    try:
        call()
    except Refused as refused:
        return refused.errno
    return 0


def content(records: PackedList) -> bytes:
    out = b""
    for index in range(len(records)):
        found = records.run(BINARY, index)
        assert found is not None
        run, at = found
        out += run.data[run.offsets[at] : run.offsets[at + 1]]
    return out


def suspended(made: Queue) -> Queue:
    made.suspended = True
    return made


def staged(*recs: Rec, **options: bool) -> Queue:
    made = queue(*recs, **options)
    made.stage()
    return made


# Requests, checks in the order of ima_queue.c:311-468


def test_stage_checks() -> None:
    assert code(queue().stage) == errno.ENOENT
    assert code(queue(A).stage) == 0
    assert code(staged(A).stage) == errno.EEXIST  # although current is empty too
    assert code(suspended(staged(A)).stage) == errno.EEXIST
    assert code(suspended(queue()).stage) == errno.ENOENT
    assert code(suspended(queue(A)).stage) == errno.EACCES


def test_delete_staged_checks() -> None:
    assert code(queue().delete_staged) == errno.ENOENT
    assert code(queue(A).delete_staged) == errno.ENOENT
    assert code(suspended(queue(A)).delete_staged) == errno.ENOENT
    assert code(suspended(staged(A)).delete_staged) == errno.ESTALE
    assert code(staged(A).delete_staged) == 0


def test_delete_first_checks() -> None:
    assert code(lambda: queue().delete_first(1)) == errno.ENOENT
    assert code(lambda: queue(A).delete_first(2)) == errno.ENOENT
    assert code(lambda: queue(A).delete_first((1 << 64) - 1)) == errno.ENOENT
    assert code(lambda: suspended(queue(A)).delete_first(2)) == errno.ENOENT
    assert code(lambda: suspended(queue(A)).delete_first(1)) == errno.ESTALE
    assert code(lambda: queue(A).delete_first(1)) == 0


def test_a_refused_request_changes_nothing() -> None:
    made = suspended(queue(A, B))
    generation = made.generation
    assert code(made.stage) == errno.EACCES
    assert code(lambda: made.delete_first(1)) == errno.ESTALE
    made.suspended = False
    assert code(lambda: made.delete_first(3)) == errno.ENOENT
    assert content(made.current) == binary_list([A, B], "sha1")
    assert made.generation == generation
    assert made.totals.deleted == 0


def test_stage_moves_everything() -> None:
    made = staged(A, B)
    assert (len(made.current), len(made.staged)) == (0, 2)
    assert content(made.staged) == binary_list([A, B], "sha1")
    made.append(record(C))
    assert content(made.current) == binary_list([C], "sha1")
    assert content(made.staged) == binary_list([A, B], "sha1")


def test_delete_first_touches_the_current_list_only() -> None:
    made = staged(A)
    made.append(record(B))
    made.append(record(C))
    made.delete_first(1)
    assert content(made.current) == binary_list([C], "sha1")
    assert content(made.staged) == binary_list([A], "sha1")
    made.delete_staged()
    assert len(made.staged) == 0
    assert content(made.current) == binary_list([C], "sha1")
    assert made.totals.deleted == 2


def test_delete_staged_says_how_many() -> None:
    assert staged(A, B, C).delete_staged() == 3


def test_stage_delete_stage_again() -> None:
    made = staged(A)
    made.append(record(B))
    made.delete_staged()
    made.stage()
    assert content(made.staged) == binary_list([B], "sha1")
    made.delete_staged()
    assert code(made.stage) == errno.ENOENT


# Adding


def test_measuring_while_suspended_fails() -> None:
    made = suspended(queue(A))
    assert code(lambda: made.append(record(B))) == errno.ENODEV
    assert len(made.current) == 1
    made.suspended = False
    assert code(lambda: made.append(record(B))) == 0


def test_a_violation_is_counted_before_anything_can_fail() -> None:
    # ima_api.c:149
    made = suspended(queue())
    assert code(lambda: made.append(record(violation(10, b"/v")))) == errno.ENODEV
    assert made.violations == 1


def test_violations_are_never_duplicates_and_never_uncounted() -> None:
    made = queue(violation(10, b"/v"), violation(10, b"/v"))
    assert len(made.current) == made.violations == 2
    made.stage()
    made.delete_staged()
    made.append(record(violation(10, b"/v")))
    assert (len(made.current), made.violations) == (1, 3)


def test_numbers_since_boot() -> None:
    made = queue()
    assert [made.append(record(rec)) for rec in (A, B)] == [1, 2]
    made.delete_first(2)
    assert made.append(record(C)) == 3
    assert made.totals.added == 3


# The hash table


def duplicate(made: Queue, rec: Rec) -> bool:
    before = made.totals.duplicates
    answer = code(lambda: made.append(record(rec)))
    assert answer in (0, errno.EEXIST)
    assert made.totals.duplicates - before == (answer == errno.EEXIST)
    return answer == errno.EEXIST


def test_by_default_a_record_is_never_measured_twice() -> None:
    made = queue(A, B)
    assert duplicate(made, A)
    made.stage()
    assert duplicate(made, A)
    made.delete_staged()
    assert duplicate(made, A)
    made.append(record(C))
    made.delete_first(1)
    assert duplicate(made, C)
    assert len(made.current) == 0


def test_flush_forgets_everything_at_d() -> None:
    made = queue(A, flush_htable=True)
    made.stage()
    assert duplicate(made, A)  # not between A and D
    made.append(record(B))
    made.delete_staged()
    assert not duplicate(made, A)
    # Records still in the current list are forgotten too (observed on 7.3.4).
    assert not duplicate(made, B)
    assert content(made.current) == binary_list([B, A, B], "sha1")
    assert duplicate(made, A)
    assert duplicate(made, B)


def test_without_a_table_nothing_is_a_duplicate() -> None:
    made = queue(A, A, disable_htable=True)
    assert len(made.current) == 2
    made.stage()
    made.append(record(A))
    made.delete_staged()
    assert not duplicate(made, A)


def test_flush_without_a_table_is_ignored() -> None:
    # ima_queue.c:27-37 ("Hash table not enabled, ignoring request to flush"): N is taken.
    assert not queue(flush_htable=True, disable_htable=True).flush_htable
    assert queue(flush_htable=True).flush_htable


def test_the_same_data_for_another_pcr_is_another_record() -> None:
    made = queue(A)
    assert not duplicate(made, ng(11, b"/a"))
    assert duplicate(made, ng(11, b"/a"))


@pytest.mark.parametrize("default", ["md5", "sha1", "sha256", "sha512"])
def test_the_table_is_keyed_by_the_default_hash(default: str) -> None:
    made = Queue(Layout(banks("sha256"), by_name(default)))
    made.append(record(A))
    assert duplicate(made, A)
    assert not duplicate(made, B)


def test_a_loaded_list_keeps_its_duplicates() -> None:
    made = queue()
    for rec in (A, A, B):
        made.append(record(rec), loaded=True)
    assert content(made.current) == binary_list([A, A, B], "sha1")
    assert duplicate(made, B)


# The extend queue


def entry(rec: Rec) -> bytes:
    if rec.violation:
        return u32(rec.pcr) + b"\xff" * 52
    return u32(rec.pcr) + rec.digest("sha1") + rec.digest("sha256")


def test_the_order_of_extends_is_the_order_of_the_list() -> None:
    recs = [A, violation(10, b"/v"), ng(11, b"/a"), B]
    made = queue(*recs)
    assert made.pending == 4
    assert made.pending_extends(99) == b"".join(map(entry, recs))
    assert made.pending_extends(2) == entry(A) + entry(recs[1])
    made.confirm_extends(3)
    assert made.pending_extends(99) == entry(B)
    assert (made.pending, made.totals.extended) == (1, 3)


def test_deleted_records_are_extended_all_the_same() -> None:
    made = staged(A, B)
    made.delete_staged()
    made.append(record(C))
    made.delete_first(1)
    assert made.pending_extends(99) == entry(A) + entry(B) + entry(C)


def test_duplicates_are_not_extended() -> None:
    made = queue(A)
    assert duplicate(made, A)
    assert made.pending == 1


def test_without_a_tpm_nothing_waits_for_one() -> None:
    made = Queue(Layout(()))
    made.append(record(A))
    assert (made.pending, made.totals.extended, len(made.current)) == (0, 1, 1)


# Looking and freeing


def test_newest() -> None:
    made = queue()
    assert made.newest() is None
    for rec in (A, B):
        made.append(record(rec))
    assert made.newest() == B.binary(B.digest("sha1"))
    made.stage()
    assert made.newest() == B.binary(B.digest("sha1"))
    made.append(record(C))
    assert made.newest() == C.binary(C.digest("sha1"))
    made.delete_first(1)
    made.delete_staged()
    assert made.newest() is None


def test_freeing_goes_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imafs.lists.packed.SEGMENT", 2)
    made = queue(*(ng(10, b"/%d" % number) for number in range(20)), flush_htable=True)
    made.stage()
    made.delete_staged()
    rounds = 1
    while made.collect(4):
        rounds += 1
    assert rounds == 3  # ten segments and a hash table
    assert not made.collect()


# A TPM that is far behind


def test_the_extend_queue_is_bounded() -> None:
    made = Queue(Layout(banks("sha1", "sha256")), pending_limit=2)
    for rec in (A, B):
        made.append(record(rec))
    assert code(lambda: made.append(record(C))) == errno.ENOBUFS
    assert (len(made.current), made.pending) == (2, 2)
    assert duplicate(made, A), "nothing would be extended for it"
    assert code(lambda: made.append(record(violation(10, b"/v")))) == errno.ENOBUFS
    # A refused record was not seen: it can be measured later.
    made.confirm_extends(1)
    assert code(lambda: made.append(record(C))) == 0
    assert code(lambda: made.append(record(ng(10, b"/d")), loaded=True)) == 0


def test_without_a_tpm_no_bound_applies() -> None:
    made = Queue(Layout(()), pending_limit=1)
    for rec in (A, B, C):
        made.append(record(rec))
    assert len(made.current) == 3


def test_a_restored_record_that_is_trimmed_does_not_unlink_its_twin() -> None:
    """Kexec restores records without the hash table, so the same may be measured once more."""
    rules = lookup("trim-v1").rules
    layout = Layout(banks("sha1", "sha256"))
    old, new = Queue(layout, rules), Queue(layout, rules)
    for rec in (A, B):
        old.append(record(rec))
    new.take_over(old, [old.current], 2)
    new.append(record(A))
    assert code(lambda: new.append(record(A))) == errno.EEXIST
    assert new.delete_first(1) == 1
    assert code(lambda: new.append(record(A))) == errno.EEXIST, "the second A is in the table"
    assert new.delete_first(2) == 2
    assert code(lambda: new.append(record(A))) == 0


@pytest.mark.parametrize("number", [0, 7, 20])
def test_what_does_not_reach_the_next_kernel_is_freed_in_slices(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("imafs.lists.packed.SEGMENT", 2)
    old = queue(*(ng(10, b"/%d" % n) for n in range(12)))
    old.stage()
    for n in range(12, 20):
        old.append(record(ng(10, b"/%d" % n)))
    everything = [*old.staged.segments, *old.current.segments]
    new = queue()
    new.take_over(old, [old.staged.copy(), old.current.copy()], number)
    # Carried, or waiting for their turn: no segment was dropped, none twice.
    kept, freed = list(new.current.segments), [s for s in new._garbage if s in everything]
    left = [segment for segment in everything if segment not in kept]
    assert len(new.current) == number
    assert sorted(s.serial for s in left) == sorted(s.serial for s in freed)
    slices = 1
    while new.collect(1):
        slices += 1
    assert slices > len(left)
    assert content(new.current) == binary_list([ng(10, b"/%d" % n) for n in range(number)], "sha1")
