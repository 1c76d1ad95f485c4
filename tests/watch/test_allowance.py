# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Nobody takes more time than is his."""

from __future__ import annotations

import pytest

from imafs.sources.watch.child import allowance
from imafs.sources.watch.child.allowance import MOST, ONE_USE, RATE, SAVED, Allowance


def test_what_is_saved_is_used_up_and_comes_back() -> None:
    made = Allowance()
    assert made.left(1, 0) == ONE_USE
    made.take(1, SAVED, 0)
    assert made.left(1, 0) == 0
    assert made.left(2, 0) == ONE_USE
    assert made.left(1, ONE_USE / RATE / 2) == pytest.approx(ONE_USE / 2)
    assert made.left(1, 1000) == ONE_USE
    made.take(1, SAVED, 1000)
    assert made.left(1, 1000) == 0


def test_debts_are_paid() -> None:
    made = Allowance()
    made.take(1, SAVED + RATE, 0)
    assert made.left(1, 0.5) < 0
    assert made.left(1, 1.5) > 0


def test_accounts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "MOST", 4)
    made = Allowance()
    for account in range(6):
        made.take(account, SAVED, 0)
    assert [made.left(account, 0) == 0 for account in range(6)] == [False] * 2 + [True] * 4
    assert MOST > 100
