# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``scripts/soak`` for a few seconds: it works, and says what it did."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT, run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def test_a_short_soak_ends_well_with_a_summary() -> None:
    done = run([ROOT / "scripts" / "soak", "0.1", "--seed", "1"], deadline=240)
    assert re.match(r"soak: well, 0\.1 minutes, seed 1: \d+ readers killed, ", done.stdout), done
    for words in (r"\b1 rounds", r"\d{2,} records", r"\d+ deletions", r"slowest status \d", "MiB"):
        assert re.search(words, done.stdout), done.stdout


def test_soak_without_minutes_is_a_usage_error() -> None:
    done = run([ROOT / "scripts" / "soak"], check=False)
    assert done.returncode == 2
    assert "usage: scripts/soak" in done.stderr
