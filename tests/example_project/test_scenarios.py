# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Two agents on bad days: docs/scenarios.md says what a correct one must do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imafs.testing import Ima

if TYPE_CHECKING:
    from tests.example_project.conftest import Agent

EXCESS = "ok, but it claims more than is proven"
VALUE = "ok, but it claims another value"

#: scenario -> what the verifier makes of the agents' day, and of the quiet day after it.
DAYS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    # The day after, the burst is longer than the one read that the naive agent makes.
    "burst-while-reading": (("ok", "ok"), ("mismatch", "mismatch")),
    "busy-reader": (("ok", "ok"), ("dies of EBUSY", "dies of EBUSY")),
    "extend-fails": (("says 3", "says 3"), ("mismatch", "mismatch")),
    # What comes after the kexec is the next bundle's: the first quote is older.
    "kexec-before-stage": (("ok", "kexec"), ("dies of EACCES", "ok")),
    # The second time it has stored twice what D was refused for.
    "kexec-between-read-and-delete": (("ok", "kexec"), ("dies of ESTALE", "mismatch")),
    "kexec-between-stage-and-delete": (("ok", "kexec"), ("dies of ENOENT", "ok")),
    "other-agent-stages-first": (("ok", "ok"), ("dies of EEXIST", "dies of EEXIST")),
    "other-agent-trims-first": (("says 3", "says 3"), ("head", "head")),
    "quote-behind-list": (("ok", "ok"), (EXCESS, "ok")),
    "read-fails": (("ok", "ok"), ("dies of EIO", "dies of EEXIST")),
    # The new boot's first record is the old one's: boot_aggregate.
    "reboot": (("ok", "reboot"), (EXCESS, "mismatch")),
    "short-reads": (("ok", "ok"), ("mismatch", "mismatch")),
    "tpm-hangs": (("says 4", "ok"), ("hangs", "ok")),
    "violation-in-list": (("ok", "ok"), (VALUE, VALUE)),
}


def days(
    ima: Ima, agent: Agent, scenario: str, *, timeout: float = 60, to_its_end: bool = True
) -> tuple[str, str]:
    """A round on the bad day, and one on the day after it.

    ``to_its_end``: the agent lives to see every step of the scenario, not only the first.
    """
    ima.generate(20)
    bad = ima.scenario(scenario, must_happen=to_its_end)
    first = agent.round(timeout=timeout)
    ima.tpm_works()
    ima.generate(5, "/usr/bin/the-day-after-")
    second = agent.round()
    assert bad.steps()[0]["done"], "the bad day did not take place"
    return first, second


@pytest.mark.parametrize("scenario", DAYS)
def test_the_agent(ima: Ima, agent: Agent, scenario: str) -> None:
    expected, _ = DAYS[scenario]
    assert days(ima, agent, scenario) == expected
    if "says 3" in expected:
        return
    # Nothing lost and nothing twice: what is stored, and what is still in the kernel, leads
    # to the PCR.
    ima.wait()
    everything = agent.kept() + ima.read_list(staged=True) + ima.read_list()
    verdict = ima.verify(everything)
    assert verdict.matched == verdict.records > 0


@pytest.mark.parametrize("scenario", DAYS)
def test_the_naive_agent_fails_for_this_reason(ima: Ima, naive: Agent, scenario: str) -> None:
    _, expected = DAYS[scenario]
    timeout = 4 if expected[0] == "hangs" else 60
    assert days(ima, naive, scenario, timeout=timeout, to_its_end=False) == expected


def test_quiet_days(ima: Ima, agent: Agent, naive: Agent) -> None:
    """Both are fine as long as nothing happens: that is why nobody notices."""
    ima.generate(20)
    assert [agent.round(), agent.round()] == ["ok", "ok"]
    ima.reboot()
    ima.generate(20)
    assert naive.round() == "reboot"
