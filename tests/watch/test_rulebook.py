# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The listener's policy: a long one is parsed a piece at a time."""

from __future__ import annotations

from imafs.kernel.policy.match import Access
from imafs.sources.watch.child.rulebook import Rulebook
from imafs.sources.watch.messages import DEFAULT_PCR


def use(uid: int) -> tuple[Access, ...]:
    return (Access("FILE_CHECK", 4, uid=uid),)


def test_a_piece_at_a_time() -> None:
    book = Rulebook()
    lines = [b"measure func=FILE_CHECK uid=%d" % uid for uid in range(20_000)]
    book.take(b"\n".join(lines) + b"\n", more=False)
    pieces = 0
    while not book.ready:
        book.proceed(0.001)
        pieces += 1
    assert pieces > 3
    assert book.pcrs(use(19_999)) == {DEFAULT_PCR: ""}
    assert book.pcrs(use(20_000)) == {}


def test_more_rules() -> None:
    """Behind the known ones, also while these are still being parsed."""
    book = Rulebook()
    book.take(b"dont_measure uid=1\n" * 1000, more=False)
    book.take(b"measure func=FILE_CHECK pcr=11\n", more=True)
    book.proceed(60)
    assert book.pcrs(use(1)) == {}
    assert book.pcrs(use(2)) == {11: ""}
    book.take(b"measure func=FILE_CHECK uid=1\n", more=False)
    book.proceed(60)
    assert book.pcrs(use(1)) == {DEFAULT_PCR: ""}
    assert book.pcrs(use(2)) == {}


def test_the_template_of_the_first_rule_for_a_pcr() -> None:
    """By its name, or by the format of ``ima_template_fmt=``, which the listener is told."""
    book = Rulebook()
    book.know("d-ng|n-ng|iuid")
    book.take(
        b"measure func=BPRM_CHECK template=ima-sig\n"
        b"measure func=MMAP_CHECK template=d-ng|n-ng|iuid\n"
        b"measure func=FILE_CHECK pcr=11 template=d-ng|n-ng\n",
        more=False,
    )
    book.proceed(60)
    executed = (Access("BPRM_CHECK", 1), Access("MMAP_CHECK", 1), Access("FILE_CHECK", 4))
    assert book.pcrs(executed) == {DEFAULT_PCR: "ima-sig", 11: "ima-ng"}
    assert book.pcrs(executed[1:2]) == {DEFAULT_PCR: "d-ng|n-ng|iuid"}
