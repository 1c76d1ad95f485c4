# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``--oracle DIR``: ask a real kernel again and compare with what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.oracle import Oracle
from tests.mount.fixtures import start as start
from tests.support import require


@pytest.fixture(scope="session")
def oracle(request: pytest.FixtureRequest) -> Oracle:
    """The kernel to ask; skips when ``--oracle`` is not given."""
    directory = request.config.getoption("--oracle")
    if directory is None:
        pytest.skip("no --oracle DIR: the stored answers of the real kernel are not asked anew")
    require("gcc", "qemu-system-x86_64", "swtpm")
    asked = Oracle(Path(str(directory)).resolve())
    require(str(asked.directory / "ask-kernel"))
    return asked
