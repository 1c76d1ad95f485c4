# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The policy file of Linux 7.2.13, played on the emulator's mount.

322 rules (good, bad, and bad ones once more under a custom policy), 90 calls about
sessions, paths and positions, and a policy that wants signatures; one after the other, as
the kernel was asked. That kernel has neither LSMs, keyrings nor appraisal.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import differences, policy_oracle, recordings
from tests.conformance.playing import compare, play
from tests.mount.fixtures import Starter

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.swtpm]

RECORDED = recordings.load(policy_oracle.NAME)
#: The recorded kernel's configuration.
KERNEL = ("--policy-release", "7.2", "--policy-without", "lsm,modsig,keys,appraise")
FOLDER = "/policies"


@pytest.fixture
def folder() -> Iterator[str]:
    """A directory of policy files whose name is as long as that of the scripts."""
    parent = "/tmp/"
    name = Path(tempfile.mkdtemp(prefix="imafs-", dir=parent))
    short = Path(parent) / name.name[-(len(FOLDER) - len(parent)) :]
    short.mkdir()
    try:
        for file, content in policy_oracle.FILES.items():
            (short / file).write_bytes(content)
        yield str(short)
    finally:
        shutil.rmtree(short)
        name.rmdir()


def test_policy_file(start: Starter, folder: str) -> None:
    """Every write, errno and size, and the policy after every session."""
    emulator = start("--policy", "tcb", *KERNEL)
    complaints: list[str] = []
    for name, script in policy_oracle.scripts().items():
        answers = play(emulator, script.replace(FOLDER, folder)).replace(folder, FOLDER)
        known = differences.for_script(name)
        found = compare(RECORDED.text(f"{name}.out"), answers, known)
        complaints += [f"{name}: {complaint}" for complaint in found]
    assert not complaints, "\n".join(complaints)


def test_builtin(start: Starter) -> None:
    """What the words make is shown as the kernel showed it."""
    emulator = start("--policy", "tcb,critical_data,appraise_tcb,secure_boot", *KERNEL)
    assert emulator.read("policy") == RECORDED.files["builtin.policy"]
