# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""How much the property tests try: HYPOTHESIS_PROFILE=quick (default), ci or nightly.

scripts/test --nightly takes ci. A state machine runs max_examples times stateful_step_count
steps at most: more than 20,000 in ci (measured).
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "quick", max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "ci",
    max_examples=500,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=_SLOW,
)
settings.register_profile("nightly", settings.get_profile("ci"), max_examples=6000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
