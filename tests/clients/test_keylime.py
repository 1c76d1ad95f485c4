# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Keylime 6.6.0 attests an emulator as it would a machine, and sees what was trimmed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.deployment import Keylime
from tests.clients.environments import client
from tests.clients.network import Loopback
from tests.keeper.process import Keepers
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import require, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm, pytest.mark.long]

LIST = "ascii_runtime_measurements"
STAGED = f"{LIST}_staged"


@pytest.fixture
def keylime(start: Starter, tmp_path: Path) -> Iterator[Keylime]:
    """Verifier and registrar beside an emulator of 100 records, in a network of their own."""
    require("tpm2_quote", "unshare")
    if not Path("/sys/kernel/security").is_dir():
        pytest.skip("this kernel has no /sys/kernel/security to mount on")
    binaries = client("keylime-6.6.0")
    with Loopback() as network:
        daemon = start("--layout", "securityfs", prefix=network.prefix)
        daemon.generate(99)
        with Keylime(daemon, binaries, tmp_path, network.prefix) as deployment:
            yield deployment


def write(daemon: Daemon, name: str, *requests: bytes) -> None:
    """Another agent: opens ``name`` for writing and makes the requests."""
    descriptor = os.open(daemon.path(name), os.O_WRONLY)
    try:
        for request in requests:
            os.write(descriptor, request)
    finally:
        os.close(descriptor)


def test_incremental_attestation(keylime: Keylime) -> None:
    """The verifier asks for new records only, and every quote fits, over violations too."""
    keylime.start_agent()
    keylime.provision("add")
    status = keylime.attested(100)
    records = 100
    for added in (1, 7, 500):
        count = status["attestation_count"]
        keylime.daemon.call("violation", name=f"/violated/{added}")
        keylime.daemon.generate(added)
        records += 1 + added
        status = keylime.attested(records)
        assert status["attestation_count"] > count
    assert status["last_event_id"] is None
    asked = keylime.asked_from()
    assert asked == sorted(asked)


@pytest.mark.parametrize(
    ("name", "requests"),
    [
        pytest.param(LIST, [b"100\n"], id="N"),
        pytest.param(STAGED, [b"A\n", b"D\n"], id="A and D"),
        pytest.param(STAGED, [b"A\n"], id="A alone", marks=pytest.mark.nightly),
    ],
)
def test_another_agent_trims(keylime: Keylime, name: str, requests: list[bytes]) -> None:
    """It cannot while Keylime's agent holds the list; between two runs of the agent it can,
    and no quote fits any longer.
    """
    keylime.start_agent()
    keylime.provision("add")
    keylime.attested(100)
    with pytest.raises(OSError, match="busy") as refused:
        write(keylime.daemon, name, *requests)
    assert refused.value.errno == errno.EBUSY

    keylime.agent.stop()
    write(keylime.daemon, name, *requests)
    keylime.daemon.generate(5)
    keylime.start_agent()
    keylime.provision("update")
    status = keylime.refused()
    assert status["last_event_id"] == "ima.pcr_mismatch"
    assert status["attestation_count"] == 0
    keylime.verifier.wait_for("IMA measurement list does not match TPM PCR", 60)


@pytest.mark.nightly
def test_attestation_goes_on_while_a_keeper_empties_the_list(
    keylime: Keylime, keepers: Keepers
) -> None:
    """Keylime's agent holds the keeper's view for life. The kernel's list is emptied all the time:
    without the view that is EBUSY, or ``ima.pcr_mismatch``.
    """
    daemon = keylime.daemon
    keeper = keepers(daemon, records=5)
    keylime.start_agent(lists=keeper.view)
    keylime.provision("add")
    records = 100
    count = keylime.attested(records)["attestation_count"]
    for number in range(10):
        deleted = keeper.status()["batches_deleted"]
        daemon.call("violation", name=f"/violated/{number}")
        daemon.generate(30)
        records += 31
        status = keylime.attested(records)
        assert status["attestation_count"] > count
        count = status["attestation_count"]
        wait_for(lambda: daemon.group("records")["current"] == 0, 60, "the list is emptied")
        keeper.until("it is noted", lambda so: so["batches_deleted"] > deleted)  # noqa: B023
        assert status["last_event_id"] is None


def test_policy_from_the_list(keylime: Keylime, tmp_path: Path) -> None:
    """Today's keylime-policy makes the policy; the file that it does not know is found."""
    target = tmp_path / "program"
    target.write_text("#!/bin/sh\n")
    keylime.daemon.call("measure", paths=[str(target)])
    keylime_policy = client("readers") / "keylime-policy"
    run(
        [keylime_policy, "create", "runtime", "-m", keylime.daemon.path(LIST), "-o", keylime.policy]
    )
    keylime.start_agent()
    keylime.provision("add")
    keylime.attested(101)

    target.write_text("#!/bin/sh\nexec true\n")
    keylime.daemon.call("measure", paths=[str(target)])
    status = keylime.refused()
    assert status["last_event_id"] == "ima.validation.ima-ng.allowlist_hash"
    keylime.verifier.wait_for(re.escape(str(target)), 60)
