# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What ``imafs keep`` says, and where it looks; keepers that run are in tests/keeper."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from imafs.cli import keep
from imafs.errors import ControlError, DegradedError, UsageError
from imafs.keeper import config, status
from imafs.keeper.status import ask

NOTHING: dict[str, object] = {
    **{"state": "waiting", "why": "somebody", "view": "refused", "refusal": "not looked at yet"},
    **{"life": None, "boot": "", "looked": None, "verified": None, "flush_htable": None},
    "records": {"total": 0, "stored": 0, "in_kernel": 0, "deleted": 0},
    **{"gaps": [], "alarms": {}, "last_error": None},
}


def test_status_before_there_is_a_life() -> None:
    assert keep._lines(NOTHING) == [
        "state     waiting: somebody",
        "view      refused: not looked at yet",
        "records   0: 0 stored, 0 not yet, 0 deleted in the kernel",
        "life      none yet",
    ]


def test_status_says_when_the_kernel_was_looked_at() -> None:
    """A keeper that is degraded looks for readers alone: the number may be old."""
    records = {"total": 5, "stored": 2, "in_kernel": 3, "deleted": 1}
    found = {**NOTHING, "life": 1, "boot": "b", "records": records, "looked": 0.0}
    (line,) = [line for line in keep._lines(found) if line.startswith("records")]
    assert line.startswith(
        "records   5: 2 stored, 3 not yet, 1 deleted in the kernel (looked at 19"
    )


def test_status_says_what_was_wrong_last() -> None:
    """The state has got well, and somebody asks why it was not."""
    error = {"text": "degraded: no room\n", "when": 0.0}
    found = {**NOTHING, "state": "idle", "why": None, "last_error": error}
    (line,) = [line for line in keep._lines(found) if line.startswith("error")]
    assert re.fullmatch(r"error     19\d\d-\S+ \S+, degraded: no room\\x0a", line)


def test_the_store_of_the_settings_is_the_one_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "keeper.toml"
    settings.write_text('[store]\npath = "/srv/records"\n')
    args = argparse.Namespace(store=None, config=None)
    monkeypatch.setattr(keep, "CONFIG", str(tmp_path / "none"))
    assert keep._store(args) == keep.STORE
    monkeypatch.setattr(keep, "CONFIG", str(settings))
    assert keep._store(args) == "/srv/records"
    assert keep._store(argparse.Namespace(store="/other", config=None)) == "/other"


def test_a_key_without_its_table(tmp_path: Path) -> None:
    settings = tmp_path / "keeper.toml"
    settings.write_text("records = 5\n")
    with pytest.raises(UsageError, match=r"line 1: .*'records' \(it belongs under \[stage\]\)"):
        config.read(str(settings))


def test_no_keeper(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"no keeper answers: No such file .* with --store"):
        ask(str(tmp_path), "status")


@pytest.mark.parametrize("seen", [[0, 9, 20], [0, 0], [7, 8, 8]], ids=str)
def test_flush_waits_as_long_as_more_is_stored_each_time(
    seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first list some pieces may come in what a reader waits."""
    looks = iter(seen)
    refusals: list[str] = []

    def asked(store: str, request: str) -> dict[str, object]:
        assert store == "/store"
        if request == "status":
            return {"records": {"stored": next(looks)}}
        if seen[-1] == 20 and len(refusals) == 2:
            return {"records": {"stored": 20}}
        refusals.append("joining: no look at the kernel was possible")
        raise DegradedError(refusals[-1])

    monkeypatch.setattr(status, "ask", asked)
    if seen[-1] == 20:
        assert status.flush("/store") == {"records": {"stored": 20}}
    else:
        with pytest.raises(DegradedError, match="joining"):
            status.flush("/store")
    assert next(looks, None) is None
    assert len(refusals) == len(seen) - 1
