# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A TPM that is slow, and one that answers errors: nobody waits, nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from imafs.formats.algorithms import SHA256
from imafs.tpm.swtpm import SwtpmDevice
from tests.crash.faulty import FAILURE, HIERARCHY, FaultyTpm, faulty_tpm
from tests.mount.daemon import ASCII, BINARY, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.property.reference import replay
from tests.support import stopped, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


@pytest.fixture
def tpm(start: Starter) -> Iterator[FaultyTpm]:
    """Ends before the test's daemons do: their end must not need it."""
    with faulty_tpm(start.place().base) as tpm:
        yield tpm


def goes_on(daemon: Daemon) -> bytes:
    """Stages, reads, deletes. The staged list in the ASCII form of SHA-256."""
    return daemon.take(f"{ASCII}_sha256_staged")


def test_a_slow_tpm_holds_nobody(start: Starter, tpm: FaultyTpm) -> None:
    """Half a second for an extend: records wait for it, people do not."""
    daemon = start("--tpm", tpm.tcti)
    daemon.call("wait", extended=True)
    tpm.delay = 0.5
    # Half a minute of extends: however busy the machine is, somebody who waits is seen.
    daemon.call("generate", count=60)
    whole = goes_on(daemon)
    assert whole.count(b"\n") == 61
    assert daemon.group("records")["pending"] != 0
    measured = imafs("ctl", "--control", daemon.control, "measure", "/bin/sh", deadline=60)
    assert measured.returncode == 0
    tpm.delay = 0.0
    wait_for(lambda: daemon.group("records")["pending"] == 0, 60, "all is extended after all")
    whole += daemon.read(f"{ASCII}_sha256")
    assert daemon.pcr("sha256") == replay(whole, "sha256")
    failures = daemon.group("failures")
    assert failures == {
        "extend": 0,
        "last": None,
        "mismatch": None,
        "skipped": 0,
        "refused": 0,
    }
    assert daemon.stop() == 0


@pytest.mark.parametrize("code", [FAILURE, HIERARCHY], ids=hex)
def test_a_tpm_that_answers_errors(start: Starter, tpm: FaultyTpm, code: int) -> None:
    """As in a kernel: logged and counted, the records stay, and what comes later is extended."""
    daemon = start("--tpm", tpm.tcti)
    daemon.logs.expect(f"record 7: PCR 10 is not extended, the record stays: .*0x0*{code:x}")
    daemon.generate(5)
    before = tpm.extends
    tpm.code = code
    daemon.call("generate", count=20)
    wait_for(lambda: daemon.group("records")["pending"] == 0, 60, "none is waited for")
    failures = daemon.group("failures")
    assert re.search(f"0x0*{code:x}", str(failures["last"])), failures
    assert (failures["refused"], failures["extend"], failures["mismatch"]) == (20, 0, None)
    assert tpm.extends == before
    assert daemon.log().count("is not extended") == 1, "not a line per record"
    tpm.code = 0
    daemon.generate(3)
    whole = goes_on(daemon)
    assert whole.count(b"\n") == 29
    assert tpm.extends == before + 3
    lines = whole.splitlines(keepends=True)
    assert daemon.pcr("sha256") == replay(b"".join(lines[:6] + lines[26:]), "sha256")
    assert daemon.group("failures")["mismatch"] is None
    assert (
        "20 extends refused by the TPM"
        in imafs("ctl", "--control", daemon.control, "status").stdout
    )
    assert daemon.read(BINARY) == b""
    assert daemon.stop() == 0


def test_who_asks_a_tpm_that_hangs_holds_nobody(start: Starter) -> None:
    """Every status asks it, and a call into tpm2-tss cannot be woken."""
    device = SwtpmDevice(state_dir=None, banks=[SHA256])
    try:
        daemon = start("--tpm", str(device.tcti))
        daemon.call("wait", extended=True)
        with stopped(device.process.pid):
            for _ in range(48):
                answer = daemon.call("status")
                assert answer["pcrs"]
            assert daemon.group("failures")["last"] == "the TPM does not answer"
            measured = imafs("ctl", "--control", daemon.control, "measure", "/bin/sh", deadline=60)
            assert measured.returncode == 0
            goes_on(daemon)
        wait_for(lambda: daemon.group("records")["pending"] == 0, 60, "all is extended after all")
        daemon.logs.allow("extending failed")
        assert daemon.stop() == 0
    finally:
        device.close()
