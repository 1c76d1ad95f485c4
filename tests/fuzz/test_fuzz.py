# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A minute of scripts/fuzz, nightly."""

from __future__ import annotations

import pytest

from tests.support import ROOT, run


@pytest.mark.nightly
def test_a_minute_of_fuzzing_finds_nothing() -> None:
    done = run([ROOT / "scripts" / "fuzz", "60"], deadline=400)
    assert "Done" in done.stderr
