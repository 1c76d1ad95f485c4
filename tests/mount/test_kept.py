# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The daemon that tests share: each has it as freshly mounted."""

from __future__ import annotations

import pytest

from tests.mount.daemon import Daemon
from tests.mount.fixtures import Kept

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def fresh(daemon: Daemon) -> None:
    daemon.assert_replays()
    assert (daemon.count(), daemon.read("violations")) == (1, b"0\n")
    assert daemon.read("policy") == b""


def test_nothing_of_one_test_reaches_the_next(kept: Kept) -> None:
    daemon = kept.take()
    daemon.generate(5)
    daemon.call("violation", name="/x")
    daemon.call("fault", operation="read", errno="EIO")
    daemon.call("suspend")
    assert daemon.write("policy", b"measure func=BPRM_CHECK\n") == "ok"
    kept.give_back(daemon)
    again = kept.take()
    assert again is daemon
    assert again.log() == ""
    fresh(again)
    kept.give_back(again)


def test_one_that_was_ended_is_replaced(kept: Kept) -> None:
    daemon = kept.take()
    daemon.kill()
    kept.give_back(daemon)
    again = kept.take()
    assert again is not daemon
    fresh(again)
    kept.give_back(again)


def test_its_log_is_looked_at_after_each_test(kept: Kept) -> None:
    """The test that caused a line fails, and no other one."""
    daemon = kept.take()
    daemon.logs.expect("a line that never comes")
    with pytest.raises(AssertionError, match="never comes"):
        kept.give_back(daemon)
    kept.give_back(kept.take())
